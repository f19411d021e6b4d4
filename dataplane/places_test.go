package dataplane

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vpnlb/vpnlb/dataplane/transparent"
)

// Whatever a prefix covers falls into a place that the prefix sets.
func TestPlacesCoverTheirPrefixes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 4000 {
		var b [16]byte
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		addr, bits := netip.AddrFrom16(b), 1+rng.IntN(128)
		switch rng.IntN(3) {
		case 0:
			addr, bits = netip.AddrFrom4([4]byte(b[:4])), 1+rng.IntN(32)
		case 1:
			b[0] = 0xfc | b[0]&1
			addr = netip.AddrFrom16(b)
		}
		prefix, err := addr.Prefix(bits)
		if err != nil {
			t.Fatal(err)
		}
		var p placeBits
		p.add(prefix)
		in := addr.AsSlice() // another address of the prefix
		for i := bits; i < len(in)*8; i++ {
			if rng.IntN(2) == 0 {
				in[i/8] ^= 0x80 >> (i % 8)
			}
		}
		other, _ := netip.AddrFromSlice(in)
		if !prefix.Contains(other) || !p.has(other) {
			t.Fatalf("%s is in %s, and has no place of its", other, prefix)
		}
	}
}

func TestPlacesLeaveOthersAlone(t *testing.T) {
	var p placeBits
	p.add(netip.MustParsePrefix("198.18.255.0/24"))
	p.add(netip.MustParsePrefix("2001:db8:ff::/48"))
	p.add(netip.MustParsePrefix("fd00::/8"))
	for _, a := range []string{"198.19.0.1", "203.0.113.7", "2001:db9::1"} {
		if p.has(netip.MustParseAddr(a)) {
			t.Errorf("%s must be looked at, for nothing", a)
		}
	}
}

// A route of its own for some clients ends their sharing within 300 ms, and its
// removal brings it back; a policy rule ends it for all.
func TestRoutesOfTheirOwnAreSeen(t *testing.T) {
	newLane(t)
	p := newPlane(t, newBPFFS(t), "outside", "inside")
	attachPlane(t, p)
	mustResync(t, p, laneSet(100), nil)
	runPlane(t, p)
	marked := func(a string) bool {
		var v placeBits
		if err := p.coll.Maps["routed_places"].Lookup(uint32(0), &v.PlanePlaces); err != nil {
			t.Fatal(err)
		}
		return v.has(netip.MustParseAddr(a))
	}
	if marked("198.18.7.7") || !marked("198.51.100.77") {
		t.Fatal("the first look was wrong")
	}
	outside, err := netlink.LinkByName("outside")
	if err != nil {
		t.Fatal(err)
	}
	route := &netlink.Route{LinkIndex: outside.Attrs().Index, Gw: net.ParseIP(laneClient),
		Dst: &net.IPNet{IP: net.IPv4(198, 18, 0, 0), Mask: net.CIDRMask(15, 32)}}
	if err := netlink.RouteAdd(route); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the route is seen", func() bool { return marked("198.18.7.7") && marked("198.19.7.7") })
	if err := netlink.RouteDel(route); err != nil {
		t.Fatal(err)
	}
	eventually(t, "its removal is seen", func() bool { return !marked("198.18.7.7") })
	replies := []transparent.Reply{{Interface: "inside", Server: netip.MustParseAddrPort("198.51.100.11:80")}}
	if changed, err := transparent.Mend(replies); err != nil || !changed {
		t.Fatalf("changed %t: %v", changed, err)
	}
	if err := netlink.RouteAdd(route); err != nil { // rules alone are not announced to us
		t.Fatal(err)
	}
	eventually(t, "the route is seen beside our own rule", func() bool { return marked("198.18.7.7") })
	if marked("192.88.99.1") {
		t.Error("a rule of ours ended the sharing")
	}
	if err := netlink.RouteDel(route); err != nil {
		t.Fatal(err)
	}
	rule := netlink.NewRule()
	rule.Family, rule.Table, rule.Src = netlink.FAMILY_V4, 77, &net.IPNet{IP: net.IPv4(192, 0, 2, 0), Mask: net.CIDRMask(24, 32)}
	if err := netlink.RuleAdd(rule); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(route); err != nil { // rules alone are not announced to us
		t.Fatal(err)
	}
	eventually(t, "the rule is seen", func() bool { return marked("192.88.99.1") })
}

// has reports whether an address falls into a place that is set.
func (p *placeBits) has(a netip.Addr) bool {
	var one placeBits
	one.add(netip.PrefixFrom(a, a.BitLen()))
	for i, w := range one.Word {
		if p.Word[i]&w != 0 {
			return true
		}
	}
	return false
}
