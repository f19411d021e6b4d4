package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface names. Nodes have eth0 outside and eth1 inside, all else is far
// ends: "o<node>" in the router's bridge, "i<node>" and "i-<server>" in the
// inside switch.
const (
	bridgeName  = "br0"
	outsideName = "eth0"
	insideName  = "eth1"
	linkMTU     = 1500
)

func outsidePort(node string) string { return "o" + node }
func insidePort(peer string) string  { return "i" + peer }

// end is one end of a veth pair.
type end struct {
	role, name string
	addr       netip.Prefix // of the link itself, if valid
	bridge     bool         // port of this namespace's bridge
	pass       bool         // carry the pass program: the other end is a node's leg
}

// buildTopology makes all namespaces, links, addresses and routes.
func (l *Lab) buildTopology() error {
	o := l.st.Options
	roles := []string{roleClient, roleRouter, roleInside}
	for i := range o.Nodes + o.Spares {
		roles = append(roles, nodeName(i+1))
	}
	for i := range o.Servers {
		roles = append(roles, serverName(i+1))
	}
	for _, role := range roles {
		if err := newNamespace(l.ns(role)); err != nil {
			return err
		}
		if err := l.inside(role, basics); err != nil {
			return err
		}
	}
	for i, role := range []string{roleRouter, roleInside} {
		if err := l.inside(role, func() error { return addBridge(byte(i)) }); err != nil {
			return err
		}
	}
	pairs := [][2]end{{
		{role: roleClient, name: outsideName, addr: clientLink},
		{role: roleRouter, name: "c0", addr: routerClient},
	}}
	for i := range o.Nodes + o.Spares {
		n := nodeName(i + 1)
		pairs = append(pairs,
			[2]end{{role: n, name: outsideName, addr: netip.PrefixFrom(nodeOutside(i+1), 24)}, {role: roleRouter, name: outsidePort(n), bridge: true, pass: true}},
			[2]end{{role: n, name: insideName, addr: netip.PrefixFrom(nodeInside(i+1), 24)}, {role: roleInside, name: insidePort(n), bridge: true, pass: true}})
	}
	for i := range o.Servers {
		s := serverName(i + 1)
		pairs = append(pairs, [2]end{{role: s, name: outsideName, addr: netip.PrefixFrom(serverAddr(i+1), 24)}, {role: roleInside, name: insidePort(s), bridge: true}})
	}
	for _, p := range pairs {
		if err := l.addPair(p[0], p[1]); err != nil {
			return err
		}
	}
	return l.addRoutes()
}

// inside runs fn in the namespace of a role.
func (l *Lab) inside(role string, fn func() error) error {
	if err := inNamespace(l.ns(role), fn); err != nil {
		return fmt.Errorf("in %s: %w", role, err)
	}
	return nil
}

// basics is what every namespace gets: loopback, no IPv6 chatter.
func basics() error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		for _, k := range []string{"all", "default"} {
			if err := sysctl("net.ipv6.conf."+k+".disable_ipv6", "1"); err != nil {
				return err
			}
		}
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// addBridge makes the namespace's bridge with an address of its own: one that
// it took from its ports would change when ports come and go.
func addBridge(last byte) error {
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{
		Name: bridgeName, MTU: linkMTU, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0xb0, last},
	}}
	if err := netlink.LinkAdd(br); err != nil {
		return fmt.Errorf("add bridge: %w", err)
	}
	if err := netlink.LinkSetUp(br); err != nil {
		return fmt.Errorf("set bridge up: %w", err)
	}
	return nil
}

// addPair makes a veth pair, each end where it belongs from the start.
func (l *Lab) addPair(a, b end) error {
	far, err := os.Open(filepath.Join(netnsDir, l.ns(b.role)))
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer far.Close()
	err = l.inside(a.role, func() error {
		v := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: a.name, MTU: linkMTU},
			PeerName:  b.name, PeerMTU: linkMTU, PeerNamespace: netlink.NsFd(far.Fd()),
		}
		if err := netlink.LinkAdd(v); err != nil {
			return fmt.Errorf("add veth %s: %w", a.name, err)
		}
		return a.prepare()
	})
	if err != nil {
		return err
	}
	return l.inside(b.role, b.prepare)
}

