package raft

import (
	"context"
	"sync"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Watch is one reader of the deltas. It belongs to one goroutine, Close to any.
type Watch struct {
	hub *hub
	c   chan struct{} // 1 when there is something to read

	// guarded by hub.mu
	queue  []state.Delta
	resync bool
	closed bool
}

// Next blocks for the next delta. resync means that deltas were lost, by a full
// queue or because a snapshot was restored, and that the delta is empty: take
// View() now, then go on with Next. The first Next says resync. Deltas with an
// Index not above that View's are in it already: skip them.
func (w *Watch) Next(ctx context.Context) (d state.Delta, resync bool, err error) {
	for {
		w.hub.mu.Lock()
		switch {
		case w.closed:
			w.hub.mu.Unlock()
			return state.Delta{}, false, ErrNotStarted
		case w.resync:
			w.resync = false
			w.hub.mu.Unlock()
			return state.Delta{}, true, nil
		case len(w.queue) > 0:
			d = w.queue[0]
			w.queue[0] = state.Delta{}
			w.queue = w.queue[1:]
			w.hub.mu.Unlock()
			return d, false, nil
		}
		w.hub.mu.Unlock()
		select {
		case <-ctx.Done():
			return state.Delta{}, false, ctx.Err()
		case <-w.c:
		}
	}
}

// Close ends the watch; a Next that waits returns ErrNotStarted.
func (w *Watch) Close() {
	w.hub.mu.Lock()
	w.closed, w.queue = true, nil
	delete(w.hub.watches, w)
	w.hub.mu.Unlock()
	w.signal()
}

func (w *Watch) signal() {
	select {
	case w.c <- struct{}{}:
	default:
	}
}

// hub hands each delta to every watch and never waits for one.
type hub struct {
	overflow func() // counts

	mu      sync.Mutex
	watches map[*Watch]struct{}
}

func newHub(overflow func()) *hub {
	return &hub{overflow: overflow, watches: map[*Watch]struct{}{}}
}

func (h *hub) watch() *Watch {
	w := &Watch{hub: h, c: make(chan struct{}, 1), resync: true}
	h.mu.Lock()
	h.watches[w] = struct{}{}
	h.mu.Unlock()
	return w
}

func (h *hub) publish(d state.Delta) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watches {
		switch {
		case w.resync: // will take the View anyway
		case len(w.queue) >= maxDeltas:
			w.queue, w.resync = nil, true
			h.overflow()
		default:
			w.queue = append(w.queue, d)
		}
		w.signal()
	}
}

func (h *hub) resync() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watches {
		w.queue, w.resync = nil, true
		w.signal()
	}
}
