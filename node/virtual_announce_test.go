package node

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

// deaf is a speaker that takes everything and tells it to nobody.
type deaf struct{}

func (deaf) Set(context.Context, []bgp.Advertisement) error { return nil }
func (deaf) Neighbours() []bgp.NeighbourStatus              { return nil }
func (deaf) Stop(context.Context) error                     { return nil }

// session gives a node one router, in session for these families; none: not in
// session.
func (v *vnode) session(families ...string) {
	v.m.fit.sessions.Store(&[]bgp.NeighbourStatus{{
		Address: netip.MustParseAddr("192.0.2.254"), State: "active", Established: len(families) > 0, Families: families, Error: "connection refused",
	}})
}

func announcing(t *testing.T) func(*member) {
	return func(m *member) {
		var err error
		if m.announcer, err = bgp.NewAnnouncer(bgp.AnnouncerConfig{}, deaf{}, bgp.Deps{}); err != nil {
			t.Error(err)
		}
	}
}

// street is a town whose nodes announce, have a router in session and a program
// that works. edit may change the facts that a node gets.
type street struct {
	*town
	mu   sync.Mutex
	told map[*vnode]bgp.VIPFacts
}

func inStreet(t *testing.T, edit func(v *vnode, f *bgp.Facts), f func(t *testing.T, s *street, nodes []*vnode)) {
	inTownWith(t, announcing(t), func(t *testing.T, tw *town, nodes []*vnode) {
		s := &street{town: tw, told: make(map[*vnode]bgp.VIPFacts)}
		ctx, cancel := context.WithCancel(context.Background())
		var parts sync.WaitGroup
		defer parts.Wait()
		defer cancel()
		for _, v := range nodes {
			v.session("ipv4")
			parts.Go(func() { v.m.announcer.Run(ctx) })
			parts.Go(func() {
				for pause(ctx, factsInterval) {
					facts := v.m.routeFacts()
					for addr, f := range facts {
						f.Node.PlaneAttached, f.Node.PlaneSelfCheck = true, true
						if edit != nil {
							edit(v, &f)
						}
						facts[addr] = f
					}
					s.mu.Lock()
					s.told[v] = facts[vipAddr].VIP
					s.mu.Unlock()
					v.m.announcer.Update(facts)
				}
			})
		}
		f(t, s, nodes)
	})
}

// route is where the VIP stands at a node.
func (v *vnode) route() bgp.VIPStatus {
	for _, s := range v.m.announcer.Status() {
		return s
	}
	return bgp.VIPStatus{}
}

// seen is what a node knows of the others' routes.
func (s *street) seen(v *vnode) (willing, announcing int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.told[v].OthersWilling, s.told[v].OthersAnnouncing
}

// A route that no router has is none: not for the others, who would withdraw
// theirs for it, and not for READY and status.
func TestVirtualUnsentRouteCountsForNothing(t *testing.T) {
	inStreet(t, nil, func(t *testing.T, tw *street, nodes []*vnode) {
		alone, at := nodes[1], nodes[2]
		counts := func(want int) func() bool {
			return func() bool { w, a := tw.seen(at); return w == want && a == want }
		}
		shown := func() admin.VIPStatus {
			st := admin.Status{}
			alone.m.fillRoutes(&st)
			return st.VIPs[0]
		}
		tw.eventually(10*time.Second, "all announce", counts(2))
		if !alone.m.anyAnnounced() || shown().Announce != "announced" {
			t.Errorf("announced, yet %+v", shown())
		}
		for name, families := range map[string][]string{"no session": nil, "a session for another family": {"ipv6"}} {
			alone.session(families...)
			tw.eventually(2*time.Second, name+": the others do not count it", counts(1))
			if s := alone.route(); s.Announced != bgp.Announce || s.Decision.Wish != bgp.Announce {
				t.Errorf("%s: the decision itself changed: %+v", name, s)
			}
			if alone.m.anyAnnounced() {
				t.Errorf("%s: it passes for announced, and the service for ready", name)
			}
			if s := shown(); s.Announce != "unsent" || s.Reason != "no_session" {
				t.Errorf("%s: status shows %+v", name, s)
			}
			st := admin.Status{}
			alone.m.fillRoutes(&st)
			if st.Neighbours[0].Error != "connection refused" {
				t.Errorf("%s: status hides why: %+v", name, st.Neighbours)
			}
			alone.session("ipv4")
			tw.eventually(2*time.Second, "the session is back", counts(2))
		}
	})
}

