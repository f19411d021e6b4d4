package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/ipv4"
)

// ScatterConfig is a look at which server new clients get: each sends
// IKE_SA_INITs from several source ports at once, so that a router spreads
// them over the nodes.
type ScatterConfig struct {
	VIP     netip.Addr   `json:"vip"`
	Sources netip.Prefix `json:"sources"` // IPv4; must be local in the namespace as a whole
	Clients int          `json:"clients"` // not more than Sources has
	Ports   int          `json:"ports"`   // packets of each client
	Rate    int          `json:"rate"`    // clients a second
}

// ScatterResult counts the answers.
type ScatterResult struct {
	Clients  int `json:"clients"`
	Answered int `json:"answered"` // clients with at least two answers
	Answers  int `json:"answers"`
	Split    int `json:"split"` // clients that were answered by more than one server
	Servers  int `json:"servers"`

	Began time.Time `json:"began"` // to send
	Ended time.Time `json:"ended"`
}

const scatterWait = time.Second // for the last answers

// scatter collects, by client, who answered.
type scatter struct {
	mu   sync.Mutex
	seen map[netip.Addr]map[uint16]int

	elsewhere foreign
}

// Scatter runs it and writes the result to out as JSON.
func Scatter(ctx context.Context, cfg ScatterConfig, out io.Writer) error {
	sc := &scatter{seen: map[netip.Addr]map[uint16]int{}}
	var conns []*ipv4.PacketConn
	var wg sync.WaitGroup
	defer wg.Wait()
	for range cfg.Ports {
		c, err := listenUDP(ctx, netip.AddrPortFrom(netip.IPv4Unspecified(), 0), socketBuffer)
		if err != nil {
			return err
		}
		defer c.Close()
		p := ipv4.NewPacketConn(c)
		if err := p.SetControlMessage(ipv4.FlagDst, true); err != nil {
			return fmt.Errorf("ask for destination addresses: %w", err)
		}
		conns = append(conns, p)
		wg.Go(func() { sc.read(p, netip.AddrPortFrom(cfg.VIP, 500)) })
	}
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(cfg.VIP, 500))
	client := cfg.Sources.Masked().Addr()
	start := time.Now()
	for n := range cfg.Clients {
		client = client.Next()
		if n%8 == 0 && !wait(ctx, max(0, time.Until(start.Add(time.Duration(n)*time.Second/time.Duration(max(cfg.Rate, 1)))))) {
			return ctx.Err()
		}
		for _, i := range rand.Perm(len(conns)) {
			m := saInit(randomSPI(), 0, flagInitiator)
			if _, err := conns[i].WriteTo(m, &ipv4.ControlMessage{Src: client.AsSlice()}, to); err != nil {
				return fmt.Errorf("send as %s: %w", client, err)
			}
		}
	}
	end := time.Now()
	wait(ctx, scatterWait)
	for _, c := range conns {
		c.Close()
	}
	if err := sc.elsewhere.err(); err != nil {
		return err
	}
	r := sc.result(cfg.Clients)
	r.Began, r.Ended = start, end
	return json.NewEncoder(out).Encode(r)
}

func (sc *scatter) read(p *ipv4.PacketConn, vip netip.AddrPort) {
	buf := make([]byte, 4096)
	for {
		n, cm, src, err := p.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if from, ok := src.(*net.UDPAddr); !ok || !sc.elsewhere.heard(from.AddrPort(), vip) {
			continue
		}
		h, ok := parseHeader(buf[:max(n, 0)])
		if err != nil || cm == nil || !ok || h.exchange != exchangeSAInit || h.spiR == 0 {
			continue
		}
		a, ok := netip.AddrFromSlice(cm.Dst)
		if !ok {
			continue
		}
		sc.mu.Lock()
		if sc.seen[a.Unmap()] == nil {
			sc.seen[a.Unmap()] = map[uint16]int{}
		}
		sc.seen[a.Unmap()][serverOfSPI(h.spiR)]++
		sc.mu.Unlock()
	}
}

func (sc *scatter) result(clients int) ScatterResult {
	sc.mu.Lock()
	defer sc.mu.Unlock()
	r := ScatterResult{Clients: clients}
	servers := map[uint16]bool{}
	for _, by := range sc.seen {
		sum := 0
		for server, n := range by {
			servers[server] = true
			sum += n
		}
		r.Answers += sum
		if sum > 1 {
			r.Answered++
		}
		if len(by) > 1 {
			r.Split++
		}
	}
	r.Servers = len(servers)
	return r
}

// spiOf draws a responder SPI that tells whose it is.
func spiOf(server uint16) uint64 { return randomSPI()&^0xffff | uint64(server) }

func serverOfSPI(spi uint64) uint16 { return uint16(spi) }
