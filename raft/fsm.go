package raft

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// fsm feeds committed entries to the Machine and publishes what they changed.
// Apply and Restore run on raft's one goroutine, and before that on Run's.
type fsm struct {
	hub  *hub
	park func(error) // must not block; called once

	machine atomic.Pointer[state.Machine]
	index   uint64 // last applied command; asking a View for it would publish one per entry

	mu     sync.Mutex
	parked error // an entry this binary does not know: nothing after it is applied
}

var _ hraft.BatchingFSM = (*fsm)(nil)

func newFSM(h *hub, park func(error)) *fsm {
	f := &fsm{hub: h, park: park}
	f.machine.Store(state.NewMachine())
	return f
}

func (f *fsm) view() *state.View { return f.machine.Load().View() }

func (f *fsm) failed() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.parked
}

func (f *fsm) fail(err error) {
	f.mu.Lock()
	first := f.parked == nil
	if first {
		f.parked = err
	}
	f.mu.Unlock()
	if first {
		f.park(err)
	}
}

// errReplayed answers an entry that the replay before raft's start had applied.
// Nobody can wait for its outcomes: they belong to an earlier boot.
var errReplayed = errors.New("applied before this start")

// ApplyBatch implements hraft.BatchingFSM. A response is []state.Outcome or error.
func (f *fsm) ApplyBatch(logs []*hraft.Log) []any {
	out := make([]any, len(logs))
	for i, l := range logs {
		out[i] = f.Apply(l)
	}
	return out
}

// Apply implements hraft.FSM.
func (f *fsm) Apply(l *hraft.Log) any {
	if l.Type != hraft.LogCommand {
		return nil
	}
	if err := f.failed(); err != nil {
		return err
	}
	m := f.machine.Load()
	if l.Index <= f.index {
		return errReplayed
	}
	a, err := apply(m, l)
	if err != nil {
		err = fmt.Errorf("apply log entry %d: %w", l.Index, err)
		f.fail(err)
		return err
	}
	f.index = l.Index
	f.hub.publish(a.Delta)
	return a.Outcomes
}

// apply keeps a fault of the Machine from taking the process with it, and with
// it every node that meets the same entry at every start: the node parks.
func apply(m *state.Machine, l *hraft.Log) (a state.Applied, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("state machine panicked: %v", p)
		}
	}()
	return m.Apply(l.Index, l.Data)
}

// Snapshot implements hraft.FSM: the View is immutable, so it costs nothing.
func (f *fsm) Snapshot() (hraft.FSMSnapshot, error) {
	if err := f.failed(); err != nil {
		return nil, err
	}
	return snapshot{f.view()}, nil
}

// Restore implements hraft.FSM. A snapshot that is older than what was replayed
// (both are prefixes of the same committed log) changes nothing: going back
// would take records from the data plane for a moment.
func (f *fsm) Restore(r io.ReadCloser) error {
	defer r.Close()
	m := state.NewMachine()
	if err := m.Restore(r); err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	now := m.View()
	if have := f.view().Spec().ClusterID; !have.IsZero() && now.Spec().ClusterID != have {
		return fmt.Errorf("restore snapshot: it is of cluster %s, this is %s", now.Spec().ClusterID, have)
	}
	if now.Index() < f.index {
		return nil
	}
	f.index = now.Index()
	f.machine.Store(m)
	f.hub.resync()
	return nil
}

type snapshot struct{ view *state.View }

// Persist implements hraft.FSMSnapshot.
func (s snapshot) Persist(sink hraft.SnapshotSink) error {
	if _, err := s.view.WriteTo(sink); err != nil {
		_ = sink.Cancel()
		return fmt.Errorf("write snapshot: %w", err)
	}
	return sink.Close()
}

// Release implements hraft.FSMSnapshot.
func (s snapshot) Release() {}
