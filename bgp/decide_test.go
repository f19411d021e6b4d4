package bgp

import (
	"testing"
	"time"
)

// healthy is a node and a VIP without any fault.
func healthy() Facts {
	return Facts{
		Node: NodeFacts{PlaneAttached: true, PlaneSelfCheck: true, CaughtUp: true, SpecStored: true},
		VIP:  VIPFacts{Backends: 3, Usable: 3, Up: 3, Reached: 3, OthersWilling: 2, OthersAnnouncing: 2},
	}
}

// cold is a node that started without finding a leader and may cold start.
func cold(f *Facts) {
	f.Node.CaughtUp = false
	f.Node.QuorumLost = 30 * time.Second
	f.Node.StateAge = time.Hour
}

func TestDecide(t *testing.T) {
	tests := []struct {
		name   string
		change func(*Facts)
		action Action
		reason Reason
		wish   Action
	}{
		{"healthy", func(*Facts) {}, Announce, OK, Announce},
		{"zero facts announce nothing", func(f *Facts) { *f = Facts{} }, Withdraw, PlaneNotAttached, Withdraw},

		{"stopping", func(f *Facts) { f.Node.Stage = StageStopping }, Withdraw, Stopping, Withdraw},
		{"stopping as the last", func(f *Facts) { f.Node.Stage = StageStopping; f.VIP.OthersWilling = 0 }, Withdraw, Stopping, Withdraw},
		{"removed", func(f *Facts) { f.Node.Removed = true }, Withdraw, Removed, Withdraw},
		{"removed beats cold start", func(f *Facts) { cold(f); f.Node.Removed = true }, Withdraw, Removed, Withdraw},
		{"parked as the last", func(f *Facts) { f.Node.Parked = true; f.VIP.OthersWilling = 0 }, Withdraw, Parked, Withdraw},
		{"not attached as the last", func(f *Facts) { f.Node.PlaneAttached = false; f.VIP.OthersWilling = 0 }, Withdraw, PlaneNotAttached, Withdraw},
		{"VIP without any backend", func(f *Facts) { f.VIP = VIPFacts{} }, Withdraw, NoBackends, Withdraw},

		{"not caught up with a leader", func(f *Facts) { f.Node.CaughtUp = false }, Withdraw, NotCaughtUp, Withdraw},
		{"not caught up as the last", func(f *Facts) { f.Node.CaughtUp = false; f.VIP.OthersWilling = 0 }, Withdraw, NotCaughtUp, Withdraw},
		{"not caught up, leader missing for less than T_cold", func(f *Facts) {
			cold(f)
			f.Node.QuorumLost = 30*time.Second - 1
		}, Withdraw, NotCaughtUp, Withdraw},
		{"cold start", cold, Demote, ColdStart, Demote},
		{"cold start without a stored spec", func(f *Facts) { cold(f); f.Node.SpecStored = false }, Withdraw, NotCaughtUp, Withdraw},
		{"cold start without a stored spec, forced", func(f *Facts) {
			cold(f)
			f.Node.SpecStored, f.Node.ForceCold = false, true
		}, Withdraw, NotCaughtUp, Withdraw},
		{"no cold start while a leader is looked for, though forced", func(f *Facts) {
			cold(f)
			f.Node.QuorumLost, f.Node.ForceCold = 29*time.Second, true
		}, Withdraw, NotCaughtUp, Withdraw},
		{"cold start at seven days", func(f *Facts) { cold(f); f.Node.StateAge = 7 * 24 * time.Hour }, Demote, ColdStart, Demote},
		{"cold start after seven days", func(f *Facts) { cold(f); f.Node.StateAge = 7*24*time.Hour + 1 }, Withdraw, StateTooOld, Withdraw},
		{"cold start after seven days, forced", func(f *Facts) {
			cold(f)
			f.Node.StateAge, f.Node.ForceCold = 30*24*time.Hour, true
		}, Demote, ColdStart, Demote},
		{"cold start while draining", func(f *Facts) { cold(f); f.Node.Stage = StageDraining }, Drain, Draining, Drain},
		{"cold start, none reached, last", func(f *Facts) {
			cold(f)
			f.VIP = VIPFacts{Backends: 3, Usable: 3, Up: 3, Doubtful: true}
		}, Demote, ReachNone, Withdraw},

		{"self check", func(f *Facts) { f.Node.PlaneSelfCheck = false }, Withdraw, SelfCheckFailed, Withdraw},
		{"self check as the last", func(f *Facts) { f.Node.PlaneSelfCheck = false; f.VIP.OthersWilling = 0 }, Demote, SelfCheckFailed, Withdraw},
		{"lease gap", func(f *Facts) { f.Node.LeaseGap = time.Second }, Withdraw, LeaseGap, Withdraw},
		{"lease gap as the last", func(f *Facts) { f.Node.LeaseGap = time.Second; f.VIP.OthersWilling = 0 }, Demote, LeaseGap, Withdraw},
		{"lease gap with connections", func(f *Facts) { f.Node.LeaseGap = DefaultLimits().QuorumGrace - 1; f.VIP.Carries = true }, Announce, OK, Announce},
		{"long lease gap with connections", func(f *Facts) { f.Node.LeaseGap = DefaultLimits().QuorumGrace; f.VIP.Carries = true }, Withdraw, LeaseGap, Withdraw},
		{"no usable backend", func(f *Facts) { f.VIP.Usable = 0 }, Withdraw, NoBackends, Withdraw},
		{"no usable backend anywhere", func(f *Facts) { f.VIP.Usable, f.VIP.OthersWilling = 0, 0 }, Demote, NoBackends, Withdraw},
		{"no usable backend anywhere, draining", func(f *Facts) {
			f.VIP.Usable, f.VIP.OthersWilling, f.Node.Stage = 0, 0, StageDraining
		}, Drain, NoBackends, Withdraw},
		{"none reached", func(f *Facts) { f.VIP.Reached, f.VIP.Doubtful = 0, true }, Withdraw, ReachNone, Withdraw},
		{"none reached, not for long", func(f *Facts) { f.VIP.Reached = 0 }, Announce, OK, Announce},
		{"none reached by anybody", func(f *Facts) {
			f.VIP.Reached, f.VIP.Doubtful, f.VIP.OthersWilling = 0, true, 0
		}, Demote, ReachNone, Withdraw},
		{"none up, so none to reach", func(f *Facts) { f.VIP.Up, f.VIP.Reached = 0, 0 }, Announce, OK, Announce},

		{"own service failed", func(f *Facts) { f.VIP.ServiceFailed = true }, Withdraw, ServiceFailed, Withdraw},
		{"own service failed everywhere", func(f *Facts) { f.VIP.ServiceFailed, f.VIP.OthersWilling = true, 0 }, Demote, ServiceFailed, Withdraw},

		{"just started", func(f *Facts) { f.VIP.Unprobed = true }, Withdraw, NotProbed, Withdraw},
		{"just started, nobody else", func(f *Facts) { f.VIP.Unprobed, f.VIP.OthersWilling = true, 0 }, Announce, NotProbed, Withdraw},
		{"just started without a leader, nobody else", func(f *Facts) {
			f.VIP.Unprobed, f.VIP.OthersWilling, f.Node.QuorumLost = true, 0, time.Minute
		}, Demote, NotProbed, Withdraw},
		{"just started, cannot serve anyway", func(f *Facts) { f.VIP.Unprobed, f.Node.PlaneSelfCheck = true, false }, Withdraw, SelfCheckFailed, Withdraw},

		{"draining", func(f *Facts) { f.Node.Stage = StageDraining }, Drain, Draining, Drain},
		{"draining as the last", func(f *Facts) { f.Node.Stage = StageDraining; f.VIP.OthersWilling = 0 }, Drain, Draining, Drain},
		{"no quorum for less than T1", func(f *Facts) { f.Node.QuorumLost = 5*time.Second - 1 }, Announce, OK, Announce},
		{"no quorum for T1", func(f *Facts) { f.Node.QuorumLost = 5 * time.Second }, Demote, NoQuorum, Demote},
		{"no quorum for a week", func(f *Facts) {
			f.Node.QuorumLost, f.Node.StateAge = 8*24*time.Hour, 8*24*time.Hour
		}, Demote, NoQuorum, Demote},
		{"one of three not reached", func(f *Facts) { f.VIP.Reached, f.VIP.Doubtful = 2, true }, Demote, ReachDoubt, Demote},
		{"one of three not reached, not for long", func(f *Facts) { f.VIP.Reached = 2 }, Announce, OK, Announce},
	}
	for _, tc := range tests {
		t.Run(tc.name, func(t *testing.T) {
			f := healthy()
			tc.change(&f)
			got := Decide(f, DefaultLimits())
			if got.Action != tc.action || got.Reason != tc.reason || got.Wish != tc.wish {
				t.Errorf("got %s (%s, wish %s), want %s (%s, wish %s)",
					got.Action, got.Reason, got.Wish, tc.action, tc.reason, tc.wish)
			}
		})
	}
}

