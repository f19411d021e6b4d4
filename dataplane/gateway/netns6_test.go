package gateway

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	node6 = netip.MustParseAddr("2001:db8:1::1")
	peer6 = netip.MustParseAddr("2001:db8:1::2")
)

// openND opens a segment and reads it until the test ends.
func openND(t *testing.T, ns netns.NsHandle) *NDSegment {
	t.Helper()
	s := in(t, ns, func() (*NDSegment, error) { return OpenND("eth1") })
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
		s.Close()
	})
	until(t, "the interface has a link-local address", func() bool { _, err := s.linkLocal(); return err == nil })
	return s
}

func flagsOf(t *testing.T, ns netns.NsHandle, addr netip.Addr) int {
	t.Helper()
	return in(t, ns, func() (int, error) {
		list, err := netlink.AddrList(nil, unix.AF_INET6)
		for _, a := range list {
			if a.IP.Equal(addr.AsSlice()) {
				return a.Flags, err
			}
		}
		return 0, errors.Join(err, fmt.Errorf("%v is not there", addr))
	})
}

func sourceTo(t *testing.T, ns netns.NsHandle, addr netip.Addr) string {
	t.Helper()
	return in(t, ns, func() (string, error) {
		routes, err := netlink.RouteGet(addr.AsSlice())
		if err != nil {
			return "", err
		}
		return routes[0].Src.String(), nil
	})
}

func TestKernelAddresses6(t *testing.T) {
	a, b := lan(t)
	k := in(t, a, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
	defer k.Close()
	theirs := in(t, b, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
	defer theirs.Close()
	if err := theirs.Add(gw6, false); err != nil { // a second owner: no detection may stop the first
		t.Fatal(err)
	}
	for range 2 {
		for _, err := range []error{k.Add(gw6, false), k.Add(gw, false), k.Add(vip6, true)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	gateways, vips, err := k.Ours()
	slices.SortFunc(gateways, netip.Addr.Compare)
	if err != nil || !slices.Equal(gateways, []netip.Addr{gw, gw6}) || !slices.Equal(vips, []netip.Addr{vip6}) {
		t.Fatalf("ours: %v %v %v", gateways, vips, err)
	}
	inside, err := k.Inside()
	want := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
	slices.SortFunc(inside, netip.Prefix.Compare)
	if err != nil || !slices.Equal(inside, want) {
		t.Errorf("inside: %v %v", inside, err)
	}
	for _, addr := range []netip.Addr{gw6, vip6} {
		if flags := flagsOf(t, a, addr); flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 || flags&unix.IFA_F_DEPRECATED == 0 {
			t.Errorf("%v has flags %#x", addr, flags)
		}
	}
	if got := sourceTo(t, a, peer6); got != node6.String() {
		t.Errorf("the source is %v", got)
	}
	for range 2 {
		for _, err := range []error{k.Remove(gw6, false), k.Remove(gw, false), k.Remove(vip6, true)} {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if gateways, vips, err := k.Ours(); err != nil || len(gateways)+len(vips) != 0 {
		t.Errorf("left: %v %v %v", gateways, vips, err)
	}
}

// A link that goes down takes its IPv6 addresses along, and not its IPv4 ones:
// the Keeper must look again and again.
func TestLinkDownDropsIPv6(t *testing.T) {
	a, _ := lan(t)
	k := in(t, a, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
	defer k.Close()
	if err := errors.Join(k.Add(gw, false), k.Add(gw6, false)); err != nil {
		t.Fatal(err)
	}
	in(t, a, func() (any, error) {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return nil, err
		}
		return nil, errors.Join(netlink.LinkSetDown(link), netlink.LinkSetUp(link))
	})
	if gateways, _, err := k.Ours(); err != nil || !slices.Equal(gateways, []netip.Addr{gw}) {
		t.Errorf("after the link was down: %v %v", gateways, err)
	}
}

// "Deprecated" is weaker in IPv6 than one would think: an address of the right
// scope goes before one that is not deprecated (RFC 6724, section 5, rules 2 and
// 3). A node therefore needs a global address of its own.
func TestDeprecatedIsASourceOfLastResort(t *testing.T) {
	a, _ := lan(t)
	k := in(t, a, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
	defer k.Close()
	if err := k.Add(gw6, false); err != nil {
		t.Fatal(err)
	}
	in(t, a, func() (any, error) {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return nil, err
		}
		own := &net.IPNet{IP: node6.AsSlice(), Mask: net.CIDRMask(64, 128)}
		subnet := &net.IPNet{IP: netip.MustParseAddr("2001:db8:1::").AsSlice(), Mask: own.Mask}
		return nil, errors.Join(netlink.AddrDel(link, &netlink.Addr{IPNet: own}),
			netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: subnet}))
	})
	until(t, "the gateway address is the only one left to speak from", func() bool { return sourceTo(t, a, peer6) == gw6.String() })
}

// IPv6 has no arp_ignore. The kernel answers solicitations only for addresses of
// the interface that hears them (and for proxy entries): a VIP that is on lo, in
// the subnet of the segment, is not answered for, forwarding or not.
func TestVIPOnLoIsNotAnswered(t *testing.T) {
	a, b := lan(t)
	k := in(t, a, func() (*KernelAddresses, error) { return OpenAddresses("eth1") })
	defer k.Close()
	if err := k.Add(vip6, true); err != nil {
		t.Fatal(err)
	}
	s := openND(t, b)
	for _, forwarding := range []string{"0", "1"} {
		in(t, a, func() (any, error) {
			return nil, os.WriteFile("/proc/thread-self/root/proc/sys/net/ipv6/conf/all/forwarding", []byte(forwarding), 0)
		})
		// A later question that is answered shows that the ones before were heard.
		for _, addr := range []netip.Addr{vip6, vip6, vip6, node6} {
			if err := s.Ask(addr); err != nil {
				t.Fatal(err)
			}
		}
		if got := answer(t, s); got.Addr != node6 {
			t.Errorf("forwarding %s: somebody answers for %v", forwarding, got.Addr)
		}
	}
	// The same address on the interface is answered for, as a gateway's is.
	if err := k.Add(vip6, false); err != nil {
		t.Fatal(err)
	}
	// The kernel joins the group of a new address a moment later.
	until(t, "the interface answers", func() bool {
		if err := s.Ask(vip6); err != nil {
			t.Fatal(err)
		}
		select {
		case got := <-s.Answers():
			return got.Addr == vip6
		default:
			return false
		}
	})
}

// answer waits for one. Those for link-local addresses are between the kernels,
// which make sure of each other now and then.
func answer(t *testing.T, s *NDSegment) SegmentAnswer {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		select {
		case a := <-s.Answers():
			if !a.Addr.IsLinkLocalUnicast() {
				return a
			}
		case <-deadline.C:
			t.Fatal("no answer")
			return SegmentAnswer{}
		}
	}
}

// An unsolicited advertisement moves a neighbour entry that exists, and says
// that a router is there; another node's segment hears it.
func TestAdvertisementMovesTheEntry(t *testing.T) {
	a, b := lan(t)
	in(t, b, func() (any, error) {
		link, err := netlink.LinkByName("eth1")
		if err != nil {
			return nil, err
		}
		return nil, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: gw6.AsSlice(), State: netlink.NUD_STALE,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, 9}})
	})
	s, heard := openND(t, a), openND(t, b)
	if err := s.Announce(gw6); err != nil {
		t.Fatal(err)
	}
	want := net.HardwareAddr(s.mac[:]).String()
	until(t, "the entry moves", func() bool { return neighbour(t, b, gw6) == want })
	if got := answer(t, heard); got != (SegmentAnswer{Addr: gw6, MAC: s.mac}) {
		t.Errorf("heard %+v", got)
	}
	router := in(t, b, func() (bool, error) {
		list, err := netlink.NeighList(0, unix.AF_INET6)
		return slices.ContainsFunc(list, func(n netlink.Neigh) bool {
			return n.IP.Equal(gw6.AsSlice()) && n.Flags&netlink.NTF_ROUTER != 0
		}), err
	})
	if !router {
		t.Error("the server does not take the gateway for a router")
	}
}

