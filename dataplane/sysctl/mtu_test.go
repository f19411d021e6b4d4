package sysctl

import (
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// narrowPath puts a router between the host and a client: its way to the client takes
// 1,300 bytes, and what it says about that never comes to the host, as it has no route
// to it for packets of its own.
//
//	client 203.0.113.2 c0 -- wire1 (MTU 1300) router wire0 -- mgmt0 192.0.2.2 host
func narrowPath(t *testing.T, h *host) (client netns.NsHandle) {
	t.Helper()
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread ends with the goroutine
		var err error
		client, err = netns.New()
		made <- err
	}()
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { client.Close() })
	via := func(name, addr, gateway string) func() error {
		return func() error {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			return errors.Join(netlink.AddrReplace(link, a), netlink.LinkSetUp(link),
				netlink.RouteReplace(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(gateway), Flags: int(netlink.FLAG_ONLINK)}))
		}
	}
	h.in(h.router, func() error {
		err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wire1", MTU: 1300}, PeerName: "c0", PeerMTU: 1500, PeerNamespace: netlink.NsFd(client)})
		if err != nil {
			return err
		}
		var errs []error
		index := map[string]int{}
		for name, addr := range map[string]string{"wire0": "192.0.2.1/32", "wire1": "203.0.113.1/24"} {
			link, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			a, err := netlink.ParseAddr(addr)
			if err != nil {
				return err
			}
			index[name] = link.Attrs().Index
			errs = append(errs, netlink.AddrReplace(link, a), netlink.LinkSetUp(link))
		}
		rule := netlink.NewRule()
		rule.IifName, rule.Table = "wire1", 100
		_, dst, _ := net.ParseCIDR("192.0.2.2/32")
		return errors.Join(append(errs, netlink.RuleAdd(rule),
			netlink.RouteReplace(&netlink.Route{LinkIndex: index["wire0"], Dst: dst, Table: 100, Scope: netlink.SCOPE_LINK}),
			os.WriteFile(filepath.Join(procRoot, "net/ipv4/ip_forward"), []byte("1"), 0))...)
	})
	h.in(h.ns, via("mgmt0", "192.0.2.2/32", "192.0.2.1"))
	h.in(client, via("c0", "203.0.113.2/24", "203.0.113.1"))
	return client
}

// A connection over a path that takes smaller packets than both ends think goes on,
// although the router's word about it is lost.
func TestConnectionsOverANarrowPath(t *testing.T) {
	h := newHost(t)
	client := narrowPath(t, h)
	var ln net.Listener
	h.in(h.ns, func() (err error) {
		if _, err := New(procRoot, filepath.Join(t.TempDir(), "sysctl.json"), nil).Mend(Connections()...); err != nil {
			return err
		}
		ln, err = net.Listen("tcp4", "192.0.2.2:443")
		return err
	})
	defer ln.Close()
	const size = 256 << 10
	sent := make(chan error, 1)
	go func() {
		c, err := ln.Accept()
		if err == nil {
			defer c.Close()
			_, err = c.Write(make([]byte, size))
		}
		sent <- err
	}()
	var c net.Conn
	h.in(client, func() (err error) {
		c, err = net.DialTimeout("tcp4", "192.0.2.2:443", 10*time.Second)
		return err
	})
	defer c.Close()
	c.SetDeadline(time.Now().Add(40 * time.Second))
	began := time.Now()
	n, err := io.Copy(io.Discard, c)
	if err != nil || n != size {
		t.Fatalf("%d of %d bytes came, %v", n, size, err)
	}
	if err := <-sent; err != nil {
		t.Error(err)
	}
	t.Logf("%d bytes came within %v", n, time.Since(began).Round(time.Millisecond))
}