// prepare sets one end up, in its namespace.
func (e end) prepare() error {
	link, err := netlink.LinkByName(e.name)
	if err != nil {
		return fmt.Errorf("find %s: %w", e.name, err)
	}
	if err := setOffloads(e.name); err != nil {
		return err
	}
	if e.pass {
		if err := attachPass(link); err != nil {
			return err
		}
	}
	if e.bridge {
		br, err := netlink.LinkByName(bridgeName)
		if err != nil {
			return fmt.Errorf("find bridge: %w", err)
		}
		if err := netlink.LinkSetMaster(link, br); err != nil {
			return fmt.Errorf("add %s to the bridge: %w", e.name, err)
		}
	}
	if e.addr.IsValid() {
		if err := addAddr(link, e.addr); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", e.name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func addAddr(link netlink.Link, p netip.Prefix) error {
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ipNet(p)}); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// addRoute adds a route via a gateway; an invalid prefix is the default route.
func addRoute(to netip.Prefix, via netip.Addr) error {
	r := &netlink.Route{Gw: via.AsSlice()}
	if to.IsValid() {
		r.Dst = ipNet(to)
	}
	if err := netlink.RouteAdd(r); err != nil {
		return fmt.Errorf("add route to %s via %s: %w", to, via, err)
	}
	return nil
}

// addRoutes sets what the links do not bring with them.
func (l *Lab) addRoutes() error {
	o := l.st.Options
	if err := l.inside(roleRouter, routerRoutes); err != nil {
		return err
	}
	err := l.inside(roleClient, func() error {
		if err := addRoute(netip.Prefix{}, routerClient.Addr()); err != nil {
			return err
		}
		return addLoopback(clientAddrs(0, o.Clients))
	})
	if err != nil {
		return err
	}
	for i := range o.Nodes + o.Spares {
		err := l.inside(nodeName(i+1), func() error { return addRoute(netip.Prefix{}, routerOutside.Addr()) })
		if err != nil {
			return err
		}
	}
	for i := range o.Servers {
		err := l.inside(serverName(i+1), func() error { return addRoute(netip.Prefix{}, gatewayOf(i+1, o.Nodes)) })
		if err != nil {
			return err
		}
	}
	return nil
}

func routerRoutes() error {
	br, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	if err := addAddr(br, routerOutside); err != nil {
		return err
	}
	// Policy 3 hashes the packet's own five-tuple. Policy 1 would use the
	// hash that a packet born on a veth carries with it, which is that of
	// its socket.
	for k, v := range map[string]string{
		"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "0",
		"net.ipv4.conf.default.rp_filter":    "0",
		"net.ipv4.fib_multipath_hash_policy": "3", "net.ipv4.fib_multipath_hash_fields": "0x37",
	} {
		if err := sysctl(k, v); err != nil {
			return err
		}
	}
	return addRoute(clientPrefix, clientLink.Addr())
}

// addLoopback gives lo of the namespace these addresses.
func addLoopback(addrs []netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	for _, a := range addrs {
		if err := addAddr(lo, netip.PrefixFrom(a, a.BitLen())); err != nil {
			return err
		}
	}
	return nil
}

// setPorts cuts or heals links of a node at their far ends: the node sees its
// carrier go, its addresses and routes stay.
func (l *Lab) setPorts(node string, outside, inside, up bool) error {
	if outside {
		if err := l.setPort(roleRouter, outsidePort(node), up); err != nil {
			return err
		}
	}
	if inside {
		return l.setPort(roleInside, insidePort(node), up)
	}
	return nil
}

func (l *Lab) setPort(role, port string, up bool) error {
	return l.inside(role, func() error {
		link, err := netlink.LinkByName(port)
		if err != nil {
			return fmt.Errorf("find %s: %w", port, err)
		}
		if up {
			err = netlink.LinkSetUp(link)
		} else {
			err = netlink.LinkSetDown(link)
		}
		if err != nil {
			return fmt.Errorf("set %s up=%t: %w", port, up, err)
		}
		return nil
	})
}

func isExist(err error) bool { return errors.Is(err, unix.EEXIST) }
