package gateway

import (
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

const (
	// answerFresh is how long an answer counts at least, three questions of
	// askOther and a bit; where questions are rarer, as many of those.
	answerFresh     = 1700 * time.Millisecond
	answerQuestions = 3.4
	// silence is how long a question must be open to count as not answered.
	silence = 300 * time.Millisecond
	// strangerPatience is how long at most a MAC may still turn out a member's.
	strangerPatience = 10 * time.Second
)

// watched is what is known of one address on the segment.
type watched struct {
	mac      [6]byte
	answered time.Time     // zero: never
	asked    time.Time     // last question
	every    time.Duration // between questions, when the last one was asked
	// open is the first question since the last answer; zero: none is open.
	open time.Time
	// misses counts questions that the next one found open.
	misses int
	// strange is since when a MAC answers that is no member's as far as known;
	// zero: none does. foreign: the members were asked since, it is a stranger's.
	strange time.Time
	foreign bool
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
	s.mac, s.answered, s.open, s.misses = a.MAC, now, time.Time{}, 0
}

// asked notes a question for the address, one of a row with the interval every.
func (w *segmentWatch) asked(a netip.Addr, every time.Duration, now time.Time) {
	s := w.of(a)
	if now.Sub(s.asked) > 2*max(askHeld, s.every) { // a gap: what was open proves nothing
		s.open = time.Time{}
	}
	if !s.open.IsZero() {
		s.misses++
	} else {
		s.open = now
	}
	s.asked, s.every = now, every
}

// forgetOpen takes back all questions that were not answered yet.
func (w *segmentWatch) forgetOpen() {
	for _, s := range w.addrs {
		s.open, s.misses = time.Time{}, 0
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
	fresh := max(answerFresh, time.Duration(answerQuestions*float64(s.every)))
	if !s.answered.IsZero() && now.Sub(s.answered) < fresh {
		return w.whose(s, members, now), 0
	}
	s.strange, s.foreign = time.Time{}, false
	if s.open.IsZero() || now.Sub(s.open) < silence {
		return HolderUnknown, 0
	}
	return HolderNobody, now.Sub(s.open)
}

// whose tells a member's MAC from a stranger's. A MAC that is not known may be
// that of a member that was down, or has another card now: it is a stranger's
// only when every member was asked since it was first seen.
func (w *segmentWatch) whose(s *watched, members map[netip.Addr]state.NodeID, now time.Time) Holder {
	for a := range members {
		if m := w.addrs[a]; m != nil && !m.answered.IsZero() && m.mac == s.mac {
			s.strange, s.foreign = time.Time{}, false
			return HolderMember
		}
	}
	if s.strange.IsZero() {
		s.strange = now
	}
	s.foreign = s.foreign || now.Sub(s.strange) >= strangerPatience || w.askedAll(members, s.strange, now)
	if s.foreign {
		return HolderForeign
	}
	return HolderUnknown
}

// askedAll: every member has answered since, or was asked since and had time to.
func (w *segmentWatch) askedAll(members map[netip.Addr]state.NodeID, since, now time.Time) bool {
	for a := range members {
		m := w.addrs[a]
		switch {
		case m == nil || m.asked.Before(since):
			return false
		case m.answered.Before(m.asked) && now.Sub(m.asked) < silence:
			return false
		}
	}
	return true
}

// suspicious: some MAC may be a member's that is not known yet.
func (w *segmentWatch) suspicious() bool {
	for _, s := range w.addrs {
		if !s.strange.IsZero() && !s.foreign {
			return true
		}
	}
	return false
}
