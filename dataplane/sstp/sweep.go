package sstp

import (
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// halfClosedTicks is how long one side may keep silent after the other has said
// that it will send no more.
const halfClosedTicks = 60

// Evidence for a client that had no record, or another server's, is told again:
// where the cluster had no leader when the call came up it would be lost.
const (
	remindTicks = 60
	reminders   = 5
)

// sweep looks at every connection, once in each tick.
func (s *Server) sweep(tick int64) {
	s.sweeping.Lock()
	defer s.sweeping.Unlock()
	up, standing := 0, map[*target]bool{}
	for _, c := range s.table.each() {
		s.count(c)
		if phase(c.phase.Load()) < phaseRelay {
			continue // bounded by deadlines
		}
		if at := c.closing(); at != 0 && tick >= at {
			c.end(endClosed)
			continue
		}
		if reason := c.overdue(tick); reason != "" {
			c.end(reason)
			continue
		}
		if s.watch(c, tick) {
			up++
			if c.proven.Load() {
				standing[c.target] = true
			}
		}
	}
	s.gate.look()
	s.trim(tick)
	s.alarms.look(standing)
	s.metrics.up.Set(float64(up))
	s.metrics.connections.Set(float64(s.sources.count()))
	s.metrics.underWay.Set(float64(s.gate.under()))
	s.metrics.alarms.Set(float64(len(s.alarms.list())))
}

// closing is the tick at which a gentle close becomes a hard one; 0: none.
func (c *session) closing() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.closeAt
}

// count moves what a session relayed to the metrics.
func (s *Server) count(c *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for side, counter := range s.metrics.bytes {
		now := c.flow[side].bytes.Load()
		counter.Add(float64(now - c.counted[side]))
		c.counted[side] = now
	}
}

// overdue says why a session must end now, if it must.
func (c *session) overdue(tick int64) string {
	limit := int64((c.limits.IdleTimeout + pace - 1) / pace)
	for i := range c.flow {
		if since := c.flow[i].sending.Load(); since != 0 && tick-since > limit {
			return endStalled
		}
	}
	if c.flow[control.Client].closed.Load() != c.flow[control.Server].closed.Load() {
		limit = min(limit, halfClosedTicks)
	}
	if c.idle(tick) > limit {
		return endIdle
	}
	return ""
}

// watch looks at the call of a session, and tells whether it is up.
func (s *Server) watch(c *session, tick int64) bool {
	call := c.follow.Call()
	if call.State != control.Up || call.Off {
		return false
	}
	if c.upSince == 0 {
		c.upSince = tick
	}
	if !c.proven.Load() && tick-c.upSince >= stayUp && !c.flow[control.Server].closed.Load() {
		c.proven.Store(true)
		s.alarms.stayedUp(c.target)
	}
	// Data alone confirms nothing: what the server sent before it saw a Call
	// Connected with a wrong hash comes after it, too.
	switch {
	case !c.proven.Load() || !c.heard.Load():
	case !c.told:
		c.told = true
		s.tell(c, table.Confirmed, false)
	case c.route.Saw != c.target.Slot && c.reminded < reminders && tick-c.upSince >= int64(c.reminded+1)*remindTicks:
		c.reminded++
		s.tell(c, table.Confirmed, false)
	}
	return true
}

// Activity tells, for each client key and server with a live call, when bytes
// passed last, if any did since the call of Activity before this one.
func (s *Server) Activity() []table.Activity {
	type call struct {
		key  table.Key
		slot table.Slot
	}
	tick := s.tick.Load()
	at := map[call]int{}
	var out []table.Activity
	for _, c := range s.table.each() {
		if phase(c.phase.Load()) != phaseRelay {
			continue
		}
		if state := c.follow.Call(); !state.Off && state.State != control.Negotiating && state.State != control.Up {
			continue
		}
		heard, said := c.flow[control.Server].fresh.Swap(false), c.flow[control.Client].fresh.Swap(false)
		if !heard && !said {
			continue
		}
		age := uint32(time.Duration(c.idle(tick)) * pace / time.Second)
		k := call{table.Key{Client: c.key, Class: table.TCP}, c.target.Slot}
		i, known := at[k]
		if !known {
			i, at[k] = len(out), len(out)
			out = append(out, table.Activity{Key: k.key, Slot: k.slot, Age: age})
		}
		out[i].Heard = out[i].Heard || heard
		out[i].Age = min(out[i].Age, age)
	}
	return out
}
