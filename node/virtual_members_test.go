package node

import (
	"bytes"
	"errors"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/raft"
)

// refused checks that an administrator's command was refused at once, with a
// reason that says so much.
func (v *vnode) refused(what string, began time.Time, err error, says string) {
	v.town.t.Helper()
	var told *admin.Error
	if !errors.As(err, &told) || told.Status != http.StatusConflict || !strings.Contains(told.Message, says) {
		v.town.t.Errorf("%s: %v, want a refusal that says %q", what, err, says)
	}
	if took := time.Since(began); took > 2*quorumPatience {
		v.town.t.Errorf("%s: refused after %v", what, took)
	}
	if stage, why := v.stageNow(); stage != StageRunning {
		v.town.t.Errorf("%s: the node is %s (%s)", what, stage, why)
	}
}

// One of three is dead: none of the others may leave, or be removed.
func TestVirtualQuorumIsKept(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		dead := others(nodes, tw.leader(nodes...))[0]
		tw.isolate(dead)
		time.Sleep(5 * time.Second)
		rest := others(nodes, dead)
		leader := tw.leader(rest...)
		other := others(rest, leader)[0]
		const says = "of the 2 voters that would remain only 1 are live"
		for _, v := range rest {
			v.refused("leave", time.Now(), v.m.leave(admin.LeaveRequest{}, func(s string) { t.Errorf("a step was taken: %s", s) }), says)
		}
		_, err := leader.m.removeMember(t.Context(), admin.RemoveRequest{Node: other.cfg.Name})
		leader.refused("remove", time.Now(), err, says)
		if _, err := other.m.removeMember(t.Context(), admin.RemoveRequest{Node: dead.cfg.Name}); err != nil {
			t.Errorf("the dead one cannot be removed: %v", err)
		}
		tw.eventually(10*time.Second, "raft follows", func() bool { return len(leader.m.replica.Status().Servers) == 2 })

		// Of the two that are left one dies: nothing can be agreed.
		tw.isolate(other)
		time.Sleep(5 * time.Second)
		for _, force := range []bool{false, true} {
			began := time.Now()
			_, err := leader.m.removeMember(t.Context(), admin.RemoveRequest{Node: other.cfg.Name, Force: force})
			leader.refused("remove without a quorum", began, err, "nothing can be agreed now: of 2 voters 1 are live")
		}
	})
}

// Two nodes do not hear each other; a third hears both. Neither is dead.
func TestVirtualCutIsNoDeath(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		cut := others(nodes, leader)[0]
		third := others(others(nodes, leader), cut)[0]
		tw.net.Cut(leader.host, cut.host)
		time.Sleep(5 * time.Second)
		began := time.Now()
		_, err := leader.m.removeMember(t.Context(), admin.RemoveRequest{Node: cut.cfg.Name})
		leader.refused("remove", began, err, third.cfg.Name+" hears it")
	})
}

// The steps of a leave come in their order, each when the one before is done.
func TestVirtualLeaveWaits(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		// A gateway that somebody else owns and nobody holds: on a segment with a
		// foreign machine under that address it stays so.
		leader.propose(state.PutGateway{Addr: netip.MustParseAddr("198.51.100.251")})
		g := leader.m.spec().Gateways[0]
		leader.propose(state.OwnGateway{ID: g.ID, Owner: leader.m.self, Previous: g.Index})
		v := others(nodes, leader)[0]
		tw.agree(nodes...)
		began, until := time.Now(), time.Now().Add(2*time.Second)
		var packets atomic.Uint64
		v.m.passed = func() (uint64, bool) {
			if time.Now().Before(until) {
				packets.Add(1)
			}
			return packets.Load(), true
		}
		at := make(map[string]time.Duration)
		var steps []string
		if err := v.m.leave(admin.LeaveRequest{}, func(s string) { steps, at[s] = append(steps, s), time.Since(began) }); err != nil {
			t.Fatalf("leave: %v after %q", err, steps)
		}
		<-v.ended
		want := []string{"marking the node as leaving", "handing its gateways over", "waiting until no packets come any more", "leaving the member list", "left; the data plane is being detached"}
		if !slices.Equal(steps, want) {
			t.Errorf("steps %q", steps)
		}
		if at["leaving the member list"] < 2*time.Second {
			t.Errorf("left the list after %v, while packets came", at["leaving the member list"])
		}

		// The leader owns a gateway that nobody takes: it stays, and serves on.
		steps = nil
		err := leader.m.leave(admin.LeaveRequest{}, func(s string) { steps = append(steps, s) })
		if err == nil || !strings.Contains(err.Error(), "198.51.100.251") || !slices.Equal(steps, want[:2]) {
			t.Errorf("left with its gateway: %v after %q", err, steps)
		}
		if stage, _ := leader.stageNow(); stage != StageRunning {
			t.Errorf("after a leave that failed the node is %s", stage)
		}
		tw.eventually(10*time.Second, "take the mark back", func() bool {
			self, ok := leader.m.spec().MemberByID(leader.m.self)
			return ok && !self.Draining
		})
	})
}

