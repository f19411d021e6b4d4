package raft

import (
	"fmt"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// watchdog knows the entries of this leader that are not committed yet.
type watchdog struct {
	limit time.Duration

	mu      sync.Mutex
	flight  map[uint64]*flight
	next    uint64
	last    time.Time // when one was committed last
	alarmed bool
}

// flight is one entry on its way.
type flight struct {
	since    time.Time
	accepted bool // raft's main goroutine took it
}

func newWatchdog(limit time.Duration) *watchdog {
	return &watchdog{limit: limit, flight: map[uint64]*flight{}}
}

func (w *watchdog) begin() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.next++
	w.flight[w.next] = &flight{since: time.Now()}
	return w.next
}

func (w *watchdog) accepted(id uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if f := w.flight[id]; f != nil {
		f.accepted = true
	}
}

func (w *watchdog) done(id uint64, committed bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.flight, id)
	if committed {
		w.last = time.Now()
	}
}

// clear forgets all: the office ended, nobody knows what becomes of them.
func (w *watchdog) clear() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.flight)
	w.alarmed = false
}

// oldest gives the entry that has waited longest.
func (w *watchdog) oldest() (age time.Duration, accepted, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.flight {
		if a := time.Since(f.since); !ok || a > age {
			age, accepted, ok = a, f.accepted, true
		}
	}
	return age, accepted, ok
}

// stalled is the age of the oldest entry when it is beyond the limit, else 0.
func (w *watchdog) stalled() time.Duration {
	if age, _, ok := w.oldest(); ok && age >= w.limit {
		return age
	}
	return 0
}

// quiet reports whether nothing is on its way and nothing was committed for d.
func (w *watchdog) quiet(d time.Duration) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.flight) == 0 && time.Since(w.last) >= d
}

// firstAlarm is true once for each stall.
func (w *watchdog) firstAlarm(on bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	first := on && !w.alarmed
	w.alarmed = on
	return first
}

// watch commits a Tick whenever the leader's log is quiet, and parks this node
// when its own store (or raft's main goroutine) is what keeps entries from
// being committed: raft's heartbeats go on without the disk, so the followers
// would stay calm for ever. A stall that is the followers' alone is an alarm
// and no more: fencing a sound leader would help nobody.
func (r *Replica) watch() {
	every := min(r.cfg.Tick, r.cfg.FenceAfter/12)
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		select {
		case <-r.done:
			return
		case <-r.parkedCh:
			return
		case <-t.C:
		}
		o, _ := r.current()
		if o == nil {
			continue
		}
		if age, accepted, ok := r.watchdog.oldest(); ok && age >= r.cfg.FenceAfter {
			stall := r.guard.Load().stalled(r.cfg.FenceAfter / 2)
			if !accepted || stall > 0 {
				r.parkStore(fmt.Sprintf("no commit for %v: the store has hung for %v", age.Round(time.Millisecond), stall.Round(time.Millisecond)))
				return
			}
			if r.watchdog.firstAlarm(true) {
				r.log.Warn("no commit", "for", age, "reason", "the followers do not answer in time")
			}
			continue
		}
		r.watchdog.firstAlarm(false)
		if o.isReady() && r.watchdog.quiet(r.cfg.Tick-every/2) {
			r.tick(o)
		}
	}
}

// tick commits an entry that carries nothing but its stamp.
func (r *Replica) tick(o *office) {
	if r.View().Spec().ClusterID.IsZero() {
		return
	}
	first, ok := r.seq.try(1)
	if !ok {
		return // the entries on their way are watched already
	}
	r.mu.Lock()
	rt, boot := r.raft, r.boot
	r.mu.Unlock()
	data := state.EncodeBatch(state.Batch{Stamp: o.now(), Envelopes: []state.Envelope{
		{Origin: r.cfg.ID, Boot: boot, Sequence: first, Command: state.Tick{}}}})
	id := r.watchdog.begin()
	go func() {
		defer r.seq.release(first)
		f := rt.Apply(data, 0)
		r.watchdog.accepted(id)
		r.watchdog.done(id, f.Error() == nil)
	}()
}
