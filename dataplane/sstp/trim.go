package sstp

import "runtime/debug"

// A handshake leaves garbage of many times what its call keeps, and the runtime
// holds on to that memory until it has doubled, or for minutes. After a rush of
// handshakes it is collected and given back to the kernel, once, when it is over:
// in the midst of one a collection would only cost time.
const (
	rushHandshakes = 256 // that make a collection worth its time
	calmHandshakes = 8   // in calmTicks: the rush is over
	calmTicks      = 3
	trimTicks      = 60 // between two collections
)

// rush counts handshakes, to tell when one is over. The sweeper's alone.
type rush struct {
	seen, since uint64 // handshakes in all, as of the last tick and at the last collection
	calm        int    // ticks with few
	next        int64  // tick before which nothing is collected
}

// over reports, once in each tick, whether a rush of handshakes has ended, given how
// many there have been in all.
func (r *rush) over(handshakes uint64, tick int64) bool {
	if (handshakes-r.seen)*calmTicks > calmHandshakes {
		r.calm = 0
	} else {
		r.calm++
	}
	r.seen = handshakes
	if r.calm < calmTicks || handshakes-r.since < rushHandshakes || tick < r.next {
		return false
	}
	r.since, r.next = handshakes, tick+trimTicks
	return true
}

// trim collects garbage and gives memory back, beside the sweeper.
func (s *Server) trim(tick int64) {
	if s.rush.over(s.gate.begins(), tick) {
		s.working.Go(debug.FreeOSMemory)
	}
}
