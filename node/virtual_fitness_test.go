package node

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/raft"
)

// owners gives the two followers a gateway each, and tells who owns one.
func owners(tw *town, leader *vnode, followers []*vnode) (gateways []state.GatewayID, of func(state.GatewayID) state.NodeID) {
	tw.t.Helper()
	of = func(id state.GatewayID) state.NodeID { g, _ := leader.m.spec().GatewayByID(id); return g.Owner }
	for i, v := range followers {
		addr := netip.AddrFrom4([4]byte{198, 51, 100, byte(251 + i)})
		leader.propose(state.PutGateway{Addr: addr})
		spec := leader.m.spec()
		at := slices.IndexFunc(spec.Gateways, func(g state.Gateway) bool { return g.Addr == addr })
		g := spec.Gateways[at]
		leader.propose(state.OwnGateway{ID: g.ID, Owner: v.m.self, Previous: g.Index})
		gateways = append(gateways, g.ID)
	}
	return gateways, of
}

func (v *vnode) setUnfit(why string) {
	var err error
	if why != "" {
		err = unfitError(why)
	}
	v.m.fit.unfit.set(err)
}

// Each cause that takes a gateway from its owner does so alone, and the gateway
// goes to one that is fit; what is no cause does not.
func TestVirtualGatewayLeavesItsOwner(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		followers := others(nodes, leader)
		gateways, of := owners(tw, leader, followers)
		ill, well := followers[0], followers[1]
		mark := func(draining bool) {
			self, _ := leader.m.spec().MemberByID(ill.m.self)
			marked := *self
			marked.Draining = draining
			leader.propose(state.UpdateMember{Member: marked})
		}
		for _, c := range []struct {
			name       string
			harm, mend func()
			limit      time.Duration // 0: it stays
		}{
			{"says that it is unfit", func() { ill.setUnfit("self-check") }, func() { ill.setUnfit("") }, 1500 * time.Millisecond},
			{"outside arm dead", func() { ill.m.fit.outsideDead.Store(true) }, func() { ill.m.fit.outsideDead.Store(false) }, 1500 * time.Millisecond},
			{"inside arm dead", func() { ill.m.fit.insideDead.Store(true) }, func() { ill.m.fit.insideDead.Store(false) }, 1500 * time.Millisecond},
			{"marked as leaving", func() { mark(true) }, func() { mark(false) }, time.Second},
			{"stopping", func() { ill.m.draining.Store(int32(bgp.StageStopping)) }, func() { ill.m.draining.Store(int32(bgp.StageServing)) }, 0},
			{"not heard by the leader alone", func() { tw.net.Cut(ill.host, leader.host) }, func() { tw.net.Heal(ill.host, leader.host) }, 0},
			{"heard by nobody", func() { tw.isolate(ill) }, func() { tw.rejoin(ill) }, 2 * time.Second},
		} {
			time.Sleep(3 * time.Second)
			if of(gateways[0]) != ill.m.self || of(gateways[1]) != well.m.self {
				t.Fatalf("before %q: a gateway moved from a member that is well", c.name)
			}
			c.harm()
			if c.limit > 0 {
				tw.eventually(c.limit, c.name+": the gateway moves", func() bool { return of(gateways[0]) == well.m.self })
			} else {
				time.Sleep(2500 * time.Millisecond) // the hint is there, and old ones still count
				if of(gateways[0]) != ill.m.self {
					t.Errorf("%s: the gateway moved", c.name)
				}
			}
			c.mend()
			tw.eventually(10*time.Second, "the leader hears that it is well", func() bool {
				return leader.m.contacts.silence(ill.m.self) < silentAfter &&
					slices.ContainsFunc(leader.m.hints(), func(h cluster.Hints) bool {
						return h.Node == ill.m.self && !h.Status.ArmDead && !h.Status.Unfit && !h.Status.Draining
					})
			})
			if g, _ := leader.m.spec().GatewayByID(gateways[0]); g.Owner != ill.m.self {
				leader.propose(state.OwnGateway{ID: g.ID, Owner: ill.m.self, Previous: g.Index})
			}
		}
	})
}

// Where nobody is fit nothing is gained by a move, and after a standstill of the
// leader everybody seems to be what he was before it.
func TestVirtualGatewayStays(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		followers := others(nodes, leader)
		gateways, of := owners(tw, leader, followers)
		stay := func(d time.Duration, why string) {
			t.Helper()
			time.Sleep(d)
			for i, v := range followers {
				if of(gateways[i]) != v.m.self {
					t.Fatalf("a gateway moved: %s", why)
				}
			}
		}
		say := func(why string) { // the leader stands still until it has heard both
			t.Helper()
			for _, v := range followers {
				v.setUnfit(why)
			}
			leader.m.alive.mu.Lock()
			leader.m.alive.gap = time.Now()
			leader.m.alive.mu.Unlock()
			stay(silentAfter-100*time.Millisecond, "after a standstill of the leader")
		}
		say("self-check")
		if n := len(slices.DeleteFunc(leader.m.hints(), func(h cluster.Hints) bool { return !h.Status.Unfit })); n != 2 {
			t.Fatalf("%d members say that they are unfit", n)
		}
		stay(5*time.Second, "nobody is fit")
		say("")
		stay(5*time.Second, "all are well")
	})
}

