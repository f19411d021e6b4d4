package dataplane

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/transparent"
)

// All clients of a VIP may share a few cached next hops where the routing table
// sends them all the same way: where nothing but default routes matters for them.
// What other routes cover is marked by place, and looked up client by client. Where
// that cannot be proved (policy rules but package transparent's, routes by TOS, too many routes, an error) every
// place is marked.

// simpleRules are the tables that a host without policy routing asks.
var simpleRules = map[int]bool{unix.RT_TABLE_LOCAL: true, unix.RT_TABLE_MAIN: true, unix.RT_TABLE_DEFAULT: true}

// mendRouted writes the places of both families where they changed, and says so. Of a
// family that cannot be read all are marked. It tells the program that somebody
// watches: without that for some time, nothing is shared.
func (p *Plane) mendRouted() (changed bool, err error) {
	var faults []error
	for i, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		places, err := p.routedPlaces(family)
		if err != nil {
			places.setAll()
			faults = append(faults, err)
		}
		if p.routedWritten && places == p.routed[i] {
			continue
		}
		if err := p.coll.Maps["routed_places"].Put(uint32(i), &places.PlanePlaces); err != nil {
			return true, fmt.Errorf("write places of routes: %w", err)
		}
		p.routed[i], changed = places, true
	}
	p.routedWritten = true
	now, err := p.clock.now()
	if err == nil {
		p.control.live(now)
	}
	return changed, errors.Join(append(faults, err)...)
}

func (p *Plane) routedPlaces(family int) (places placeBits, err error) {
	rules, err := p.ns.netlink.RuleList(family)
	if err != nil {
		return places, fmt.Errorf("list routing rules: %w", err)
	}
	for _, r := range rules {
		if transparent.Ours(r) { // TCP from a port of a server: the program forwards none of it, and names no port when it asks
			continue
		}
		if !simpleRules[r.Table] || r.Src != nil || r.Dst != nil || r.Mark != 0 || r.IifName != "" || r.OifName != "" {
			places.setAll()
			return places, nil
		}
	}
	routes := 0
	err = p.ns.netlink.RouteListFilteredIter(family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE, func(r netlink.Route) bool {
		if routes++; routes > maxRoutes || r.Tos != 0 {
			places.setAll()
			return false
		}
		if prefix, ok := routedPrefix(r); ok {
			places.add(prefix)
		}
		return true
	})
	if err != nil {
		return places, fmt.Errorf("list routes: %w", err)
	}
	return places, nil
}

// routedPrefix gives what a route covers; false: it is a default route, or covers
// no client.
func routedPrefix(r netlink.Route) (netip.Prefix, bool) {
	if r.Dst == nil {
		return netip.Prefix{}, false
	}
	addr, ok := netip.AddrFromSlice(r.Dst.IP)
	ones, bits := r.Dst.Mask.Size()
	addr = addr.Unmap()
	if !ok || ones == 0 || bits != addr.BitLen() || addr.IsMulticast() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(addr, ones), true
}
