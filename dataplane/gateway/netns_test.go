package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// patience bounds every wait on the kernel; longer than the announcements are apart.
const patience = 15 * time.Second

// in runs f in a namespace, on a thread that is thrown away afterwards.
func in[T any](t *testing.T, ns netns.NsHandle, f func() (T, error)) T {
	t.Helper()
	type result struct {
		v   T
		err error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		var r result
		if r.err = netns.Set(ns); r.err == nil {
			r.v, r.err = f()
		}
		done <- r
	}()
	r := <-done
	if r.err != nil {
		t.Fatal(r.err)
	}
	return r.v
}

// lan is two namespaces on one cable, each with an interface eth1.
func lan(t *testing.T) (a, b netns.NsHandle) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	a, b = newSpace(t, "a"), newSpace(t, "b")
	cable(t, a, b)
	return a, b
}

// cable lays it and numbers both ends.
func cable(t *testing.T, a, b netns.NsHandle) {
	t.Helper()
	in(t, a, func() (any, error) {
		veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "eth1", PeerNamespace: netlink.NsFd(b)}
		return nil, netlink.LinkAdd(veth)
	})
	for i, ns := range []netns.NsHandle{a, b} {
		in(t, ns, func() (any, error) {
			for _, name := range []string{"lo", "eth1"} {
				link, err := netlink.LinkByName(name)
				if err != nil {
					return nil, err
				}
				if err := netlink.LinkSetUp(link); err != nil {
					return nil, err
				}
			}
			link, err := netlink.LinkByName("eth1")
			if err != nil {
				return nil, err
			}
			return nil, number(link, i)
		})
	}
}

// number gives an end of the cable its addresses: node i is .1 or ::1 and so on.
func number(link netlink.Link, i int) error {
	four := &net.IPNet{IP: net.IPv4(198, 51, 100, byte(1+i)), Mask: net.CIDRMask(24, 32)}
	six := &net.IPNet{IP: net.ParseIP(fmt.Sprintf("2001:db8:1::%d", 1+i)), Mask: net.CIDRMask(64, 128)}
	return errors.Join(netlink.AddrAdd(link, &netlink.Addr{IPNet: four}),
		netlink.AddrAdd(link, &netlink.Addr{IPNet: six, Flags: unix.IFA_F_NODAD}))
}

func newSpace(t *testing.T, suffix string) netns.NsHandle {
	t.Helper()
	name := fmt.Sprintf("vpnlb-tgw-%d-%s", os.Getpid(), suffix)
	done := make(chan error)
	var ns netns.NsHandle
	go func() {
		runtime.LockOSThread()
		var err error
		ns, err = netns.NewNamed(name)
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ns.Close()
		if err := netns.DeleteNamed(name); err != nil {
			t.Errorf("remove namespace: %v", err)
		}
	})
	return ns
}

func until(t *testing.T, what string, f func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %v", what, patience)
		case <-tick.C:
		}
	}
}

// neighbour gives the MAC that a namespace has learned for addr.
func neighbour(t *testing.T, ns netns.NsHandle, addr netip.Addr) string {
	return in(t, ns, func() (string, error) {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return "", err
		}
		list, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_ALL)
		for _, n := range list {
			if n.IP.Equal(addr.AsSlice()) {
				return n.HardwareAddr.String(), err
			}
		}
		return "", err
	})
}

