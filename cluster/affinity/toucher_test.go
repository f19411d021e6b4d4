package affinity

import (
	"context"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

func touching(t *testing.T, limit int, body func(a *agreement, x *Toucher)) {
	t.Helper()
	bubble(t, func(ctx context.Context, a *agreement, run func(func(context.Context) error)) {
		x, err := NewToucher(ToucherDeps{View: func() View { return a.View() }, Proposer: a, Max: limit})
		if err != nil {
			t.Fatal(err)
		}
		a.onDelta = func(d state.Delta) { x.Deleted(d.Delete) }
		run(x.Run)
		// Time passes in the log, as the leader's ticks make it do.
		run(func(ctx context.Context) error {
			for pause(ctx, time.Second) {
				a.set(func() {})
				if !a.failing() {
					a.apply(state.Tick{})
				}
			}
			return nil
		})
		body(a, x)
	})
}

func (a *agreement) failing() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.fails
}

func (a *agreement) learn(i int, id state.BackendID, c state.Confirmation) {
	a.t.Helper()
	a.must(state.Learn{Records: []state.Learned{{Key: state.Key{Client: client(i), Class: state.ClassIKE}, Backend: id, State: c}}})
}

// traffic reports activity of a client every 10 s for a while.
func traffic(x *Toucher, i int, slot table.Slot, heard bool, d time.Duration) {
	for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(10 * time.Second) {
		x.Offer([]table.Activity{{Key: key(i), Slot: slot, Heard: heard, Age: 1}})
	}
}

func touches(a *agreement) (n int) {
	for _, c := range commandsOf[state.Touch](a) {
		n += len(c.Records)
	}
	return n
}

func TestToucherPace(t *testing.T) {
	touching(t, 0, func(a *agreement, x *Toucher) {
		a.learn(1, 1, state.Confirmed)
		traffic(x, 1, 1, true, time.Hour)
		if n := touches(a); n < 10 || n > 12 {
			t.Errorf("%d touches in an hour of one every 5 min", n)
		}
		r, ok := a.record(1)
		if age := a.now().Sub(r.Seen); !ok || age > 6*time.Minute {
			t.Errorf("seen %v ago", age)
		}
		if age := a.now().Sub(r.Heard); age > 6*time.Minute {
			t.Errorf("heard %v ago", age)
		}
	})
}

// TestToucherReportsTheEnd: activity shortly after a touch is reported later,
// with its age, though the client has fallen silent; and once.
func TestToucherReportsTheEnd(t *testing.T) {
	touching(t, 0, func(a *agreement, x *Toucher) {
		a.learn(1, 1, state.Confirmed)
		learnt := a.now()
		traffic(x, 1, 1, true, 3*time.Minute)
		time.Sleep(30 * time.Minute)
		r, _ := a.record(1)
		if d := r.Seen.Sub(learnt); d < 2*time.Minute || d > 3*time.Minute {
			t.Errorf("seen %v after it was learnt", d)
		}
		if n := touches(a); n != 1 || x.Held() != 0 {
			t.Errorf("%d touches, %d held", n, x.Held())
		}
	})
}

func TestToucherIgnores(t *testing.T) {
	for _, c := range []struct {
		name  string
		state state.Confirmation
		slot  table.Slot
	}{{"unconfirmed", state.EarnedAuth, 1}, {"another server", state.Confirmed, 2}, {"a slot nobody has", state.Confirmed, 99}} {
		t.Run(c.name, func(t *testing.T) {
			touching(t, 0, func(a *agreement, x *Toucher) {
				a.learn(1, 1, c.state)
				traffic(x, 1, c.slot, true, 20*time.Minute)
				if n := touches(a); n != 0 {
					t.Errorf("%d touches", n)
				}
			})
		})
	}
	touching(t, 0, func(a *agreement, x *Toucher) {
		traffic(x, 1, 1, true, time.Minute)
		if x.Held() != 0 {
			t.Error("holds activity of a client without a record")
		}
	})
}

// TestToucherOtherNodes: what another node has touched is no news.
func TestToucherOtherNodes(t *testing.T) {
	touching(t, 0, func(a *agreement, x *Toucher) {
		a.learn(1, 1, state.Confirmed)
		r, _ := a.record(1)
		for range 30 {
			traffic(x, 1, 1, true, time.Minute)
			a.must(state.Touch{Records: []state.Touched{{Key: r.Key, Index: r.Index, Heard: true}}})
		}
		if n := touches(a); n != 0 {
			t.Errorf("%d touches", n)
		}
	})
}

func TestToucherWithoutQuorum(t *testing.T) {
	touching(t, 0, func(a *agreement, x *Toucher) {
		a.learn(1, 1, state.Confirmed)
		time.Sleep(10 * time.Second)
		a.set(func() { a.fails = true })
		traffic(x, 1, 1, true, time.Hour)
		if x.Held() != 1 {
			t.Fatalf("%d held", x.Held())
		}
		before, _ := a.record(1)
		a.set(func() { a.fails = false })
		time.Sleep(20 * time.Second)
		after, ok := a.record(1)
		if !ok || after.Seen.Sub(before.Seen) < 50*time.Minute || after.Heard != after.Seen {
			t.Errorf("before %+v, after %+v", before, after)
		}
	})
}

