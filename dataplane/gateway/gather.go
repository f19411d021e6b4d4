package gateway

import (
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// facts puts together what Decide looks at.
func (k *Keeper) facts(a *Agreement, gateways, vips []netip.Addr, now time.Time) Facts {
	k.noteTime(a, now)
	f := Facts{Self: k.cfg.Self, CaughtUp: a.CaughtUp, Unfit: a.Unfit, Suspended: !k.suspended.IsZero(),
		Confirmed: k.leaderSpoke(a, now)}
	if !f.Confirmed {
		f.NoLeaderFor = now.Sub(k.confirmed)
	}
	if !a.Unfit {
		f.Live = append(f.Live, k.cfg.Self)
	}
	members := map[netip.Addr]state.NodeID{}
	for _, p := range a.Peers {
		if p.Live {
			f.Live = append(f.Live, p.ID)
		}
		for _, addr := range p.Addrs {
			if addr.Is4() {
				members[addr] = p.ID
			}
		}
	}
	f.Live = sortedLive(f.Live)
	named := map[netip.Addr]bool{}
	for _, g := range a.Gateways {
		named[g.Addr] = true
		w := GatewayFacts{ID: g.ID, Addr: g.Addr, Owner: g.Owner, Held: slices.Contains(gateways, g.Addr)}
		w.Claimed = w.Held && k.claimed[g.Addr]
		w.Holder, w.SilentFor = k.watch.holder(g.Addr, members, now)
		f.Gateways = append(f.Gateways, w)
	}
	for _, v := range a.VIPs {
		named[v] = true
		f.VIPs = append(f.VIPs, VIPFacts{Addr: v, Held: slices.Contains(vips, v)})
	}
	f.FoundGateways, f.FoundVIPs = unnamed(gateways, named), unnamed(vips, named)
	return f
}

func unnamed(found []netip.Addr, named map[netip.Addr]bool) []netip.Addr {
	var out []netip.Addr
	for _, a := range found {
		if !named[a] {
			out = append(out, a)
		}
	}
	return out
}

func (k *Keeper) leaderSpoke(a *Agreement, now time.Time) bool {
	return !a.LeaderHeard.IsZero() && now.Sub(a.LeaderHeard) <= k.cfg.Lease
}

// noteTime keeps track of leases and standstills. A process that stood still for
// longer than the lease may have lost everything meanwhile and not know it.
func (k *Keeper) noteTime(a *Agreement, now time.Time) {
	if k.confirmed.IsZero() {
		k.confirmed = k.started
	}
	if now.Sub(k.last) > k.cfg.Lease {
		k.suspended = now
		k.watch.forgetOpen() // nobody listened meanwhile: silence proves nothing
		k.deps.Log.Warn("gateway keeper stood still", "for", now.Sub(k.last))
	}
	if k.leaderSpoke(a, now) {
		k.confirmed = now
		if a.LeaderHeard.After(k.suspended) {
			k.suspended = time.Time{}
		}
	}
}

// ask asks the segment what Decide will want to know.
func (k *Keeper) ask(a *Agreement, f *Facts, now time.Time) {
	keep := map[netip.Addr]bool{}
	question := func(addr netip.Addr, every time.Duration) {
		keep[addr] = true
		if addr.Is4() && k.watch.due(addr, every, now) {
			if err := k.segment.Ask(addr); err != nil {
				k.deps.Log.Debug("ask for an address", "addr", addr, "err", err)
				k.watch.of(addr).open = time.Time{} // not asked: silence proves nothing
			}
		}
	}
	for _, g := range f.Gateways {
		every := askOther
		switch {
		case g.Held:
			every = askHeld
		case !f.Confirmed:
			every = askUrgent
		}
		question(g.Addr, every)
	}
	for _, p := range a.Peers {
		for _, addr := range p.Addrs {
			every := askPeer
			if s := k.watch.addrs[addr]; s != nil && !s.answered.IsZero() {
				every = askPeerAgain
			}
			question(addr, every)
		}
	}
	k.watch.forget(keep)
}
