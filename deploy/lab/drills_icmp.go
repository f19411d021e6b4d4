package lab

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

// Sizes of the drills on fragments and ICMP.
const (
	pingClients = 8 // of each family, and so on
	probers     = 12
	pieceSets   = 3
	smallMTU    = 1300 // more than IPv6 asks for
	forgedMTU   = 1452 // of routers elsewhere: less than the link's, more than what does not fit
	forgedEach  = 24   // errors about each client, from as many routers: they reach all nodes
	bigPacket   = 1400 // bytes of ESP: fits the links, not the small MTU
	forgetTime  = 6 * time.Second
	probesTries = 3 // until something arrives: one is lost, one may be on its way
)

var pingSizes = []int{56, 1400, 3000}

func (d *drill) ping(ctx context.Context) error {
	who, err := d.l.strangers(pingClients)
	if err != nil {
		return err
	}
	start := time.Now()
	var results []peer.PingResult
	err = d.l.errand(ctx, "ping", peer.PingConfig{VIP: vipAddr, VIP6: vip6Addr, Clients: who, Sizes: pingSizes}, &results)
	if err != nil {
		return err
	}
	d.converged(time.Since(start))
	sent, answered := 0, 0
	for _, r := range results {
		sent += r.Sent
		answered += r.Answered
	}
	d.notef("%d of %d pings of %d clients answered by the VIP", answered, sent, len(results))
	if answered != sent || sent != len(who)*len(pingSizes) {
		d.failf("every ping should be answered")
	}
	return d.unharmed(ctx)
}

func (d *drill) fragmentOrder(ctx context.Context) error {
	who, err := d.l.strangers(pieceSets)
	if err != nil {
		return err
	}
	malformed, err := d.reason(ctx, "drop_malformed")
	if err != nil {
		return err
	}
	start := time.Now()
	var results []peer.PiecesResult
	if err := d.l.errand(ctx, "pieces", peer.PiecesConfig{VIP: vipAddr, VIP6: vip6Addr, Clients: who}, &results); err != nil {
		return err
	}
	d.converged(time.Since(start))
	answered, want := 0, int64(0)
	for _, r := range results {
		want += int64(r.Malformed)
		if r.Answered {
			answered++
		}
		if r.Answered != r.Wanted {
			d.failf("%s, fragments %s: answered %t, want %t", r.Client, r.Case, r.Answered, r.Wanted)
		}
	}
	now, err := d.reason(ctx, "drop_malformed")
	if err != nil {
		return err
	}
	d.notef("%d of %d logins in pieces answered, %d packets counted as malformed", answered, len(results), now-malformed)
	if now-malformed != want || len(results) == 0 {
		d.failf("%d malformed packets were sent", want)
	}
	return d.unharmed(ctx)
}

// reason sums up one counter of all members.
func (d *drill) reason(ctx context.Context, name string) (n int64, err error) {
	for _, m := range d.l.members() {
		st, err := d.l.status(ctx, m)
		if err != nil {
			return 0, err
		}
		for _, c := range st.Packets {
			if c.Reason == name {
				n += int64(c.Packets)
			}
		}
	}
	return n, nil
}

// pathMTU makes the clients' link small, then the link of one server.
func (d *drill) pathMTU(ctx context.Context) error {
	start := time.Now()
	if err := d.smallOutside(ctx); err != nil {
		return err
	}
	if err := flow(ctx, forgetTime); err != nil {
		return err
	}
	if err := d.smallInside(ctx); err != nil {
		return err
	}
	d.converged(time.Since(start))
	return d.unharmed(ctx)
}

// smallOutside: the router says that replies do not fit, and it must be the
// server that sent them who hears of it, whichever node the error enters.
func (d *drill) smallOutside(ctx context.Context) error {
	l := d.l
	who, err := l.strangers(probers)
	if err != nil {
		return err
	}
	before := (&embeddedPeers{l: l}).servers(ctx)
	l.say("  the clients' link gets an MTU of %d", smallMTU)
	ends := [][2]string{{roleRouter, clientPort}, {roleClient, outsideName}}
	defer l.setMTUs(ends, linkMTU) // again below; here for the ways out
	if err := l.setMTUs(ends, smallMTU); err != nil {
		return err
	}
	cfg := peer.ProbeConfig{VIP: vipAddr, VIP6: vip6Addr, Clients: who, Want: bigPacket, Forged: forgedEach, ForgedMTU: forgedMTU}
	for _, f := range l.st.Options.families() {
		cfg.Routers = append(cfg.Routers, f.spoofed)
	}
	var results []peer.ProbeResult
	if err := l.errand(ctx, "probe", cfg, &results); err != nil {
		return err
	}
	if err := l.setMTUs(ends, linkMTU); err != nil {
		return err
	}
	after := (&embeddedPeers{l: l}).servers(ctx)
	real, forged := int64(0), int64(0)
	for _, r := range results {
		if !r.Answered || r.Tries > probesTries {
			d.failf("%s: answered %t after %d tries", r.Client, r.Answered, r.Tries)
		}
		for i, s := range after {
			own, others := errorsAbout(s.Errors, r.Client, cfg.Routers)
			switch {
			case i != int(r.Server) && own+others > 0:
				d.failf("server %d heard %d errors about %s, which server %d serves", i, own+others, r.Client, r.Server)
			case i == int(r.Server) && (own == 0 || others != int64(r.Forged)):
				d.failf("server %d heard %d errors about %s from the router, %d of %d from others", i, own, r.Client, others, r.Forged)
			}
			real, forged = real+own, forged+others
		}
	}
	for i, s := range after {
		if f, b := s.Errors.Foreign-before[i].Errors.Foreign, s.Errors.Broken-before[i].Errors.Broken; f+b > 0 {
			d.failf("server %d heard %d errors about packets that are not its own, %d with wrong sums", i, f, b)
		}
	}
	d.notef("%d clients' servers heard %d errors of the router and %d of others about them", len(results), real, forged)
	return nil
}

