package health

import (
	"slices"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Counts are the data plane's cumulative counts of packets of one server.
type Counts struct {
	Proof     uint64 // from it: ESP, and IKE with an encrypted payload
	Protected uint64 // of these, IKE
	In, Out   uint64 // of clients to it, and of it to clients, of every kind
}

// Returns turns the data plane's counts into passive evidence. Safe for concurrent use.
type Returns struct {
	mu      sync.Mutex
	sampled time.Time
	last    map[state.BackendID]returned
}

type returned struct {
	counts    Counts
	seen      bool
	at        time.Time // of the newest proof, or of the first sample
	protected time.Time // of the newest protected IKE packet; zero: none
	out       time.Time // of the newest packet to a client; zero: none
	in        uint64    // In when it was seen
	waits     time.Time // of the first packet of a client since; zero: none
}

// NewReturns makes an empty one.
func NewReturns() *Returns {
	return &Returns{last: map[state.BackendID]returned{}}
}

// Sample takes the counts as they are now, several times a second. A count that
// is lower than before was reset and counts from there.
func (r *Returns) Sample(counts map[state.BackendID]Counts) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.sampled = now
	next := make(map[state.BackendID]returned, len(counts))
	for id, n := range counts {
		was, known := r.last[id]
		if !known {
			was = returned{at: now, counts: n, in: n.In}
		}
		was.take(n, now)
		next[id] = was
	}
	r.last = next
}

func (r *returned) take(n Counts, now time.Time) {
	if n.Proof > r.counts.Proof {
		r.seen, r.at = true, now
	}
	if n.Protected > r.counts.Protected {
		r.protected = now
	}
	switch {
	case n.Out > r.counts.Out:
		r.out, r.in, r.waits = now, n.In, time.Time{}
	case n.In < r.counts.In:
		r.in, r.waits = n.In, time.Time{}
	case n.In > r.in && r.waits.IsZero():
		r.waits = now
	}
	r.counts = n
}

// protected is how long ago a protected IKE packet of the server was counted;
// negative: never, or sampling stands still.
func (r *Returns) protected(id state.BackendID) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	was, ok := r.last[id]
	if !ok || was.protected.IsZero() || time.Since(r.sampled) > unansweredAfter {
		return -1
	}
	return time.Since(was.protected)
}

// Unanswered lists the servers whose answers pass this node, and have stopped, though
// clients go on sending.
func (r *Returns) Unanswered() []state.BackendID {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []state.BackendID
	now := time.Now()
	for id, was := range r.last {
		waits := !was.waits.IsZero() && now.Sub(was.waits) >= unansweredAfter && was.counts.In-was.in >= minUnanswered
		if waits && !was.out.IsZero() && now.Sub(was.out) < answeredBefore {
			out = append(out, id)
		}
	}
	slices.Sort(out)
	return out
}

// of tells whether a packet was ever counted, and for how long none was.
//
// While sampling stands still, packets seen before count for PanicWindow from when
// they were seen, as they always do, and then for nothing: they must not keep a
// dead server up. But the silence that would void records is as of the last
// sample: nobody has listened since.
func (r *Returns) of(id state.BackendID) (seen bool, quiet time.Duration) {
	if r == nil {
		return false, 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	was, ok := r.last[id]
	if !ok {
		return false, 0
	}
	quiet = r.sampled.Sub(was.at)
	since := time.Since(was.at)
	switch {
	case !was.seen || quiet >= PanicWindow:
		return was.seen, quiet
	case since < PanicWindow:
		return true, since
	}
	return false, quiet
}
