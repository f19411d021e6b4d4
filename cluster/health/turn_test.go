package health

import (
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Each slot of a server belongs to one member, each member has its share, and
// two slots in a row are of two members.
func TestDeepTurn(t *testing.T) {
	for n := range 8 {
		var members []state.NodeID
		for i := range n {
			members = append(members, node(i))
		}
		if n > 1 { // the order of the list does not matter
			members[0], members[n-1] = members[n-1], members[0]
		}
		for id := state.BackendID(1); id <= 5; id++ {
			shares, last := map[state.NodeID]int{}, state.NodeID{}
			for slot := range uint64(100 * n) {
				var who []state.NodeID
				for _, m := range members {
					if DeepTurn(members, m, id, slot) {
						who = append(who, m)
					}
				}
				if len(who) != 1 || n > 1 && who[0] == last {
					t.Fatalf("%d members, server %d, slot %d: %v after %v", n, id, slot, who, last)
				}
				last = who[0]
				shares[last]++
			}
			for m, share := range shares {
				if share != 100 {
					t.Errorf("%d members, server %d: %v has %d slots of %d", n, id, m, share, 100*n)
				}
			}
		}
		if DeepTurn(members, node(9), 1, 3) {
			t.Error("a stranger has a turn")
		}
	}
}

func TestDeepSlot(t *testing.T) {
	begins := map[time.Duration]int{} // of a slot, by minute
	for id := state.BackendID(1); id <= 20; id++ {
		was, changes := deepSlot(0, DeepInterval, id), 0
		if deepSlot(-5, DeepInterval, id) != was {
			t.Error("time before the first")
		}
		for now := time.Second; now <= time.Hour; now += time.Second {
			slot := deepSlot(state.Time(now), DeepInterval, id)
			if slot != was && slot != was+1 {
				t.Fatalf("server %d: slot %d after %d", id, slot, was)
			}
			if slot != was {
				begins[(now%DeepInterval).Truncate(time.Minute)]++
				changes++
			}
			was = slot
		}
		if changes != 12 {
			t.Errorf("server %d: %d slots an hour", id, changes)
		}
	}
	if len(begins) != 5 {
		t.Errorf("20 servers are called in these minutes of five: %v", begins)
	}
}

func TestCalls(t *testing.T) {
	deep := SSTPCheck{Port: 80, Deep: DeepInterval, DeepVotes: true}
	targets := []Target{{Backend: 1, SSTP: &deep}, {Backend: 2, SSTP: &passed}, {Backend: 3}}
	spec := &state.Spec{Members: []state.Member{{ID: node(0), Role: state.RoleNode}, {ID: node(1), Role: state.RoleNode},
		{ID: node(2), Role: state.RoleWitness}}}
	fails := func(who int, age, failing time.Duration) Observer {
		return Observer{Member: node(who), Age: age, Observation: Observation{Seen: []Seen{
			{Backend: 1, Class: state.ClassTCP, Failing: failing}, {Backend: 2, Class: state.ClassTCP, Failing: failing}}}}
	}
	for _, c := range []struct {
		name      string
		observers []Observer
		failing   bool
		since     time.Duration
	}{
		{"nobody heard", nil, false, 0},
		{"all is well", []Observer{fails(1, time.Second, 0)}, false, 0},
		{"another's fail", []Observer{fails(1, time.Second, 5*time.Second)}, true, 6 * time.Second},
		{"the latest counts", []Observer{fails(1, time.Second, 5*time.Second), fails(1, 2*time.Second, 3*time.Second), fails(1, 0, time.Minute)}, true, 5 * time.Second},
		{"its own", []Observer{fails(0, time.Second, 5*time.Second)}, false, 0},
		{"a witness's", []Observer{fails(2, time.Second, 5*time.Second)}, false, 0},
		{"a stranger's", []Observer{fails(7, time.Second, 5*time.Second)}, false, 0},
		{"not heard lately", []Observer{fails(1, 4*time.Second, 5*time.Second)}, false, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			turns := 0
			for slot := range 10 {
				now := state.Time(slot) * state.Time(DeepInterval)
				got := Calls(targets, CallFacts{Spec: spec, Self: node(0), Now: now, Observers: c.observers})
				if len(got) != 1 || got[1].Failing != c.failing || got[1].Since != c.since || got[1].Slot != deepSlot(now, DeepInterval, 1) {
					t.Errorf("%+v", got)
				}
				if got[1].Turn {
					turns++
				}
			}
			if turns != 5 { // the witness has none
				t.Errorf("%d turns of 10", turns)
			}
		})
	}
}
