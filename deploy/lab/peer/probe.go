package peer

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"sync"
	"time"
)

// ProbeConfig is a look at the MTU of the way: each client logs in and sends
// packets that are too big for it, one way or the other.
type ProbeConfig struct {
	VIP     netip.Addr   `json:"vip"`
	VIP6    netip.Addr   `json:"vip6"`
	Clients []netip.Addr `json:"clients"` // configured in the namespace
	Size    int          `json:"size"`    // bytes of a request
	Want    int          `json:"want"`    // bytes of its echo
	// Forged is how many ICMP errors about the server's packets to send besides,
	// as routers elsewhere on the way would: random ones of Routers.
	Forged    int            `json:"forged"`
	ForgedMTU int            `json:"forged_mtu"`
	Routers   []netip.Prefix `json:"routers"`
}

// ProbeResult is what one client met.
type ProbeResult struct {
	Client   netip.Addr `json:"client"`
	Server   uint16     `json:"server"`
	Tries    int        `json:"tries"` // until an echo came, the last included
	Answered bool       `json:"answered"`
	Forged   int        `json:"forged"`
	Errors   ErrorStats `json:"errors"` // ICMP that it heard about its own packets
}

const (
	probeTries  = 6
	probeAnswer = 400 * time.Millisecond
)

// Probe runs it, all clients at once, and writes the results to out as JSON.
func Probe(ctx context.Context, cfg ProbeConfig, out io.Writer) error {
	raw, err := newRawSender()
	if err != nil {
		return err
	}
	defer raw.close()
	results := make([]ProbeResult, len(cfg.Clients))
	errs := make([]error, len(cfg.Clients))
	var elsewhere foreign
	var wg sync.WaitGroup
	for i, a := range cfg.Clients {
		wg.Go(func() { results[i], errs[i] = probe(ctx, cfg, raw, a, &elsewhere) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("probe as %s: %w", cfg.Clients[i], err)
		}
	}
	if err := elsewhere.err(); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(results)
}

func probe(ctx context.Context, cfg ProbeConfig, raw *rawSender, from netip.Addr, f *foreign) (r ProbeResult, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	heard := newErrorLog([]netip.Addr{from})
	if err := heard.start(ctx, &wg); err != nil {
		return r, err
	}
	vip := cfg.VIP
	if from.Is6() {
		vip = cfg.VIP6
	}
	t, err := login(ctx, from, vip, Plain, f)
	if err != nil {
		return r, err
	}
	defer t.conn.Close()
	if err := honourPathMTU(t.conn, true); err != nil {
		return r, fmt.Errorf("honour the path's MTU: %w", err)
	}
	r.Client, r.Server = Key(from), t.server
	to := netip.AddrPortFrom(vip, 4500)
	for seq := range uint64(probeTries) {
		r.Tries++
		// What does not fit is an error here too once the kernel knows.
		t.conn.WriteToUDPAddrPort(data{spi: t.out, seq: seq, want: uint16(cfg.Want)}.encode(cfg.Size), to)
		r.Answered, err = t.await(t.conn, to, probeAnswer, func(b []byte) bool {
			d, ok := parseData(b)
			return ok && d.spi == t.in && len(b) >= cfg.Want
		})
		if r.Answered || err != nil {
			break
		}
	}
	if err != nil {
		return r, err
	}
	for range cfg.Forged {
		if err := forgeError(cfg, raw, t, from); err != nil {
			return r, err
		}
		r.Forged++
	}
	wait(ctx, probeAnswer)
	r.Errors = heard.stats()
	return r, nil
}

// forgeError says that a reply of the tunnel's server did not fit.
func forgeError(cfg ProbeConfig, raw *rawSender, t *tunnel, from netip.Addr) error {
	own := localOf(t.conn)
	reply := ipPacket(t.vip, from, protoUDP, piece{}, datagram(netip.AddrPortFrom(t.vip, 4500), own, data{spi: t.in}.encode(1400)))
	for _, p := range cfg.Routers {
		if p.Addr().Is4() != from.Is4() {
			continue
		}
		router := randomIn(p)
		proto, b := tooBig(router, t.vip, cfg.ForgedMTU, headerSum(reply)[:ip6HeaderLen+udpHeaderLen])
		return raw.send(t.vip, ipPacket(router, t.vip, proto, piece{}, b))
	}
	return fmt.Errorf("no router of the family of %s", from)
}
