package router

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var (
	router6 = netip.MustParseAddr("2001:db8:0:2::1")
	first6  = netip.MustParseAddr("2001:db8:0:2::b")
	second6 = netip.MustParseAddr("2001:db8:0:2::c")
	vip6    = netip.MustParseAddr("2001:db8:0:ff::10")
)

func testConfig6() Config {
	return Config{
		RouterID: netip.MustParseAddr(routerAddr), Listen: []netip.Addr{netip.MustParseAddr(routerAddr), router6},
		Nodes: []Node{{Address: first6, ASN: 65011, Password: password}, {Address: second6, ASN: 65012, Password: password}},
		VIPs:  []netip.Addr{vip6},
	}
}

// TestRouterLearnsIPv6 runs IPv6 sessions: the next hops of a /128 are the
// nodes' global addresses, used together, and a floating route is below them.
func TestRouterLearnsIPv6(t *testing.T) {
	needRoot(t)
	namespaces(t)
	for ns, addrs := range map[string][]netip.Addr{routerNS: {router6}, nodesNS: {first6, second6}} {
		for _, a := range addrs {
			ip(t, "-n "+ns+" addr add "+a.String()+"/64 dev eth0 nodad")
		}
	}
	r := play(t, routerNS, "router6", "")
	routes := func() string { return ip(t, "-n "+routerNS+" -6 route show "+vip6.String()) }
	await := func(what string, want ...netip.Addr) {
		t.Helper()
		until(t, what, func() any { return fmt.Sprint(r.seen(), routes()) }, func() bool {
			for _, e := range slices.Backward(r.seen()) {
				if e.Kind == KindRoute {
					return e.VIP == vip6 && slices.Equal(e.NextHops, want)
				}
			}
			return false
		})
	}
	until(t, "ready", func() any { return r.seen() }, func() bool {
		return slices.ContainsFunc(r.seen(), func(e Event) bool { return e.Kind == KindReady })
	})
	n1, n2 := play(t, nodesNS, "node", first6.String()), play(t, nodesNS, "node", second6.String())
	n1.say(t, "announce")
	n2.say(t, "announce")
	await("both announce", first6, second6)
	got := routes()
	for _, want := range []string{"proto bgp metric 20", "via " + first6.String(), "via " + second6.String(), "metric 250"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	n1.say(t, "demote")
	await("one demoted", second6)
	n1.say(t, "announce")
	await("both again", first6, second6)
	n2.kill()
	await("one killed", first6)
	n1.say(t, "withdraw")
	await("last withdrawn")
	if got := routes(); !strings.Contains(got, "metric 250") || strings.Contains(got, "proto bgp") {
		t.Errorf("floating route only expected:\n%s", got)
	}
	for _, e := range r.seen() {
		if e.Kind == KindError {
			t.Errorf("error event: %s", e.Error)
		}
	}
}
