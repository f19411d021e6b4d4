package state

import (
	"fmt"
	"io"
	"slices"
)

// Audit applies a committed log command by command and checks of each what holds for
// every client and service class: one server between two permits (invariant A). It is
// for tests and laboratories; a node applies entries as a whole. Not safe for
// concurrent use.
type Audit struct {
	m *Machine

	Entries  int
	Commands int
	Made     int // records that a Learn made
	Moved    int // records that name another backend than before, each by permit
}

// NewAudit begins with an empty state.
func NewAudit() *Audit { return &Audit{m: NewMachine()} }

// Restore begins with a snapshot instead.
func (a *Audit) Restore(r io.Reader) error { return a.m.Restore(r) }

// View is the state so far, the same as that of a Machine which applied the entries.
func (a *Audit) View() *View { return a.m.View() }

// Apply applies the next entry. An error is one of Machine.Apply, or says which record
// has changed its server without a permit.
func (a *Audit) Apply(index uint64, data []byte) error {
	batch, err := decodeBatch(data, false)
	if err != nil {
		return fmt.Errorf("apply entry %d: %w", index, err)
	}
	if have := a.m.View().Index(); index <= have {
		return fmt.Errorf("apply entry %d: entry %d was applied before", index, have)
	}
	a.Entries++
	if len(batch.Envelopes) == 0 {
		a.m.step(index, batch.Stamp, nil)
	}
	for i := range batch.Envelopes {
		e := &batch.Envelopes[i]
		before := a.m.View()
		a.m.step(index, batch.Stamp, e)
		after := a.m.View()
		a.Commands++
		if _, ok := e.Command.(Learn); ok {
			a.Made += max(0, after.Len()-before.Len())
		}
		moved, err := Moves(before, after, e.Command)
		a.Moved += moved
		if err != nil {
			return fmt.Errorf("entry %d: %w", index, err)
		}
	}
	return nil
}

// step applies one envelope of an entry as if it were all of it.
func (m *Machine) step(index uint64, stamp Time, e *Envelope) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.begin(index, stamp)
	if e != nil {
		m.envelope(e)
	}
	m.finish()
}

// Moves counts the records that name another backend after a command than before it.
// An error names one that had no permit: it may move where its backend counts as
// absent, or, where the backend may not take its openings, by an opening that replaces
// this very record.
func Moves(before, after *View, c Command) (moved int, err error) {
	s := before.Spec()
	learn, _ := c.(Learn)
	for a := range before.Affinities() {
		now, ok := after.Affinity(a.Key)
		if !ok || now.Backend == a.Backend {
			continue
		}
		moved++
		old, _ := s.BackendByID(a.Backend)
		stance := s.Stance(old, a.Class)
		if stance == StanceVoid || stance == StanceNone {
			continue
		}
		if stance != StanceLeave || !slices.ContainsFunc(learn.Records, func(l Learned) bool {
			return l.Key == a.Key && l.Backend == now.Backend && l.Opening && l.Replaces == a.Index
		}) {
			return moved, fmt.Errorf("the record of %v moved from backend %d (%v) to %d without a permit, by %T", a.Key, a.Backend, stance, now.Backend, c)
		}
	}
	return moved, nil
}
