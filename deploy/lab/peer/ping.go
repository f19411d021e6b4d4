package peer

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// PingConfig is a ping of the VIPs from many addresses.
type PingConfig struct {
	VIP     netip.Addr   `json:"vip"`
	VIP6    netip.Addr   `json:"vip6"`
	Clients []netip.Addr `json:"clients"` // configured in the namespace
	Sizes   []int        `json:"sizes"`   // bytes of payload, one ping each
}

// PingResult is one client's.
type PingResult struct {
	Client   netip.Addr `json:"client"`
	Sent     int        `json:"sent"`
	Answered int        `json:"answered"`
}

const pingAnswer = time.Second

// Ping runs it, all clients at once, and writes the results to out as JSON.
func Ping(ctx context.Context, cfg PingConfig, out io.Writer) error {
	results := make([]PingResult, len(cfg.Clients))
	errs := make([]error, len(cfg.Clients))
	var wg sync.WaitGroup
	for i, a := range cfg.Clients {
		wg.Go(func() { results[i], errs[i] = ping(ctx, cfg, a, uint16(i+1)) })
	}
	wg.Wait()
	for i, err := range errs {
		if err != nil {
			return fmt.Errorf("ping as %s: %w", cfg.Clients[i], err)
		}
	}
	return json.NewEncoder(out).Encode(results)
}

func ping(ctx context.Context, cfg PingConfig, from netip.Addr, id uint16) (r PingResult, err error) {
	c, err := listenICMP(from)
	if err != nil {
		return r, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	vip, request, answer := cfg.VIP, byte(icmpEcho), byte(icmpEchoReply)
	if from.Is6() {
		vip, request, answer = cfg.VIP6, icmp6Echo, icmp6EchoReply
	}
	r.Client = from
	for seq, size := range cfg.Sizes {
		b := append(make([]byte, icmpHeaderLen), random(size)...)
		b[0] = request
		binary.BigEndian.PutUint16(b[4:], id)
		binary.BigEndian.PutUint16(b[6:], uint16(seq))
		if from.Is4() {
			binary.BigEndian.PutUint16(b[2:], ^fold(onesSum(b, 0)))
		} // the kernel sums ICMPv6
		if _, err := c.WriteTo(b, &net.IPAddr{IP: vip.AsSlice()}); err != nil {
			return r, fmt.Errorf("send echo request: %w", err)
		}
		r.Sent++
		if awaitEcho(c, vip, answer, b) {
			r.Answered++
		}
	}
	return r, nil
}

// awaitEcho reads until the answer to b comes, from the VIP itself.
func awaitEcho(c net.PacketConn, vip netip.Addr, kind byte, b []byte) bool {
	c.SetReadDeadline(time.Now().Add(pingAnswer))
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return false
		}
		a, _ := netip.AddrFromSlice(from.(*net.IPAddr).IP)
		if a.Unmap() == vip && n == len(b) && buf[0] == kind && string(buf[4:n]) == string(b[4:]) {
			return true
		}
	}
}
