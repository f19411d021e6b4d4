package node

import (
	"net/netip"

	"github.com/vpnlb/vpnlb/bgp"
)

// tellReady reports READY to the service manager when a route is announced, or
// when none can be: see settled. Saying it again does nothing.
func (m *member) tellReady(facts map[netip.Addr]bgp.Facts) {
	if m.anyAnnounced() || settled(m.caughtUp.Load(), facts, m.limits) {
		m.node.notify.ready()
	}
}

// settled reports whether a node that announces nothing has arrived all the
// same: it has caught up and there is nothing that anybody could announce (no
// VIP, or none with a server), or what forbids its routes does not end by
// itself. Whatever may still come (a leader, a service of its own, a server in
// reach) is worth waiting for: a rolling restart must not go on to the next node.
func settled(caughtUp bool, facts map[netip.Addr]bgp.Facts, limits bgp.Limits) bool {
	for _, f := range facts {
		l := limits
		if f.Limits != (bgp.Limits{}) {
			l = f.Limits
		}
		d := bgp.Decide(f, l)
		switch {
		case d.Action != bgp.Withdraw:
			return false // the announcement is on its way
		case d.Reason == bgp.NoBackends:
		case d.Reason == bgp.StateTooOld, d.Reason == bgp.Removed, d.Reason == bgp.Parked:
			caughtUp = true // it will not
		default:
			return false
		}
	}
	return caughtUp
}
