package bgp

import "time"

// Bounds of the own rate of change. Routers with flap damping (RFC 2439)
// suppress a route for up to an hour after two or three withdrawals within
// minutes, so further improvements within the window wait longer and longer,
// and soft withdrawals become demotions: those change attributes only, which
// damping punishes less or not at all.
const (
	// flapWindow is how long a change counts. Longer than the 5 s of the
	// quickest rejoin, shorter than the half-life of common damping (15 min).
	flapWindow = 5 * time.Minute
	// freeImprovements go at the plain hold-up: a start, a cold start that
	// finds its leader, one more.
	freeImprovements = 3
	// maxHoldUp bounds the doubling of the hold-up of a route that is absent.
	maxHoldUp = time.Minute
	// maxHoldUpLowered bounds it while the route exists, drained or demoted:
	// the improvement changes attributes only.
	maxHoldUpLowered = 5 * time.Second
	// maxHoldUpAlone bounds it when nobody else announces.
	maxHoldUpAlone = 5 * time.Second
	// maxWithdrawals is how many withdrawals within the window may happen
	// before soft ones become demotions.
	maxWithdrawals = 2
	// maxFlapRecords bounds the memory of past changes of one VIP.
	maxFlapRecords = 16
)

// pace is the memory of one VIP: what is announced, since when a better
// action has been wanted, and how often it changed lately. Times are monotonic.
type pace struct {
	announced Action
	// wantedSince[a] is since when at least a has been wanted without a
	// break; zero = not wanted.
	wantedSince [actionCount]time.Time
	improved    []time.Time // improvements within flapWindow, oldest first
	withdrawn   []time.Time // withdrawals within flapWindow, oldest first
}

// step says what to announce now that d is wanted, and when to ask again if
// an improvement is waiting, or a withdrawal that became a demotion (zero:
// nothing waits). alone: nobody else announces. It changes only the memory of
// what is wanted.
func (p *pace) step(now time.Time, d Decision, alone bool, holdUp time.Duration) (next Action, again time.Time, limited bool) {
	p.forget(now)
	want := d.Action
	var lifted time.Time // when the withdrawal may happen after all
	if n := len(p.withdrawn); want == Withdraw && d.Soft && p.announced > Withdraw && n >= maxWithdrawals {
		want, limited = Demote, true
		lifted = p.withdrawn[n-maxWithdrawals].Add(flapWindow + 1) // it counts up to the window's end
	}
	for a := Withdraw; a < actionCount; a++ {
		switch {
		case a > want:
			p.wantedSince[a] = time.Time{}
		case p.wantedSince[a].IsZero():
			p.wantedSince[a] = now
		}
	}
	if want <= p.announced {
		return want, lifted, limited
	}
	wait := p.wait(alone, holdUp)
	next = p.announced
	for a := p.announced + 1; a <= want; a++ {
		due := p.wantedSince[a].Add(wait)
		if now.Before(due) {
			if limited && lifted.Before(due) {
				due = lifted
			}
			return next, due, limited
		}
		next = a
	}
	return next, lifted, limited
}

// wait is the hold-up of the next improvement.
func (p *pace) wait(alone bool, holdUp time.Duration) time.Duration {
	over := len(p.improved) - freeImprovements
	if over < 0 {
		if alone {
			return 0
		}
		return holdUp
	}
	bound := maxHoldUp
	switch {
	case alone:
		bound = maxHoldUpAlone
	case p.announced > Withdraw:
		bound = maxHoldUpLowered
	}
	return min(bound, max(holdUp, DefaultHoldUp)<<min(over+1, 8))
}

// record notes that the speaker has taken next.
func (p *pace) record(now time.Time, next Action) {
	if next > p.announced {
		p.improved = bounded(append(p.improved, now))
	}
	if next == Withdraw && p.announced > Withdraw {
		p.withdrawn = bounded(append(p.withdrawn, now))
	}
	p.announced = next
}

func (p *pace) forget(now time.Time) {
	old := now.Add(-flapWindow)
	for len(p.improved) > 0 && p.improved[0].Before(old) {
		p.improved = p.improved[1:]
	}
	for len(p.withdrawn) > 0 && p.withdrawn[0].Before(old) {
		p.withdrawn = p.withdrawn[1:]
	}
}

func bounded(t []time.Time) []time.Time {
	if len(t) > maxFlapRecords {
		t = t[len(t)-maxFlapRecords:]
	}
	return t
}
