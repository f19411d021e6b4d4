package gateway

import (
	"net/netip"
	"slices"
	"time"
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
	members := k.neighbours(a)
	for _, p := range a.Peers {
		if p.Live {
			f.Live = append(f.Live, p.ID)
		}
	}
	f.Live = sortedLive(f.Live)
	named := map[netip.Addr]bool{}
	for _, g := range a.Gateways {
		named[g.Addr] = true
		w := GatewayFacts{ID: g.ID, Addr: g.Addr, Owner: g.Owner, Held: slices.Contains(gateways, g.Addr)}
		w.Claimed = w.Held && k.claimed[g.Addr]
		w.Holder, w.SilentFor = k.watch.holder(g.Addr, members, now)
		if w.Holder == HolderMember || w.Holder == HolderForeign {
			w.MAC = k.watch.of(g.Addr).mac
		}
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
