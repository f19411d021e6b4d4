package forward

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// plan is the addresses of one family.
type plan struct {
	family
	client, server string
	other          string // on the server's host, but no server
	vip            string // on lo of the node
	away           string // behind the client
}

var (
	four = plan{ipv4, "192.0.2.2", "198.51.100.101", "198.51.100.50", "203.0.113.1", "203.0.113.200"}
	six  = plan{ipv6, "2001:db8:1::2", "2001:db8:2::101", "2001:db8:2::50", "2001:db8:3::1", "2001:db8:4::1"}
)

// The arms of client and server; the node's are out0 and in0.
const clientArm, serverArm = "vpnlbfw0", "vpnlbfw1"

// lane is client - node - server in three namespaces, the node forwarding.
type lane struct {
	t                    *testing.T
	client, node, server netns.NsHandle
}

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
	l.in(l.node, func() error {
		return errors.Join(sysctl("ipv4/ip_forward", "1"), sysctl("ipv6/conf/all/forwarding", "1"),
			sysctl("ipv4/conf/all/rp_filter", "0"), sysctl("ipv4/conf/default/rp_filter", "0"), sysctl("ipv4/conf/default/accept_local", "1"),
			sysctl("ipv6/conf/default/accept_dad", "0")) // link-local addresses at once
	})
	l.wire(clientArm, l.client, []string{four.client + "/24", six.client + "/64"}, l.node, "out0", []string{"192.0.2.1/24", "2001:db8:1::1/64"})
	l.wire(serverArm, l.server, []string{four.server + "/24", four.other + "/24", six.server + "/64", six.other + "/64"},
		l.node, "in0", []string{"198.51.100.1/24", "2001:db8:2::1/64"})
	l.in(l.client, func() error { return errors.Join(defaultVia("192.0.2.1"), defaultVia("2001:db8:1::1")) })
	l.in(l.server, func() error { return errors.Join(defaultVia("198.51.100.1"), defaultVia("2001:db8:2::1")) })
	l.in(l.node, func() error { return up("lo", four.vip+"/32", six.vip+"/128") })
	// No packet waits for its neighbour, so that none overtakes another.
	l.knows("out0", l.client, clientArm, four.client, six.client)
	l.knows("in0", l.server, serverArm, four.server, four.other, six.server, six.other)
	return l
}

// sysctl writes below net; /proc/sys/net shows the namespace of the thread that
// opens it.
func sysctl(key, value string) error {
	return os.WriteFile(filepath.Join("/proc/thread-self/root/proc/sys/net", key), []byte(value), 0)
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

func (l *lane) wire(a string, ans netns.NsHandle, aAddrs []string, bns netns.NsHandle, b string, bAddrs []string) {
	l.t.Helper()
	l.in(bns, func() error {
		pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: b}, PeerName: a, PeerNamespace: netlink.NsFd(ans)}
		if err := netlink.LinkAdd(pair); err != nil {
			return err
		}
		return up(b, bAddrs...)
	})
	l.in(ans, func() error { return up(a, aAddrs...) })
}

func up(name string, addrs ...string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	errs := []error{netlink.LinkSetUp(link)}
	for _, text := range addrs {
		a, err := netlink.ParseAddr(text)
		if err != nil {
			return err
		}
		if a.IP.To4() == nil {
			a.Flags |= unix.IFA_F_NODAD
		}
		errs = append(errs, netlink.AddrAdd(link, a))
	}
	return errors.Join(errs...)
}

// knows gives the node the neighbours behind one of its arms for good.
func (l *lane) knows(arm string, ns netns.NsHandle, name string, addrs ...string) {
	l.t.Helper()
	var mac net.HardwareAddr
	l.in(ns, func() error {
		link, err := netlink.LinkByName(name)
		if err == nil {
			mac = link.Attrs().HardwareAddr
		}
		return err
	})
	l.in(l.node, func() error {
		link, err := netlink.LinkByName(arm)
		if err != nil {
			return err
		}
		for _, a := range addrs {
			err = errors.Join(err, netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: net.ParseIP(a),
				State: netlink.NUD_PERMANENT, HardwareAddr: mac}))
		}
		return err
	})
}

func (l *lane) mend(k *Keeper, p Policy) (changed bool) {
	l.t.Helper()
	l.in(l.node, func() (err error) { changed, err = k.Mend(p); return err })
	return changed
}
