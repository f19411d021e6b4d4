package sysctl

import (
	"encoding/binary"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestEveryInterface(t *testing.T) {
	wanted := []Setting{{Key: "net/ipv6/conf/eth0/accept_ra"}, {Key: "net/ipv6/conf/eth1/accept_ra"}, {Key: "net/ipv6/conf/lo/accept_ra"}}
	root := fakeRoot(t, wanted, "1")
	if err := os.WriteFile(filepath.Join(root, wanted[1].Key), []byte("0"), 0o644); err != nil {
		t.Fatal(err)
	}
	k := New(root, filepath.Join(t.TempDir(), "sysctl.json"), nil)
	if changed, err := k.Mend(); err != nil || len(changed) != 0 {
		t.Errorf("Mend without more changed %v: %v", changed, err)
	}
	more := Setting{Key: "net/ipv6/conf/" + Every + "/accept_ra", Value: "2", Also: []string{"0"}}
	if changed, err := k.Mend(more); err != nil || strings.Join(changed, " ") != wanted[0].Key+" "+wanted[2].Key {
		t.Errorf("Mend changed %v: %v", changed, err)
	}
	if got := value(t, root, wanted[1].Key); got != "0" {
		t.Errorf("what an administrator switched off is %s", got)
	}
	if _, err := k.Mend(Setting{Key: "net/ipv6/gone/" + Every + "/accept_ra", Value: "2"}); err == nil || !strings.Contains(err.Error(), "net.ipv6.gone") {
		t.Errorf("a kernel without IPv6: %v", err)
	}
}

// host is a namespace with eth0 and eth1, data interfaces, and mgmt0, whose other
// end is wire0 in router.
type host struct {
	t          *testing.T
	ns, router netns.NsHandle
}

func newHost(t *testing.T) *host {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("network namespaces need root")
		}
		t.Skip("network namespaces need root")
	}
	h := &host{t: t}
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		var errs [2]error
		h.ns, errs[0] = netns.New()
		h.router, errs[1] = netns.New()
		made <- errors.Join(errs[:]...)
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { h.ns.Close(); h.router.Close() })
	h.in(h.ns, func() error {
		var errs []error
		for _, l := range []netlink.Link{
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "peer0"},
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth1"}, PeerName: "peer1"},
			&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "mgmt0"}, PeerName: "wire0", PeerNamespace: netlink.NsFd(h.router)},
		} {
			errs = append(errs, netlink.LinkAdd(l), netlink.LinkSetUp(l))
		}
		return errors.Join(errs...)
	})
	h.in(h.router, func() error {
		wire, err := netlink.LinkByName("wire0")
		if err != nil {
			return err
		}
		return netlink.LinkSetUp(wire)
	})
	return h
}

// in runs f on a thread in ns; /proc/sys/net is the thread's.
func (h *host) in(ns netns.NsHandle, f func() error) {
	h.t.Helper()
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
		h.t.Fatal(err)
	}
}

const procRoot = "/proc/thread-self/root/proc/sys"

func (h *host) expect(when string, want map[string]string) {
	h.t.Helper()
	h.in(h.ns, func() error {
		for key, v := range want {
			if got := value(h.t, procRoot, "net/ipv6/conf/"+key); got != v {
				h.t.Errorf("%s: %s is %s, want %s", when, key, got, v)
			}
		}
		return nil
	})
}

func (h *host) set(key, v string) {
	h.t.Helper()
	h.in(h.ns, func() error { return os.WriteFile(filepath.Join(procRoot, "net/ipv6/conf", key), []byte(v), 0) })
}