// everyFacts enumerates every combination of the facts, with durations on
// both sides of each limit.
func everyFacts(yield func(Facts)) {
	l := DefaultLimits()
	bools := [...]bool{false, true}
	for bits := range 1 << 9 {
		on := func(i int) bool { return bits>>i&1 == 1 }
		for _, stage := range [...]Stage{StageServing, StageDraining, StageStopping} {
			for _, lost := range [...]time.Duration{0, l.QuorumGrace - 1, l.QuorumGrace, l.ColdStartWait} {
				for _, vip := range everyVIP(l) {
					for _, willing := range bools {
						v := vip
						if willing {
							v.OthersWilling = 1
						}
						v.Unprobed = on(2)
						age := time.Duration(0)
						if on(8) {
							age = l.StateAge + 1
						}
						gap := time.Duration(0)
						if on(6) {
							gap = l.QuorumGrace - 1
						}
						yield(Facts{VIP: v, Node: NodeFacts{
							Stage: stage, QuorumLost: lost,
							Removed: on(0), Parked: on(1), PlaneAttached: on(3),
							PlaneSelfCheck: on(4), CaughtUp: on(5), LeaseGap: gap, SpecStored: on(7),
							StateAge: age,
						}})
					}
				}
			}
		}
	}
}

func everyVIP(l Limits) []VIPFacts {
	return []VIPFacts{
		{},
		{Backends: 2},
		{Backends: 2, Usable: 2, Up: 2, Reached: 2},
		{Backends: 2, Usable: 2, Up: 2, Reached: 1},
		{Backends: 2, Usable: 2, Up: 2, Reached: 1, Doubtful: true},
		{Backends: 2, Usable: 2, Up: 2, Reached: 0, Doubtful: true},
		{Backends: 2, Usable: 1, Up: 0, Reached: 0},
		{Backends: 2, Usable: 2, Up: 2, Reached: 2, ServiceFailed: true},
		{Backends: 2, Usable: 2, Up: 2, Reached: 2, Carries: true},
	}
}

