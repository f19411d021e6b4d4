package forward

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// lane is client - node - server in three namespaces, the node forwarding.
type lane struct {
	t                    *testing.T
	client, node, server netns.NsHandle
}

const (
	clientAddr = "192.0.2.2"
	serverAddr = "198.51.100.101"
	otherAddr  = "198.51.100.50" // on the server's host, but no server
)

func newLane(t *testing.T) *lane {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("needs root: makes network namespaces")
	}
	l := &lane{t: t}
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	for _, at := range []*netns.NsHandle{&l.client, &l.node, &l.server} {
		if *at, err = netns.New(); err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Set(home); err != nil {
		t.Fatal(err)
	}
	runtime.UnlockOSThread()
	t.Cleanup(func() { l.client.Close(); l.node.Close(); l.server.Close() })
	l.wire("vpnlbfw0", l.client, clientAddr+"/24", l.node, "out0", "192.0.2.1/24")
	l.wire("vpnlbfw1", l.server, serverAddr+"/24", l.node, "in0", "198.51.100.1/24")
	l.in(l.server, func() error {
		link, err := netlink.LinkByName("vpnlbfw1")
		if err != nil {
			return err
		}
		addr, err := netlink.ParseAddr(otherAddr + "/24")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, addr)
	})
	l.in(l.client, func() error { return defaultVia("192.0.2.1") })
	l.in(l.server, func() error { return defaultVia("198.51.100.1") })
	l.in(l.node, func() error {
		// /proc/sys/net shows the namespace of the thread that opens it.
		return os.WriteFile(filepath.Join("/proc/thread-self/root/proc/sys/net/ipv4", "ip_forward"), []byte("1"), 0)
	})
	return l
}

func defaultVia(gw string) error {
	return netlink.RouteAdd(&netlink.Route{Gw: net.ParseIP(gw)})
}

// in runs f on a thread in ns.
func (l *lane) in(ns netns.NsHandle, f func() error) {
	l.t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	if err := <-done; err != nil {
		l.t.Fatal(err)
	}
}

func (l *lane) wire(a string, ans netns.NsHandle, aAddr string, bns netns.NsHandle, b, bAddr string) {
	l.t.Helper()
	l.in(bns, func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: b}, PeerName: a, PeerNamespace: netlink.NsFd(ans)}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		return up(b, bAddr)
	})
	l.in(ans, func() error { return up(a, aAddr) })
}

func up(name, addr string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(addr)
	if err != nil {
		return err
	}
	return errors.Join(netlink.AddrAdd(link, a), netlink.LinkSetUp(link))
}

// passes sends datagrams from the client until one arrives, or gives up.
func (l *lane) passes(to string, port int) bool {
	l.t.Helper()
	var in, out net.PacketConn
	l.in(l.server, func() (err error) {
		in, err = net.ListenPacket("udp4", fmt.Sprintf("%s:%d", to, port))
		return err
	})
	defer in.Close()
	l.in(l.client, func() (err error) {
		out, err = net.ListenPacket("udp4", clientAddr+":0")
		return err
	})
	defer out.Close()
	dst := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(fmt.Sprintf("%s:%d", to, port)))
	buf := make([]byte, 100)
	for range 10 {
		out.WriteTo([]byte("x"), dst) // an ICMP error of the one before may come back
		in.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
		if _, _, err := in.ReadFrom(buf); err == nil {
			return true
		}
	}
	return false
}

func (l *lane) mend(k *Keeper, p Policy) (changed bool) {
	l.t.Helper()
	l.in(l.node, func() (err error) { changed, err = k.Mend(p); return err })
	return changed
}

func TestPolicy(t *testing.T) {
	l := newLane(t)
	expect := func(when, to string, port int, want bool) {
		t.Helper()
		if got := l.passes(to, port); got != want {
			t.Errorf("%s: %s port %d passes: %v, want %v", when, to, port, got, want)
		}
	}
	expect("without a policy", otherAddr, 53, true)

	var k Keeper
	p := Policy{Outside: "out0", Inside: "in0", Servers: []netip.Addr{netip.MustParseAddr(serverAddr)}}
	if !l.mend(&k, p) {
		t.Error("the first Mend changed nothing")
	}
	if l.mend(&k, p) {
		t.Error("the second Mend wrote again")
	}
	expect("default", serverAddr, 4500, true)
	expect("default", serverAddr, 1812, true)
	expect("default", otherAddr, 53, false)

	p.Prefixes = []netip.Prefix{netip.MustParsePrefix("198.51.100.48/29")}
	l.mend(&k, p)
	expect("with prefixes", otherAddr, 53, true)
	expect("with prefixes", serverAddr, 500, true)
	expect("with prefixes", serverAddr, 1812, false)

	// Somebody removes the table: it comes back.
	l.in(l.node, Remove)
	expect("removed", serverAddr, 1812, true)
	if !l.mend(&k, p) {
		t.Error("a removed table was not written again")
	}
	expect("mended", serverAddr, 1812, false)
	l.in(l.node, Remove)
	l.in(l.node, Remove) // twice is no error
}
