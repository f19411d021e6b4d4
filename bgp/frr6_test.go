package bgp

import (
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const (
	frr6VIP   = "2001:db8:10::10"
	frr6Route = frr6VIP + "/128"
)

// The router that the documentation describes, with IPv6: over the sessions of
// IPv4 that exist, and over one of IPv6. It does not activate IPv6 for .14.
const frr6Config = `frr defaults datacenter
hostname router
router bgp 64999
 bgp router-id ` + frrAddr + `
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp bestpath as-path multipath-relax
 neighbor 198.51.100.11 remote-as 65011
 neighbor 198.51.100.11 timers 1 3
 neighbor 198.51.100.11 advertisement-interval 0
 neighbor 2001:db8:64::12 remote-as 65012
 neighbor 2001:db8:64::12 timers 1 3
 neighbor 2001:db8:64::12 advertisement-interval 0
 neighbor 198.51.100.13 remote-as 64999
 neighbor 198.51.100.13 timers 1 3
 neighbor 198.51.100.14 remote-as 65014
 neighbor 198.51.100.14 timers 1 3
 address-family ipv4 unicast
  neighbor 198.51.100.11 activate
  neighbor 198.51.100.13 activate
  neighbor 198.51.100.14 activate
  maximum-paths 8
 exit-address-family
 address-family ipv6 unicast
  network 2001:db8:99::/48
  neighbor 198.51.100.11 activate
  neighbor 2001:db8:64::12 activate
  neighbor 198.51.100.13 activate
  maximum-paths 8
 exit-address-family
`

func kernelRoute6() string {
	out, _ := exec.Command("ip", "-n", frrSpace, "-6", "route", "show", frr6VIP).CombinedOutput()
	return string(out)
}

// via6 tells whether exactly these next hops carry the VIP in the router's kernel.
func via6(want ...string) func() bool {
	return func() bool {
		got := kernelRoute6()
		for _, hop := range want {
			if !strings.Contains(got, "via "+hop+" ") {
				return false
			}
		}
		return strings.Count(got, "via ") == len(want)
	}
}

// path6 tells whether the router holds this path from the session.
func path6(route, session, hop, asPath, origin, community string, pref int) func() bool {
	return func() bool {
		got, ok := showBGP(route)[session]
		return ok && got.ASPath.String == asPath && got.Origin == origin && strings.EqualFold(got.Community.String, community) &&
			(pref < 0 || got.LocPrf != nil && *got.LocPrf == pref) &&
			slices.ContainsFunc(got.Nexthops, func(n struct{ IP string }) bool { return n.IP == hop })
	}
}

// TestWithFRR6: a /128 reaches the kernel of a real router with the node's IPv6
// address as next hop, over sessions of both families, and demotion, drain and
// withdrawal work as for IPv4.
func TestWithFRR6(t *testing.T) {
	needFRR(t)
	frrNetwork(t)
	ip(t, "-n "+frrSpace+" addr add 2001:db8:64::1/64 dev eth0 nodad")
	for _, a := range []string{"11", "12", "13", "14"} {
		ip(t, "-n "+nodeNS+" addr add 2001:db8:64::"+a+"/64 dev eth0 nodad")
	}
	startFRR(t, frr6Config)
	over4 := func(last string, asn uint32) *playedNode {
		addr := netip.MustParseAddr("198.51.100." + last)
		return startSpeaker(t, addr.String(), Config{ASN: asn, RouterID: addr, NextHop6: netip.MustParseAddr("2001:db8:64::" + last),
			Neighbours: []Neighbour{{Address: netip.MustParseAddr(frrAddr), ASN: 64999, LocalAddress: addr}}})
	}
	n1 := over4("11", 65011)
	n2 := startSpeaker(t, "2001:db8:64::12", Config{ASN: 65012, RouterID: netip.MustParseAddr("198.51.100.12"),
		Neighbours: []Neighbour{{Address: netip.MustParseAddr("2001:db8:64::1"), ASN: 64999, LocalAddress: netip.MustParseAddr("2001:db8:64::12")}}})
	n3 := over4("13", 64999) // iBGP
	n4 := over4("14", 65014)
	const hop1, hop2, hop3 = "2001:db8:64::11", "2001:db8:64::12", "2001:db8:64::13"
	const internal, internalRoute = "2001:db8:10::13", "2001:db8:10::13/128"
	defer func() {
		if t.Failed() {
			t.Logf("kernel %q, bgp %+v", kernelRoute6(), showBGP(frr6Route))
		}
	}()

	n1.advertise(t, frr6VIP+"=announce "+frrVIP+"=announce")
	n2.advertise(t, frr6VIP+"=announce "+frrVIP+"=announce")
	n3.advertise(t, internal+"=announce")
	n4.advertise(t, frr6VIP+"=announce "+frrVIPInternal+"=announce")
	awaitFRR(t, "both announce", via6(hop1, hop2))
	awaitFRR(t, "announced attributes over IPv4", path6(frr6Route, n1.addr, hop1, "65011", "IGP", "", -1))
	awaitFRR(t, "announced attributes over IPv6", path6(frr6Route, n2.addr, hop2, "65012", "IGP", "", -1))
	awaitFRR(t, "ibgp announce", path6(internalRoute, n3.addr, hop3, "Local", "IGP", "", 100))
	awaitFRR(t, "IPv4 beside it", via(n1)) // and not over the session of IPv6
	awaitFRR(t, "IPv4 where IPv6 is not activated", n4.path(frrVIPInternal, "65014", "IGP", "", -1))
	if _, ok := showBGP(frr6Route)[n4.addr]; ok {
		t.Error("a session that does not carry IPv6 carried it")
	}

	n1.advertise(t, frr6VIP+"=demote "+frrVIP+"=announce")
	n3.advertise(t, internal+"=demote")
	awaitFRR(t, "one demoted gets no traffic", via6(hop2))
	awaitFRR(t, "demoted attributes", path6(frr6Route, n1.addr, hop1, "65011 65011 65011 65011", "EGP", "", -1))
	awaitFRR(t, "ibgp demoted", path6(internalRoute, n3.addr, hop3, "Local", "EGP", "", 50))

	n2.advertise(t, frr6VIP+"=demote")
	awaitFRR(t, "all demoted share", via6(hop1, hop2))
	n2.advertise(t, frr6VIP+"=drain")
	n3.advertise(t, internal+"=drain")
	awaitFRR(t, "drained is worse than demoted", via6(hop1))
	awaitFRR(t, "drained attributes", path6(frr6Route, n2.addr, hop2, strings.TrimSpace(strings.Repeat("65012 ", 7)), "incomplete", "graceful-shutdown", -1))
	awaitFRR(t, "ibgp drained", path6(internalRoute, n3.addr, hop3, "Local", "incomplete", "graceful-shutdown", 0))

	n1.advertise(t, frr6VIP+"=announce "+frrVIP+"=announce")
	n2.advertise(t, frr6VIP+"=announce")
	awaitFRR(t, "both again", via6(hop1, hop2))
	n2.advertise(t, "")
	awaitFRR(t, "withdrawn", via6(hop1))
	n1.advertise(t, frrVIP+"=announce")
	awaitFRR(t, "withdrawn alone", via6())
	awaitFRR(t, "the other family stays", via(n1))
	n1.advertise(t, frr6VIP+"=announce "+frrVIP+"=announce")
	awaitFRR(t, "back", via6(hop1))
	if err := n1.in.Close(); err != nil {
		t.Fatal(err)
	}
	awaitFRR(t, "graceful stop", func() bool { return via6()() && via()() })
	if err := n1.cmd.Wait(); err != nil {
		t.Errorf("node: %v", err)
	}
}
