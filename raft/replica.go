package raft

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Replica is this node's part in the agreement. All methods are safe for
// concurrent use. View, Watch and Status work at any time; the others give
// ErrNotStarted before Run has opened the store and after it returned, and
// ErrParked once raft is off.
type Replica struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics

	hub      *hub
	fsm      *fsm
	seq      *sequencer
	watchdog *watchdog
	contacts *contacts
	peers    *peers
	queue    chan *submission
	guard    atomic.Pointer[guard]

	openStore func(path string) (store, error) // tests put a failing disk here

	started    chan struct{} // closed when Propose and the rest work
	parkedCh   chan struct{} // closed when parked
	done       chan struct{} // closed when Run stops
	fence      func()        // fences the stream once
	membership sync.Mutex    // one change at a time

	mu       sync.Mutex
	raft     *hraft.Raft
	stream   *stream
	trans    *hraft.NetworkTransport
	notify   <-chan bool
	running  bool
	stopping bool
	boot     uint64
	own      Mark
	restored Restored
	parked   string
	failed   bool // parked because of the store
	fenced   bool
	office   *office
	bell     chan struct{} // closed and replaced when leadership changes
	leading  map[chan bool]struct{}
}

// New checks the configuration and allocates; it touches neither disk nor net.
func New(cfg Config, deps Deps) (*Replica, error) {
	cfg.setDefaults()
	if err := cfg.validate(deps); err != nil {
		return nil, err
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	r := &Replica{
		cfg: cfg, deps: deps, log: deps.Logger,
		seq:       newSequencer(),
		watchdog:  newWatchdog(cfg.FenceAfter),
		contacts:  newContacts(),
		queue:     make(chan *submission, maxQueue),
		openStore: openBolt,
		started:   make(chan struct{}),
		parkedCh:  make(chan struct{}),
		done:      make(chan struct{}),
		bell:      make(chan struct{}),
		leading:   map[chan bool]struct{}{},
	}
	r.fence = sync.OnceFunc(deps.Stream.Fence)
	r.peers = newPeers(cfg.ID)
	m, err := newMetrics(r, deps.Metrics)
	if err != nil {
		return nil, err
	}
	r.metrics = m
	r.hub = newHub(m.overflow.Inc)
	r.fsm = newFSM(r.hub, func(err error) { r.park(err.Error()) })
	return r, nil
}

// View returns the agreed state as of the last applied command. It is
// immutable and never nil.
func (r *Replica) View() *state.View { return r.fsm.view() }

// Watch begins to watch the changes of the View; Close it.
func (r *Replica) Watch() *Watch { return r.hub.watch() }

// Started is closed when the store is open and replayed and raft runs (or is
// parked): Status().Restored is valid from then on.
func (r *Replica) Started() <-chan struct{} { return r.started }

// Parked is closed when raft went off for the rest of the process's life.
func (r *Replica) Parked() <-chan struct{} { return r.parkedCh }

// Run opens the store, replays what is known to be committed, runs raft and
// blocks until ctx ends, then stops in order and returns nil. A store that
// cannot be trusted gives a *QuarantineError. When raft has to go off, Run does
// not return: the replica is parked, the View stays.
func (r *Replica) Run(ctx context.Context) error {
	defer r.closeStream()
	if err := r.start(ctx); err != nil {
		close(r.done)
		return fmt.Errorf("start raft: %w", err)
	}
	close(r.started)
	var wg sync.WaitGroup
	for _, f := range []func(){r.lead, r.batch, r.watch, r.compact, r.observe, r.keepPeers} {
		wg.Go(f)
	}
	<-ctx.Done()
	r.stop(&wg)
	return nil
}

// park turns raft off for good: first nobody hears this node any more, then it
// stops, and nobody waits for that because its disk may hang. It never blocks.
func (r *Replica) park(reason string) { r.parkBy(reason, false) }

// parkStore is park where the store, not what is in it, is the cause.
func (r *Replica) parkStore(reason string) { r.parkBy(reason, true) }

func (r *Replica) parkBy(reason string, store bool) {
	r.mu.Lock()
	if r.parked != "" || r.stopping {
		r.mu.Unlock()
		return
	}
	r.parked, r.failed = reason, store
	r.running = false
	rt := r.raft
	r.mu.Unlock()

	r.log.Error("raft parked", "reason", reason)
	r.fence()
	r.closeStream()
	r.mu.Lock()
	r.fenced = true
	r.mu.Unlock()
	close(r.parkedCh)
	r.endOffice()
	if rt != nil {
		go rt.Shutdown()
	}
}

func (r *Replica) closeStream() {
	r.mu.Lock()
	s, t := r.stream, r.trans
	r.mu.Unlock()
	if t != nil {
		_ = t.Close()
	}
	if s != nil {
		s.closeAll()
		return
	}
	_ = r.deps.Stream.Close()
}

// stop is the reverse of start. The leadership goes first, so that the cluster
// does not wait for an election time-out; then raft, so that nothing writes to
// the store; then the store.
func (r *Replica) stop(wg *sync.WaitGroup) {
	r.mu.Lock()
	rt, parked := r.raft, r.parked != ""
	r.stopping = true
	r.mu.Unlock()
	if !parked {
		r.handOver(rt)
	}
	close(r.done)
	r.endOffice()
	stopped := true
	if rt != nil {
		// Replication may sit in a dial to a peer that is gone.
		stopped = bounded(stopWait+r.cfg.RPCTimeout, func() { _ = rt.Shutdown().Error() })
	}
	r.mu.Lock()
	r.running = false
	r.mu.Unlock()
	r.closeStream()
	stopped = bounded(stopWait, wg.Wait) && stopped
	g := r.guard.Load()
	if g == nil || !stopped || g.stalled(0) > 0 {
		r.log.Warn("store left open", "reason", "raft did not stop in time")
		return
	}
	if !parked && rt != nil {
		if err := g.own(func() error { return g.store.RecordCommitted(rt.CommitIndex()) }); err != nil {
			r.log.Warn("commit index not recorded", "error", err)
		}
	}
	if !bounded(stopWait, func() { _ = g.store.Close() }) {
		r.log.Warn("store left open", "reason", "it did not close in time")
	}
}

// handOver gives the leadership to another voter before a stop.
func (r *Replica) handOver(rt *hraft.Raft) {
	if rt == nil || rt.State() != hraft.Leader {
		return
	}
	voters := 0
	for _, s := range servers(rt) {
		if s.Voter {
			voters++
		}
	}
	if voters > 1 {
		bounded(4*r.cfg.Heartbeat, func() { _ = rt.LeadershipTransfer().Error() })
	}
}

// bounded runs f and reports whether it ended within d; else f goes on alone.
func bounded(d time.Duration, f func()) bool {
	end := make(chan struct{})
	go func() {
		defer close(end)
		f()
	}()
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-end:
		return true
	case <-t.C:
		return false
	}
}

// use returns raft when it can be used.
func (r *Replica) use() (*hraft.Raft, error) {
	select {
	case <-r.done:
		return nil, ErrNotStarted
	case <-r.started:
	default:
		return nil, ErrNotStarted
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.parked != "" {
		return nil, fmt.Errorf("%w: %s", ErrParked, r.parked)
	}
	return r.raft, nil
}

// await runs f, which may block on raft, and waits for its result, the context
// or the end of raft.
func (r *Replica) await(ctx context.Context, f func() error) error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	select {
	case err := <-c:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-r.parkedCh:
		return ErrParked
	case <-r.done:
		return ErrNotStarted
	}
}
