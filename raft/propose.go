package raft

import (
	"context"
	"errors"
	"fmt"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Waiting between two attempts; a change of leadership cuts it short.
const (
	retryFirst = 20 * time.Millisecond
	retryMost  = 500 * time.Millisecond
)

// Propose has commands agreed and applied, from any node, and returns one
// outcome for each, in their order. Commands of one call go into one log entry.
// They are repeated under the same sequences until they are answered, so each
// is applied once however often the leader changes. When ctx ends first the
// error is ErrUnanswered; where a command breaks a limit it is ErrInvalid, at
// once. It waits, bounded by ctx, while too many commands of this node are
// unanswered.
func (r *Replica) Propose(ctx context.Context, cmds ...state.Command) ([]state.Outcome, error) {
	if len(cmds) > MaxCommands {
		return nil, fmt.Errorf("%w: %d of at most %d", ErrTooMany, len(cmds), MaxCommands)
	}
	if _, err := r.use(); err != nil {
		return nil, err
	}
	if len(cmds) == 0 {
		return nil, nil
	}
	// The leader refuses to read what breaks a limit, at every try.
	for _, c := range cmds {
		if err := state.Check(c); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
		}
	}
	first, err := r.seq.acquire(ctx, len(cmds))
	if err != nil {
		return nil, fmt.Errorf("propose: %w: too many commands are unanswered", err)
	}
	defer r.seq.release(first)
	r.mu.Lock()
	boot := r.boot
	r.mu.Unlock()
	envs := make([]state.Envelope, len(cmds))
	for i, c := range cmds {
		envs[i] = state.Envelope{Origin: r.cfg.ID, Boot: boot, Sequence: first + uint64(i), Command: c}
	}
	return r.insist(ctx, envs)
}

// insist tries until there is an answer, raft is off, or ctx ends.
func (r *Replica) insist(ctx context.Context, envs []state.Envelope) ([]state.Outcome, error) {
	var encoded []byte
	var hint string
	wait := retryFirst
	for {
		o, bell := r.current()
		var out []state.Outcome
		var err error
		if o != nil {
			out, err = r.submit(ctx, o, envs)
		} else {
			if encoded == nil {
				encoded = state.EncodeEnvelopes(envs)
			}
			out, err = r.forward(ctx, hint, encoded, len(envs))
		}
		if err == nil {
			return out, nil
		}
		if _, off := r.use(); off != nil {
			return nil, off
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("propose: %w: %w (last: %w)", ErrUnanswered, ctx.Err(), err)
		}
		r.metrics.retries.Inc()
		hint = ""
		if nl := (*NotLeaderError)(nil); errors.As(err, &nl) && nl.Addr != r.cfg.Addr {
			hint = nl.Addr
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-bell:
		case <-ctx.Done():
		case <-r.parkedCh:
		case <-r.done:
		}
		t.Stop()
		wait = min(2*wait, retryMost)
	}
}

// forward sends the envelopes to the leader: the one another node named, or the
// one raft knows.
func (r *Replica) forward(ctx context.Context, hint string, encoded []byte, n int) ([]state.Outcome, error) {
	addr := hint
	if addr == "" {
		var nl *NotLeaderError
		errors.As(r.notLeader(), &nl)
		if addr = nl.Addr; addr == "" {
			return nil, nl
		}
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTry)
	defer cancel()
	go r.whileLeads(ctx, cancel, addr)
	b, err := r.deps.Forward.Forward(ctx, addr, encoded)
	if err != nil {
		return nil, fmt.Errorf("forward to %s: %w", addr, err)
	}
	out, err := state.DecodeOutcomes(b)
	if err != nil {
		return nil, fmt.Errorf("forward to %s: %w", addr, err)
	}
	if len(out) != n {
		return nil, fmt.Errorf("forward to %s: %d outcomes for %d commands", addr, len(out), n)
	}
	return out, nil
}

// whileLeads gives an attempt up as soon as raft no longer takes addr for the
// leader: a dead one does not answer, its successor does.
func (r *Replica) whileLeads(ctx context.Context, giveUp func(), addr string) {
	for {
		_, bell := r.current()
		select {
		case <-ctx.Done():
			return
		case <-bell:
		}
		var nl *NotLeaderError
		if errors.As(r.notLeader(), &nl); nl.Addr != addr {
			giveUp()
			return
		}
	}
}

// Accept is the leader's side of Forward: the RPC handler calls it with what a
// peer sent and returns its answer. A *NotLeaderError tells where to go; every
// other error means that nobody knows, and the peer repeats.
func (r *Replica) Accept(ctx context.Context, envelopes []byte) ([]byte, error) {
	if _, err := r.use(); err != nil {
		return nil, err
	}
	envs, err := state.DecodeEnvelopes(envelopes)
	if err != nil {
		return nil, fmt.Errorf("accept envelopes: %w", err)
	}
	if len(envs) > MaxCommands {
		return nil, fmt.Errorf("accept envelopes: %w: %d of at most %d", ErrTooMany, len(envs), MaxCommands)
	}
	o, _ := r.current()
	if o == nil {
		return nil, r.notLeader()
	}
	if len(envs) == 0 {
		return state.EncodeOutcomes(nil), nil
	}
	out, err := r.submit(ctx, o, envs)
	if err != nil {
		return nil, err
	}
	return state.EncodeOutcomes(out), nil
}

