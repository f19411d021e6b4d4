package node

import (
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/raft"
)

// disk is a copy of a node's disk, made while it is halted.
func (v *vnode) disk(parts ...string) string {
	v.town.t.Helper()
	to := filepath.Join(v.cfg.DataDir, "copy-"+time.Now().Format("150405.000000000"))
	for _, part := range parts {
		if err := os.CopyFS(filepath.Join(to, part), os.DirFS(filepath.Join(v.cfg.DataDir, part))); err != nil {
			v.town.t.Fatal(err)
		}
	}
	return to
}

// put replaces parts of a halted node's disk: by those of a copy, or by nothing.
func (v *vnode) put(from string, parts ...string) {
	v.town.t.Helper()
	for _, part := range parts {
		at := filepath.Join(v.cfg.DataDir, part)
		err := os.Rename(at, at+".before-"+time.Now().Format("150405.000000000"))
		if err == nil && from != "" {
			err = os.CopyFS(at, os.DirFS(filepath.Join(from, part)))
			for _, secret := range []string{"node.key", "cluster.secret"} { // the copy is not as strict
				if name := filepath.Join(at, secret); err == nil && part == "identity" {
					err = os.Chmod(name, 0o600)
				}
			}
		}
		if err != nil {
			v.town.t.Fatal(err)
		}
	}
}

// power starts a halted node's process.
func (v *vnode) power() {
	v.boot()
	v.start(admission{})
}

func (v *vnode) ends(limit time.Duration, want error) {
	v.town.t.Helper()
	select {
	case <-v.ended:
	case <-time.After(limit):
		stage, why := v.stageNow()
		v.town.t.Fatalf("%s: the membership goes on after %v: %s (%s)", v.host, limit, stage, why)
	}
	if !errors.Is(v.err, want) {
		v.town.t.Fatalf("%s: ended with %v, want %v", v.host, v.err, want)
	}
}

// replacedNode waits until v, under a new ID, is what it was before.
func (tw *town) replacedNode(v *vnode, old state.NodeID, nodes ...*vnode) {
	tw.t.Helper()
	if v.m.self == old {
		tw.t.Fatalf("%s still has its old ID", v.host)
	}
	if err := v.waitStage(tw.t.Context(), StageRunning); err != nil {
		tw.t.Fatal(err)
	}
	tw.eventually(30*time.Second, "vote under the new ID", func() bool { return v.m.replica.Status().Voter })
	tw.agree(nodes...)
	spec := v.m.spec()
	if _, ok := spec.MemberByID(old); ok || len(spec.Members) != len(nodes) {
		tw.t.Errorf("members: %+v", spec.Members)
	}
}

// The disk with the store is gone; then again, after a crash that left the file
// with the ID that was asked for then; and at last a disk comes back from before
// both replacements, identity and all.
func TestVirtualLostStore(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		f := tw.enter(30, nodes...)
		v := others(nodes, tw.leader(nodes...))[0]
		v.halt()
		then := v.disk("raft", "identity")
		for _, lose := range []func(){
			func() { v.put("", "raft") },
			func() {
				v.put("", "raft")
				if err := os.WriteFile(v.m.freshPath(), []byte(v.m.self.String()+"\n"), 0o600); err != nil {
					t.Fatal(err)
				}
			},
			func() { v.put(then, "raft", "identity") },
		} {
			old := v.m.self
			v.halt()
			lose()
			v.power()
			v.ends(20*time.Second, errRejoin)
			v.again()
			tw.replacedNode(v, old, nodes...)
			f.check("after the replacement", nil, nodes...)
		}
	})
}

// A site loses its power, and one virtual machine comes back from a snapshot. If
// the others come up within two seconds, it has not started yet. If it is the
// first, there is nobody who knows better: it is found out when they come, also
// after its log has caught up.
func TestVirtualRevertedStore(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		v := others(nodes, tw.leader(nodes...))[0]
		for _, ahead := range []time.Duration{time.Second, 10 * time.Second} {
			v.halt()
			then := v.disk("raft")
			v.power()
			if err := v.waitStage(t.Context(), StageRunning); err != nil {
				t.Fatal(err)
			}
			tw.leader(nodes...).propose(state.Tick{})
			tw.agree(nodes...)
			time.Sleep(6 * time.Second) // marks are told every five
			old := v.m.self
			for _, o := range nodes {
				o.halt()
			}
			v.put(then, "raft")
			v.power()
			time.Sleep(ahead)
			for _, o := range others(nodes, v) {
				o.power()
			}
			if ahead > vetTime {
				v.ends(30*time.Second, errReverted)
				v.again()
			}
			v.ends(20*time.Second, errRejoin)
			v.again()
			tw.replacedNode(v, old, nodes...)
		}
	})
}

// A node whose store was set aside and who reaches nobody can be taken out by
// hand: nothing of the membership stays on the host.
func TestVirtualLeaveInQuarantine(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		v := others(nodes, tw.leader(nodes...))[0]
		v.halt()
		v.put("", "raft")
		tw.isolate(v)
		v.power()
		tw.eventually(10*time.Second, "park", func() bool { s, _ := v.stageNow(); return s == StageParked })
		time.Sleep(10 * time.Second)
		if _, why := v.stageNow(); !strings.Contains(why, "asking for a new node ID") {
			t.Errorf("status does not say what it waits for: %s", why)
		}
		if err := v.m.leave(admin.LeaveRequest{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		v.ends(5*time.Second, errLeft)
		if v.clean.Load() != 1 {
			t.Error("program, addresses and rules of the membership stay on the host")
		}
		if err := v.Node.ended(v.m, v.err); err != nil || v.ids.Load().Identity().Member() {
			t.Errorf("still a member, %v", err)
		}
	})
}

