package health

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Each slot of a server is of one member that is heard; in larger clusters of more, so
// that no member waits for more than maxRound intervals.
func TestTurnsAreShared(t *testing.T) {
	for members := 1; members <= 7; members++ {
		spec := &state.Spec{Settings: state.DefaultSettings()}
		var all []Observer
		for i := range members {
			spec.Members = append(spec.Members, state.Member{ID: node(i), Role: state.RoleNode})
			all = append(all, Observer{Member: node(i)})
		}
		silent := slices.Clone(all)
		silent[0].Age = time.Minute
		for name, observers := range map[string][]Observer{"all": all, "one silent": silent} {
			mine := map[int]int{}
			round := 0
			for slot := range 60 {
				asked := 0
				for i := range members {
					if observers[i].Age > 0 {
						continue
					}
					turn := Turns([]Target{{Backend: 7}}, TurnFacts{Spec: spec, Self: node(i), Observers: observers,
						Now: state.Time(time.Duration(slot) * time.Second)})[7]
					round = int(turn.Round / time.Second)
					if turn.Mine {
						asked++
						mine[i]++
					}
				}
				heard := members - len(slices.DeleteFunc(slices.Clone(observers), func(o Observer) bool { return o.Age == 0 }))
				if most := (heard + maxRound - 1) / maxRound; heard > 0 && (asked < 1 || asked > max(most, 1)) {
					t.Fatalf("%d members, %s: %d ask in slot %d", members, name, asked, slot)
				}
			}
			for i, n := range mine {
				if n != 60/round {
					t.Errorf("%d members, %s: member %d asks in %d of 60 slots, its round is %d", members, name, i, n, round)
				}
			}
		}
	}
}

// What others have met reaches the prober: of IKE alone, and of those that count.
func TestTurnsHearOthers(t *testing.T) {
	spec := &state.Spec{Settings: state.DefaultSettings(), Members: []state.Member{
		{ID: node(0), Role: state.RoleNode}, {ID: node(1), Role: state.RoleNode}, {ID: node(2), Role: state.RoleWitness}}}
	misses := func(member int, age time.Duration, c state.Class) Observer {
		return Observer{Member: node(member), Age: age, Observation: Observation{Seen: []Seen{{Backend: 1, Class: c, Misses: 1}}}}
	}
	for _, c := range []struct {
		name string
		o    Observer
		want int
	}{
		{"another misses it", misses(1, 0, state.ClassIKE), 1},
		{"this node itself", misses(0, 0, state.ClassIKE), 0},
		{"long ago", misses(1, time.Minute, state.ClassIKE), 0},
		{"of SSTP", misses(1, 0, state.ClassTCP), 0},
		{"a witness", misses(2, 0, state.ClassIKE), 0},
	} {
		turn := Turns([]Target{{Backend: 1}}, TurnFacts{Spec: spec, Self: node(0), Observers: []Observer{c.o}})[1]
		if len(turn.Missed) != c.want || turn.Protected >= 0 {
			t.Errorf("%s: %+v", c.name, turn)
		}
	}
}

// Clients' packets without an answer are a doubt where this node has seen answers.
func TestReturnsUnanswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReturns()
		var n Counts
		step := func(in, out, protected uint64, wait time.Duration) {
			n.In, n.Out, n.Protected = n.In+in, n.Out+out, n.Protected+protected
			time.Sleep(wait)
			r.Sample(map[state.BackendID]Counts{1: n})
		}
		expect := func(why string, want bool) {
			t.Helper()
			if got := len(r.Unanswered()) == 1; got != want {
				t.Errorf("%s: unanswered %v", why, got)
			}
		}
		step(5, 0, 0, 0)
		step(5, 0, 0, 2*time.Second)
		step(5, 0, 0, 2*time.Second)
		expect("its answers pass another node", false)
		step(1, 1, 1, time.Second)
		if d := r.protected(1); d != 0 {
			t.Errorf("a protected answer is %v old", d)
		}
		step(3, 0, 0, 100*time.Millisecond)
		expect("for a moment", false)
		step(0, 0, 0, time.Second)
		expect("for a second", true)
		step(0, 1, 0, 100*time.Millisecond)
		expect("answered", false)
		step(2, 0, 0, 100*time.Millisecond)
		step(0, 0, 0, 2*time.Second)
		expect("two packets", false)
		step(1, 0, 0, 100*time.Millisecond)
		expect("three", true)
		step(1, 0, 0, answeredBefore)
		expect("its answers have long gone", false)
		time.Sleep(2 * time.Second)
		if d := r.protected(1); d >= 0 {
			t.Errorf("while sampling stands still a protected answer is %v old", d)
		}
	})
}

// A server that answers a question late, or in another order, is none that is down.
func TestProberLateAnswers(t *testing.T) {
	probing(t, func(b *bench) {
		b.until(1, OpinionUp, 10*time.Second)
		b.fabric.mu.Lock()
		b.delay = 700 * time.Millisecond // later than the next question, before the timeout
		b.fabric.mu.Unlock()
		for range 300 {
			time.Sleep(100 * time.Millisecond)
			if got := b.opinion(1); got != OpinionUp {
				t.Fatalf("it is %v", got)
			}
		}
	})
}
