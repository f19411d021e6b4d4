package sstp

import (
	"context"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// gentleTicks is how long peers have to answer a gentle close.
const gentleTicks = 5

// shutTimeout bounds the write that tells a peer of a close.
const shutTimeout = 2 * time.Second

// Drain stops accepting at once. Calls go on until ctx's deadline minus over
// (without a deadline: only until now), then they are closed one by one, spread
// over that time. It returns when none is left or ctx ends.
func (s *Server) Drain(ctx context.Context, over time.Duration) {
	s.mu.Lock()
	s.draining = true
	for at, l := range s.listeners {
		l.close()
		delete(s.listeners, at)
	}
	s.mu.Unlock()
	s.log.Info("sstp drains", "connections", s.sources.count())
	begin := time.Duration(0)
	if deadline, ok := ctx.Deadline(); ok {
		begin = max(time.Until(deadline)-over, 0)
	}
	timer := time.NewTimer(begin)
	defer timer.Stop()
	select {
	case <-s.table.none():
		return
	case <-ctx.Done():
		return
	case <-timer.C:
	}
	s.spread(ctx, s.table.all(), over)
	select {
	case <-s.table.none():
	case <-ctx.Done():
	}
}

// CloseTarget closes the sessions of one server gently, spread over a time, and
// tells at once how many there are. It does not wait for them.
func (s *Server) CloseTarget(slot table.Slot, over time.Duration) int {
	var of []*session
	for _, c := range s.table.all() {
		if c.target.Slot == slot {
			of = append(of, c)
		}
	}
	s.spread(s.ctx, of, over)
	return len(of)
}

// spread closes sessions at even distances, the oldest first, and does not wait.
func (s *Server) spread(ctx context.Context, of []*session, over time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed && len(of) > 0 {
		s.working.Go(func() { s.closeSpread(ctx, of, over) })
	}
}

func (s *Server) closeSpread(ctx context.Context, of []*session, over time.Duration) {
	began := time.Now()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for i, c := range of {
		timer.Reset(time.Until(began.Add(over * time.Duration(i) / time.Duration(len(of)))))
		select {
		case <-ctx.Done():
			return
		case <-s.ctx.Done():
			return
		case <-timer.C:
		}
		s.working.Go(c.closeGently)
	}
}

// closeGently tells both peers that no more will come, and leaves them a moment
// to do the same. A session that relays nothing yet just ends.
func (c *session) closeGently() {
	if !c.phase.CompareAndSwap(int32(phaseRelay), int32(phaseClosing)) {
		if phase(c.phase.Load()) != phaseClosing {
			c.end(endClosed)
		}
		return
	}
	c.mu.Lock()
	c.closeAt = c.server.tick.Load() + gentleTicks
	back := c.back
	c.mu.Unlock()
	_ = c.front.socket().SetWriteDeadline(time.Now().Add(shutTimeout))
	_ = back.socket().SetWriteDeadline(time.Now().Add(shutTimeout))
	if !c.flow[control.Server].closed.Load() {
		_ = c.front.shut(false)
	}
	if !c.flow[control.Client].closed.Load() {
		_ = back.shut(false)
	}
}
