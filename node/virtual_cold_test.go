package node

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/raft"
)

// crash ends a node's process as a kill does: its disk and its tables stay as
// they are at this moment. Nothing must be on its way to the disk.
func (v *vnode) crash() {
	v.town.t.Helper()
	disk := v.storeDir() + ".disk"
	if err := os.CopyFS(disk, os.DirFS(v.storeDir())); err != nil {
		v.town.t.Fatal(err)
	}
	v.pins = dataplane.Pinned{Found: true, Index: v.m.sync.index.Load(), Generation: v.m.sync.generation.Load()}
	v.halt()
	if err := errors.Join(os.RemoveAll(v.storeDir()), os.Rename(disk, v.storeDir())); err != nil {
		v.town.t.Fatal(err)
	}
}

// Two of three nodes are dead, and the daemon of the third is killed: what it
// pinned is newer than what its disk knows to be committed. It must come back by
// the pins, and touch them only when a leader is there again.
func TestVirtualColdStartAfterCrash(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		f := tw.enter(300, nodes...)
		alone, rest := nodes[1], others(nodes, nodes[1])
		for _, v := range rest {
			tw.isolate(v)
			v.halt()
		}
		time.Sleep(5 * time.Second)
		alone.crash()
		held := alone.wire.text()
		alone.restart()
		time.Sleep(alone.m.limits.ColdStartWait - time.Second)
		if alone.m.cold.Load() || alone.m.holdsTables() {
			t.Error("the pins were trusted before the wait was over")
		}
		time.Sleep(2 * time.Second)
		if at := alone.m.view().Index(); at >= alone.pins.Index {
			t.Fatalf("the store knew of entry %d, the pins hold %d: this is no crash", at, alone.pins.Index)
		}
		decide := func() bgp.Decision {
			facts := alone.m.nodeFacts()
			facts.PlaneAttached, facts.PlaneSelfCheck = alone.m.holdsTables(), true // no XDP here
			return bgp.Decide(bgp.Facts{Node: facts, VIP: bgp.VIPFacts{Backends: 3, Usable: 3}}, alone.m.limits)
		}
		if d := decide(); d.Action != bgp.Demote || d.Reason != bgp.ColdStart {
			t.Errorf("after the wait: %v, %v", d.Action, d.Reason)
		}
		if set := alone.m.tablesInForce()(); set == nil || len(set.Backends) != 3 {
			t.Errorf("SSTP would choose by %+v", set)
		}
		if _, err := alone.try(3*time.Second, state.Tick{}); !errors.Is(err, raft.ErrUnanswered) {
			t.Errorf("one of three answers: %v", err)
		}
		if alone.m.sync.index.Load() != 0 || alone.wire.text() != held {
			t.Error("newer pins were written by an older store")
		}
		f.check("after a cold start", nil, alone)
		for _, v := range rest {
			tw.rejoin(v)
			v.restart()
		}
		for began := time.Now(); !alone.m.caughtUp.Load(); time.Sleep(time.Millisecond) {
			if d := decide(); d.Action == bgp.Withdraw || time.Since(began) > 20*time.Second {
				t.Fatalf("%v (%v) %v after the others came back", d.Action, d.Reason, time.Since(began))
			}
		}
		tw.agree(nodes...)
		f.check("when all are back", nil, nodes...)
	})
}
