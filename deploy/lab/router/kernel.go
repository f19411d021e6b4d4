package router

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Route protocols mark what is ours (rt_protos): learned and floating.
const (
	protocolLearned  = netlink.RouteProtocol(unix.RTPROT_BGP)
	protocolFloating = netlink.RouteProtocol(unix.RTPROT_STATIC)
)

// routes is the part of the kernel's main table that this router owns: host
// routes of one protocol and one metric.
type routes struct {
	protocol netlink.RouteProtocol
	metric   int
	link     int // interface index of every next hop; 0 = the kernel finds it
}

// read lists what is there: next hops by destination.
func (r *routes) read() (map[netip.Addr][]netip.Addr, error) {
	out := make(map[netip.Addr][]netip.Addr)
	for _, family := range [...]int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		list, err := netlink.RouteListFiltered(family, &netlink.Route{Protocol: r.protocol, Table: unix.RT_TABLE_MAIN},
			netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for i := range list {
			// The library has a filter for the metric, but not for routes.
			vip, ok := hostRoute(list[i].Dst)
			if !ok || list[i].Priority != r.metric {
				continue
			}
			out[vip] = append(out[vip], nextHopsOf(&list[i])...)
			slices.SortFunc(out[vip], netip.Addr.Compare)
		}
	}
	return out, nil
}

func hostRoute(n *net.IPNet) (netip.Addr, bool) {
	if n == nil {
		return netip.Addr{}, false
	}
	ones, bits := n.Mask.Size()
	a, ok := netip.AddrFromSlice(n.IP)
	return a.Unmap(), ok && ones == bits
}

func nextHopsOf(r *netlink.Route) (out []netip.Addr) {
	if a, ok := netip.AddrFromSlice(r.Gw); ok {
		out = append(out, a.Unmap())
	}
	for _, h := range r.MultiPath {
		if a, ok := netip.AddrFromSlice(h.Gw); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// reconcile makes the kernel hold want and nothing else of ours. It reports
// the destinations that it changed. The kernel has no transaction for this;
// each route is replaced at once, so no destination is without a route while
// its next hops change.
func (r *routes) reconcile(want map[netip.Addr][]netip.Addr) (changed []netip.Addr, err error) {
	have, err := r.read()
	if err != nil {
		return nil, err
	}
	for vip, hops := range want {
		if len(hops) == 0 || slices.Equal(have[vip], hops) {
			continue
		}
		if e := netlink.RouteReplace(r.route(vip, hops)); e != nil {
			err = errors.Join(err, fmt.Errorf("replace route to %s via %v: %w", vip, hops, e))
			continue
		}
		changed = append(changed, vip)
	}
	for vip := range have {
		if len(want[vip]) > 0 {
			continue
		}
		if e := netlink.RouteDel(&netlink.Route{Dst: prefixOf(vip), Protocol: r.protocol, Priority: r.metric}); e != nil && !errors.Is(e, unix.ESRCH) {
			err = errors.Join(err, fmt.Errorf("delete route to %s: %w", vip, e))
			continue
		}
		changed = append(changed, vip)
	}
	slices.SortFunc(changed, netip.Addr.Compare)
	return changed, err
}

func (r *routes) route(vip netip.Addr, hops []netip.Addr) *netlink.Route {
	out := &netlink.Route{Dst: prefixOf(vip), Protocol: r.protocol, Priority: r.metric}
	if len(hops) == 1 {
		out.Gw, out.LinkIndex = hops[0].AsSlice(), r.link
		return out
	}
	for _, h := range hops {
		out.MultiPath = append(out.MultiPath, &netlink.NexthopInfo{Gw: h.AsSlice(), LinkIndex: r.link})
	}
	return out
}

func prefixOf(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
