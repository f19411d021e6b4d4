package sstp

import (
	"sync"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// deadTicks is how long a server whose port could not be reached gets no unknown
// clients from this node: a verdict of the cluster takes no longer.
const deadTicks = 10

// dead remembers servers whose port could not be reached just now. The cluster's
// verdict takes seconds, in which every new call would fail.
type dead struct {
	mu    sync.Mutex
	until map[table.Slot]int64 // tick; servers of a plan alone dial, so it is bounded
}

// note takes how a dial ended.
func (d *dead) note(slot table.Slot, reached bool, tick int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if reached {
		delete(d.until, slot)
		return
	}
	if d.until == nil {
		d.until = make(map[table.Slot]int64)
	}
	d.until[slot] = tick + deadTicks
}

func (d *dead) is(slot table.Slot, tick int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return tick < d.until[slot]
}

// instead gives a client without a record another server, where the one of its
// choice could not be reached just now. A known client stays: only a verdict may
// move it.
func (s *Server) instead(vip *service, client [16]byte, route Route) Route {
	tick := s.tick.Load()
	if route.Saw != 0 || s.deps.Instead == nil || !s.dead.is(route.Slot, tick) {
		return route
	}
	other, ok := s.deps.Instead(vip.VIP, client, func(slot table.Slot) bool { return s.dead.is(slot, tick) })
	if !ok {
		return route
	}
	return other
}