// submission is what one caller wants in one log entry.
type submission struct {
	ctx  context.Context
	envs []state.Envelope
	done chan result // of capacity 1
}

type result struct {
	out []state.Outcome
	err error
}

// weight bounds the size of an entry without encoding its records first. All
// other commands are rare, and some are large.
func (s *submission) weight() int {
	w := len(s.envs)
	for _, e := range s.envs {
		switch c := e.Command.(type) {
		case state.Learn:
			w += len(c.Records) / 16
		case state.Touch:
			w += len(c.Records) / 16
		case state.Expire:
			w += len(c.Records) / 16
		case state.Forget:
			w += len(c.Keys) / 16
		default:
			w += len(state.EncodeEnvelopes([]state.Envelope{e})) / weightBytes
		}
	}
	return w
}

// submit queues the envelopes on this leader and waits for their outcomes.
func (r *Replica) submit(ctx context.Context, o *office, envs []state.Envelope) ([]state.Outcome, error) {
	s := &submission{ctx: ctx, envs: envs, done: make(chan result, 1)}
	select {
	case r.queue <- s:
	default:
		r.metrics.full.Inc()
		select {
		case r.queue <- s:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-o.ctx.Done():
			return nil, r.notLeader()
		}
	}
	select {
	case res := <-s.done:
		return res.out, res.err
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-r.parkedCh:
		return nil, ErrParked
	case <-r.done:
		return nil, ErrNotStarted
	}
}

// batch gathers what waits in the queue into log entries: with few entries in
// raft's hands the next one goes at once, with many it grows meanwhile.
func (r *Replica) batch() {
	slots := make(chan struct{}, maxEntries)
	var left *submission // did not fit into the last entry
	for {
		first := left
		left = nil
		if first == nil {
			select {
			case first = <-r.queue:
			case <-r.parkedCh:
				return
			case <-r.done:
				return
			}
		}
		select {
		case slots <- struct{}{}:
		case <-r.parkedCh:
			return
		case <-r.done:
			return
		}
		var entry []*submission
		entry, left = r.gather(first)
		if len(entry) == 0 || !r.send(entry, slots) {
			<-slots
		}
	}
}

// gather takes what waits, up to the weight of one entry, and drops what nobody
// waits for any more.
func (r *Replica) gather(first *submission) (entry []*submission, left *submission) {
	weight := 0
	for s := first; ; {
		if s.ctx.Err() == nil {
			if w := s.weight(); len(entry) > 0 && weight+w > maxEntryWeight {
				return entry, s
			} else {
				weight += w
			}
			entry = append(entry, s)
		}
		select {
		case s = <-r.queue:
		default:
			return entry, nil
		}
	}
}

// send gives one entry to raft, in this office and after it is ready. It
// reports whether the slot is in use; then it is freed with the entry's answer.
func (r *Replica) send(entry []*submission, slots <-chan struct{}) bool {
	fail := func(err error) {
		for _, s := range entry {
			s.done <- result{err: err}
		}
	}
	o, _ := r.current()
	if o == nil {
		fail(r.notLeader())
		return false
	}
	select {
	case <-o.ready:
	case <-o.ctx.Done():
		fail(r.notLeader())
		return false
	}
	b := state.Batch{Stamp: o.now()}
	for _, s := range entry {
		b.Envelopes = append(b.Envelopes, s.envs...)
	}
	r.mu.Lock()
	rt := r.raft
	r.mu.Unlock()
	r.metrics.batch.Observe(float64(len(b.Envelopes)))
	start := time.Now()
	id := r.watchdog.begin()
	f := rt.Apply(state.EncodeBatch(b), 2*r.cfg.FenceAfter) // longer than the watchdog's patience
	r.watchdog.accepted(id)
	go func() {
		err := f.Error()
		r.watchdog.done(id, err == nil)
		<-slots
		if err != nil {
			if isNotLeader(err) {
				err = r.notLeader()
			}
			fail(fmt.Errorf("commit: %w", err))
			return
		}
		r.metrics.commit.Observe(time.Since(start).Seconds())
		distribute(entry, f)
	}()
	return true
}

// distribute hands the outcomes of an entry to those who wait.
func distribute(entry []*submission, f hraft.ApplyFuture) {
	var out []state.Outcome
	var err error
	switch v := f.Response().(type) {
	case []state.Outcome:
		out = v
	case error:
		err = v
	default:
		err = fmt.Errorf("no outcome from the state machine")
	}
	for _, s := range entry {
		if err == nil && len(out) < len(s.envs) {
			err = fmt.Errorf("too few outcomes from the state machine")
		}
		if err != nil {
			s.done <- result{err: err}
			continue
		}
		s.done <- result{out: out[:len(s.envs):len(s.envs)]}
		out = out[len(s.envs):]
	}
}
