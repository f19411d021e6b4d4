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
	clientPort  = "c0" // the router's end of the clients' link
	directName  = "d0" // the router's leg to DSR servers
	linkMTU     = 1500
)

func outsidePort(node string) string { return "o" + node }
func insidePort(peer string) string  { return "i" + peer }

// end is one end of a veth pair.
type end struct {
	role, name string
	addrs      []netip.Prefix // of the link itself
	bridge     bool           // port of this namespace's bridge
	pass       bool           // carry the pass program: the other end is a node's leg
	leg        bool           // of a node itself
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
	roles = append(roles, o.sstpRoles()...)
	for _, role := range roles {
		if err := newNamespace(l.ns(role)); err != nil {
			return err
		}
		if err := l.inside(role, func() error { return basics(o) }); err != nil {
			return err
		}
	}
	for i, role := range []string{roleRouter, roleInside} {
		if err := l.inside(role, func() error { return addBridge(byte(i)) }); err != nil {
			return err
		}
	}
	for _, p := range pairs(o) {
		if err := l.addPair(p[0], p[1]); err != nil {
			return err
		}
	}
	return l.addRoutes()
}

// pairs lists the links.
func pairs(o Options) [][2]end {
	out := [][2]end{{
		{role: roleClient, name: outsideName, addrs: o.prefixes(func(f family) netip.Prefix { return f.client })},
		{role: roleRouter, name: clientPort, addrs: o.prefixes(func(f family) netip.Prefix { return f.routerClient })},
	}}
	for i := 1; i <= o.Nodes+o.Spares; i++ {
		n := nodeName(i)
		outside := o.on(i, func(f family) func(int) netip.Addr { return f.nodeOutside })
		inside := o.on(i, func(f family) func(int) netip.Addr { return f.nodeInside })
		out = append(out,
			[2]end{{role: n, name: outsideName, leg: true, addrs: outside}, {role: roleRouter, name: outsidePort(n), bridge: true, pass: true}},
			[2]end{{role: n, name: insideName, leg: true, addrs: inside}, {role: roleInside, name: insidePort(n), bridge: true, pass: true}})
	}
	for i := 1; i <= o.Servers; i++ {
		s := serverName(i)
		addrs := o.on(i, func(f family) func(int) netip.Addr { return f.server })
		out = append(out, [2]end{{role: s, name: outsideName, addrs: addrs}, {role: roleInside, name: insidePort(s), bridge: true}})
	}
	for i := range o.sstpRoles() {
		out = append(out, [2]end{
			{role: sstpRole(i + 1), name: outsideName, addrs: []netip.Prefix{sstpLink(i + 1)}},
			{role: roleRouter, name: sstpRole(i + 1), addrs: []netip.Prefix{sstpRouter(i + 1)}},
		})
	}
	if o.DSR {
		leg := o.prefixes(func(f family) netip.Prefix { return f.routerInside })
		out = append(out, [2]end{{role: roleRouter, name: directName, addrs: leg}, {role: roleInside, name: insidePort("r"), bridge: true}})
	}
	return out
}

// inside runs fn in the namespace of a role.
func (l *Lab) inside(role string, fn func() error) error {
	if err := inNamespace(l.ns(role), fn); err != nil {
		return fmt.Errorf("in %s: %w", role, err)
	}
	return nil
}

// basics is what every namespace gets: loopback, and either no IPv6 chatter or
// addresses that are used at once (no duplicate address detection, no router
// advertisements).
func basics(o Options) error {
	if _, err := os.Stat("/proc/sys/net/ipv6"); err == nil {
		off := map[string]string{"disable_ipv6": "1"}
		if o.IPv6 {
			off = map[string]string{"disable_ipv6": "0", "accept_dad": "0", "dad_transmits": "0", "accept_ra": "0", "router_solicitations": "0"}
		}
		for _, k := range []string{"all", "default"} {
			for key, value := range off {
				if err := sysctl("net.ipv6.conf."+k+"."+key, value); err != nil {
					return err
				}
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
	snooping := false // neighbour solicitations are multicast: they go everywhere
	br := &netlink.Bridge{MulticastSnooping: &snooping, LinkAttrs: netlink.LinkAttrs{
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
	if err := setOffloads(e.name, e.leg); err != nil {
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
	for _, a := range e.addrs {
		if err := addAddr(link, a); err != nil {
			return err
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", e.name, err)
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
