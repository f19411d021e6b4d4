package bgp

import (
	"context"
	"net/netip"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
)

// dials makes the router dial the node.
func (r *peerRouter) dials(node string, port int, password string) {
	r.t.Helper()
	if err := r.srv.AddPeer(context.Background(), &api.AddPeerRequest{Peer: &api.Peer{
		Conf:        &api.PeerConf{NeighborAddress: node, PeerAsn: nodeASN, AuthPassword: password},
		Timers:      &api.Timers{Config: &api.TimersConfig{HoldTime: 3, KeepaliveInterval: 1, ConnectRetry: 1}},
		Transport:   &api.Transport{LocalAddress: r.addr.String(), RemotePort: uint32(port)},
		TtlSecurity: &api.TtlSecurity{Enabled: true, TtlMin: 255},
	}}); err != nil {
		r.t.Fatal(err)
	}
}

// A router that dials finds the node's listener, with key and hop limit; a node
// that dials as well ends with one session (RFC 4271, section 6.8).
func TestRouterDials(t *testing.T) {
	severalSpeakers(t)
	for name, c := range map[string]struct {
		router, local string
		passive       bool
	}{
		"the router alone":                {"127.0.11.1", "127.0.11.11", true},
		"both, the router's ID is lower":  {"127.0.11.2", "127.0.11.12", false},
		"both, the router's ID is higher": {"127.0.11.200", "127.0.11.13", false},
	} {
		t.Run(name, func(t *testing.T) {
			r := newPeerRouter(t, c.router, routerASN)
			n := r.neighbour(routerASN)
			n.Passive, n.Password, n.TTLSecurity = c.passive, "s3cret", true
			cfg := nodeConfig(c.local, nodeASN, n)
			cfg.ListenPort, cfg.ListenAddresses = freePort(t, c.local), []netip.Addr{netip.MustParseAddr(c.local)}
			r.dials(c.local, cfg.ListenPort, "s3cret")
			s, _ := run(t, cfg)
			set(t, s, Advertisement{vip1, Announce})
			awaitRoute(t, r, "203.0.113.10/32", seenRoute{c.local, []uint32{nodeASN}, -1, 0, nil})
			if n := s.Neighbours()[0]; !n.Established || n.LocalAddr.String() != c.local {
				t.Errorf("status %+v", n)
			}
		})
	}
}