// A node that was removed while its store was gone is told so: it drops its
// addresses, parks, and can be cleared for a new join.
func TestVirtualRemovedInQuarantine(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		v := others(nodes, leader)[0]
		v.halt()
		v.put("", "raft")
		time.Sleep(5 * time.Second)
		if _, err := leader.m.removeMember(t.Context(), admin.RemoveRequest{Node: v.cfg.Name}); err != nil {
			t.Fatal(err)
		}
		tw.eventually(10*time.Second, "raft follows", func() bool { return len(leader.m.replica.Status().Servers) == 2 })
		v.power()
		tw.eventually(20*time.Second, "hear of the removal", func() bool { _, why := v.stageNow(); return strings.Contains(why, "removed from the cluster") })
		if s, _ := v.stageNow(); s != StageParked {
			t.Errorf("stage %s", s)
		}
		tw.eventually(time.Second, "drop the addresses", func() bool { return v.drops.Load() == 1 })
		if err := v.m.leave(admin.LeaveRequest{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		v.ends(5*time.Second, errLeft)
		if v.clean.Load() != 1 {
			t.Error("the host was not cleaned up")
		}
		if err := v.Node.ended(v.m, v.err); err != nil {
			t.Fatal(err)
		}
		v.setStage(StageWaiting, "")
		v.join(leader, leader.token())
		tw.agree(nodes...)
	})
}

// A cluster of one node has nobody to ask: it waits for a person, and does not
// begin again and again.
func TestVirtualLostStoreAlone(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t, dir)
		defer tw.end()
		v := tw.node(1)
		v.init()
		time.Sleep(10 * time.Second)
		v.halt()
		v.put("", "raft")
		v.power()
		tw.eventually(10*time.Second, "park", func() bool { s, _ := v.stageNow(); return s == StageParked })
		time.Sleep(time.Minute)
		select {
		case <-v.ended:
			t.Fatalf("it ended: %v", v.err)
		default:
		}
		if _, why := v.stageNow(); !strings.Contains(why, errNoPeers.Error()) || !strings.Contains(why, "cluster leave") {
			t.Errorf("status says %q", why)
		}
		if err := v.m.leave(admin.LeaveRequest{}, func(string) {}); err != nil {
			t.Fatal(err)
		}
		v.ends(5*time.Second, errLeft)
	})
}

// What is left on the host after a leave is said where somebody looks.
func TestLeftoverIsShown(t *testing.T) {
	n := &Node{}
	m := &member{node: n, log: slog.New(slog.DiscardHandler)}
	m.cleanUp = func() error { return errors.Join(errors.New("program stays"), errors.New("address stays")) }
	if err := m.finish(t.Context(), errLeft, errors.New("map stays")); !errors.Is(err, errLeft) {
		t.Errorf("ended with %v", err)
	}
	if text := n.waiting(); !strings.Contains(text, "map stays; program stays; address stays") {
		t.Errorf("the waiting node says %q", text)
	}
}

// A peer whose own memory is not read yet says so: an empty answer would vouch
// for a store that went back.
func TestMarkBeforeMemory(t *testing.T) {
	m := &member{}
	var refused *transport.StatusError
	if _, err := m.serveMark(transport.Peer{}, raft.Mark{}); !errors.As(err, &refused) || refused.Code != 503 {
		t.Errorf("answered with %v", err)
	}
}

// A state that is older than the limit is not forwarded from without a leader,
// however often the node is started: a start writes to the store.
func TestVirtualOldStateStaysOld(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		time.Sleep(10 * time.Second)
		for _, v := range nodes {
			v.halt()
		}
		v := nodes[1]
		time.Sleep(v.m.limits.StateAge + time.Hour)
		for start := range 2 {
			v.restart()
			time.Sleep(v.m.limits.ColdStartWait + 10*time.Second)
			if _, why := v.stageNow(); v.m.cold.Load() || v.wire.text() != "" || !strings.Contains(why, "not trusted") {
				t.Errorf("start %d: cold start %v, %q", start+1, v.m.cold.Load(), why)
			}
		}
	})
}

// A node whose store was set aside knows nobody. It must say so itself: who does
// not know the question would be taken for an older version, which vouches by the
// CA alone.
func TestVirtualLostStoreVouchesForNobody(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		v := others(nodes, tw.leader(nodes...))[0]
		asks := others(nodes, v)[0]
		v.halt()
		_, stop, err := v.m.caller()
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		time.Sleep(time.Second)
		err = asks.m.transport.Call(t.Context(), transport.Target{Addr: v.cfg.Cluster.Address.String(), Node: v.m.self}, pathVouch, vouchRequest{}, nil)
		var said *transport.StatusError
		if !errors.As(err, &said) || said.Code != http.StatusServiceUnavailable {
			t.Errorf("asked a node without a store: %v", err)
		}
	})
}
