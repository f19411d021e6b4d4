package node

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// planeWriter is what the syncer needs of the data plane.
type planeWriter interface {
	Apply(table.Delta) error
	Resync(*table.Set, iter.Seq[table.Entry]) error
}

// deltaSource delivers what the log applied, in order.
type deltaSource interface {
	Next(context.Context) (delta state.Delta, resync bool, err error)
}

// syncer is the one writer of the kernel's agreed tables. It renders what the
// log says into the plane, and says how far it got.
//
// Until it is opened it writes nothing: what is pinned was agreed once and
// forwards on; what this node's store holds may be older.
type syncer struct {
	plane planeWriter
	view  func() *state.View
	log   *slog.Logger
	gate  chan struct{} // closed when the first Resync may run
	done  func()        // called after each write; must not block

	index      atomic.Uint64 // log index that the maps hold
	generation atomic.Uint64
	full       atomic.Bool // the affinity table had no room for everything
	failure    atomic.Pointer[string]

	spec  *state.Spec // as of index; the syncer's goroutine only
	whole time.Time   // of the last write of everything; the syncer's goroutine only
}

func newSyncer(p planeWriter, view func() *state.View, log *slog.Logger, done func()) *syncer {
	return &syncer{plane: p, view: view, log: log, gate: make(chan struct{}), done: done}
}

// resyncBackoff is the pause after a failed write: the kernel's refusals do
// not go away within microseconds.
const resyncBackoff = 500 * time.Millisecond

// fullRetry is how often everything is written again while the table is full:
// an entry that had no room is in no later delta, and room comes by expiry.
const fullRetry = time.Minute

// raiseMaxClients is what helps against a full table: one that is pinned keeps its size.
const raiseMaxClients = "raise dataplane.max_clients in the node file, then stop the service, run 'vpnlb plane detach' and start it again"

// auditInterval is how often all records are compared with the kernel's, and
// mended, although no write failed: somebody else may have changed them. A million
// take 0.1 s. It is looked at when a change comes, as one does every few seconds. Servers
// and Maglev tables are not compared here: the data plane's self-check does so.
const auditInterval = 5 * time.Minute

// run writes until ctx ends. Whatever fails, the answer is the same: take the
// whole view again and write the difference.
func (s *syncer) run(ctx context.Context, source deltaSource) error {
	select {
	case <-ctx.Done():
		return nil
	case <-s.gate:
	}
	resync := true
	for ctx.Err() == nil {
		if resync {
			if err := s.resync(); err != nil {
				s.fail("write the whole state to the data plane", err)
				if !pause(ctx, resyncBackoff) {
					return nil
				}
				continue
			}
			s.failure.Store(nil)
			resync = false
		}
		d, again, err := source.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("watch the agreed state: %w", err)
		}
		age := time.Since(s.whole)
		if resync = again || !s.whole.IsZero() && age >= auditInterval || s.full.Load() && age >= fullRetry; resync {
			continue
		}
		if d.Index <= s.index.Load() {
			continue // in the view that was written whole
		}
		if err := s.apply(d); err != nil {
			s.fail("write a change to the data plane", err)
			resync = true
		}
	}
	return nil
}

func (s *syncer) fail(doing string, err error) {
	text := doing + ": " + err.Error()
	s.failure.Store(&text)
	s.log.Error("data plane write failed", "error", text)
}

func (s *syncer) resync() error {
	view := s.view()
	spec := view.Spec()
	if spec.ClusterID.IsZero() {
		return nil // blank: nothing was agreed yet
	}
	entries := func(yield func(table.Entry) bool) {
		for a := range view.Affinities() {
			if e, ok := renderEntry(spec, a); ok && !yield(e) {
				return
			}
		}
	}
	err := s.plane.Resync(Render(spec), entries)
	full := errors.Is(err, dataplane.ErrFull)
	if err != nil && !full {
		return err
	}
	s.setFull(full)
	s.spec, s.whole = spec, time.Now()
	s.wrote(view.Index(), spec.Generation)
	return nil
}

func (s *syncer) apply(d state.Delta) error {
	out := table.Delta{Index: d.Index}
	if d.Spec != nil {
		s.spec = d.Spec
		out.Set = Render(d.Spec)
	}
	if s.spec == nil {
		return errors.New("no spec to render with")
	}
	for _, a := range d.Upsert {
		if e, ok := renderEntry(s.spec, a); ok {
			out.Upsert = append(out.Upsert, e)
		} else {
			out.Delete = append(out.Delete, tableKey(a.Key))
		}
	}
	for _, k := range d.Delete {
		out.Delete = append(out.Delete, tableKey(k))
	}
	switch err := s.plane.Apply(out); {
	case errors.Is(err, dataplane.ErrFull):
		s.setFull(true)
	case err != nil:
		return err
	}
	s.wrote(d.Index, s.spec.Generation)
	return nil
}

// setFull raises or ends the alarm that entries had no room: their clients go
// by Maglev, as unknown ones do. Only a write of everything ends it.
func (s *syncer) setFull(full bool) {
	if s.full.Swap(full) != full {
		s.log.Warn("affinity table of the data plane", "full", full)
	}
}

func (s *syncer) wrote(index, generation uint64) {
	s.index.Store(index)
	s.generation.Store(generation)
	s.done()
}

// pause waits for d; false: ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