func TestNotTaken(t *testing.T) {
	r := newRig(t)
	r.do(state.AddToken{Life: time.Minute})
	r.do(state.AdmitMember{Member: memberOf(nodeB, "b")})
	for _, addr := range []string{"198.51.100.251", "198.51.100.252"} {
		r.do(state.PutGateway{Addr: netip.MustParseAddr(addr)})
	}
	g := r.spec().Gateways
	own := func(i int, to state.NodeID) {
		g, _ := r.spec().GatewayByID(g[i].ID)
		r.do(state.OwnGateway{ID: g.ID, Owner: to, Previous: g.Index})
	}
	own(0, nodeA)
	own(1, nodeB)
	mine := []state.GatewayID{g[0].ID}
	held := []cluster.Hints{{Node: nodeB, Status: &cluster.NodeStatus{Gateways: mine}}}
	left := func(hints []cluster.Hints) int { return len(notTaken(r.spec(), nodeA, mine, hints)) }
	if left(nil) != 1 {
		t.Error("a gateway that is still its own counts as taken")
	}
	if left(held) != 1 {
		t.Error("a gateway that is still its own counts as taken because another node holds it")
	}
	own(0, nodeB)
	if left(nil) != 1 {
		t.Error("a gateway that its new owner does not hold counts as taken")
	}
	if left(held) != 0 {
		t.Error("it waits for a gateway that was never its own")
	}
	own(0, nodeA)
	r.do(state.UpdateMember{Member: func() state.Member { b, _ := r.spec().MemberByID(nodeB); c := *b; c.Draining = true; return c }()})
	if left(nil) != 0 {
		t.Error("it waits although nobody could take it")
	}
}

// A process that dies in the middle of a leave: the node comes back as a member,
// and the command can be run again. It waits for a change of the node's own entry
// that is on its way; two leaves at once are one too many.
func TestVirtualLeaveIsResumed(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		v := others(nodes, tw.leader(nodes...))[0]
		ended, over := make(chan error), make(chan struct{})
		for _, cut := range []string{"waiting until no packets come any more", "leaving the member list"} {
			there, dying := make(chan struct{}), v.m
			go func() {
				ended <- dying.leave(admin.LeaveRequest{}, func(s string) {
					if s == cut {
						close(there)
						<-over // the process is dead from here on
					}
				})
			}()
			<-there
			v.restart()
			if err := v.waitStage(t.Context(), StageRunning); err != nil {
				t.Fatal(err)
			}
			tw.eventually(10*time.Second, "take the mark back", func() bool {
				self, ok := v.m.spec().MemberByID(v.m.self)
				return ok && !self.Draining
			})
		}
		v.m.ownEntry <- struct{}{}
		last := make(chan error)
		go func() { last <- v.m.leave(admin.LeaveRequest{}, func(string) {}) }()
		time.Sleep(time.Second)
		v.refused("a second leave", time.Now(), v.m.leave(admin.LeaveRequest{}, func(string) {}), "leaving already")
		<-v.m.ownEntry
		if err := <-last; err != nil {
			t.Errorf("the third leave: %v", err)
		}
		v.ends(5*time.Second, errLeft)
		close(over)
		for range 2 {
			if <-ended == nil {
				t.Error("a leave whose process died ended well")
			}
		}
	})
}

// A node that was removed while it was off is told so when it comes back.
func TestVirtualRemovedNodeRestarts(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		v := others(nodes, leader)[0]
		v.halt()
		time.Sleep(5 * time.Second)
		if _, err := leader.m.removeMember(t.Context(), admin.RemoveRequest{Node: v.cfg.Name}); err != nil {
			t.Fatal(err)
		}
		tw.eventually(10*time.Second, "raft follows", func() bool { return len(leader.m.replica.Status().Servers) == 2 })
		for range 2 { // and every time
			v.restart()
			tw.eventually(30*time.Second, "hear of the removal", func() bool { return v.m.removed.Load() != nil })
			if stage, why := v.stageNow(); stage != StageParked {
				t.Errorf("stage %s (%s)", stage, why)
			}
		}
		if err := v.m.leave(admin.LeaveRequest{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		v.ends(5*time.Second, errLeft)
		if err := v.Node.ended(v.m, v.err); err != nil {
			t.Fatal(err)
		}
		v.setStage(StageWaiting, "")
		v.join(leader, leader.token())
		tw.agree(nodes...)
	})
}

