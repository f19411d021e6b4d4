package lab

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// host is the prefix of one address.
func host(a netip.Addr) *net.IPNet { return ipNet(netip.PrefixFrom(a, a.BitLen())) }

func addAddr(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD // usable at once
	}
	if err := netlink.AddrAdd(link, a); err != nil {
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
	if err := l.inside(roleRouter, func() error { return routerRoutes(o) }); err != nil {
		return err
	}
	if err := l.inside(roleClient, func() error { return clientRoutes(o) }); err != nil {
		return err
	}
	for i := range o.sstpRoles() {
		err := l.inside(sstpRole(i+1), func() error { return addRoute(netip.Prefix{}, sstpRouter(i+1).Addr()) })
		if err != nil {
			return err
		}
	}
	for i := 1; i <= o.Nodes+o.Spares; i++ {
		err := l.inside(nodeName(i), func() error {
			return defaultRoutes(o, func(f family) netip.Addr { return f.routerOutside.Addr() })
		})
		if err != nil {
			return err
		}
	}
	for i := 1; i <= o.Servers; i++ {
		err := l.inside(serverName(i), func() error { return serverRoutes(o, i) })
		if err != nil {
			return err
		}
	}
	return nil
}

func defaultRoutes(o Options, via func(family) netip.Addr) error {
	for _, f := range o.families() {
		if err := addRoute(netip.Prefix{}, via(f)); err != nil {
			return err
		}
	}
	return nil
}

func setAll(values map[string]string) error {
	for k, v := range values {
		if err := sysctl(k, v); err != nil {
			return err
		}
	}
	return nil
}

// shortMemory makes a host forget a path's MTU soon, so that a drill can teach
// it a second time.
func shortMemory(o Options) error {
	if !o.ICMP {
		return nil
	}
	if err := sysctl("net.ipv4.route.mtu_expires", pathMTUSeconds); err != nil {
		return err
	}
	if !o.IPv6 {
		return nil
	}
	return sysctl("net.ipv6.route.mtu_expires", pathMTUSeconds)
}

const pathMTUSeconds = "5"

// clientRoutes makes every address of the clients' /64s local, so that a client
// can change within it without a change of configuration.
func clientRoutes(o Options) error {
	if err := defaultRoutes(o, func(f family) netip.Addr { return f.routerClient.Addr() }); err != nil {
		return err
	}
	if err := shortMemory(o); err != nil {
		return err
	}
	if o.IPv6 {
		if err := addLocal(clientPrefix6); err != nil {
			return err
		}
	}
	return addLoopback(o.clients(0, o.Clients))
}

// addLocal makes a whole prefix the namespace's own.
func addLocal(p netip.Prefix) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	r := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: ipNet(p), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL}
	if p.Addr().Is4() {
		r.Scope = unix.RT_SCOPE_HOST
	}
	if err := netlink.RouteReplace(r); err != nil {
		return fmt.Errorf("make %s local: %w", p, err)
	}
	return nil
}

// serverRoutes: the default route is a floating gateway, or with DSR the router.
// A DSR server has the VIPs as its own and says so to nobody.
func serverRoutes(o Options, i int) error {
	if err := shortMemory(o); err != nil {
		return err
	}
	if !o.DSR {
		return defaultRoutes(o, func(f family) netip.Addr { return f.gatewayOf(i, o.Nodes) })
	}
	for _, k := range []string{"all", "default", outsideName} {
		err := setAll(map[string]string{"net.ipv4.conf." + k + ".arp_ignore": "1", "net.ipv4.conf." + k + ".arp_announce": "2"})
		if err != nil {
			return err
		}
	}
	if err := addLoopback(o.vips()); err != nil {
		return err
	}
	return defaultRoutes(o, func(f family) netip.Addr { return f.routerInside.Addr() })
}

func routerRoutes(o Options) error {
	br, err := netlink.LinkByName(bridgeName)
	if err != nil {
		return fmt.Errorf("find bridge: %w", err)
	}
	// Policy 3 hashes the packet's own five-tuple. Policy 1 would use the
	// hash that a packet born on a veth carries with it, which is that of
	// its socket.
	values := map[string]string{
		"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.rp_filter": "0",
		"net.ipv4.conf.default.rp_filter":    "0",
		"net.ipv4.fib_multipath_hash_policy": "3", "net.ipv4.fib_multipath_hash_fields": "0x37",
	}
	if o.IPv6 {
		values["net.ipv6.conf.all.forwarding"] = "1"
		values["net.ipv6.fib_multipath_hash_policy"], values["net.ipv6.fib_multipath_hash_fields"] = "3", "0x37"
	}
	if o.ICMP { // every error counts: drills look for each
		values["net.ipv4.icmp_ratelimit"] = "0"
		if o.IPv6 {
			values["net.ipv6.icmp.ratelimit"] = "0"
		}
	}
	if err := setAll(values); err != nil {
		return err
	}
	for _, f := range o.families() {
		if err := addAddr(br, f.routerOutside); err != nil {
			return err
		}
		// Forged sources lead there too: who floods hears the answers.
		for _, p := range [...]netip.Prefix{f.clients, f.spoofed} {
			if f.clients.Overlaps(p) && p != f.clients {
				continue
			}
			if err := addRoute(p, f.client.Addr()); err != nil {
				return err
			}
		}
	}
	return nil
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
