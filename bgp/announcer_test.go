package bgp

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

var vip1, vip2 = netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.11")

// recorder is a Speaker that notes what it is told and when.
type recorder struct {
	mu    sync.Mutex
	start time.Time
	calls []call
	fail  error
}

type call struct {
	at  time.Duration
	ads []Advertisement
}

func (r *recorder) Set(_ context.Context, ads []Advertisement) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.calls = append(r.calls, call{time.Since(r.start), slices.Clone(ads)})
	return nil
}
func (r *recorder) Neighbours() []NeighbourStatus { return nil }
func (r *recorder) Stop(context.Context) error    { return nil }

func (r *recorder) setFail(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail = err
}

// last gives the number of calls and what vip1 was last told.
func (r *recorder) last() (int, Action) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.calls) == 0 {
		return 0, Withdraw
	}
	for _, ad := range r.calls[len(r.calls)-1].ads {
		if ad.VIP == vip1 {
			return len(r.calls), ad.Action
		}
	}
	return len(r.calls), Withdraw
}

// bubble runs fn with a running announcer in virtual time.
func bubble(t *testing.T, fn func(t *testing.T, a *Announcer, r *recorder)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &recorder{start: time.Now()}
		a, err := NewAnnouncer(AnnouncerConfig{}, r, Deps{Metrics: prometheus.NewRegistry()})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- a.Run(ctx) }()
		fn(t, a, r)
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// tell updates vip1 and lets everything settle at this instant.
func tell(t *testing.T, a *Announcer, change ...func(*Facts)) {
	t.Helper()
	f := healthy()
	for _, c := range change {
		c(&f)
	}
	if err := a.Update(map[netip.Addr]Facts{vip1: f}); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
}

func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func expect(t *testing.T, r *recorder, want Action, why string) {
	t.Helper()
	if _, got := r.last(); got != want {
		t.Errorf("%s: announced %s, want %s", why, got, want)
	}
}

func alone(f *Facts)    { f.VIP.OthersAnnouncing = 0 }
func noPlane(f *Facts)  { f.Node.PlaneAttached = false }
func noQuorum(f *Facts) { f.Node.QuorumLost = time.Minute }
func noCheck(f *Facts)  { f.Node.PlaneSelfCheck = false }

func TestYesIsHeldUpNoIsImmediate(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		tell(t, a)
		expect(t, r, Withdraw, "at once")
		if st := a.Status(); len(st) != 1 || !st[0].Held {
			t.Errorf("status does not say that it is held: %+v", st)
		}
		pass(DefaultHoldUp - time.Millisecond)
		expect(t, r, Withdraw, "before the hold-up")
		pass(time.Millisecond)
		expect(t, r, Announce, "after the hold-up")
		st := a.Status()[0]
		if st.Held || st.Announced != Announce || st.Reason != OK {
			t.Errorf("status %+v", st)
		}
		tell(t, a, noQuorum)
		expect(t, r, Demote, "demotion at once")
		tell(t, a, noPlane)
		expect(t, r, Withdraw, "withdrawal at once")
	})
}

func TestInterruptedWishStartsAgain(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		for range 5 {
			tell(t, a)
			pass(DefaultHoldUp / 2)
			tell(t, a, noPlane)
			pass(DefaultHoldUp / 2)
		}
		if n, _ := r.last(); n != 0 {
			t.Errorf("flapping reached the speaker %d times", n)
		}
	})
}

// A wish that wavers between demoted and normal is announced demoted: at
// least that was wanted all the time.
func TestWaveringIsAnnouncedDemoted(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		for range 4 {
			tell(t, a)
			pass(DefaultHoldUp * 3 / 8)
			tell(t, a, noQuorum)
			pass(DefaultHoldUp * 3 / 8)
		}
		expect(t, r, Demote, "wavering")
	})
}

func TestNoHoldUpWhenNobodyElseAnnounces(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		tell(t, a, alone)
		expect(t, r, Announce, "alone")
		if n, _ := r.last(); n != 1 || r.calls[0].at != 0 {
			t.Errorf("calls %+v", r.calls)
		}
	})
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		tell(t, a)
		pass(DefaultHoldUp / 2)
		tell(t, a, alone)
		expect(t, r, Announce, "the others went away during the hold-up")
	})
}

func TestFlappingIsSlowedAndDemoted(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		up := func(wait time.Duration) {
			t.Helper()
			tell(t, a)
			pass(wait)
			expect(t, r, Announce, "improvement")
		}
		for range 2 {
			up(DefaultHoldUp)
			tell(t, a, noCheck)
			expect(t, r, Withdraw, "soft withdrawal within the budget")
		}
		up(DefaultHoldUp)
		tell(t, a, noCheck)
		expect(t, r, Demote, "soft withdrawal over the budget")
		if !a.Status()[0].Limited {
			t.Error("status does not say that it is limited")
		}
		tell(t, a)
		pass(DefaultHoldUp)
		expect(t, r, Demote, "fourth improvement waits longer")
		pass(DefaultHoldUp)
		expect(t, r, Announce, "fourth improvement")
		tell(t, a, noPlane)
		expect(t, r, Withdraw, "a withdrawal that is not soft is never limited")
		pass(flapWindow + time.Second)
		up(DefaultHoldUp)
		tell(t, a, noCheck)
		expect(t, r, Withdraw, "the budget comes back")
	})
}