// advertise sends router advertisements (RFC 4861, section 4.2) until the host
// has a default route from them, and gives that up after a bound.
func (h *host) advertise() (learned bool) {
	h.t.Helper()
	h.in(h.router, func() error {
		wire, err := net.InterfaceByName("wire0")
		if err != nil {
			return err
		}
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := errors.Join(
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255),
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, wire.Index)); err != nil {
			return err
		}
		ra := make([]byte, 16)
		ra[0], ra[4] = 134, 64
		binary.BigEndian.PutUint16(ra[6:], 1800) // lifetime of the router, s
		everybody := &unix.SockaddrInet6{Addr: [16]byte{0: 0xff, 1: 2, 15: 1}, ZoneId: uint32(wire.Index)}
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for range 40 { // detection of duplicates takes up to 2 s
			unix.Sendto(fd, ra, 0, everybody) // no address to send from yet: comes again
			<-tick.C
			if learned = h.hasDefault(); learned {
				return nil
			}
		}
		return nil
	})
	return learned
}

func (h *host) hasDefault() (found bool) {
	h.t.Helper()
	h.in(h.ns, func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_V6)
		for _, r := range routes {
			found = found || r.Gw != nil && r.Protocol == unix.RTPROT_RA
		}
		return err
	})
	return found
}

// What a kernel does with all of it, and that everything is undone.
func TestIPv6OnAKernel(t *testing.T) {
	h := newHost(t)
	h.set("eth1/disable_ipv6", "1")
	h.set("eth0/accept_ra", "0")
	h.set("peer0/forwarding", "1") // forwards by itself although "all" does not
	if !h.advertise() {
		t.Fatal("the host learns no default route")
	}
	names := []string{"eth0", "eth1"}
	k := New(procRoot, filepath.Join(t.TempDir(), "sysctl.json"), nil)
	mend := func(more ...Setting) (n int) {
		t.Helper()
		h.in(h.ns, func() error {
			changed, err := k.Mend(more...)
			n = len(changed)
			return err
		})
		return n
	}
	before := map[string]string{"all/forwarding": "0", "eth0/forwarding": "0", "mgmt0/forwarding": "0", "peer0/forwarding": "1", "peer1/forwarding": "0",
		"eth0/accept_ra": "0", "mgmt0/accept_ra": "1", "eth1/disable_ipv6": "1", "eth0/accept_redirects": "1"}
	mend()
	h.expect("IPv4 only", before)
	mend(IPv6(names)...)
	wanted := map[string]string{"all/forwarding": "1", "eth0/forwarding": "1", "eth1/forwarding": "1", "eth0/accept_ra": "0", "eth1/accept_ra": "2",
		"mgmt0/accept_ra": "2", "eth1/disable_ipv6": "0", "lo/disable_ipv6": "0", "eth0/accept_redirects": "0"}
	h.expect("mended", wanted)
	if n := mend(IPv6(names)...); n != 0 {
		t.Errorf("a second Mend changed %d", n)
	}
	if !h.hasDefault() {
		t.Error("the default route is lost")
	}
	// Somebody's change is mended; it is not the original.
	h.set("all/forwarding", "0")
	mend(IPv6(names)...)
	h.expect("mended again", wanted)
	h.in(h.ns, k.Restore)
	h.expect("restored", before)
	if !h.hasDefault() {
		t.Error("restoring lost the default route")
	}
}

// Why accept_ra comes into it, and comes first.
func TestForwardingAloneLosesTheDefaultRoute(t *testing.T) {
	h := newHost(t)
	if !h.advertise() {
		t.Fatal("the host learns no default route")
	}
	h.set("all/forwarding", "1")
	if h.hasDefault() {
		t.Error("the kernel kept the route: the rule can go")
	}
	if h.advertise() {
		t.Error("the kernel listens to advertisements: the rule can go")
	}
	h.set("mgmt0/accept_ra", "2")
	if !h.advertise() {
		t.Error("accept_ra 2 does not help")
	}
}

func TestIPv6NamesAreRight(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range IPv6([]string{"eth0", "eth1"}) {
		if !strings.HasPrefix(s.Key, "net/ipv6/conf/") || s.Value == "" || seen[s.Key] {
			t.Errorf("setting %+v", s)
		}
		seen[s.Key] = true
	}
}
