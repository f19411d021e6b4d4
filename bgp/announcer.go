package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// setBound is how long the speaker may take to accept advertisements.
	setBound = 5 * time.Second
	// setRetry is the pause after a failure.
	setRetry = time.Second
	// MaxVIPs bounds the VIPs of one announcer; the spec has a lower limit.
	MaxVIPs = 1024
)

// AnnouncerConfig says how decisions become announcements.
type AnnouncerConfig struct {
	// HoldUp as in Config: 0 = DefaultHoldUp, negative = none.
	HoldUp time.Duration
	Limits Limits // zero = DefaultLimits; Facts may bring others
}

// VIPStatus is one VIP as the announcer sees it.
type VIPStatus struct {
	VIP       netip.Addr `json:"vip"`
	Decision  Decision   `json:"decision"`  // the latest
	Announced Action     `json:"announced"` // what the speaker took last; whether a router has it: Carried
	Reason    Reason     `json:"reason"`    // of Announced, as of when it changed
	Since     time.Time  `json:"since"`     // of Announced, display only
	Held      bool       `json:"held"`      // an improvement waits for the hold-up
	Limited   bool       `json:"limited"`   // a withdrawal became a demotion: too many changes
}

// entry is everything about one VIP. A VIP that Update no longer names stays
// until its withdrawal has been taken.
type entry struct {
	facts   Facts
	named   bool
	pace    pace
	next    Action // what the next Set will say
	reason  Reason // of next
	limited bool
	status  VIPStatus
}

// Announcer is the only writer of what the speaker announces.
type Announcer struct {
	speaker Speaker
	log     *slog.Logger
	met     *announcerMetrics
	holdUp  time.Duration
	limits  Limits
	wake    chan struct{} // capacity 1

	mu      sync.Mutex
	entries map[netip.Addr]*entry
	changed chan struct{} // closed at the next change of Status
}

// NewAnnouncer does no I/O. speaker is written by this announcer alone.
func NewAnnouncer(cfg AnnouncerConfig, speaker Speaker, deps Deps) (*Announcer, error) {
	if speaker == nil {
		return nil, errors.New("announcer: no speaker")
	}
	met, err := newAnnouncerMetrics(deps.Metrics)
	if err != nil {
		return nil, err
	}
	if cfg.HoldUp == 0 {
		cfg.HoldUp = DefaultHoldUp
	}
	if cfg.Limits == (Limits{}) {
		cfg.Limits = DefaultLimits()
	}
	return &Announcer{
		speaker: speaker, log: deps.logger(), met: met,
		holdUp: max(0, cfg.HoldUp), limits: cfg.Limits,
		wake: make(chan struct{}, 1), entries: make(map[netip.Addr]*entry), changed: make(chan struct{}),
	}, nil
}

// Update replaces the facts of all VIPs; a VIP that is not named is withdrawn
// at once. It never blocks. Call it on every change and at least every 250 ms:
// the durations in the facts only move when it is called. VIPs beyond MaxVIPs
// are an error, and nothing is changed then.
func (a *Announcer) Update(facts map[netip.Addr]Facts) error {
	if len(facts) > MaxVIPs {
		return fmt.Errorf("announce %d VIPs: more than %d", len(facts), MaxVIPs)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := false
	for vip, e := range a.entries {
		if _, ok := facts[vip]; !ok {
			changed = changed || e.named
			e.named = false
		}
	}
	for vip, f := range facts {
		e := a.entries[vip]
		if e == nil {
			e = &entry{status: VIPStatus{VIP: vip}}
			a.entries[vip] = e
		}
		limits := a.limits
		if f.Limits != (Limits{}) {
			limits = f.Limits
		}
		d := Decide(f, limits)
		changed = changed || !e.named || e.status.Decision != d || (e.facts.VIP.OthersAnnouncing == 0) != (f.VIP.OthersAnnouncing == 0)
		if e.status.Decision != d {
			a.decided(e, d)
		}
		e.facts, e.named, e.status.Decision = f, true, d
	}
	if changed {
		a.notify()
		select {
		case a.wake <- struct{}{}:
		default: // Run has yet to look
		}
	}
	return nil
}

// decided logs and measures a new decision.
func (a *Announcer) decided(e *entry, d Decision) {
	old, vip := e.status.Decision, e.status.VIP.String()
	if old.Reason != ReasonNone {
		a.met.reason.DeleteLabelValues(vip, old.Reason.String())
	}
	a.met.reason.WithLabelValues(vip, d.Reason.String()).Set(1)
	a.log.Info("bgp decision", "vip", vip, "action", d.Action, "reason", d.Reason,
		"before", old.Action, "before_reason", old.Reason)
}

func (a *Announcer) notify() {
	close(a.changed)
	a.changed = make(chan struct{})
}

// Run announces until ctx ends, then returns nil and leaves the routes as they
// are: stopping the speaker withdraws them.
func (a *Announcer) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failed := false // the speaker may hold something else than we recorded
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.wake:
		case <-timer.C:
		}
		ads, again, pending := a.plan(time.Now())
		if pending || failed {
			err := a.set(ctx, ads)
			switch {
			case errors.Is(err, ErrStopped), ctx.Err() != nil:
				return nil
			case err != nil:
				a.met.failures.Inc()
				if !failed {
					a.log.Error("bgp announcement failed", "error", err)
				}
				failed, again = true, time.Now().Add(setRetry)
			default:
				failed = false
				a.taken(time.Now())
			}
		}
		timer.Stop()
		if !again.IsZero() {
			timer.Reset(max(0, time.Until(again)))
		}
	}
}

