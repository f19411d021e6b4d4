package transparent

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// One address of each kind for each family. The node has a way to the client, by
// which it would forward what it does not take for its own.
type addresses struct {
	network, node, server, client, router string
	bits                                  int
}

var plans = map[string]addresses{
	"IPv4": {"tcp4", "198.51.100.1", "198.51.100.101", "192.0.2.7", "203.0.113.254", 24},
	"IPv6": {"tcp6", "2001:db8:0:3::1", "2001:db8:0:3::101", "2001:db8:c::7", "2001:db8:0:2::fe", 64},
}

// site is a node with eth1 (inside) and eth0 (outside, where nobody listens), and
// a server whose default gateway is the node.
type site struct {
	t            *testing.T
	node, server netns.NsHandle
}

func newSite(t *testing.T) *site {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	s := &site{t: t}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		var errs [2]error
		s.node, errs[0] = netns.New()
		s.server, errs[1] = netns.New()
		made <- errors.Join(errs[:]...)
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.node.Close(); s.server.Close() })
	s.in(s.node, func() error {
		for _, key := range []string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/"+key, []byte("1"), 0); err != nil {
				return err
			}
		}
		err := errors.Join(
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(s.server)}),
			netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "wire0"}))
		if err != nil {
			return err
		}
		if err := errors.Join(configure("lo"), configure("wire0")); err != nil {
			return err
		}
		for _, p := range plans {
			bits := p.bits
			if err := errors.Join(configure("eth1", prefix(p.node, bits)), configure("eth0", prefix(p.router, bits)), routeTo(p.client, p.bits, "eth0", "")); err != nil {
				return err
			}
		}
		return nil
	})
	s.in(s.server, func() error {
		var errs []error
		for _, p := range plans {
			errs = append(errs, configure("eth0", prefix(p.server, p.bits)), routeTo(p.client, 0, "eth0", p.node))
		}
		return errors.Join(errs...)
	})
	return s
}

func prefix(addr string, bits int) netip.Prefix {
	return netip.PrefixFrom(netip.MustParseAddr(addr), bits)
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func configure(name string, addrs ...netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		n := &net.IPNet{IP: a.Addr().AsSlice(), Mask: net.CIDRMask(a.Bits(), a.Addr().BitLen())}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: n, Flags: unix.IFA_F_NODAD}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// routeTo adds a route to the network of an address, of so many bits.
func routeTo(addr string, bits int, name, via string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: ipNet(prefix(addr, bits))}
	if via != "" {
		r.Gw = netip.MustParseAddr(via).AsSlice()
	}
	return netlink.RouteAdd(r)
}

// in runs f on a thread in ns.
func (s *site) in(ns netns.NsHandle, f func() error) {
	s.t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := netns.Set(ns)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) mend(wanted ...Reply) (changed bool) {
	s.t.Helper()
	s.in(s.node, func() (err error) {
		changed, err = Mend(wanted)
		return err
	})
	return changed
}

// listen starts a server that says who it thinks is connected, and then what it
// is told.
func (s *site) listen(p addresses, port string) Reply {
	s.t.Helper()
	var l net.Listener
	s.in(s.server, func() (err error) {
		l, err = net.Listen(p.network, net.JoinHostPort(p.server, port))
		return err
	})
	s.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.WriteString(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().String()+"\n")
				io.Copy(c, c)
			}()
		}
	}()
	return Reply{Interface: "eth1", Server: netip.MustParseAddrPort(l.Addr().String())}
}

// dial connects from the client's address, which is not the node's.
func (s *site) dial(p addresses, to netip.AddrPort, bound time.Duration) (c net.Conn, err error) {
	ctx, cancel := context.WithTimeout(s.t.Context(), bound)
	defer cancel()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(p.client)}, Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		if cerr := raw.Control(func(fd uintptr) {
			if p.bits == 24 {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
			} else {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
			}
		}); cerr != nil {
			return cerr
		}
		return err
	}}
	s.in(s.node, func() error {
		c, err = d.DialContext(ctx, p.network, to.String()) // the socket is made on this thread
		return nil
	})
	return c, err
}

const (
	silence = 700 * time.Millisecond // a connection is made within some milliseconds
	enough  = 5 * time.Second
)

func (s *site) mustFail(p addresses, to netip.AddrPort) {
	s.t.Helper()
	c, err := s.dial(p, to, silence)
	if err == nil {
		c.Close()
		s.t.Fatalf("connected to %s from %s without a rule for its replies", to, p.client)
	}
	if !errors.Is(err, context.DeadlineExceeded) && !os.IsTimeout(err) {
		s.t.Fatalf("want silence, got %v", err) // anything else would be a fault of the test's site
	}
}

