package node

import (
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
)

func TestCandidate(t *testing.T) {
	well := cluster.NodeStatus{CaughtUp: true, PlaneHealthy: true}
	but := func(edit func(*cluster.NodeStatus)) *cluster.NodeStatus { s := well; edit(&s); return &s }
	for _, c := range []struct {
		name  string
		c     candidate
		dead  bool // by a second member's word
		want  bool
		asked bool // whether a second member may be asked at all
	}{
		{name: "well", c: candidate{said: &well}, want: true},
		{name: "an owner that is well", c: candidate{owns: true, said: &well}, want: true},
		{name: "silent", c: candidate{silent: true, said: &well}},
		{name: "a silent owner, and a second member hears it", c: candidate{owns: true, silent: true, said: &well}, want: true, asked: true},
		{name: "a silent owner, and nobody hears it", c: candidate{owns: true, silent: true, said: &well}, dead: true, asked: true},
		{name: "not heard by hint", c: candidate{}},
		{name: "an owner not heard by hint", c: candidate{owns: true}, want: true},

		{name: "an arm is dead", c: candidate{said: but(func(s *cluster.NodeStatus) { s.ArmDead = true })}},
		{name: "an owner's arm is dead", c: candidate{owns: true, said: but(func(s *cluster.NodeStatus) { s.ArmDead = true })}},
		{name: "unfit by its own word", c: candidate{said: but(func(s *cluster.NodeStatus) { s.Unfit = true })}},
		{name: "an owner is unfit by its own word", c: candidate{owns: true, said: but(func(s *cluster.NodeStatus) { s.Unfit = true })}},

		{name: "behind", c: candidate{said: but(func(s *cluster.NodeStatus) { s.CaughtUp = false })}},
		{name: "its plane fails", c: candidate{said: but(func(s *cluster.NodeStatus) { s.PlaneHealthy = false })}},
		{name: "leaving or stopping", c: candidate{said: but(func(s *cluster.NodeStatus) { s.Draining = true })}},
		// A daemon that has just been restarted, or stops: what is pinned forwards.
		{name: "an owner behind", c: candidate{owns: true, said: but(func(s *cluster.NodeStatus) { s.CaughtUp = false })}, want: true},
		{name: "an owner's plane fails, for a moment or by an older version's word", c: candidate{owns: true, said: but(func(s *cluster.NodeStatus) { s.PlaneHealthy = false })}, want: true},
		{name: "an owner leaves or stops", c: candidate{owns: true, said: but(func(s *cluster.NodeStatus) { s.Draining = true })}, want: true},
	} {
		asked := false
		if got := c.c.fit(func() bool { asked = true; return c.dead }); got != c.want || asked != c.asked {
			t.Errorf("%s: fit %v (want %v), asked %v (want %v)", c.name, got, c.want, asked, c.asked)
		}
	}
}

// A failing plane counts when it has lasted, a broken inside path at once, because
// Reach has waited; neither does where it is over.
func TestFitnessJudges(t *testing.T) {
	var f fitness
	now := time.Unix(0, 0)
	all, none, some := &health.Reached{}, &health.Reached{None: true, Doubts: true}, &health.Reached{Doubts: true}
	for i, step := range []struct {
		after time.Duration
		plane string
		reach *health.Reached
		want  string // part of why; empty: fit
		news  bool
	}{
		{0, "", all, "", false},
		{time.Hour, "detached", all, "", false},
		{planePatience - 1, "detached", all, "", false},
		{1, "detached", all, "detached", true},
		{time.Minute, "self-check", all, "self-check", true},
		{time.Minute, "self-check", all, "self-check", false},
		{0, "", all, "", false},
		{planePatience, "detached", all, "", false}, // it begins anew
		{0, "", some, "", false},
		{0, "", none, "no server is reached", true},
		{0, "detached", none, "no server is reached", false},
		{0, "", &health.Reached{CutOff: true, Doubts: true}, "", false}, // then nobody else is known to be better
	} {
		now = now.Add(step.after)
		news := f.judge(step.plane, step.reach, now)
		why := f.unfit.get()
		if (why == "") != (step.want == "") || !strings.Contains(why, step.want) || news != step.news {
			t.Errorf("step %d: %q (news %v), want %q", i, why, news, step.want)
		}
	}
}