func TestDecideProperties(t *testing.T) {
	l := DefaultLimits()
	seen := map[Reason]bool{}
	failures := 0
	everyFacts(func(f Facts) {
		if failures > 5 {
			return
		}
		d := Decide(f, l)
		seen[d.Reason] = true
		bad := func(why string) {
			failures++
			t.Errorf("%s: %+v gives %+v", why, f, d)
		}
		n := f.Node
		if d.Reason == ReasonNone || d.Reason.String() == "invalid" || d.Action.String() == "invalid" {
			bad("no reason")
		}
		alone := d.Reason == NotProbed && f.VIP.OthersWilling == 0
		if (d.Action == Announce) != (d.Reason == OK) && !alone {
			bad("the normal route and the reason ok belong together")
		}
		if d.Action > Withdraw && (!n.PlaneAttached || n.Removed || n.Parked || n.Stage == StageStopping) {
			bad("announced although nothing would forward, or told to go")
		}
		if d.Action > Demote && (!n.CaughtUp || n.QuorumLost >= l.QuorumGrace || n.Stage != StageServing) {
			bad("normal route without an agreement")
		}
		if d.Action > Withdraw && !n.CaughtUp && (!n.SpecStored || n.QuorumLost < l.ColdStartWait || n.StateAge > l.StateAge) {
			bad("cold start against its rule")
		}
		if d.Action > Drain && n.Stage == StageDraining {
			bad("draining node attracts traffic")
		}
		if d.Wish > d.Action {
			bad("the guard may only keep a route")
		}
		// Losing the leader after catching up must never withdraw.
		calm := f
		calm.Node.QuorumLost = 0
		if n.CaughtUp && (d.Action == Withdraw) != (Decide(calm, l).Action == Withdraw) {
			bad("the loss of the leader decides about a withdrawal")
		}
		// The wish does not depend on the others, so it can be told to them.
		other := f
		other.VIP.OthersWilling = 1 - f.VIP.OthersWilling
		if o := Decide(other, l); o.Wish != d.Wish || o.Reason != d.Reason {
			bad("wish or reason depends on the others")
		}
		if d.Soft && f.VIP.OthersWilling == 0 && d.Action == Withdraw {
			bad("last willing node withdraws a route that works")
		}
	})
	// Set by facts that the enumeration leaves out.
	for _, r := range Reasons() {
		if !seen[r] && r != VIPRemoved {
			t.Errorf("reason %s was never given", r)
		}
	}
}