// The kernel keeps everything but advertisements from the socket.
func TestOnlyAdvertisementsAreCopied(t *testing.T) {
	a, b := lan(t)
	s := openND(t, a)
	const datagrams = 100
	in(t, b, func() (any, error) {
		c, err := net.Dial("udp6", netip.AddrPortFrom(node6, 9).String())
		if err != nil {
			return nil, err
		}
		defer c.Close()
		for range datagrams {
			_, err = c.Write([]byte("traffic")) // refused now and then, by the answer to the one before
		}
		_ = err
		return nil, nil
	})
	if err := s.Ask(peer6); err != nil {
		t.Fatal(err)
	}
	answer(t, s)
	conn, err := s.file.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var stats *unix.TpacketStats
	if cerr := conn.Control(func(fd uintptr) {
		stats, err = unix.GetsockoptTpacketStats(int(fd), unix.SOL_PACKET, unix.PACKET_STATISTICS)
	}); err != nil || cerr != nil {
		t.Fatal(err, cerr)
	}
	if stats.Packets < 1 || stats.Packets > 5 {
		t.Errorf("%d frames were copied", stats.Packets)
	}
}

// An interface without IPv6 is no error, as long as nobody wants IPv6 of it.
func TestWithoutIPv6(t *testing.T) {
	a, _ := lan(t)
	in(t, a, func() (any, error) {
		return nil, os.WriteFile("/proc/thread-self/root/proc/sys/net/ipv6/conf/eth1/disable_ipv6", []byte("1"), 0)
	})
	l := in(t, a, func() (*LAN, error) { return OpenLAN("eth1") })
	defer l.Close()
	if err := l.Check(); err != nil {
		t.Error(err)
	}
	if err := l.Ask(gw); err != nil {
		t.Error(err)
	}
	if err := l.Ask(gw6); !errors.Is(err, errNoLinkLocal) {
		t.Errorf("ask without IPv6: %v", err)
	}
}