func TestKernelAddresses(t *testing.T) {
	ns, _ := lan(t)
	k := in(t, ns, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
	defer k.Close()
	for range 2 { // adding what is there is no error, nor is removing what is gone
		for _, err := range []error{k.Add(gw, false), k.Add(vip, true)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	gateways, vips, err := k.Ours()
	if err != nil || !slices.Equal(gateways, []netip.Addr{gw}) || !slices.Equal(vips, []netip.Addr{vip}) {
		t.Fatalf("ours: %v %v %v; the node's own address is not ours", gateways, vips, err)
	}
	// Never a source: a packet to the segment goes out from the node's own address.
	source := in(t, ns, func() (net.IP, error) {
		routes, err := netlink.RouteGet(net.IPv4(198, 51, 100, 2))
		if err != nil {
			return nil, err
		}
		return routes[0].Src, nil
	})
	if source.String() != "198.51.100.1" {
		t.Errorf("the source is %v", source)
	}
	for range 2 {
		for _, err := range []error{k.Remove(gw, false), k.Remove(vip, true)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if gateways, vips, err := k.Ours(); err != nil || len(gateways)+len(vips) != 0 {
		t.Errorf("left: %v %v %v", gateways, vips, err)
	}
}

// A gratuitous announcement moves a neighbour entry that exists.
func TestAnnouncementMovesTheEntry(t *testing.T) {
	a, b := lan(t)
	// b, a server, believes that the gateway is somewhere else.
	in(t, b, func() (any, error) {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return nil, err
		}
		return nil, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: gw.AsSlice(), State: netlink.NUD_STALE,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, 9}})
	})
	s := in(t, a, func() (*ARPSegment, error) { return OpenARP("eth1") })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	if err := s.Announce(gw); err != nil {
		t.Fatal(err)
	}
	want := net.HardwareAddr(s.mac[:]).String()
	until(t, "the entry moves", func() bool { return neighbour(t, b, gw) == want })

	// And a question is answered by who has the address, with its MAC.
	peer := netip.MustParseAddr("198.51.100.2")
	if err := s.Ask(peer); err != nil {
		t.Fatal(err)
	}
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	select {
	case got := <-s.Answers():
		if got.Addr != peer {
			t.Errorf("answer %+v", got)
		}
	case <-deadline.C:
		t.Error("no answer")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestParseARP(t *testing.T) {
	own, theirs := [6]byte{2, 1}, [6]byte{2, 2}
	peer := netip.MustParseAddr("198.51.100.2")
	unspecified := netip.IPv4Unspecified()
	for _, c := range []struct {
		name  string
		frame []byte
		ok    bool
	}{
		{"reply", arpFrame(arpReply, theirs, gw, own, peer), true},
		{"gratuitous request", arpFrame(arpRequest, theirs, gw, [6]byte{}, gw), true},
		{"request for something else", arpFrame(arpRequest, theirs, gw, [6]byte{}, peer), false},
		{"probe", arpFrame(arpRequest, theirs, unspecified, [6]byte{}, gw), false},
		{"own", arpFrame(arpReply, own, gw, broadcast, gw), false},
		{"short", arpFrame(arpReply, theirs, gw, own, peer)[:41], false},
		{"padded", append(arpFrame(arpReply, theirs, gw, own, peer), make([]byte, 18)...), true},
	} {
		got, ok := parseARP(c.frame, own)
		if ok != c.ok || ok && got != (SegmentAnswer{Addr: gw, MAC: theirs}) {
			t.Errorf("%s: %+v %v", c.name, got, ok)
		}
	}
}

// An interface that is made again, or gets another MAC, needs another socket:
// the segment says so, and a Keeper can be run again afterwards.
func TestSegmentNoticesItsInterface(t *testing.T) {
	ns, _ := lan(t)
	open := func() *ARPSegment {
		return in(t, ns, func() (*ARPSegment, error) { return OpenARP("eth1") })
	}
	link := func() netlink.Link {
		return in(t, ns, func() (netlink.Link, error) { return netlink.LinkByName("eth1") })
	}
	s := open()
	defer s.file.Close()
	if err := s.Check(); err != nil {
		t.Fatalf("fresh: %v", err)
	}
	l := link()
	in(t, ns, func() (any, error) {
		return nil, netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 9, 9, 9, 9, 9})
	})
	if err := s.Check(); err == nil {
		t.Error("another MAC was not noticed")
	}
	again := open()
	defer again.file.Close()
	if err := again.Check(); err != nil {
		t.Errorf("opened anew: %v", err)
	}
	in(t, ns, func() (any, error) { return nil, netlink.LinkDel(l) })
	in(t, ns, func() (any, error) {
		return nil, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "eth9"})
	})
	if err := again.Check(); err == nil {
		t.Error("an interface that was made again was not noticed")
	}
}

// Run opens anew each time: what ended once is of no more use.
func TestKeeperRunsAgain(t *testing.T) {
	ns, _ := lan(t)
	k, err := New(Config{Self: state.NewNodeID(), Inside: "eth1"}, Deps{Agreement: func() Agreement { return Agreement{} }})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		in(t, ns, func() (any, error) {
			ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
			defer cancel()
			if err := k.Run(ctx); err != nil {
				return nil, fmt.Errorf("run %d: %w", i+1, err)
			}
			return nil, nil
		})
		if e := k.Status().Err; e != "" {
			t.Errorf("run %d: %s", i+1, e)
		}
	}
}