func TestHoldUpIsBounded(t *testing.T) {
	p := &pace{}
	now := time.Unix(0, 0)
	for range 100 {
		p.record(now, Announce)
		p.record(now, Withdraw)
	}
	if w := p.wait(false, DefaultHoldUp); w != maxHoldUp {
		t.Errorf("absent: %s", w)
	}
	if w := p.wait(true, 0); w != maxHoldUpAlone {
		t.Errorf("alone: %s", w)
	}
	p.announced = Demote
	if w := p.wait(false, DefaultHoldUp); w != maxHoldUpLowered {
		t.Errorf("demoted: %s", w)
	}
	if len(p.improved) > maxFlapRecords || len(p.withdrawn) > maxFlapRecords {
		t.Error("the memory grows")
	}
}

func TestRemovedVIPIsWithdrawnAndForgotten(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		f := healthy()
		alone(&f)
		if err := a.Update(map[netip.Addr]Facts{vip1: f, vip2: f}); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		tell(t, a, alone)
		want := []Advertisement{{vip1, Announce}}
		if got := r.calls[len(r.calls)-1].ads; !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if len(a.Status()) != 1 || len(a.entries) != 1 {
			t.Errorf("the removed VIP stays: %+v", a.Status())
		}
	})
}

func TestSpeakerFailureIsRetried(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		r.setFail(errors.New("busy"))
		tell(t, a, alone)
		if st := a.Status()[0]; st.Announced != Withdraw {
			t.Errorf("a failed announcement counts as made: %+v", st)
		}
		pass(3 * setRetry)
		r.setFail(nil)
		pass(setRetry)
		expect(t, r, Announce, "after the speaker recovered")
	})
}

// A failed Set may have got half-way: the next one is made even if nothing
// seems to differ any more.
func TestFailureForcesAnotherSet(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		tell(t, a, alone)
		n, _ := r.last()
		r.setFail(errors.New("busy"))
		tell(t, a, alone, noQuorum)
		r.setFail(nil)
		tell(t, a, alone)
		pass(setRetry)
		if m, got := r.last(); m == n || got != Announce {
			t.Errorf("%d calls, then %d with %s", n, m, got)
		}
	})
}

func TestUpdateIsBounded(t *testing.T) {
	a, err := NewAnnouncer(AnnouncerConfig{}, &recorder{}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	facts := map[netip.Addr]Facts{}
	for v := netip.MustParseAddr("198.18.0.0"); len(facts) <= MaxVIPs; v = v.Next() {
		facts[v] = healthy()
	}
	if err := a.Update(facts); err == nil {
		t.Error("too many VIPs accepted")
	}
	if len(a.Status()) != 0 {
		t.Error("a refused update changed something")
	}
}

func TestLimitsOfTheFactsCount(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		lost := func(f *Facts) { f.Node.QuorumLost = 20 * time.Second }
		patient := func(f *Facts) { f.Limits = DefaultLimits(); f.Limits.QuorumGrace = time.Minute }
		tell(t, a, alone, lost)
		expect(t, r, Demote, "own limits")
		tell(t, a, alone, lost, patient)
		expect(t, r, Announce, "limits of the facts")
	})
}

func TestChangedFires(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		ch := a.Changed()
		tell(t, a)
		select {
		case <-ch:
		default:
			t.Error("no notice of the decision")
		}
		ch = a.Changed()
		pass(DefaultHoldUp)
		select {
		case <-ch:
		default:
			t.Error("no notice of the announcement")
		}
	})
}

// A withdrawal that became a demotion happens when the budget allows it again,
// though nothing else changes meanwhile.
func TestLimitedWithdrawalIsMadeUpFor(t *testing.T) {
	bubble(t, func(t *testing.T, a *Announcer, r *recorder) {
		began := time.Now()
		for range maxWithdrawals + 1 {
			tell(t, a)
			pass(DefaultHoldUp)
			tell(t, a, noCheck)
		}
		expect(t, r, Demote, "over the budget")
		if s := a.Status()[0]; !s.Limited || s.Held {
			t.Errorf("status %+v", s)
		}
		// The first of the withdrawals that count was a hold-up after the start.
		pass(time.Until(began.Add(flapWindow + DefaultHoldUp)))
		expect(t, r, Demote, "still within the window")
		pass(time.Millisecond)
		expect(t, r, Withdraw, "the window is over")
		if a.Status()[0].Limited {
			t.Error("status still says that it is limited")
		}
	})
}