func (a *Announcer) set(ctx context.Context, ads []Advertisement) error {
	ctx, cancel := context.WithTimeout(ctx, setBound)
	defer cancel()
	return a.speaker.Set(ctx, ads)
}

// plan works out what the speaker should hold now, when the next held
// improvement is due (zero: none), and whether anything differs from what the
// speaker took last.
func (a *Announcer) plan(now time.Time) (ads []Advertisement, again time.Time, pending bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	changed := false
	for vip, e := range a.entries {
		if !e.named && e.pace.announced == Withdraw {
			a.drop(vip, e)
			changed = true
			continue
		}
		var due time.Time
		limited := false
		e.next, e.reason = Withdraw, VIPRemoved
		if e.named {
			e.reason = e.status.Decision.Reason
			alone := e.facts.VIP.OthersAnnouncing <= 0
			e.next, due, limited = e.pace.step(now, e.status.Decision, alone, a.holdUp)
		}
		if limited && !e.limited {
			a.met.limited.Inc()
		}
		held := e.named && e.next < e.status.Decision.Action
		changed = changed || e.status.Held != held || e.status.Limited != limited
		e.limited, e.status.Held, e.status.Limited = limited, held, limited
		if !due.IsZero() && (again.IsZero() || due.Before(again)) {
			again = due
		}
		pending = pending || e.next != e.pace.announced
		if e.next != Withdraw {
			ads = append(ads, Advertisement{VIP: vip, Action: e.next})
		}
	}
	slices.SortFunc(ads, func(x, y Advertisement) int { return x.VIP.Compare(y.VIP) })
	if changed {
		a.notify()
	}
	return ads, again, pending
}

// taken records that the speaker took what plan said.
func (a *Announcer) taken(now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for vip, e := range a.entries {
		if e.next == e.pace.announced {
			continue
		}
		before := e.pace.announced
		e.pace.record(now, e.next)
		e.status.Announced, e.status.Since, e.status.Reason = e.next, now, e.reason
		a.met.announced.DeleteLabelValues(vip.String(), before.String())
		a.met.announced.WithLabelValues(vip.String(), e.next.String()).Set(1)
		a.met.changes.WithLabelValues(vip.String(), e.next.String()).Inc()
		a.log.Info("bgp announcement", "vip", vip, "action", e.next, "before", before,
			"reason", e.status.Reason, "limited", e.limited)
		if !e.named && e.next == Withdraw {
			a.drop(vip, e)
		}
	}
	a.notify()
}

// drop forgets a VIP that is neither named nor announced.
func (a *Announcer) drop(vip netip.Addr, e *entry) {
	label := vip.String()
	a.met.reason.DeleteLabelValues(label, e.status.Decision.Reason.String())
	for act := Withdraw; act < actionCount; act++ {
		a.met.announced.DeleteLabelValues(label, act.String())
		a.met.changes.DeleteLabelValues(label, act.String())
	}
	delete(a.entries, vip)
}

// Status reports every VIP of the latest Update, ordered by address.
func (a *Announcer) Status() []VIPStatus {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make([]VIPStatus, 0, len(a.entries))
	for _, vip := range slices.SortedFunc(maps.Keys(a.entries), netip.Addr.Compare) {
		if e := a.entries[vip]; e.named {
			out = append(out, e.status)
		}
	}
	return out
}

// Changed returns a channel that is closed at the next change of Status. Take
// it before Status, or a change in between is missed.
func (a *Announcer) Changed() <-chan struct{} {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.changed
}
