package gateway

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Two Keepers on one cable: the log's owner holds and announces, and when it moves
// the server's neighbour entry follows.
func TestKeepersHandOver(t *testing.T) {
	for _, c := range []struct {
		name  string
		gw    netip.Addr
		addrs [2]netip.Addr
	}{
		{"ipv4", gw, [2]netip.Addr{netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("198.51.100.2")}},
		{"ipv6", gw6, [2]netip.Addr{netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2")}},
	} {
		t.Run(c.name, func(t *testing.T) { handOver(t, c.gw, c.addrs) })
	}
}

func handOver(t *testing.T, gw netip.Addr, addrs [2]netip.Addr) {
	a, b := lan(t)
	macs := [2]string{macOf(t, a), macOf(t, b)}
	ids := [2]state.NodeID{self, other}
	owner := make(chan state.NodeID, 1) // holds the log's owner
	owner <- self
	now := func() state.NodeID { o := <-owner; owner <- o; return o }

	ctx, cancel := context.WithCancel(context.Background())
	var keepers [2]*Keeper
	var segments [2]*LAN
	var kernels [2]*KernelAddresses
	ended := make(chan error, 2)
	for i, ns := range []netns.NsHandle{a, b} {
		kernels[i] = in(t, ns, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
		segment := in(t, ns, func() (*LAN, error) { return OpenLAN("eth1") })
		k, err := New(Config{Self: ids[i], Inside: "eth1"}, Deps{Log: slog.New(slog.DiscardHandler), Addresses: kernels[i], Segment: segment,
			Agreement: func() Agreement {
				return Agreement{CaughtUp: true, LeaderHeard: time.Now(), Gateways: []state.Gateway{{ID: 1, Addr: gw, Owner: now()}},
					Peers: []Peer{{ID: ids[1-i], Addrs: addrs[1-i : 2-i], Live: true}}}
			}})
		if err != nil {
			t.Fatal(err)
		}
		keepers[i], segments[i] = k, segment
		go func() { ended <- k.Run(ctx) }()
	}
	holds := func(i int) bool {
		g, _, err := kernels[i].Ours()
		return err == nil && slices.Contains(g, gw)
	}
	until(t, "the owner takes the gateway", func() bool { return holds(0) && !holds(1) })

	// The other namespace plays a server, too: its kernel learns the gateway's MAC.
	in(t, b, func() (any, error) {
		c, err := net.Dial("udp", netip.AddrPortFrom(gw, 9).String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		_, err = c.Write([]byte("?"))
		return nil, err
	})
	until(t, "the server learns the gateway's MAC", func() bool { return neighbour(t, b, gw) == macs[0] })
	until(t, "the other node sees a member answer", func() bool {
		g := keepers[1].Status().Facts.Gateways
		return len(g) == 1 && g[0].Holder == HolderMember
	})
	<-owner
	owner <- other
	keepers[1].Kick()
	until(t, "the gateway moves", func() bool { return !holds(0) && holds(1) })

	cancel()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if !holds(1) {
		t.Error("a stopped keeper took the gateway away")
	}
	for i := range kernels {
		kernels[i].Close()
		segments[i].Close()
	}
}

// An inside interface that is deleted and made anew: whoever runs the Keeper
// runs it again, and then the addresses are back, the segment hears of it, and
// answers on it are heard.
func TestInterfaceMadeAnew(t *testing.T) {
	a, b := lan(t)
	theirs := netip.MustParseAddr("198.51.100.253") // a gateway of the other node
	k, err := New(Config{Self: self, Inside: "eth1"}, Deps{Log: slog.New(slog.DiscardHandler), Agreement: func() Agreement {
		return Agreement{CaughtUp: true, LeaderHeard: time.Now(), Gateways: []state.Gateway{
			{ID: 1, Addr: gw, Owner: self}, {ID: 2, Addr: gw6, Owner: self}, {ID: 3, Addr: theirs, Owner: other}},
			Peers: []Peer{{ID: other, Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.2")}, Live: true}}}
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan int)
	go func() {
		runs := 0
		for ; ctx.Err() == nil; runs++ {
			in(t, a, func() (any, error) { return nil, ignore(k.Run(ctx)) })
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
		ended <- runs
	}()
	kernel := in(t, a, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
	defer kernel.Close()
	works := func(when string) {
		t.Helper()
		until(t, when+": the node has its gateways", func() bool {
			g, _, err := kernel.Ours()
			return err == nil && slices.Contains(g, gw) && slices.Contains(g, gw6)
		})
		until(t, when+": nobody has the other's", func() bool { return holderOf(k, theirs) == HolderNobody })
		// The server believes that both are somewhere else.
		in(t, b, func() (any, error) {
			link, err := netlink.LinkByName("eth1")
			if err != nil {
				return nil, err
			}
			for _, addr := range []netip.Addr{gw, gw6} {
				if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: addr.AsSlice(), State: netlink.NUD_STALE,
					HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, 9}}); err != nil {
					return nil, err
				}
			}
			return nil, netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: theirs.AsSlice(), Mask: net.CIDRMask(32, 32)}})
		})
		until(t, when+": the other answers", func() bool { return holderOf(k, theirs) == HolderMember })
		mac := macOf(t, a)
		for _, addr := range []netip.Addr{gw, gw6} {
			until(t, when+": the server hears the announcement", func() bool { return neighbour(t, b, addr) == mac })
		}
	}
	works("at first")
	in(t, a, func() (any, error) {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return nil, err
		}
		return nil, netlink.LinkDel(link)
	})
	cable(t, a, b)
	works("made anew")
	cancel()
	if runs := <-ended; runs < 2 {
		t.Errorf("the keeper ran %d times: it did not notice", runs)
	}
}

// ignore: the caller runs again whatever the error is.
func ignore(error) error { return nil }

func holderOf(k *Keeper, addr netip.Addr) Holder {
	for _, g := range k.Status().Facts.Gateways {
		if g.Addr == addr {
			return g.Holder
		}
	}
	return HolderUnknown
}

func macOf(t *testing.T, ns netns.NsHandle) string {
	return in(t, ns, func() (string, error) {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return "", err
		}
		return link.Attrs().HardwareAddr.String(), nil
	})
}
