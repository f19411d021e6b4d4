package gateway

import "time"

// announcement is the schedule of one address: as a burst, then steadily.
type announcement struct {
	since time.Time
	sent  int
	last  time.Time
	held  bool // the kernel had the address at the last step
}

// burst: the first announcement may be lost, or come before a switch has learned
// the port. steady: for a server that was down, or a stale cache.
var burst = [...]time.Duration{0, 200 * time.Millisecond, time.Second, 3 * time.Second}

const steady = 10 * time.Second

// due reports whether it is time.
func (a *announcement) due(now time.Time) bool {
	if a.sent < len(burst) {
		if now.Sub(a.since) < burst[a.sent] {
			return false
		}
	} else if now.Sub(a.last) < steady {
		return false
	}
	return true
}

// said notes that it was said. What could not be said stays due.
func (a *announcement) said(now time.Time) {
	a.sent++
	a.last = now
}