// TestToucherLearnsAgain: a record expired (on a leader that knew nothing of
// the client's activity) is proposed again; one that was forgotten is not.
func TestToucherLearnsAgain(t *testing.T) {
	touching(t, 0, func(a *agreement, x *Toucher) {
		a.learn(1, 1, state.Confirmed)
		a.learn(2, 2, state.Confirmed)
		a.learn(3, 3, state.Confirmed)
		time.Sleep(30 * time.Second)
		a.set(func() { a.fails = true })
		traffic(x, 1, 1, true, time.Hour)
		r, _ := a.record(1)
		r3, _ := a.record(3)
		a.apply(state.Expire{Records: []state.Expired{{Key: r.Key, Index: r.Index, Seen: r.Seen}, {Key: r3.Key, Index: r3.Index, Seen: r3.Seen}}})
		a.holds(1, 0)
		a.set(func() { a.fails = false })
		time.Sleep(20 * time.Second)
		a.holds(1, 1)
		a.holds(3, 0) // nothing was seen of this one
		if r, _ := a.record(1); r.State != state.Confirmed {
			t.Errorf("state %d", r.State)
		}
		a.learn(2, 2, state.Confirmed)
		traffic(x, 2, 2, true, time.Minute)
		a.must(state.Forget{Keys: []state.Key{{Client: client(2), Class: state.ClassIKE}}})
		time.Sleep(time.Minute)
		a.holds(2, 0)
	})
}

// TestToucherNeverConfirms: an unconfirmed record that expires is gone, although
// its life was longer than the affinity timeout and packets of its client, which
// anybody can forge, still come.
func TestToucherNeverConfirms(t *testing.T) {
	for _, told := range []bool{true, false} {
		touching(t, 0, func(a *agreement, x *Toucher) {
			if !told {
				a.set(func() { a.onDelta = nil })
			}
			s := a.View().Spec().Settings
			s.AffinityTimeout, s.TouchInterval = 8*time.Minute, 2*time.Minute
			a.must(state.SetSettings{Settings: s, Expect: s.Version})
			a.learn(1, 1, state.EarnedAuth)
			a.learn(2, 1, state.EarnedSK)
			for range 65 {
				traffic(x, 1, 1, false, 10*time.Second)
				traffic(x, 2, 1, false, 10*time.Second)
				if due := a.View().Expired(a.now(), 10); len(due) > 0 {
					a.must(state.Expire{Records: due})
				}
			}
			traffic(x, 1, 1, false, 2*time.Minute)
			a.holds(1, 0)
			a.holds(2, 0)
			if n := len(commandsOf[state.Learn](a)); n != 0 {
				t.Errorf("told %t: learnt again %d times", told, n)
			}
		})
	}
}

// TestToucherLearnsAgainUntold: the same where Deleted is never called, because
// a snapshot took the place of the deltas.
func TestToucherLearnsAgainUntold(t *testing.T) {
	touching(t, 0, func(a *agreement, x *Toucher) {
		a.set(func() { a.onDelta = nil })
		a.learn(1, 1, state.Confirmed)
		a.learn(2, 2, state.Confirmed)
		time.Sleep(30 * time.Second)
		a.set(func() { a.fails = true })
		traffic(x, 1, 1, true, time.Hour)
		r, _ := a.record(1)
		a.apply(state.Expire{Records: []state.Expired{{Key: r.Key, Index: r.Index, Seen: r.Seen}}})
		a.holds(1, 0)
		a.set(func() { a.fails = false })
		a.learn(2, 2, state.Confirmed)
		traffic(x, 2, 2, true, time.Minute)
		a.must(state.Forget{Keys: []state.Key{{Client: client(2), Class: state.ClassIKE}}})
		time.Sleep(2 * time.Minute)
		a.holds(1, 1)
		a.holds(2, 0) // forgotten, not expired
		if x.Held() != 0 {
			t.Errorf("%d held", x.Held())
		}
	})
}

func TestToucherIsBounded(t *testing.T) {
	touching(t, 100, func(a *agreement, x *Toucher) {
		a.set(func() { a.fails = true })
		for i := range 300 {
			a.learn(i, 1, state.Confirmed)
		}
		time.Sleep(10 * time.Second)
		for i := range 300 {
			x.Offer([]table.Activity{{Key: key(i), Slot: 1}})
		}
		if x.Held() > 2*touchShards || x.Held() < touchShards {
			t.Errorf("%d held", x.Held())
		}
	})
}

func TestJudgeTouch(t *testing.T) {
	s := state.DefaultSettings()
	base := state.Affinity{State: state.Confirmed}
	at := func(d time.Duration) state.Time { return state.Time(100 * time.Hour).Add(d) }
	for _, c := range []struct {
		name        string
		seen, heard time.Duration // ago
		age         time.Duration
		h           bool
		want        touchVerdict
	}{
		{"just touched", time.Second, time.Second, 0, true, touchStale},
		{"soon after", time.Minute, time.Minute, 0, true, touchLater},
		{"after the interval", 5 * time.Minute, 5 * time.Minute, 0, true, touchDue},
		{"old activity", 5 * time.Minute, 5 * time.Minute, 6 * time.Minute, true, touchStale},
		{"activity within the interval, reported after it", 5 * time.Minute, 5 * time.Minute, 3 * time.Minute, true, touchDue},
		{"last quarter", 31 * time.Minute, 31 * time.Minute, 0, true, touchDue},
		{"heard is news though seen is not", time.Second, 2 * time.Minute, 0, true, touchLater},
		{"word from the server before 12 h are over", time.Minute, 10 * time.Hour, 0, true, touchDue},
		{"no word", time.Minute, 10 * time.Hour, 0, false, touchLater},
	} {
		r := base
		r.Seen, r.Heard = at(-c.seen), at(-c.heard)
		if got := judgeTouch(&s, r, at(0), c.age, c.h); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
	short := s
	short.AffinityTimeout, short.TouchInterval = 2*time.Minute, time.Hour
	r := base
	r.Seen, r.Heard = at(-91*time.Second), at(-91*time.Second)
	if got := judgeTouch(&short, r, at(0), 0, true); got != touchDue {
		t.Errorf("last quarter before the interval: %d", got)
	}
}
