package affinity

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func TestMayExpire(t *testing.T) {
	s := state.DefaultSettings()
	for _, c := range []struct {
		name string
		o    Office
		want bool
	}{
		{"follower", Office{Held: time.Hour}, false},
		{"new leader", Office{Leading: true, Held: 10*time.Minute - 1}, false},
		{"two touch intervals", Office{Leading: true, Held: 10 * time.Minute}, true},
	} {
		if got := MayExpire(c.o, &s); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestExpiry(t *testing.T) {
	bubble(t, func(ctx context.Context, a *agreement, run func(func(context.Context) error)) {
		var leading atomic.Bool
		var since atomic.Int64
		leads := func(yes bool) { since.Store(time.Now().UnixNano()); leading.Store(yes) }
		e, err := NewExpiry(ExpiryDeps{
			View: func() ExpirySource { return a.View() },
			Office: func() Office {
				return Office{Leading: leading.Load(), Held: time.Since(time.Unix(0, since.Load())), Now: a.now()}
			},
			Proposer: a,
		})
		if err != nil {
			t.Fatal(err)
		}
		run(e.Run)
		a.must(settings(a, func(s *state.Settings) { s.PrefixBudget, s.NodeBudget = 5000, 5000 }))
		const many = 3 * MaxBatchTouch
		for i := 1; i <= many; i++ {
			a.learn(i, 1, state.Confirmed)
		}
		time.Sleep(10 * time.Minute)
		a.learn(0, 2, state.Confirmed)
		time.Sleep(time.Hour)
		if n := a.View().Len(); n != many+1 {
			t.Fatalf("%d records; a follower expires", n)
		}
		leads(true)
		time.Sleep(9 * time.Minute)
		if n := a.View().Len(); n != many+1 {
			t.Fatalf("%d records; a new leader expires", n)
		}
		r, _ := a.record(0)
		a.must(state.Touch{Records: []state.Touched{{Key: r.Key, Index: r.Index, Heard: true}}})
		a.set(func() { a.fails = true })
		time.Sleep(5 * time.Minute)
		if n := a.View().Len(); n != many+1 {
			t.Fatalf("%d records without a quorum", n)
		}
		a.set(func() { a.fails = false })
		time.Sleep(30 * time.Second)
		if n := a.View().Len(); n != 1 {
			t.Errorf("%d records left", n)
		}
		a.holds(0, 2)
		for _, c := range commandsOf[state.Expire](a) {
			if len(c.Records) > MaxBatchTouch {
				t.Errorf("a batch of %d", len(c.Records))
			}
		}
		leads(true)
		time.Sleep(time.Hour)
		a.holds(0, 0)
	})
}
