package node

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/raft"
)

// Of two nodes one leaves, at many moments of the loops of both: its own vote
// is needed for its removal, so it must stay until raft has followed.
func TestVirtualLeaveOfTwo(t *testing.T) {
	const runs = 10
	for i := range runs {
		dir := t.TempDir()
		synctest.Test(t, func(t *testing.T) {
			tw := newTown(t, dir)
			defer tw.end()
			nodes := []*vnode{tw.node(1), tw.node(2)}
			nodes[0].init()
			nodes[1].join(nodes[0], nodes[0].token())
			time.Sleep(3*time.Second + time.Duration(i)*31*time.Millisecond)
			gone := tw.leader(nodes...)
			stays := nodes[0]
			if stays == gone {
				stays = nodes[1]
			}
			if i%2 == 1 {
				gone, stays = stays, gone
			}
			if err := gone.m.leave(admin.LeaveRequest{}, func(string) {}); err != nil {
				t.Fatalf("run %d: leave: %v", i, err)
			}
			<-gone.ended
			tw.eventually(10*time.Second, "the one that stays leads alone", func() bool {
				st := stays.m.replica.Status()
				return st.Role == raft.RoleLeader && len(st.Servers) == 1
			})
		})
	}
}

// others are the nodes but one.
func others(nodes []*vnode, but *vnode) []*vnode {
	return slices.DeleteFunc(slices.Clone(nodes), func(v *vnode) bool { return v == but })
}

func TestVirtualUnwellMemberHoldsNobodyUp(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		stuck := others(nodes, leader)[0]
		stuck.m.sync.generation.Store(0) // its data plane never follows
		lags := func() bool { return leader.m.lagging(leader.m.spec()) == 1 }
		// Nodes here have no XDP and so call themselves unwell; begin to count now.
		leader.m.unwell.mu.Lock()
		clear(leader.m.unwell.since)
		leader.m.unwell.mu.Unlock()
		tw.eventually(time.Second, "the leader sees it lag", lags)
		tw.eventually(30*time.Second, "the leader stops waiting for it", func() bool { return !lags() })
	})
}

// A leader that stood still hears nobody for a moment. That is no evidence.
func TestVirtualSlowLeaderConfirmsNoDeath(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		time.Sleep(5 * time.Second)
		c := leader.m.contacts
		c.mu.Lock()
		for id := range c.heard {
			c.heard[id] = time.Now().Add(-1200 * time.Millisecond)
		}
		c.mu.Unlock()
		if leader.m.deathConfirmed(t.Context(), leader.m.spec(), others(nodes, leader)[0].m.self) {
			t.Error("the leader confirmed the death of a member that is alive")
		}
	})
}

// The answer to a replacement may be lost: asking again under the old ID must
// work.
func TestVirtualReplaceTwice(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		lost := others(nodes, leader)[0]
		id := lost.m.ids.Identity()
		req, err := lost.describe(id)
		if err != nil {
			t.Fatal(err)
		}
		if req.CSR, err = transport.NewCSR(state.NewNodeID(), id.Key); err != nil {
			t.Fatal(err)
		}
		req.Addrs = []netip.Addr{netip.MustParseAddr(lost.host)}
		for i := range 2 {
			var out joinAnswer
			to := transport.Target{Addr: leader.cfg.Cluster.Address.String(), Node: leader.m.self}
			if err := lost.m.transport.Call(t.Context(), to, pathReplace, req, &out); err != nil || len(out.Secret) != 32 {
				t.Errorf("try %d: %v", i+1, err)
			}
			time.Sleep(time.Second)
		}
	})
}

// The route of a cold start stays until the node has caught up with the leader
// that appears.
func TestVirtualColdStartKeepsItsRoute(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		tw.enter(300, nodes...)
		for _, v := range nodes {
			tw.isolate(v)
		}
		for _, v := range nodes {
			v.halt()
		}
		for _, v := range nodes {
			tw.rejoin(v)
		}
		alone := nodes[1]
		alone.restart()
		time.Sleep(alone.m.limits.ColdStartWait + 2*time.Second)
		for _, v := range others(nodes, alone) {
			v.restart()
		}
		for began := time.Now(); time.Since(began) < 20*time.Second; time.Sleep(time.Millisecond) {
			facts := alone.m.nodeFacts()
			facts.PlaneAttached, facts.PlaneSelfCheck = true, true
			d := bgp.Decide(bgp.Facts{Node: facts, VIP: bgp.VIPFacts{Backends: 3, Usable: 3}}, alone.m.limits)
			if d.Action == bgp.Withdraw {
				t.Fatalf("withdrawn (%s) %v after the others came back", d.Reason, time.Since(began))
			}
		}
		if !alone.m.caughtUp.Load() {
			t.Error("it never caught up")
		}
	})
}

// An init that was cut short must not found a second cluster when the node
// joins another one.
func TestVirtualStaleInitFile(t *testing.T) {
	inTown(t, func(t *testing.T, _ *town, nodes []*vnode) {
		x := nodes[0].town.node(4)
		init, _, _, err := x.newCluster(x.ids.Load().Identity())
		if err != nil {
			t.Fatal(err)
		}
		if err := x.keepFirst(init); err != nil {
			t.Fatal(err)
		}
		if err := x.ask(nodes[0], nodes[0].token()); err != nil {
			t.Fatal(err)
		}
		if first := x.firstOf(x.ids.Load().Identity().Cluster()); first != nil {
			t.Errorf("an init of another cluster is still there: %v", first)
		}
	})
}

func TestVirtualAbandonedLeaveIsTakenBack(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		v := others(nodes, tw.leader(nodes...))[0]
		ctx := t.Context()
		if err := v.m.markDraining(ctx); err != nil {
			t.Fatal(err)
		}
		draining := func() bool { self, _ := v.m.spec().MemberByID(v.m.self); return self.Draining }
		tw.eventually(2*time.Second, "the mark is in the log", draining)
		v.m.tellAddresses(ctx, v.m.spec())
		tw.eventually(2*time.Second, "the mark is taken back", func() bool { return !draining() })
	})
}
