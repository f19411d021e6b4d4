package bgp

import (
	"context"
	"net/netip"
	"slices"
	"testing"

	api "github.com/osrg/gobgp/v3/api"
)

func TestFamilies(t *testing.T) {
	four, six := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")
	hop, own := netip.MustParseAddr("2001:db8::11"), netip.MustParseAddr("2001:db8:1::11")
	for _, c := range []struct {
		name string
		cfg  Config
		n    Neighbour
		want []string
		hop  netip.Addr
	}{
		{"IPv4 alone", Config{}, Neighbour{Address: four}, []string{"ipv4"}, netip.Addr{}},
		{"IPv4 with a next hop", Config{NextHop6: hop}, Neighbour{Address: four}, []string{"ipv4", "ipv6"}, hop},
		{"its own next hop", Config{NextHop6: hop}, Neighbour{Address: four, NextHop6: own}, []string{"ipv4", "ipv6"}, own},
		{"IPv6", Config{NextHop6: hop}, Neighbour{Address: six}, []string{"ipv6"}, netip.Addr{}},
	} {
		var got []string
		for _, f := range c.cfg.families(&c.n) {
			got = append(got, familyName(f))
		}
		if !slices.Equal(got, c.want) || c.cfg.nextHop6(&c.n) != c.hop {
			t.Errorf("%s: %v by %v", c.name, got, c.cfg.nextHop6(&c.n))
		}
	}
	if got := familyName(&api.Family{Afi: api.Family_AFI_L2VPN, Safi: api.Family_SAFI_EVPN}); got != "25/70" {
		t.Errorf("another family is called %q", got)
	}
}

// IPv6 from a router is rejected as IPv4 is, and status tells the families.
func TestIPv6OverIPv4(t *testing.T) {
	severalSpeakers(t)
	const local, hop = "127.0.1.41", "2001:db8::41"
	router := newPeerRouter(t, "127.0.1.40", routerASN)
	if err := router.srv.AddPeer(context.Background(), &api.AddPeerRequest{Peer: &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: local, PeerAsn: nodeASN},
		Timers:    &api.Timers{Config: &api.TimersConfig{HoldTime: 3, KeepaliveInterval: 1}},
		Transport: &api.Transport{PassiveMode: true},
		AfiSafis:  []*api.AfiSafi{{Config: &api.AfiSafiConfig{Family: family6, Enabled: true}}, {Config: &api.AfiSafiConfig{Family: family4, Enabled: true}}},
	}}); err != nil {
		t.Fatal(err)
	}
	path, err := pathOf(Advertisement{netip.MustParseAddr("2001:db8:99::7"), Announce})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := router.srv.AddPath(context.Background(), &api.AddPathRequest{Path: path}); err != nil {
		t.Fatal(err)
	}
	cfg := nodeConfig(local, nodeASN, router.neighbour(routerASN))
	cfg.NextHop6 = netip.MustParseAddr(hop)
	s, _ := run(t, cfg)
	six := netip.MustParseAddr("2001:db8::10")
	set(t, s, Advertisement{six, Demote}, Advertisement{vip1, Announce})
	routes6 := func() (got seenRoute, ok bool) {
		_ = router.srv.ListPath(context.Background(), &api.ListPathRequest{Family: family6}, func(d *api.Destination) {
			for _, p := range d.Paths {
				if d.Prefix == "2001:db8::10/128" && p.NeighborIp == local {
					got, ok = decode(p.Pattrs), true
					got.next = nextHopOf(p)
				}
			}
		})
		return got, ok
	}
	until(t, sessionBound, "the route", func() bool {
		got, ok := routes6()
		return ok && got.next == hop && slices.Equal(got.asPath, slices.Repeat([]uint32{nodeASN}, 4)) && got.origin == 1
	})
	awaitRoute(t, router, vip1.String()+"/32", seenRoute{local, []uint32{nodeASN}, -1, 0, nil})
	n := s.Neighbours()[0]
	if !slices.Equal(n.Families, []string{"ipv4", "ipv6"}) || n.Advertised != 2 {
		t.Errorf("status %+v", n)
	}
	until(t, sessionBound, "the router's own route to arrive", func() bool { return s.Neighbours()[0].Dropped >= 1 })
	_ = s.srv.ListPath(context.Background(), &api.ListPathRequest{Family: family6}, func(d *api.Destination) {
		if d.Prefix != "2001:db8::10/128" {
			t.Errorf("imported %s", d.Prefix)
		}
	})
	set(t, s, Advertisement{vip1, Announce})
	until(t, sessionBound, "withdrawal", func() bool { _, ok := routes6(); return !ok })
}

func nextHopOf(p *api.Path) string {
	for _, packed := range p.Pattrs {
		m, err := packed.UnmarshalNew()
		if err != nil {
			continue
		}
		if mp, ok := m.(*api.MpReachNLRIAttribute); ok && len(mp.NextHops) > 0 {
			return mp.NextHops[0]
		}
	}
	return decode(p.Pattrs).next
}

// A route that no session carries is told to nobody.
func TestCarried(t *testing.T) {
	v4, v6 := netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8:f::10")
	session := func(established bool, families ...string) NeighbourStatus {
		return NeighbourStatus{Established: established, Families: families}
	}
	for name, c := range map[string]struct {
		sessions []NeighbourStatus
		v4, v6   bool
	}{
		"no router":             {},
		"no session":            {sessions: []NeighbourStatus{session(false), session(false)}},
		"IPv4 alone negotiated": {sessions: []NeighbourStatus{session(true, "ipv4")}, v4: true},
		"IPv6 alone negotiated": {sessions: []NeighbourStatus{session(true, "ipv6")}, v6: true},
		"one of two":            {sessions: []NeighbourStatus{session(false), session(true, "ipv4", "ipv6")}, v4: true, v6: true},
		"families of the past":  {sessions: []NeighbourStatus{session(false, "ipv4")}},
	} {
		if got4, got6 := Carried(c.sessions, v4), Carried(c.sessions, v6); got4 != c.v4 || got6 != c.v6 {
			t.Errorf("%s: IPv4 %v, IPv6 %v", name, got4, got6)
		}
	}
}