// Two nodes whose sessions are down are willing, but for nobody: the third one,
// whose self-check fails, keeps its route.
func TestVirtualUnsentRoutesReplaceNone(t *testing.T) {
	var sick atomic.Pointer[vnode]
	inStreet(t, func(v *vnode, f *bgp.Facts) { f.Node.PlaneSelfCheck = v != sick.Load() }, func(t *testing.T, tw *street, nodes []*vnode) {
		announced := func(want bgp.Action) func() bool {
			return func() bool { return nodes[0].route().Announced == want }
		}
		tw.eventually(10*time.Second, "it announces", announced(bgp.Announce))
		time.Sleep(2 * time.Second)
		for _, v := range nodes[1:] {
			v.session()
		}
		time.Sleep(2 * time.Second)
		sick.Store(nodes[0])
		for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(50 * time.Millisecond) {
			if announced(bgp.Withdraw)() {
				t.Fatal("the last route that a router has is withdrawn")
			}
		}
		if !announced(bgp.Demote)() {
			t.Errorf("it is not demoted: %+v", nodes[0].route())
		}
		nodes[2].session("ipv4")
		tw.eventually(3*time.Second, "it leaves the VIP to one that is in session", announced(bgp.Withdraw))
	})
}

// A stopping node waits for another that announces, where that is worth it.
func TestVirtualStopWaitsForOthers(t *testing.T) {
	inStreet(t, nil, func(t *testing.T, s *street, nodes []*vnode) {
		v, rest := nodes[0], nodes[1:]
		all := func(families ...string) {
			for _, o := range rest {
				o.session(families...)
			}
		}
		stage := func(to bgp.Stage) {
			for _, o := range rest {
				o.m.draining.Store(int32(to))
			}
		}
		for _, c := range []struct {
			name       string
			harm, mend func()
			want       time.Duration
		}{
			{"others announce", func() {}, func() {}, 0},
			{"no router has a route of this node", func() { v.session(); all() }, func() { v.session("ipv4"); all("ipv4") }, 0},
			{"no router has a route of another node", func() { all() }, func() { all("ipv4") }, stopPatience},
			{"the others are stopping too", func() { stage(bgp.StageDraining) }, func() { stage(bgp.StageServing) }, stopPatience},
			{"no other one is heard", func() { s.isolate(v); time.Sleep(hintFresh) }, func() { s.rejoin(v) }, 0},
		} {
			s.eventually(20*time.Second, "all announce", func() bool { _, a := s.seen(v); return a == 2 && v.m.anyAnnounced() && v.m.othersAnnounce() })
			c.harm()
			time.Sleep(time.Second) // until hints tell
			began := time.Now()
			v.m.waitOthers()
			if took := time.Since(began); took < c.want || took > c.want+100*time.Millisecond {
				t.Errorf("%s: it waited %v, want %v", c.name, took, c.want)
			}
			c.mend()
		}
	})
}

// The facts of routes: each comes from where it should.
func TestVirtualRouteFacts(t *testing.T) {
	inTownWith(t, announcing(t), func(t *testing.T, tw *town, nodes []*vnode) {
		v := nodes[0]
		facts := func() bgp.Facts { return v.m.routeFacts()[vipAddr] }
		f := facts()
		if !f.Node.CaughtUp || f.Node.LeaseGap != 0 || f.Node.Removed || f.Node.Parked || f.Node.QuorumLost != 0 || f.Node.Stage != bgp.StageServing {
			t.Errorf("a node that is well: %+v", f.Node)
		}
		if f.VIP.Backends != 3 || f.VIP.Usable != 3 || f.VIP.Up != 3 {
			t.Errorf("three servers: %+v", f.VIP)
		}
		// Nothing probes here: what is not announced waits, but not for ever.
		other := netip.MustParseAddr("203.0.113.99")
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() { v.m.announcer.Run(ctx); close(ended) }()
		defer func() { cancel(); <-ended }()
		v.session("ipv4")
		ready := facts()
		ready.Node.PlaneAttached, ready.Node.PlaneSelfCheck, ready.VIP.Unprobed = true, true, false
		v.m.announcer.Update(map[netip.Addr]bgp.Facts{vipAddr: ready})
		tw.eventually(10*time.Second, "announced", v.m.anyAnnounced)
		v.m.firstProbes = firstProbes{}
		if facts().VIP.Unprobed {
			t.Error("a route that is there waits for probes")
		}
		v.propose(state.PutVIP{VIP: state.VIP{Name: "more", Addr: other, ClientBits: 64}})
		tw.eventually(time.Second, "the VIP is known", func() bool { _, ok := v.m.spec().VIPByName("more"); return ok })
		v.m.firstProbes = firstProbes{}
		if !v.m.routeFacts()[other].VIP.Unprobed {
			t.Error("a route that is not there does not wait for probes")
		}
		v.m.collector.Receive(v.m.self, sees(v, 1<<40, health.Seen{Opinion: health.OpinionUnknown, Answers: 1}))
		if v.m.routeFacts()[other].VIP.Unprobed {
			t.Error("all servers answered, and it waits")
		}
		// T1 of the agreement replaces the default.
		s := v.m.spec().Settings
		s.Demote = 42 * time.Second
		v.propose(state.SetSettings{Settings: s, Expect: v.m.spec().Settings.Version})
		tw.eventually(time.Second, "the setting is known", func() bool { return facts().Limits.QuorumGrace == 42*time.Second })
		if f := facts().Limits; f.ColdStartWait != v.m.limits.ColdStartWait {
			t.Errorf("limits %+v", f)
		}
		// What stands in the way of this node as a whole.
		v.m.fit.insideDead.Store(true)
		if facts().Node.PlaneSelfCheck {
			t.Error("a dead inside arm passes the self-check")
		}
		v.m.draining.Store(int32(bgp.StageDraining))
		if facts().Node.Stage != bgp.StageDraining {
			t.Error("the stage is not told")
		}
		if facts().Node.ForceCold {
			t.Error("nobody forces a cold start")
		}
		v.deps.ForceCold = true
		if !facts().Node.ForceCold {
			t.Error("a forced cold start is not told")
		}
		v.deps.ForceCold = false
	})
}

