package gateway

import (
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Times of asking on the segment. Each question is one broadcast of 42 bytes.
const (
	askHeld      = 5 * time.Second        // own addresses: has somebody else one, too?
	askOther     = 500 * time.Millisecond // others' addresses: does the owner answer?
	askUrgent    = 200 * time.Millisecond // the same while there is no leader
	askPeer      = 2 * time.Second        // members whose MAC is not known
	askPeerAgain = 30 * time.Second       // members whose MAC is known: it may change
	// answerFresh is how long an answer counts, three questions and a bit.
	answerFresh = 1700 * time.Millisecond
	// silence is how long a question must be open to count as not answered.
	silence = 300 * time.Millisecond
	// peerPatience is how long an unknown MAC may still turn out a member's.
	peerPatience = time.Second
)

// watched is what is known of one address on the segment.
type watched struct {
	mac      [6]byte
	answered time.Time // zero: never
	asked    time.Time // last question
	// open is the first question since the last answer; zero: none is open.
	open time.Time
}

// segmentWatch remembers who answers for what. One goroutine.
type segmentWatch struct {
	addrs map[netip.Addr]*watched
	own   [6]byte
}

func newSegmentWatch() *segmentWatch { return &segmentWatch{addrs: map[netip.Addr]*watched{}} }

func (w *segmentWatch) of(a netip.Addr) *watched {
	s := w.addrs[a]
	if s == nil {
		s = &watched{}
		w.addrs[a] = s
	}
	return s
}

// heard takes an answer; only of addresses that were asked for, so that nobody on
// the segment can fill the memory.
func (w *segmentWatch) heard(a SegmentAnswer, now time.Time) {
	s := w.addrs[a.Addr]
	if s == nil || a.MAC == w.own {
		return
	}
	s.mac, s.answered, s.open = a.MAC, now, time.Time{}
}

// due reports whether the address should be asked for again, and notes that it was.
func (w *segmentWatch) due(a netip.Addr, every time.Duration, now time.Time) bool {
	s := w.of(a)
	if now.Sub(s.asked) < every {
		return false
	}
	if now.Sub(s.asked) > 2*askHeld { // a gap: what was open proves nothing
		s.open = time.Time{}
	}
	s.asked = now
	if s.open.IsZero() {
		s.open = now
	}
	return true
}

// forgetOpen takes back all questions that were not answered yet.
func (w *segmentWatch) forgetOpen() {
	for _, s := range w.addrs {
		s.open = time.Time{}
	}
}

// forget drops addresses nobody is interested in any more.
func (w *segmentWatch) forget(keep map[netip.Addr]bool) {
	for a := range w.addrs {
		if !keep[a] {
			delete(w.addrs, a)
		}
	}
}

// holder says who answers for a.
func (w *segmentWatch) holder(a netip.Addr, members map[netip.Addr]state.NodeID, now time.Time) (Holder, time.Duration) {
	s := w.addrs[a]
	if s == nil {
		return HolderUnknown, 0
	}
	if !s.answered.IsZero() && now.Sub(s.answered) < answerFresh {
		return w.whose(s.mac, members, now), 0
	}
	if s.open.IsZero() || now.Sub(s.open) < silence {
		return HolderUnknown, 0
	}
	return HolderNobody, now.Sub(s.open)
}

// whose tells a member's MAC from a stranger's. While a member's own addresses
// have not been asked for long enough, an unknown MAC may be its.
func (w *segmentWatch) whose(mac [6]byte, members map[netip.Addr]state.NodeID, now time.Time) Holder {
	patience := false
	for a := range members {
		s := w.addrs[a]
		switch {
		case s == nil:
			patience = true
		case !s.answered.IsZero() && s.mac == mac:
			return HolderMember
		case s.answered.IsZero() && (s.open.IsZero() || now.Sub(s.open) < peerPatience):
			patience = true
		}
	}
	if patience {
		return HolderUnknown
	}
	return HolderForeign
}

// announcement is the schedule of one address: as a burst, then steadily.
type announcement struct {
	since time.Time
	sent  int
	last  time.Time
}

// burst: the first announcement may be lost, or come before a switch has learned
// the port. steady: for a server that was down, or a stale cache.
var burst = [...]time.Duration{0, 200 * time.Millisecond, time.Second, 3 * time.Second}

const steady = 10 * time.Second

// due reports whether it is time, and notes that it was said.
func (a *announcement) due(now time.Time) bool {
	if a.sent < len(burst) {
		if now.Sub(a.since) < burst[a.sent] {
			return false
		}
	} else if now.Sub(a.last) < steady {
		return false
	}
	a.sent++
	a.last = now
	return true
}