// errorsAbout counts what a host heard about a client: from routers of these
// prefixes, and from others.
func errorsAbout(st peer.ErrorStats, client netip.Addr, routers []netip.Prefix) (own, others int64) {
	for _, e := range st.Errors {
		switch {
		case e.Client != client || !e.TooBig:
		case slices.ContainsFunc(routers, func(p netip.Prefix) bool { return p.Contains(e.From) }):
			others += e.Count
		default:
			own += e.Count
		}
	}
	return own, others
}

// smallInside: a request does not fit on the way to one server, and the node
// itself says so to the client, in the VIP's name.
func (d *drill) smallInside(ctx context.Context) error {
	l := d.l
	i, _, err := d.victim()
	if err != nil {
		return err
	}
	who, err := l.strangers(probers)
	if err != nil {
		return err
	}
	l.say("  the link of %s gets an MTU of %d", serverName(i), smallMTU)
	ends := [][2]string{{serverName(i), outsideName}, {roleInside, insidePort(serverName(i))}}
	widen := func() error {
		if err := l.setServerRoutes(i, 0); err != nil {
			return err
		}
		return l.setMTUs(ends, linkMTU)
	}
	defer widen() // again below; here for the ways out
	if err := l.setMTUs(ends, smallMTU); err != nil {
		return err
	}
	if err := l.setServerRoutes(i, smallMTU); err != nil {
		return err
	}
	var results []peer.ProbeResult
	err = l.errand(ctx, "probe", peer.ProbeConfig{VIP: vipAddr, VIP6: vip6Addr, Clients: who, Size: bigPacket}, &results)
	if err != nil {
		return err
	}
	if err := widen(); err != nil {
		return err
	}
	told, there := map[bool]int{}, map[bool]int{} // by "IPv6"
	for _, r := range results {
		six := r.Client.Is6()
		if !r.Answered || r.Tries > probesTries {
			d.failf("%s on server %d: answered %t after %d tries", r.Client, r.Server, r.Answered, r.Tries)
		}
		if int(r.Server) == i {
			there[six]++
		}
		for _, e := range r.Errors.Errors {
			told[six] += int(e.Count)
			if e.From != l.vipFor(r.Client) || !e.TooBig || e.MTU != smallMTU || int(r.Server) != i {
				d.failf("%s on server %d was told: %+v", r.Client, r.Server, e)
			}
		}
		if r.Errors.Foreign+r.Errors.Broken > 0 {
			d.failf("%s heard %d errors about packets that are not its own, %d with wrong sums", r.Client, r.Errors.Foreign, r.Errors.Broken)
		}
	}
	for six, n := range there { // the clients share a kernel: one error teaches them all
		d.notef("IPv6 %t: %d clients of %s, told %d times by the VIP", six, n, serverName(i), told[six])
		if told[six] == 0 {
			d.failf("nobody was told")
		}
	}
	if len(there) != len(l.st.Options.families()) {
		d.failf("no client of %s in some family: nothing was proved there", serverName(i))
	}
	return nil
}

func (l *Lab) setMTUs(ends [][2]string, mtu int) error {
	for _, e := range ends {
		err := l.inside(e[0], func() error {
			link, err := netlink.LinkByName(e[1])
			if err != nil {
				return fmt.Errorf("find %s: %w", e[1], err)
			}
			if err := netlink.LinkSetMTU(link, mtu); err != nil {
				return fmt.Errorf("set MTU of %s to %d: %w", e[1], mtu, err)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// setServerRoutes tells all members the MTU of the way to server i; 0: forget it.
func (l *Lab) setServerRoutes(i, mtu int) error {
	for _, n := range l.members() {
		for _, f := range l.st.Options.families() {
			err := l.inside(n, func() error {
				link, err := netlink.LinkByName(insideName)
				if err != nil {
					return fmt.Errorf("find %s: %w", insideName, err)
				}
				r := &netlink.Route{Dst: host(f.server(i)), LinkIndex: link.Attrs().Index, Protocol: unix.RTPROT_BOOT}
				if f.vip.Is4() {
					r.Scope = netlink.SCOPE_LINK
				}
				if mtu == 0 {
					if err := netlink.RouteDel(r); err != nil && err != unix.ESRCH {
						return fmt.Errorf("delete route to %s: %w", f.server(i), err)
					}
					return nil
				}
				r.MTU, r.MTULock = mtu, true
				if err := netlink.RouteReplace(r); err != nil {
					return fmt.Errorf("set route to %s: %w", f.server(i), err)
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}
