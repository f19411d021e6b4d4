package health

import "github.com/vpnlb/vpnlb/cluster/state"

// panic applies the rule for a pool (the backends of one VIP and class) of
// which more than half would be down: then servers whose packets the return
// path still carries are kept; of those of which it can carry none, the ones that
// not every member heard misses; and never is the table left empty.
func (t *tally) panic() {
	for i := range t.Spec.VIPs {
		for _, class := range state.Classes {
			t.panicPool(t.pool(t.Spec.VIPs[i].ID, class))
		}
	}
}

// pool lists the cases that clients could be served by. A backend nobody
// observed and without a verdict has no case; it counts as neither up nor down.
func (t *tally) pool(vip state.VIPID, class state.Class) []*verdictCase {
	var p []*verdictCase
	for _, c := range t.cases {
		serves := c.backend.Admin == state.AdminEnabled || c.backend.Admin == state.AdminDrain
		if c.backend.VIP == vip && c.class == class && serves {
			p = append(p, c)
		}
	}
	return p
}

func (t *tally) panicPool(pool []*verdictCase) {
	down := 0
	for _, c := range pool {
		if t.down(c) {
			down++
		}
	}
	if 2*down > len(pool) {
		for _, c := range pool {
			switch {
			case c.to != state.VerdictDown:
			case c.carried:
				c.to, c.reason = state.VerdictUnknown, HeldPanic
			case c.unseen && c.votes.Down < c.votes.Fresh:
				c.to, c.reason = state.VerdictUnknown, HeldUnseen
			}
		}
	}
	for _, c := range pool {
		if c.takes() && c.after() != state.VerdictDown && (c.carried || !t.down(c)) {
			return
		}
	}
	for _, c := range pool {
		if c.takes() && c.to == state.VerdictDown {
			c.to, c.reason = state.VerdictUnknown, HeldNeverEmpty
		}
	}
}

// down reports whether a server would be down, or is about to be: a majority
// misses it already.
func (t *tally) down(c *verdictCase) bool {
	return c.after() == state.VerdictDown || c.to == state.VerdictUnknown && c.failing >= t.majority()
}

// after is the verdict once the proposal is applied.
func (c *verdictCase) after() state.Verdict {
	if c.to != state.VerdictUnknown {
		return c.to
	}
	return c.health().Verdict
}

// takes reports whether unknown clients could be sent there but for its verdict.
func (c *verdictCase) takes() bool {
	return c.backend.Admin == state.AdminEnabled && c.backend.Weight > 0
}
