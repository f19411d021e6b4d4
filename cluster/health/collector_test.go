package health

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func TestCollector(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCollector()
		take := func(boot, seq uint64, want bool) {
			t.Helper()
			if got := c.Receive(node(0), Observation{Boot: boot, Sequence: seq}); got != want {
				t.Errorf("receive %d/%d: %v", boot, seq, got)
			}
		}
		check := func(age, heard time.Duration) {
			t.Helper()
			o := c.Observers()
			if len(o) != 1 || o[0].Age != age || o[0].Heard != heard {
				t.Errorf("got %+v, want age %v heard %v", o, age, heard)
			}
		}
		take(1, 5, true)
		take(1, 5, false)
		take(1, 4, false)
		take(0, 9, false)
		time.Sleep(2 * time.Second)
		check(2*time.Second, 2*time.Second)
		take(1, 6, true)
		time.Sleep(3 * time.Second)
		check(3*time.Second, 5*time.Second)
		time.Sleep(time.Second)
		check(4*time.Second, 0) // stale
		take(1, 7, true)
		check(0, 0) // begins anew after the gap
		time.Sleep(time.Second)
		take(2, 1, true)
		check(0, 0) // and after a restart
	})
}

func TestCollectorIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewCollector()
		for i := range 3 * state.MaxMembers {
			c.Receive(node(i), Observation{Sequence: 1})
			time.Sleep(time.Millisecond)
		}
		o := c.Observers()
		if len(o) != state.MaxMembers || o[len(o)-1].Member != node(3*state.MaxMembers-1) {
			t.Errorf("%d observers", len(o))
		}
	})
}