// TestNeverAllWithdraw lets a whole cluster of three decide in rounds, each
// node with the wishes of the others, and asks that somebody always announces
// when each node's plane would forward, whatever soft faults there are.
func TestNeverAllWithdraw(t *testing.T) {
	l := DefaultLimits()
	soft := []func(*Facts){
		func(*Facts) {},
		func(f *Facts) { f.Node.PlaneSelfCheck = false },
		func(f *Facts) { f.Node.LeaseGap = time.Second },
		func(f *Facts) { f.VIP.Usable = 0 },
		func(f *Facts) { f.VIP.ServiceFailed = true },
		func(f *Facts) { f.VIP.Unprobed = true },
		func(f *Facts) { f.VIP.Reached, f.VIP.Doubtful = 0, true },
		func(f *Facts) { f.Node.QuorumLost = time.Minute },
		func(f *Facts) { f.Node.Stage = StageDraining },
	}
	const nodes = 3
	for code := range len(soft) * len(soft) * len(soft) {
		wish := [nodes]Action{Announce, Announce, Announce}
		var last [nodes]Action
		for range 2 { // wishes travel once; then nothing may change any more
			now := wish
			for i := range nodes {
				f := healthy()
				c := code
				for range i {
					c /= len(soft)
				}
				soft[c%len(soft)](&f)
				f.VIP.OthersWilling = 0
				for j := range nodes {
					if j != i && wish[j] != Withdraw {
						f.VIP.OthersWilling++
					}
				}
				d := Decide(f, l)
				now[i], last[i] = d.Wish, d.Action
			}
			wish = now
		}
		if last == [nodes]Action{} {
			t.Errorf("faults %d: all withdraw", code)
		}
	}
}

func TestNamesAreUnique(t *testing.T) {
	names := map[string]bool{}
	for _, r := range Reasons() {
		if s := r.String(); s == "" || names[s] {
			t.Errorf("reason %d has the name %q, empty or used twice", r, s)
		}
		names[r.String()] = true
	}
	if Action(99).String() != "invalid" || Reason(99).String() != "invalid" {
		t.Error("values out of range need a name too")
	}
}
