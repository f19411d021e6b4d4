package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// recordingPlane writes down what is asked of it, and fails on demand.
type recordingPlane struct {
	mu    sync.Mutex
	calls []string
	errs  []error // of the next calls, in order; nil: success
}

func (p *recordingPlane) note(call string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, call)
	if len(p.errs) == 0 {
		return nil
	}
	err := p.errs[0]
	p.errs = p.errs[1:]
	return err
}

func (p *recordingPlane) fail(errs ...error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.errs = errs
}

// take gives the calls since the last take.
func (p *recordingPlane) take() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.calls
	p.calls = nil
	return out
}

func (p *recordingPlane) Apply(d table.Delta) error {
	return p.note(fmt.Sprintf("apply %d set=%v +%d -%d", d.Index, d.Set != nil, len(d.Upsert), len(d.Delete)))
}

func (p *recordingPlane) Resync(s *table.Set, entries iter.Seq[table.Entry]) error {
	n := 0
	for range entries {
		n++
	}
	return p.note(fmt.Sprintf("resync %d entries=%d", s.Index, n))
}

// source is a log for the syncer: deltas and resyncs in order.
type source struct{ c chan sourced }

type sourced struct {
	delta  state.Delta
	resync bool
	err    error
}

func (s source) Next(ctx context.Context) (state.Delta, bool, error) {
	select {
	case x := <-s.c:
		return x.delta, x.resync, x.err
	case <-ctx.Done():
		return state.Delta{}, false, ctx.Err()
	}
}

// bench is a running syncer in a bubble.
type bench struct {
	t   *testing.T
	rig *rig
	*syncer
	plane *recordingPlane
	src   source
	ended chan error
	wrote int
}

func newBench(t *testing.T, r *rig) *bench {
	b := &bench{t: t, rig: r, plane: &recordingPlane{}, src: source{make(chan sourced, 100)}, ended: make(chan error, 1)}
	b.syncer = newSyncer(b.plane, func() *state.View { return r.m.View() }, slog.New(slog.DiscardHandler), func() { b.wrote++ })
	ctx, cancel := context.WithCancel(context.Background())
	go func() { b.ended <- b.syncer.run(ctx, b.src) }()
	t.Cleanup(func() {
		cancel()
		if err := <-b.ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	return b
}

func (b *bench) give(ds ...state.Delta) {
	for _, d := range ds {
		b.src.c <- sourced{delta: d}
	}
	synctest.Wait()
}

func (b *bench) want(calls ...string) {
	b.t.Helper()
	synctest.Wait()
	if got := b.plane.take(); !slices.Equal(got, calls) {
		b.t.Errorf("written: %q, want %q", got, calls)
	}
}

func TestSyncWritesNothingBeforeTheGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newRig(t))
		b.give(b.rig.do(state.Tick{}))
		b.src.c <- sourced{resync: true}
		time.Sleep(time.Hour)
		b.want()
		if b.index.Load() != 0 {
			t.Errorf("index %d before anything was written", b.index.Load())
		}
		close(b.gate)
		b.want("resync 3 entries=0", "resync 3 entries=0") // the gate's own, and the source's
	})
}

func TestSyncFollowsTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t)
		vip := r.vip("vpn", "203.0.113.10")
		srv := r.backend("r1", "198.51.100.101", vip)
		old := r.learn("198.18.0.1", srv.ID) // in the view that is written whole
		b := newBench(t, r)
		close(b.gate)
		b.want("resync 5 entries=1")
		if b.index.Load() != 5 || b.generation.Load() != r.spec().Generation {
			t.Errorf("index %d, generation %d", b.index.Load(), b.generation.Load())
		}
		b.give(old)
		b.want()
		b.give(r.learn("198.18.0.2", srv.ID))
		b.want("apply 6 set=false +1 -0")
		b.give(r.do(state.Forget{Keys: []state.Key{keyOf("198.18.0.2")}}))
		b.want("apply 7 set=false +0 -1")
		now, _ := r.spec().BackendByName("r1")
		b.give(r.do(state.SetBackendAdmin{ID: srv.ID, Admin: state.AdminDrain, Expect: now.Version}))
		b.want("apply 8 set=true +0 -0")
		b.src.c <- sourced{resync: true}
		b.want("resync 8 entries=1")
		if b.wrote != 5 || b.index.Load() != 8 || b.generation.Load() != 8 {
			t.Errorf("%d writes told, index %d, generation %d", b.wrote, b.index.Load(), b.generation.Load())
		}
	})
}

// A delta whose record names a backend that its own spec does not have any
// more deletes the entry.
func TestSyncDeletesWhatHasNoBackend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newRig(t))
		close(b.gate)
		b.want("resync 2 entries=0")
		b.give(state.Delta{Index: 3, Upsert: []state.Affinity{{Key: keyOf("198.18.0.1"), Backend: 99}}})
		b.want("apply 3 set=false +0 -1")
	})
}

func TestSyncResyncsAfterAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newRig(t))
		b.plane.fail(errors.New("no memory"), errors.New("no memory"))
		close(b.gate)
		b.want("resync 2 entries=0")
		if f := b.failure.Load(); f == nil || !strings.Contains(*f, "no memory") || b.index.Load() != 0 {
			t.Errorf("failure %v, index %d", f, b.index.Load())
		}
		time.Sleep(resyncBackoff + time.Millisecond)
		b.want("resync 2 entries=0")
		time.Sleep(resyncBackoff - 2*time.Millisecond)
		b.want() // not before the pause is over
		time.Sleep(resyncBackoff)
		b.want("resync 2 entries=0")
		if b.failure.Load() != nil || b.index.Load() != 2 {
			t.Errorf("failure %v after success, index %d", b.failure.Load(), b.index.Load())
		}

		// A change that fails is made good by the whole view, at once.
		b.plane.fail(errors.New("flip failed"))
		b.give(b.rig.do(state.Tick{}), b.rig.do(state.Tick{}))
		b.want("apply 3 set=false +0 -0", "resync 4 entries=0")
		if b.failure.Load() != nil || b.index.Load() != 4 {
			t.Errorf("failure %v after the resync, index %d", b.failure.Load(), b.index.Load())
		}
	})
}

func TestSyncFullIsAnAlarm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newRig(t))
		b.plane.fail(fmt.Errorf("write entries: %w", dataplane.ErrFull))
		close(b.gate)
		b.want("resync 2 entries=0")
		if !b.full.Load() || b.failure.Load() != nil || b.index.Load() != 2 {
			t.Errorf("full %v, failure %v, index %d", b.full.Load(), b.failure.Load(), b.index.Load())
		}
		b.plane.fail(dataplane.ErrFull)
		b.give(b.rig.do(state.Tick{}))
		b.want("apply 3 set=false +0 -0") // and no resync after it
		if !b.full.Load() || b.failure.Load() != nil || b.index.Load() != 3 {
			t.Errorf("full %v, failure %v, index %d", b.full.Load(), b.failure.Load(), b.index.Load())
		}
		// That the next change fits says nothing of what had no room before it.
		b.give(b.rig.do(state.Tick{}))
		b.want("apply 4 set=false +0 -0")
		if !b.full.Load() {
			t.Error("the alarm ended although entries are missing")
		}
		// Now and then everything is written again, for room may have come.
		time.Sleep(fullRetry)
		b.plane.fail(dataplane.ErrFull)
		b.give(b.rig.do(state.Tick{}))
		b.want("resync 5 entries=0")
		if !b.full.Load() {
			t.Error("the alarm ended although there is no room yet")
		}
		time.Sleep(fullRetry)
		b.give(b.rig.do(state.Tick{}), b.rig.do(state.Tick{}))
		b.want("resync 7 entries=0")
		if b.full.Load() {
			t.Error("the alarm stays although everything was written")
		}
		time.Sleep(fullRetry)
		b.give(b.rig.do(state.Tick{}))
		b.want("apply 8 set=false +0 -0")
	})
}

// Nothing failed, and yet everything is compared now and then.
func TestSyncAudits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, newRig(t))
		close(b.gate)
		b.want("resync 2 entries=0")
		b.give(b.rig.do(state.Tick{}))
		b.want("apply 3 set=false +0 -0")
		time.Sleep(auditInterval)
		b.give(b.rig.do(state.Tick{}))
		b.want("resync 4 entries=0")
		b.give(b.rig.do(state.Tick{}))
		b.want("apply 5 set=false +0 -0")
	})
}

// A node that joins has no cluster until its first entry.
func TestSyncBlank(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := blankRig(t)
		b := newBench(t, r)
		close(b.gate)
		b.want()
		b.give(r.do(state.Init{
			ClusterID: state.ClusterID{1}, TableSize: 251, Settings: state.DefaultSettings(), First: memberOf(nodeA, "a"),
		}))
		b.want("apply 2 set=true +0 -0")
	})
}

func TestSyncEndsWithItsSource(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSyncer(&recordingPlane{}, newRig(t).m.View, slog.New(slog.DiscardHandler), func() {})
		close(s.gate)
		src := source{make(chan sourced, 1)}
		broken := errors.New("raft is off")
		src.c <- sourced{err: broken}
		if err := s.run(t.Context(), src); !errors.Is(err, broken) {
			t.Errorf("run: %v", err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		s = newSyncer(&recordingPlane{}, newRig(t).m.View, slog.New(slog.DiscardHandler), func() {})
		if err := s.run(ctx, src); err != nil { // the gate never opened
			t.Errorf("run: %v", err)
		}
	})
}