func TestArms(t *testing.T) {
	sessions := func(up ...bool) *[]bgp.NeighbourStatus {
		out := []bgp.NeighbourStatus{}
		for _, u := range up {
			out = append(out, bgp.NeighbourStatus{Established: u})
		}
		return &out
	}
	// ended are sessions that there were: true by the hold timer.
	ended := func(byHold ...bool) *[]bgp.NeighbourStatus {
		out := []bgp.NeighbourStatus{{}} // and a router that never came
		for _, h := range byHold {
			out = append(out, bgp.NeighbourStatus{EverUp: true, HoldExpired: h})
		}
		return &out
	}
	var f fitness
	now := time.Unix(0, 0)
	for i, step := range []struct {
		after           time.Duration
		sessions        *[]bgp.NeighbourStatus
		outside, inside bool // the links
		wantOut, wantIn bool // dead
	}{
		{0, sessions(false), true, true, false, false},
		{time.Hour, sessions(false), true, true, false, false}, // never had one: says nothing
		{0, sessions(false, true), true, true, false, false},
		{outsideGrace, sessions(false, false), true, true, false, false},
		{1, sessions(false, false), true, true, true, false},
		{0, sessions(true, false), true, true, false, false},
		{0, sessions(true, false), false, true, true, false},
		{0, sessions(true, false), true, false, false, true},
		{0, sessions(true, false), false, false, true, true},
		{0, sessions(true), true, true, false, false},
		{factsInterval, ended(true, false), true, true, false, false}, // one router ended it itself
		{factsInterval, ended(true, true), true, true, true, false},   // all silent: no grace
		{0, sessions(true), true, true, false, false},
		{0, nil, true, true, false, false}, // no BGP: the links alone
		{time.Hour, nil, true, true, false, false},
		{0, nil, false, true, true, false},
	} {
		now = now.Add(step.after)
		f.sessions.Store(step.sessions)
		f.arms(step.outside, step.inside, now)
		if f.outsideDead.Load() != step.wantOut || f.insideDead.Load() != step.wantIn {
			t.Errorf("step %d: outside dead %v, inside dead %v", i, f.outsideDead.Load(), f.insideDead.Load())
		}
	}
}

func TestFirstProbes(t *testing.T) {
	type step struct {
		at            time.Duration
		able, settled bool
		want          bool
	}
	for name, steps := range map[string][]step{
		"the servers answer":             {{0, true, false, true}, {time.Second, true, true, false}},
		"one never does":                 {{0, true, false, true}, {probePatience - 1, true, false, true}, {probePatience, true, false, false}},
		"a server that is added later":   {{0, true, true, false}, {time.Hour, true, false, false}},
		"it counts from when it may":     {{0, false, false, true}, {time.Hour, true, false, true}, {time.Hour + probePatience, true, false, false}},
		"not over before it may":         {{0, false, true, true}, {time.Second, true, false, true}},
		"a leader is lost in the middle": {{0, true, false, true}, {time.Second, false, true, true}, {probePatience, true, false, false}},
	} {
		var p firstProbes
		for _, s := range steps {
			if got := p.wait(s.able, s.settled, time.Unix(0, 0).Add(s.at)); got != s.want {
				t.Errorf("%s: waits %v at %v", name, got, s.at)
			}
		}
	}
}

func TestSaysUnfit(t *testing.T) {
	hints := []cluster.Hints{
		{Node: nodeA, Status: &cluster.NodeStatus{Unfit: true}},
		{Node: nodeB, Status: &cluster.NodeStatus{}},
		{Node: state.NodeID{3}, Status: &cluster.NodeStatus{ArmDead: true}},
	}
	for id, want := range map[state.NodeID]bool{nodeA: true, nodeB: false, {3}: true, {4}: false} {
		if got := saysUnfit(hints, id); got != want {
			t.Errorf("%v: %v", id, got)
		}
	}
}

// A gap ends with the first word of a leader after it, for good: an election later
// is no standstill.
func TestGapIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var h heartbeat
		h.beat()
		if h.unconfirmed(time.Time{}) != 0 {
			t.Error("unconfirmed without a gap")
		}
		stand := func() {
			time.Sleep(lease + time.Second)
			h.beat()
		}
		stand()
		if want := lease + time.Second; h.unconfirmed(time.Time{}) != want || h.unconfirmed(time.Now().Add(-time.Millisecond)) != want {
			t.Error("a word from before the gap confirms")
		}
		stand()
		if want := 2 * (lease + time.Second); h.unconfirmed(time.Time{}) != want {
			t.Error("a second gap does not count from the first, though no leader was heard in between")
		}
		if h.unconfirmed(time.Now()) != 0 || h.unconfirmed(time.Time{}) != 0 {
			t.Error("a word after the gap does not confirm, or not for good")
		}
		stand()
		if want := lease + time.Second; h.unconfirmed(time.Time{}) != want {
			t.Error("the next gap is not one")
		}
	})
}
