package dataplane

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

func TestReplacedInterfaceIsFollowed(t *testing.T) {
	p, _ := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	runPlane(t, p)
	before := p.InterfaceIndex("leg")
	leg, err := netlink.LinkByName("leg")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkDel(leg); err != nil {
		t.Fatal(err)
	}
	eventually(t, "alarm", func() bool { return p.Status().Interfaces[0].Alarm != "" })
	newVeth(t, "leg", "legp", [6]byte{2, 0, 0, 0, 1, 7})
	eventually(t, "attached again", func() bool {
		s := p.Status().Interfaces[0]
		return s.Alarm == "" && s.ProgramID != 0 && s.MAC == "02:00:00:00:01:07" && s.Index != int(before)
	})
}

// Next hops in use are resolved without a packet; permanent ones stay permanent.
func TestNextHopsAreKeptResolved(t *testing.T) {
	newLane(t)
	inside, err := netlink.LinkByName("inside")
	if err != nil {
		t.Fatal(err)
	}
	const fixed = "198.51.100.77"
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: inside.Attrs().Index, IP: net.ParseIP(fixed),
		HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 7, 7}, State: netlink.NUD_PERMANENT}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(198, 18, 0, 0), Mask: net.CIDRMask(15, 32)},
		Gw: net.ParseIP(fixed)}); err != nil {
		t.Fatal(err)
	}
	p := newPlane(t, newBPFFS(t), "outside", "inside")
	attachPlane(t, p)
	mustResync(t, p, laneSet(100), []table.Entry{})
	runPlane(t, p)
	state := func(addr string) int {
		all, err := netlink.NeighList(inside.Attrs().Index, netlink.FAMILY_V4)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all {
			if n.IP.String() == addr {
				return n.State
			}
		}
		return 0
	}
	eventually(t, "server resolved", func() bool { return state(laneServer)&netlink.NUD_REACHABLE != 0 })
	if s := state(fixed); s != netlink.NUD_PERMANENT {
		t.Errorf("permanent neighbour is in state %#x", s)
	}
}

func TestClockIsMeasuredRight(t *testing.T) {
	needRoot(t)
	c, err := newClock()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	configured := c.hz
	if err := c.measure(); err != nil {
		t.Fatal(err)
	}
	if c.hz != configured {
		t.Errorf("measured HZ %d, configured %d", c.hz, configured)
	}
	for hz, want := range map[uint32]uint32{100: 7, 250: 8, 300: 9, 1000: 10, 1024: 10} {
		if got := tickShift(hz); got != want {
			t.Errorf("tick of HZ %d is 2^%d jiffies, want 2^%d", hz, got, want)
		}
	}
}