// sees is an observation in which a node sees all servers alike.
func sees(v *vnode, sequence uint64, s health.Seen) health.Observation {
	o := health.Observation{Boot: v.m.ids.Identity().Boot, Sequence: sequence}
	for i := range v.m.spec().Backends {
		s.Backend, s.Class = v.m.spec().Backends[i].ID, state.ClassIKE
		o.Seen = append(o.Seen, s)
	}
	return o
}

// A stored state that is too old is not forwarded from, unless somebody who knows
// that nothing newer is to be had says so.
func TestVirtualForcedColdStart(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		for _, v := range nodes {
			tw.isolate(v)
		}
		for _, v := range nodes {
			v.halt()
		}
		alone := nodes[1]
		for _, forced := range []bool{false, true} {
			tw.prepare = func(m *member) {
				m.storedAt = time.Now().Add(-m.limits.StateAge - time.Hour)
				m.node.deps.ForceCold = forced
			}
			alone.restart()
			time.Sleep(alone.m.limits.ColdStartWait - 2*time.Second)
			if alone.m.cold.Load() {
				t.Error("it does not look for a leader first")
			}
			time.Sleep(5 * time.Second)
			if alone.m.cold.Load() != forced {
				t.Errorf("cold start %v, forced %v", alone.m.cold.Load(), forced)
			}
			if alone.m.tablesMayWait() == forced {
				t.Errorf("forced %v: tables that are not written are the reason", forced)
			}
			facts := alone.m.nodeFacts()
			facts.PlaneAttached, facts.PlaneSelfCheck = true, true
			want := bgp.StateTooOld
			if forced {
				want = bgp.ColdStart
			}
			if d := bgp.Decide(bgp.Facts{Node: facts, VIP: bgp.VIPFacts{Backends: 3, Usable: 3}}, alone.m.limits); d.Reason != want {
				t.Errorf("forced %v: decision %+v", forced, d)
			}
		}
	})
}

// T1 has two defaults; who writes the wrong one is told.
func TestVirtualT1Note(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		notes := func(key, value string) []string {
			t.Helper()
			out, err := nodes[0].m.set(t.Context(), admin.SetRequest{Key: key, Value: value})
			if err != nil {
				t.Fatal(err)
			}
			return out.(admin.Changed).Notes
		}
		if n := notes("t1", "5s"); len(n) > 0 {
			t.Errorf("without SSTP: %q", n)
		}
		vip, _ := nodes[0].m.spec().VIPByName("vpn")
		with := *vip
		with.SSTP = state.SSTPOffload
		nodes[0].propose(state.PutVIP{VIP: with, Expect: vip.Version})
		tw.agree(nodes...)
		if n := notes("t1", "5s"); len(n) != 1 || !strings.Contains(n[0], "1m0s") {
			t.Errorf("the default of IKE: %q", n)
		}
		if n := notes("t1", "6s"); len(n) > 0 {
			t.Errorf("another value: %q", n)
		}
		if n := notes("up_dwell", "11s"); len(n) > 0 {
			t.Errorf("another key: %q", n)
		}
	})
}
