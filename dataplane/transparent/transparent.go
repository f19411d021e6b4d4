// Package transparent makes this host take the replies of SSTP servers for its
// own where connections to them are made from the clients' addresses.
//
// A socket may be bound to an address that is not the host's (IP_TRANSPARENT),
// but the server's answer goes to that address, and routing decides before any
// socket is asked: the answer would be forwarded to the client, who knows nothing
// of it and resets. So a policy rule sends what comes from the server's port by
// the inside interface into a table in which everything is local:
//
//	ip rule  pref 7950  from SERVER iif INSIDE ipproto tcp sport PORT  lookup 7950
//	ip route local default dev lo  table 7950
//
// for each server, and the same for IPv6. Both carry a protocol number (the mark
// of who made them) of our own; what has another is never touched. They stay when
// the daemon stops, as the data plane does.
//
// The rule catches all replies of that port. A host that forwards connections of
// the same server and port for others takes those for its own too and resets them:
// so the port is one that the cluster does not pass through.
package transparent

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Numbers of our own, for an administrator to know them by.
const (
	Table    = 7950 // routing table: any number is free above 255
	Priority = 7950 // of the rules: after the local table (0), before the main one (32766)
	Protocol = 79   // who made rule and route: no routing daemon has this number
)

// Reply is where the replies of a server come from: its address and port, and the
// interface by which they come in.
type Reply struct {
	Interface string
	Server    netip.AddrPort
}

func (r Reply) compare(o Reply) int {
	return cmp.Or(cmp.Compare(r.Interface, o.Interface), r.Server.Compare(o.Server))
}

// Mend makes the kernel's rules those that are wanted, and no others of ours. It
// reads what is there each time, so whatever somebody removed comes back, and
// what an earlier process left goes. All faults come at once; the rest is done.
// The network namespace is the calling thread's.
func Mend(wanted []Reply) (changed bool, err error) {
	var faults []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		own := make([]Reply, 0, len(wanted))
		for _, w := range wanted {
			w.Server = netip.AddrPortFrom(w.Server.Addr().Unmap(), w.Server.Port())
			if familyOf(w.Server.Addr()) == family {
				own = append(own, w)
			}
		}
		slices.SortFunc(own, Reply.compare)
		did, err := mend(family, slices.Compact(own))
		changed = changed || did
		faults = append(faults, err)
	}
	return changed, errors.Join(faults...)
}

// Remove takes all rules and routes of ours away.
func Remove() error {
	_, err := Mend(nil)
	return err
}

// Ours says whether a rule is one of those that Mend makes.
func Ours(r netlink.Rule) bool {
	return r.Table == Table && r.Priority == Priority && r.Protocol == Protocol
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func mend(family int, wanted []Reply) (changed bool, err error) {
	have, err := netlink.RuleList(family)
	if errors.Is(err, unix.EAFNOSUPPORT) && len(wanted) == 0 {
		return false, nil // a kernel without IPv6
	}
	if err != nil {
		return false, fmt.Errorf("list routing rules: %w", err)
	}
	missing, stale := plan(have, wanted)
	var faults []error
	note := func(err error) {
		faults = append(faults, err)
		changed = changed || err == nil
	}
	// The route first: a rule that finds nothing in its table passes the packet on.
	if len(wanted) > 0 {
		did, err := addRoute(family)
		if changed = changed || did; err != nil {
			return changed, err
		}
	}
	for _, w := range missing {
		err := netlink.RuleAdd(rule(family, w))
		if err != nil {
			err = fmt.Errorf("add the routing rule for replies of %s by %s: %w", w.Server, w.Interface, err)
		}
		note(err)
	}
	for _, r := range stale {
		err := netlink.RuleDel(&r)
		if errors.Is(err, unix.ENOENT) { // gone meanwhile
			err = nil
		}
		if err != nil {
			err = fmt.Errorf("remove a routing rule: %w", err)
		}
		note(err)
	}
	if len(wanted) == 0 {
		did, err := removeRoutes(family)
		changed = changed || did
		faults = append(faults, err)
	}
	return changed, errors.Join(faults...)
}

// plan compares the rules that are there with those that are wanted, which are
// all different. Rules of others are not looked at.
func plan(have []netlink.Rule, wanted []Reply) (missing []Reply, stale []netlink.Rule) {
	there := make(map[Reply]bool)
	for _, r := range have {
		if !Ours(r) {
			continue
		}
		w, ok := replyOf(r)
		if !ok || there[w] || !slices.Contains(wanted, w) {
			stale = append(stale, r)
			continue
		}
		there[w] = true
	}
	for _, w := range wanted {
		if !there[w] {
			missing = append(missing, w)
		}
	}
	return missing, stale
}

func rule(family int, w Reply) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Table, r.Priority, r.Protocol = family, Table, Priority, Protocol
	r.IifName, r.IPProto = w.Interface, unix.IPPROTO_TCP
	bits := w.Server.Addr().BitLen()
	r.Src = &net.IPNet{IP: w.Server.Addr().AsSlice(), Mask: net.CIDRMask(bits, bits)}
	r.Sport = netlink.NewRulePortRange(w.Server.Port(), w.Server.Port())
	return r
}

