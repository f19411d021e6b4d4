package dataplane

import (
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/vpnlb/vpnlb/dataplane/forward"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// plainNode makes the test's namespace a node's.
func plainNode(t testing.TB) {
	newNamespace(t)
	for _, s := range []string{"all", "default"} {
		sysctl(t, "net/ipv4/conf/"+s+"/accept_local", "1")
		sysctl(t, "net/ipv4/conf/"+s+"/rp_filter", "0")
		sysctl(t, "net/ipv4/conf/"+s+"/send_redirects", "0")
	}
}

// newArm is a node with one arm: client (behind the router, which is its own host) and
// server are on one bridge with it. Nothing of ours is at the arm's peer, so that the
// kernel has to send what the program has rewritten.
func newArm(t testing.TB) *lane {
	plainNode(t)
	site, l := space(t), &lane{client: space(t), server: space(t)}
	join(t, end{name: "arm", addrs: []string{"198.51.100.1/24"}}, end{ns: site, name: "p0"})
	join(t, end{l.client, "router", []string{"198.51.100.254/24", laneClient + "/32"}}, end{ns: site, name: "p1"})
	join(t, end{l.server, "server", []string{laneServer + "/24"}}, end{ns: site, name: "p2"})
	inside(t, site, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "site"
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			t.Fatal(err)
		}
		for _, port := range []string{"p0", "p1", "p2"} {
			if err := netlink.LinkSetMaster(up(t, port), up(t, "site")); err != nil {
				t.Fatal(err)
			}
		}
	})
	defaultRoute(t, "arm", "198.51.100.254", 0)
	for ns, name := range map[*namespace]string{l.client: "router", l.server: "server"} {
		inside(t, ns, func() { defaultRoute(t, name, "198.51.100.1", 0) })
	}
	return l
}

// space makes a namespace.
func space(t testing.TB) *namespace {
	t.Helper()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	own, err := netns.New() // this thread is in it now
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	n, err := openNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	up(t, "lo")
	if err := netns.Set(home); err != nil {
		t.Fatal(err)
	}
	return n
}

// end is one end of a veth; a nil namespace is the test's own.
type end struct {
	ns    *namespace
	name  string
	addrs []string
}

// join lays a veth. Nothing is attached to its ends.
func join(t testing.TB, a, b end) {
	t.Helper()
	at := func(e end, f func()) {
		if e.ns == nil {
			f()
		} else {
			inside(t, e.ns, f)
		}
	}
	at(a, func() {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = a.name
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: b.name, PeerNamespace: netlink.NsFd(b.ns.handle)}); err != nil {
			t.Fatal(err)
		}
	})
	for _, e := range []end{a, b} {
		at(e, func() {
			l := up(t, e.name)
			for _, addr := range e.addrs {
				setAddr(t, l, addr)
			}
		})
	}
}

// With one arm a reply that the kernel has to send comes from outside as well, and
// carries the VIP: the forward policy must know it.
func TestOneArmedRepliesPassTheForwardPolicy(t *testing.T) {
	l := newArm(t)
	go echo(listen(t, l.server, laneServer+":4500"))
	ping := newPinger(t, l)
	p := newPlane(t, newBPFFS(t), "arm")
	attachPlane(t, p)
	set := laneSet(100)
	mustResync(t, p, set, nil)
	var keeper forward.Keeper
	if _, err := keeper.Mend(forward.Policy{Outside: []string{"arm"}, Inside: []string{"arm"},
		VIPs: []netip.Addr{set.VIPs[0].Addr}, Servers: []netip.Addr{set.Backends[0].Addr}}); err != nil {
		t.Fatal(err)
	}
	for n := range uint32(20) {
		ping.send(t, n)
		eventually(t, "answer", func() bool { got, _ := ping.got(); return got == int(n)+1 })
	}
	if _, from := ping.got(); from.Addr() != netip.MustParseAddr(laneVIP) {
		t.Errorf("answers come from %s", from)
	}
	c := allCounts(t, p)
	by := c.Reasons[table.PassCannotTransmit].Packets + c.Reasons[table.PassNoNeighbour].Packets
	if by < 40 || c.Reasons[table.ForwardReturn].Packets != 0 {
		t.Errorf("%d packets went by the kernel: %+v", by, c.Reasons)
	}
}
