package health

import (
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Returns turns the data plane's cumulative counts of ESP and SK packets from
// each server into passive evidence. Safe for concurrent use.
type Returns struct {
	mu      sync.Mutex
	sampled time.Time
	last    map[state.BackendID]returned
}

type returned struct {
	count uint64
	seen  bool
	at    time.Time // of the newest packet, or of the first sample
}

// NewReturns makes an empty one.
func NewReturns() *Returns {
	return &Returns{last: map[state.BackendID]returned{}}
}

// Sample takes the counts as they are now, about once a second. A count that
// is lower than before was reset and counts from there.
func (r *Returns) Sample(counts map[state.BackendID]uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.sampled = now
	next := make(map[state.BackendID]returned, len(counts))
	for id, n := range counts {
		was, known := r.last[id]
		switch {
		case !known:
			was = returned{at: now}
		case n > was.count:
			was.seen, was.at = true, now
		}
		was.count = n
		next[id] = was
	}
	r.last = next
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