func (s *site) mustWork(p addresses, to netip.AddrPort) {
	s.t.Helper()
	c, err := s.dial(p, to, enough)
	if err != nil {
		s.t.Fatal(err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(enough)); err != nil {
		s.t.Fatal(err)
	}
	want := p.client + "\n" + strings.Repeat("x", 100_000)
	go func() { io.WriteString(c, want[len(p.client)+1:]) }()
	got := make([]byte, len(want))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != want {
		s.t.Fatalf("the server sees %.40q, want %s: %v", got, p.client, err)
	}
}

// What a server answers to a client's address reaches the node's own socket with
// the rule, and not without it.
func TestRepliesReachTheNode(t *testing.T) {
	s := newSite(t)
	for name, p := range plans {
		t.Run(name, func(t *testing.T) {
			s := &site{t: t, node: s.node, server: s.server}
			at80, at443 := s.listen(p, "80"), s.listen(p, "443")
			s.mustFail(p, at80.Server)
			if !s.mend(at80) {
				t.Error("nothing was changed")
			}
			s.mustWork(p, at80.Server)
			s.mustFail(p, at443.Server) // another port of the same server is not ours
			if !s.mend(at443) {
				t.Error("another port changed nothing")
			}
			s.mustWork(p, at443.Server)
			s.mustFail(p, at80.Server)
			s.in(s.node, Remove)
			s.mustFail(p, at443.Server)
		})
	}
}

// snapshot lists rules and routes of the node as text.
func (s *site) snapshot() (rules, own []netlink.Rule, routes int) {
	s.t.Helper()
	s.in(s.node, func() error {
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			all, err := netlink.RuleList(family)
			if err != nil {
				return err
			}
			for _, r := range all {
				rules = append(rules, r)
				if Ours(r) {
					own = append(own, r)
				}
			}
			list, err := netlink.RouteListFiltered(family, &netlink.Route{Table: Table}, netlink.RT_FILTER_TABLE)
			if err != nil {
				return err
			}
			routes += len(list)
		}
		return nil
	})
	return rules, own, routes
}

func (s *site) expect(when string, rules, own, routes int) {
	s.t.Helper()
	r, o, n := s.snapshot()
	if len(r) != rules || len(o) != own || n != routes {
		s.t.Errorf("%s: %d rules, %d of ours, %d routes in the table; want %d, %d, %d", when, len(r), len(o), n, rules, own, routes)
	}
}

// Mend looks at what is there and not at what it did: it makes what is missing,
// removes what is not wanted any more, and leaves others' rules alone.
func TestMendIsLevelTriggered(t *testing.T) {
	s := newSite(t)
	first, _, _ := s.snapshot()
	base := len(first)
	four := Reply{"eth1", netip.MustParseAddrPort("198.51.100.101:80")}
	other := Reply{"eth1", netip.MustParseAddrPort("198.51.100.102:80")}
	six := Reply{"eth1", netip.MustParseAddrPort("[2001:db8:0:3::101]:80")}
	mapped := Reply{"eth1", netip.MustParseAddrPort("[::ffff:198.51.100.101]:80")}

	if s.mend() {
		t.Error("something was changed for nobody")
	}
	if !s.mend(four, mapped, six, four) {
		t.Error("nothing was changed")
	}
	s.expect("both families", base+2, 2, 2)
	if s.mend(six, four) {
		t.Error("a second Mend changed something")
	}
	_, own, _ := s.snapshot()
	s.in(s.node, func() error { return netlink.RuleDel(&own[0]) }) // somebody flushes rules
	if !s.mend(four, six) {
		t.Error("a rule that is gone was not noticed")
	}
	s.in(s.node, func() error { // and the route
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.RouteDel(&netlink.Route{Table: Table, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, LinkIndex: lo.Attrs().Index, Dst: ipNet(prefix("0.0.0.0", 0))})
	})
	if !s.mend(four, six) {
		t.Error("a route that is gone was not noticed")
	}
	s.expect("mended", base+2, 2, 2)

	// A stranger's rules: the same words with another protocol, or another table.
	strangers := []*netlink.Rule{rule(unix.AF_INET, other), rule(unix.AF_INET, four)}
	strangers[0].Protocol, strangers[1].Table = unix.RTPROT_STATIC, unix.RT_TABLE_MAIN
	wider := rule(unix.AF_INET, four) // with our mark, and not what we want
	wider.Src = ipNet(prefix("198.51.100.0", 24))
	s.in(s.node, func() error {
		return errors.Join(netlink.RuleAdd(strangers[0]), netlink.RuleAdd(strangers[1]), netlink.RuleAdd(wider),
			routeIn("203.0.113.0", 24))
	})
	if !s.mend(other) {
		t.Error("nothing was changed")
	}
	s.expect("beside strangers", base+3, 1, 2)
	s.in(s.node, Remove)
	s.expect("removed", base+2, 0, 1)
	if s.mend() {
		t.Error("a Mend after Remove changed something")
	}
}

// routeIn puts a stranger's route into the table.
func routeIn(addr string, bits int) error {
	link, err := netlink.LinkByName("eth0")
	if err != nil {
		return err
	}
	return netlink.RouteAdd(&netlink.Route{Table: Table, LinkIndex: link.Attrs().Index, Dst: ipNet(prefix(addr, bits))})
}

// An interface that is not there yet is no fault: its replies are caught as soon
// as it is. A default route of others in the table is told.
func TestFaultsAreNamed(t *testing.T) {
	s := newSite(t)
	s.mend(Reply{"later0", netip.MustParseAddrPort("198.51.100.101:80")})
	s.in(s.node, Remove)
	s.in(s.node, func() error { return routeIn("0.0.0.0", 0) })
	s.in(s.node, func() error {
		_, err := Mend([]Reply{
			{"eth1", netip.MustParseAddrPort("198.51.100.101:80")},
			{"eth1", netip.MustParseAddrPort("[2001:db8:0:3::101]:80")},
		})
		if err == nil || !strings.Contains(err.Error(), "table 7950 has another default route") {
			t.Errorf("got %v", err)
		}
		return nil
	})
	if _, own, _ := s.snapshot(); len(own) != 1 || own[0].Family != unix.AF_INET6 {
		t.Errorf("the other family has no rule: %v", own)
	}
}
