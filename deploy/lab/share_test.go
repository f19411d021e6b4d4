package lab

import (
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

func TestShareBound(t *testing.T) {
	one := func(n int) []int { return slices.Repeat([]int{1}, n) }
	for _, c := range []struct {
		flows []int
		nodes int
		least int // more than what is likely
		most  int // less than what an event for all would cost
	}{
		{one(120), 3, 60, 70},
		{one(80), 3, 43, 50},
		{slices.Repeat([]int{2}, 9), 3, 9, 12}, // too few to tell
		{slices.Repeat([]int{2}, 90), 3, 70, 75},
		{nil, 3, 0, 0},
	} {
		if got := shareBound(c.flows, c.nodes); got < c.least || got > c.most {
			t.Errorf("%d clients, %d nodes: at most %d, want %d to %d", len(c.flows), c.nodes, got, c.least, c.most)
		}
	}
}

// A node's death costs its share. What hits everybody, or for too long, must not pass.
func TestShareOnly(t *testing.T) {
	start := time.Unix(1000, 0)
	const clients = 120
	o := Options{Nodes: 3, Servers: 3}
	owned := []netip.Addr{gatewayAddr(1)} // of server 1
	for _, c := range []struct {
		name  string
		loses func(i, server int) time.Duration // 0: nothing
		dsr   bool
		fails int
	}{
		{name: "nobody", loses: func(int, int) time.Duration { return 0 }},
		{name: "its share", loses: func(i, server int) time.Duration {
			switch {
			case i%9 < 3:
				return 3 * time.Second
			case server == 1:
				return time.Second
			}
			return 0
		}},
		{name: "everybody for a second", loses: func(int, int) time.Duration { return time.Second }, fails: 1},
		{name: "everybody for three", loses: func(int, int) time.Duration { return 3 * time.Second }, fails: 2},
		{name: "all of its gateway for three", loses: func(i, server int) time.Duration {
			if server == 1 || i%9 < 6 {
				return 3 * time.Second
			}
			return 0
		}, fails: 1},
		{name: "with DSR there are no gateways", dsr: true, loses: func(_, server int) time.Duration {
			if server < 3 {
				return time.Second
			}
			return 0
		}, fails: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, after := snapshot{At: start, Clients: map[netip.Addr]clientView{}}, snapshot{Clients: map[netip.Addr]clientView{}}
			for i := range clients {
				server := 1 + i/3%3
				before.Clients[clientAddr(i)] = clientView{Server: server}
				v := clientView{Server: server}
				if span := c.loses(i, server); span > 0 {
					v.Lost, v.Windows = 2, []window{{From: start.Add(1), To: start.Add(1), Lost: 1}, {From: start.Add(1 + span), To: start.Add(1 + span), Lost: 1}}
				}
				after.Clients[clientAddr(i)] = v
			}
			o.DSR = c.dsr
			members := map[string]bool{nodeName(1): true, nodeName(2): true, nodeName(3): true}
			d := &drill{l: &Lab{st: labState{Options: o, Members: members}, out: io.Discard}, before: before}
			d.shareOnly(after, before.compare(after, nil), owned)
			failed := slices.DeleteFunc(d.res.Details, func(s string) bool { return !strings.HasPrefix(s, "FAILED") })
			if len(failed) != c.fails {
				t.Errorf("want %d faults, found %q", c.fails, failed)
			}
		})
	}
}

func TestStandInWatchSeesASilentGateway(t *testing.T) {
	l := standInLab(t, Options{Name: "twatch", Nodes: 2, Servers: 1, IPv6: true})
	d := &drill{l: l}
	if err := d.startWatch(t.Context()); err != nil {
		t.Fatal(err)
	}
	gone := []netip.Addr{gatewayAddr(2), gatewayAddr6(2)}
	err := l.inside(nodeName(2), func() error {
		link, err := netlink.LinkByName(insideName)
		if err != nil {
			return err
		}
		for _, a := range gone {
			if err := netlink.AddrDel(link, &netlink.Addr{IPNet: host(a)}); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	pause(t, gatewayLimit+1500*time.Millisecond)
	if err := d.endWatch(t.Context(), gone[:1]); err != nil {
		t.Fatal(err)
	}
	// One that may be silent, but not for that long, and one that may not at all.
	if n := len(d.res.Details); n != 2 || !strings.Contains(d.res.Details[0], "more than 2s") || !strings.Contains(d.res.Details[1], "no part") {
		t.Errorf("%q", d.res.Details)
	}
}
