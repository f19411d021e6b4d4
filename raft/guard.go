package raft

import (
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	hraft "github.com/hashicorp/raft"
)

// store is what a replica needs of its disk; *boltstore.Store is the one.
type store interface {
	hraft.CommitTrackingLogStore
	hraft.StableStore
	LogBytes() int64
	PersistedCommit() uint64
	RecordCommitted(index uint64) error
	Close() error
}

// guard stands between raft and the store. It knows how long the operation in
// progress has hung, and it keeps errors of the disk from raft, which answers
// them with a panic in a goroutine of its own: once armed, the first error is
// reported and ends the goroutine that met it (its deferred calls run, so raft's
// futures are answered). Raft is shut down by whoever takes the report.
type guard struct {
	store
	fail  func(error) // must not block
	armed atomic.Bool

	mu   sync.Mutex
	ops  map[uint64]time.Time // operations in progress: start
	next uint64
}

var _ hraft.MonotonicLogStore = (*guard)(nil)

func newGuard(s store, fail func(error)) *guard {
	return &guard{store: s, fail: fail, ops: map[uint64]time.Time{}}
}

// do runs one operation of the store for raft.
func (g *guard) do(op func() error) error {
	err := g.own(op)
	if err == nil || errors.Is(err, hraft.ErrLogNotFound) || !g.armed.Load() {
		return err
	}
	g.fail(err)
	runtime.Goexit()
	return nil // not reached
}

// own runs one operation for the Replica, which takes the error itself.
func (g *guard) own(op func() error) error {
	g.mu.Lock()
	id := g.next
	g.next++
	g.ops[id] = time.Now()
	g.mu.Unlock()
	err := op()
	g.mu.Lock()
	delete(g.ops, id)
	g.mu.Unlock()
	return err
}

// stalled returns the age of the oldest operation in progress, 0 below least.
func (g *guard) stalled(least time.Duration) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	var oldest time.Duration
	for _, t := range g.ops {
		oldest = max(oldest, time.Since(t))
	}
	if oldest < least {
		return 0
	}
	return oldest
}

func (g *guard) logBytes() int64   { return g.store.LogBytes() }
func (g *guard) IsMonotonic() bool { return true }

func (g *guard) GetLog(i uint64, l *hraft.Log) error {
	return g.do(func() error { return g.store.GetLog(i, l) })
}

func (g *guard) StoreLog(l *hraft.Log) error { return g.StoreLogs([]*hraft.Log{l}) }

func (g *guard) StoreLogs(ls []*hraft.Log) error {
	return g.do(func() error { return g.store.StoreLogs(ls) })
}

func (g *guard) DeleteRange(lo, hi uint64) error {
	return g.do(func() error { return g.store.DeleteRange(lo, hi) })
}

func (g *guard) Set(k, v []byte) error { return g.do(func() error { return g.store.Set(k, v) }) }

func (g *guard) Get(k []byte) (v []byte, err error) {
	err = g.do(func() error { v, err = g.store.Get(k); return err })
	return v, err
}

func (g *guard) SetUint64(k []byte, n uint64) error {
	return g.do(func() error { return g.store.SetUint64(k, n) })
}

func (g *guard) GetUint64(k []byte) (n uint64, err error) {
	err = g.do(func() error { n, err = g.store.GetUint64(k); return err })
	return n, err
}

// logs is the log store that raft sees: a cache of the last entries before the
// guard. hraft's LogCache alone would hide the commit tracking.
//
// GetCommitIndex says 0 on purpose: raft's own replay of committed entries
// skips the configurations among them (v1.8.0 scans for them only above the
// replayed index, so a restarted cluster has no voters) and blocks for ever on
// more batches than its queue holds. The Replica replays before raft starts;
// raft only keeps the index up to date.
type logs struct {
	*hraft.LogCache
	g *guard
}

var _ hraft.CommitTrackingLogStore = logs{}

// cachedEntries stay in memory for followers that are not far behind.
const cachedEntries = 256

func newLogs(g *guard) (logs, error) {
	c, err := hraft.NewLogCache(cachedEntries, g)
	return logs{c, g}, err
}

func (l logs) StageCommitIndex(i uint64) error { return l.g.StageCommitIndex(i) }
func (l logs) GetCommitIndex() (uint64, error) { return 0, nil }