// replyOf reads a rule; false: it says more or less than one of ours does.
func replyOf(r netlink.Rule) (w Reply, ok bool) {
	if r.Src == nil || r.Sport == nil {
		return w, false
	}
	addr, ok := netip.AddrFromSlice(r.Src.IP)
	if ones, bits := r.Src.Mask.Size(); !ok || ones != bits || r.Sport.Start != r.Sport.End || r.IPProto != unix.IPPROTO_TCP {
		return w, false
	}
	if r.Dst != nil || r.Dport != nil || r.UIDRange != nil || r.OifName != "" || r.Mark != 0 || r.Tos != 0 || r.TunID != 0 || r.Invert || r.Goto > 0 {
		return w, false
	}
	return Reply{Interface: r.IifName, Server: netip.AddrPortFrom(addr.Unmap(), r.Sport.Start)}, true
}

// routes lists the default routes of the table.
func routes(family int) ([]netlink.Route, error) {
	all, err := netlink.RouteListFiltered(family, &netlink.Route{Table: Table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return nil, fmt.Errorf("list the routes of table %d: %w", Table, err)
	}
	return slices.DeleteFunc(all, func(r netlink.Route) bool {
		if r.Dst == nil {
			return false
		}
		ones, _ := r.Dst.Mask.Size()
		return ones > 0
	}), nil
}

// addRoute makes the route by which all is local, if it is not there.
func addRoute(family int) (changed bool, err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return false, fmt.Errorf("find the interface lo: %w", err)
	}
	have, err := routes(family)
	if err != nil {
		return false, err
	}
	if slices.ContainsFunc(have, func(r netlink.Route) bool { return r.Type == unix.RTN_LOCAL && r.LinkIndex == lo.Attrs().Index }) {
		return false, nil
	}
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if family == unix.AF_INET6 {
		all = &net.IPNet{IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}
	}
	r := &netlink.Route{Family: family, Table: Table, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Protocol: Protocol, LinkIndex: lo.Attrs().Index, Dst: all}
	switch err := netlink.RouteAdd(r); {
	case errors.Is(err, unix.EEXIST):
		return false, fmt.Errorf("routing table %d has another default route: it is vpnlb's own, remove the route", Table)
	case err != nil:
		return false, fmt.Errorf("add the local route of table %d (is lo up?): %w", Table, err)
	}
	return true, nil
}

// removeRoutes takes away the routes of ours.
func removeRoutes(family int) (changed bool, err error) {
	have, err := routes(family)
	if err != nil {
		return false, err
	}
	var faults []error
	for _, r := range have {
		if r.Protocol != Protocol || r.Type != unix.RTN_LOCAL {
			continue
		}
		if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
			faults = append(faults, fmt.Errorf("remove the local route of table %d: %w", Table, err))
			continue
		}
		changed = true
	}
	return changed, errors.Join(faults...)
}
