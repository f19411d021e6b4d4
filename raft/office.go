package raft

import (
	"context"
	"errors"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// office is one term of leadership of this node.
type office struct {
	ctx   context.Context // ends with the office
	end   context.CancelFunc
	since time.Time
	ready chan struct{} // closed when all entries of earlier terms are applied here
	base  state.Time    // cluster time then; valid when ready
	term  uint64
}

// now is cluster time: the last committed stamp and the monotonic time since
// this node took office.
func (o *office) now() state.Time { return o.base.Add(time.Since(o.since)) }

func (o *office) isReady() bool {
	select {
	case <-o.ready:
		return o.ctx.Err() == nil
	default:
		return false
	}
}

// lead turns raft's notices into offices. It is the only reader of notify, and
// always reads: raft blocks on it.
func (r *Replica) lead() {
	r.mu.Lock()
	notify := r.notify
	r.mu.Unlock()
	for {
		select {
		case <-r.done:
			return
		case on := <-notify:
			r.endOffice()
			if on {
				r.beginOffice()
			}
		}
	}
}

func (r *Replica) beginOffice() {
	r.mu.Lock()
	if r.parked != "" || r.stopping {
		r.mu.Unlock()
		return
	}
	o := &office{since: time.Now(), ready: make(chan struct{}), term: r.raft.CurrentTerm()}
	o.ctx, o.end = context.WithCancel(context.Background())
	r.office = o
	rt := r.raft
	r.mu.Unlock()
	// Raft writes an entry of its own first; a disk that hangs there is found by
	// the watchdog too. endOffice clears what is not done.
	id := r.watchdog.begin()
	go func() {
		for o.ctx.Err() == nil {
			err := r.await(o.ctx, func() error {
				f := rt.Barrier(0)
				r.watchdog.accepted(id)
				return f.Error()
			})
			if err == nil {
				r.watchdog.done(id, true)
				r.openOffice(o)
				return
			}
			if errors.Is(err, hraft.ErrRaftShutdown) || errors.Is(err, hraft.ErrNotLeader) || errors.Is(err, hraft.ErrLeadershipLost) {
				return // the notice follows
			}
			select {
			case <-o.ctx.Done():
			case <-time.After(r.cfg.Heartbeat):
			}
		}
	}()
}

// openOffice lets proposals in.
func (r *Replica) openOffice(o *office) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.office != o || o.ctx.Err() != nil {
		return
	}
	o.base = r.View().Spec().Now
	close(o.ready)
	r.ring(true)
	r.log.Info("leading", "term", o.term, "index", r.View().Index())
}

func (r *Replica) endOffice() {
	r.mu.Lock()
	defer r.mu.Unlock()
	o := r.office
	if o != nil {
		r.office = nil
		o.end()
		r.watchdog.clear()
		r.log.Info("no longer leading", "term", o.term)
	}
	r.ring(false)
}

// ringBell wakes those who wait for a change of the leader. r.mu is held.
func (r *Replica) ringBell() {
	close(r.bell)
	r.bell = make(chan struct{})
}

// ring also tells whether this node leads. r.mu is held.
func (r *Replica) ring(lead bool) {
	r.ringBell()
	for c := range r.leading {
		select { // keep the latest only
		case <-c:
		default:
		}
		c <- lead
	}
}

// current returns this node's office, nil without one, and the bell that rings
// at the next change.
func (r *Replica) current() (*office, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.office, r.bell
}

// Leading tells leadership as it changes: true when this node leads and has
// applied all entries of earlier terms. The latest value waits in the channel,
// values in between are lost; the present one is sent at once. It ends with ctx.
func (r *Replica) Leading(ctx context.Context) <-chan bool {
	c := make(chan bool, 1)
	r.mu.Lock()
	c <- r.office != nil && r.office.isReady()
	r.leading[c] = struct{}{}
	r.mu.Unlock()
	context.AfterFunc(ctx, func() {
		r.mu.Lock()
		delete(r.leading, c)
		r.mu.Unlock()
	})
	return c
}

// Lead runs duty whenever this node leads, one at a time, until ctx ends. The
// duty's context ends with the office; the next one begins after it returned. A
// duty that returns earlier is not run again in this office.
func (r *Replica) Lead(ctx context.Context, duty func(ctx context.Context)) error {
	var last *office
	for {
		o, bell := r.current()
		if o != nil && o != last && o.isReady() {
			last = o
			dctx, cancel := context.WithCancel(ctx)
			stop := context.AfterFunc(o.ctx, cancel)
			duty(dctx)
			stop()
			cancel()
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-bell:
		}
	}
}

// Now is cluster time: exact on the leader, elsewhere the last stamp that was
// committed.
func (r *Replica) Now() state.Time {
	last := r.View().Spec().Now
	if o, _ := r.current(); o != nil && o.isReady() {
		return max(last, o.now())
	}
	return last
}

// LeaderAnswer gives, on the leader, the index of the last applied command
// after a Barrier in this term and a fresh confirmation by a majority: whoever
// has applied that much has caught up. Elsewhere it gives a *NotLeaderError.
func (r *Replica) LeaderAnswer(ctx context.Context) (index uint64, err error) {
	rt, err := r.use()
	if err != nil {
		return 0, err
	}
	o, _ := r.current()
	if o == nil {
		return 0, r.notLeader()
	}
	select {
	case <-o.ready:
	case <-o.ctx.Done():
		return 0, r.notLeader()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	if err := r.await(ctx, func() error { return rt.VerifyLeader().Error() }); err != nil {
		if isNotLeader(err) {
			return 0, r.notLeader()
		}
		return 0, err
	}
	return r.View().Index(), nil
}

// notLeader is the error with what is known of the leader.
func (r *Replica) notLeader() error {
	e := &NotLeaderError{}
	r.mu.Lock()
	rt := r.raft
	r.mu.Unlock()
	if rt != nil {
		addr, id := rt.LeaderWithID()
		e.Addr = string(addr)
		e.ID, _ = state.ParseNodeID(string(id))
	}
	if e.ID == r.cfg.ID { // elected, but not in office yet
		*e = NotLeaderError{}
	}
	return e
}

func isNotLeader(err error) bool {
	return errors.Is(err, hraft.ErrNotLeader) || errors.Is(err, hraft.ErrLeadershipLost) ||
		errors.Is(err, hraft.ErrLeadershipTransferInProgress)
}
