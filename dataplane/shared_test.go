package dataplane

import (
	"net/netip"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
)

// A next hop that is narrower than its exit (a path's MTU that the kernel learned for
// one client) is used for that packet and not kept for the others; and without a sign
// of the daemon nothing is shared.
func TestSharedHopsAreNobodysOwn(t *testing.T) {
	newLane(t)
	p := newPlane(t, newBPFFS(t), "outside", "inside")
	attachPlane(t, p)
	mustResync(t, p, laneSet(100), nil)
	if _, err := p.refreshInterfaces(); err != nil {
		t.Fatal(err)
	}
	cached := func() (n int) {
		m := p.coll.Maps["next_hop_by_vip"]
		for place := range m.MaxEntries() {
			var perCPU []bpf.PlaneNextHop
			if err := m.Lookup(place, &perCPU); err != nil {
				t.Fatal(err)
			}
			for _, h := range perCPU {
				if h.Expires != 0 {
					n++
				}
			}
		}
		return n
	}
	inside := p.InterfaceIndex("inside")
	frame := buildFrame(t, "eth s1 > outside | ip s1 > client | udp 4500 > 4500 | esp size=100")
	var in bpf.PlaneInterface
	if err := p.coll.Maps["interfaces"].Lookup(inside, &in); err != nil {
		t.Fatal(err)
	}
	copy(frame, in.Mac[:])
	send := func(to string) {
		a := netip.MustParseAddr(to).As4()
		copy(frame[30:], a[:])
		run(t, p.coll.Programs["vpnlb"], frame, inside)
	}
	permanentNeighbour(t, "outside", laneClient)
	defaultRoute(t, "outside", laneClient, 0)
	p.control.forgetNextHops()
	send("198.18.7.7")
	if cached() == 0 {
		t.Fatal("a plain hop is not shared")
	}
	defaultRoute(t, "outside", laneClient, 1300)
	p.control.forgetNextHops()
	before := cached()
	send("198.18.7.7")
	if now := cached(); now >= before {
		t.Errorf("%d shared hops, %d before: the narrow one is kept", now, before)
	}
	defaultRoute(t, "outside", laneClient, 0)
	now, err := p.clock.now()
	if err != nil {
		t.Fatal(err)
	}
	p.control.live(now - 31*p.clock.hz)
	p.control.forgetNextHops()
	before = cached()
	send("198.19.8.8")
	if after := cached(); after != before {
		t.Errorf("%d shared hops, %d before: shared although nobody watches the routes", after, before)
	}
}