// The leader itself is judged by the same rules.
func TestVirtualLeaderIsACandidateToo(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		spec := leader.m.spec()
		self, _ := spec.MemberByID(leader.m.self)
		fit := func(spec *state.Spec) bool { return leader.m.fitForGateway(t.Context(), spec, self) }
		if fit(spec) {
			t.Error("a leader without a program is fit")
		}
		owns := *spec
		owns.Gateways = []state.Gateway{{ID: 1, Owner: leader.m.self}}
		if !fit(&owns) {
			t.Error("a leader that owns a gateway is unfit, though nothing has lasted")
		}
		leader.setUnfit("self-check")
		if fit(&owns) {
			t.Error("a leader whose plane fails is fit")
		}
		leader.setUnfit("")
		leader.m.fit.insideDead.Store(true)
		if fit(&owns) {
			t.Error("a leader with a dead arm is fit")
		}
	})
}

// The data plane of these nodes is not attached: that is noticed, and said.
func TestVirtualPlaneFaultIsSaid(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		v, at := nodes[1], nodes[2]
		says := func() bool { return saysUnfit(at.m.hints(), v.m.self) }
		v.m.watchPlane(time.Now())
		if v.m.unfit() || v.m.agreement().Unfit {
			t.Error("unfit at once")
		}
		time.Sleep(planePatience)
		v.m.watchPlane(time.Now())
		if !v.m.unfit() || !v.m.agreement().Unfit {
			t.Error("fit without a program")
		}
		tw.eventually(time.Second, "the others hear it", says)
		i := slices.IndexFunc(at.m.agreement().Peers, func(p gateway.Peer) bool { return p.ID == v.m.self })
		if at.m.agreement().Peers[i].Live {
			t.Error("without a leader others would wait for it to claim")
		}
		broken := "write the tables: no"
		v.m.sync.failure.Store(&broken)
		if f := v.m.planeFault(); f == "" || f == broken {
			t.Errorf("the fault is %q", f)
		}
	})
}

// A leader that stood still hears itself only when a majority says that it leads.
func TestVirtualLeaderProvesItself(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		time.Sleep(5 * time.Second)
		for _, v := range nodes {
			if age := time.Since(v.m.agreement().LeaderHeard); age > lease || v.m.leaseGap() != 0 {
				t.Errorf("%s: a leader was heard %v ago, gap %v", v.host, age, v.m.leaseGap())
			}
		}
		tw.isolate(leader)
		for _, v := range nodes {
			v.m.alive.mu.Lock()
			v.m.alive.from, v.m.alive.gap, v.m.alive.over = time.Now().Add(-2*lease), time.Now(), false
			v.m.alive.mu.Unlock()
			if v.m.leaseGap() == 0 {
				t.Errorf("%s: confirmed at the end of the gap", v.host)
			}
		}
		for began := time.Now(); leader.m.replica.Status().Role == raft.RoleLeader; time.Sleep(10 * time.Millisecond) {
			if leader.m.leaseGap() == 0 || !leader.m.agreement().LeaderHeard.Before(began) {
				t.Fatalf("it confirmed itself, alone, %v after the gap", time.Since(began))
			}
		}
		if leader.m.proved.Load() != nil {
			tw.eventually(lease+time.Second, "the proof ends with the office", func() bool { return leader.m.proved.Load() == nil })
		}
		next := tw.leader(others(nodes, leader)...)
		tw.eventually(time.Second, "the new leader is confirmed", func() bool { return next.m.leaseGap() == 0 })
		time.Sleep(10 * time.Second)
		if leader.m.leaseGap() == 0 {
			t.Error("confirmed without a leader")
		}
		tw.rejoin(leader)
		tw.eventually(20*time.Second, "the old one too", func() bool { return leader.m.leaseGap() == 0 })
	})
}

// A member that fell silent had reached what it had reached: it lags only when
// there is something newer, and then for as long as it may forward.
func TestVirtualSilentMemberLagsOnlyBehindWhatIsNew(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		gone := others(nodes, leader)[0]
		lags := func() int { return leader.m.lagging(leader.m.spec()) }
		tw.eventually(5*time.Second, "nobody lags", func() bool { return lags() == 0 })
		time.Sleep(time.Second)
		tw.isolate(gone)
		// Nodes here have no XDP and so call themselves unwell; begin to count now.
		leader.m.unwell.mu.Lock()
		clear(leader.m.unwell.since)
		leader.m.unwell.mu.Unlock()
		for began := time.Now(); time.Since(began) < 5*time.Second; time.Sleep(50 * time.Millisecond) {
			if lags() != 0 {
				t.Fatalf("it lags behind what it had reached, %v after it fell silent", time.Since(began))
			}
		}
		patience := leader.m.spec().DemoteAfter() + 2*time.Second
		if patience < 6*time.Second {
			t.Fatalf("patience %v: too short for what follows", patience)
		}
		leader.addServer("r4")
		tw.eventually(time.Second, "it lags behind the new generation", func() bool { return lags() == 1 })
		tw.eventually(patience, "nobody waits for it any more", func() bool { return lags() == 0 })
	})
}
