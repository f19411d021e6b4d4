package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// floatMetric is that of the floating static route; routes learned by BGP have
// a lower one.
const floatMetric = 250

// protocolZebraStatic marks FRR's static routes (linux/rtnetlink.h
// RTPROT_ZSTATIC): zebra installs only the best route of all, with a metric
// that says nothing about its distance.
const protocolZebraStatic = 196

// ecmp reads the next hops that the router's kernel uses for a VIP by BGP.
// None: only the floating static route is left, or not even that.
func (l *Lab) ecmp(vip netip.Addr) ([]netip.Addr, error) {
	var hops []netip.Addr
	err := l.inside(roleRouter, func() error {
		routes, err := netlink.RouteListFiltered(familyOf(vip), &netlink.Route{
			Dst: host(vip), Table: unix.RT_TABLE_MAIN,
		}, netlink.RT_FILTER_DST|netlink.RT_FILTER_TABLE)
		if err != nil {
			return fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Priority < floatMetric && r.Protocol != protocolZebraStatic {
				hops = append(hops, nextHops(r)...)
			}
		}
		return nil
	})
	slices.SortFunc(hops, netip.Addr.Compare)
	return hops, err
}

func familyOf(a netip.Addr) int {
	if a.Is6() {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// setFloat makes the floating static routes lead over exactly these nodes. They
// carry traffic only while nobody announces: all daemons may be dead, their
// data planes are not.
func setFloat(o Options, nodes []string) error {
	for _, f := range o.families() {
		r := &netlink.Route{Dst: host(f.vip), Priority: floatMetric, Protocol: unix.RTPROT_BOOT}
		for _, n := range nodes {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: f.nodeOutside(index(n)).AsSlice()})
		}
		if len(nodes) == 0 {
			if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("delete floating route to %s: %w", f.vip, err)
			}
			continue
		}
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("set floating route to %s: %w", f.vip, err)
		}
	}
	return nil
}

func nextHops(r netlink.Route) (out []netip.Addr) {
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

// waitECMP waits until the ECMP set is exactly the members'.
func (l *Lab) waitECMP(ctx context.Context, bound time.Duration) error {
	return l.waitHops(ctx, bound, l.members()...)
}

// waitHops waits until the ECMP set of every VIP is exactly those nodes'.
func (l *Lab) waitHops(ctx context.Context, bound time.Duration, nodes ...string) error {
	var got []netip.Addr
	for _, f := range l.st.Options.families() {
		var want []netip.Addr
		for _, n := range nodes {
			want = append(want, f.nodeOutside(index(n)))
		}
		slices.SortFunc(want, netip.Addr.Compare)
		err := until(ctx, bound, fmt.Sprintf("the router's next hops %v", want), func() (bool, error) {
			var err error
			got, err = l.ecmp(f.vip)
			return slices.Equal(got, want), err
		})
		if err != nil {
			return fmt.Errorf("%w (they are %v)", err, got)
		}
	}
	return nil
}