// A node that leaves by force without a quorum stays in the others' list, and
// says what to do about that.
func TestVirtualForcedLeaveSaysWhatStays(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		v := nodes[0]
		tw.isolate(v)
		time.Sleep(5 * time.Second)
		var steps []string
		if err := v.m.leave(admin.LeaveRequest{Force: true}, func(s string) { steps = append(steps, s) }); err != nil {
			t.Fatal(err)
		}
		v.ends(5*time.Second, errLeft)
		if all := strings.Join(steps, "\n"); !strings.Contains(all, "vpnlb cluster remove "+v.cfg.Name) {
			t.Errorf("nobody learns that the node is still on the list:\n%s", all)
		}
	})
}

// Two nodes that are ready at the same time do not both become the fifth voter.
func TestVirtualFiveVoters(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t, dir)
		defer tw.end()
		first := tw.node(1)
		first.init()
		var joiners []*vnode
		for i := range maxVoters {
			v := tw.node(2 + i)
			if err := v.ask(first, first.token()); err != nil {
				t.Fatal(err)
			}
			joiners = append(joiners, v)
		}
		for _, v := range joiners {
			v.start(admission{})
		}
		voters := func() (n int) {
			for _, s := range first.m.replica.Status().Servers {
				if s.Voter {
					n++
				}
			}
			return n
		}
		tw.eventually(time.Minute, "five voters", func() bool { return voters() >= maxVoters })
		time.Sleep(3 * time.Second)
		if n := voters(); n != maxVoters {
			t.Errorf("%d voters", n)
		}
	})
}

// A node whose address in the node file changed tells it itself: nobody finds it
// where it was.
func TestVirtualNodeMoves(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		for i, v := range []*vnode{others(nodes, leader)[0], leader} {
			v.halt()
			leader := tw.leader(others(nodes, v)...)
			v.host = []string{"192.0.2.101", "192.0.2.102"}[i]
			tw.isolate(v)
			v.restart()
			tw.eventually(20*time.Second, "say that nobody can be told", func() bool { return v.m.movedFault.get() != "" })
			tw.rejoin(v)
			if err := v.waitStage(t.Context(), StageRunning); err != nil {
				t.Fatal(err)
			}
			tw.eventually(20*time.Second, "raft follows", func() bool {
				return slices.ContainsFunc(leader.m.replica.Status().Servers, func(s raft.Server) bool {
					return s.ID == v.m.self && s.Addr == v.cfg.Cluster.Address.String() && s.Voter
				})
			})
			if f := v.m.movedFault.get(); f != "" {
				t.Errorf("still a warning: %s", f)
			}
			tw.agree(nodes...)
			tw.eventually(20*time.Second, "gossip at the new address", func() bool { return len(v.m.hints()) == 2 })
		}

		// An address of the cluster's own is no node's: the others have it themselves.
		leader = tw.leader(nodes...)
		gateway := netip.MustParseAddr("198.51.100.251")
		leader.propose(state.PutGateway{Addr: gateway})
		at := netip.AddrPortFrom(gateway, 7950).String()
		_, err := leader.m.serveMoved(t.Context(), transport.Peer{Name: transport.Name{Node: others(nodes, leader)[0].m.self}}, movedRequest{Cluster: at, Gossip: at, Addrs: []netip.Addr{gateway}})
		if err == nil || !strings.Contains(err.Error(), "is a floating gateway") {
			t.Errorf("moved to a gateway: %v", err)
		}
	})
}

// A removal changes the gossip key also where the command that asked for it was
// cut short after its word was in the log. A node uses the new key only when all
// who are alive understand it.
func TestVirtualRemovalChangesTheKey(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		gone := others(nodes, leader)[0]
		rest := others(nodes, gone)
		tw.isolate(gone)
		old, err := leader.m.openSecret(secretGossip)
		if err != nil {
			t.Fatal(err)
		}
		leader.propose(state.RemoveMember{ID: gone.m.self})
		var first string
		tw.eventually(20*time.Second, "all use a new key", func() bool {
			raw, err := leader.m.openSecret(secretGossip)
			if err != nil || bytes.Equal(raw, old) {
				return false
			}
			first = cluster.KeyID(raw[:gossipKeyBytes])
			using, knowing := 0, 0
			for _, v := range rest {
				ids := v.m.gossip.Load().KeyIDs()
				if ids[0] == first {
					using++
				}
				if slices.Contains(ids, first) {
					knowing++
				}
			}
			if using > 0 && knowing < len(rest) {
				t.Fatalf("%d nodes use a key that only %d of %d understand", using, knowing, len(rest))
			}
			return using == len(rest)
		})
		for _, v := range rest {
			if n := len(v.m.hints()); n != 1 {
				t.Errorf("%s hears %d others", v.host, n)
			}
		}
		if first == cluster.KeyID(old[:gossipKeyBytes]) {
			t.Error("the key in use is the old one")
		}
	})
}
