package state

import (
	"errors"
	"io"
	"iter"
	"time"
)

// ErrUnknown is what Apply and the decoders wrap when an entry was written by
// a newer binary (unknown format or kind): the node parks, nothing is skipped.
var ErrUnknown = errors.New("written by a newer version")

// Applied is what one log entry did.
type Applied struct {
	Outcomes []Outcome // one for each envelope, in their order
	Delta    Delta
}

// Delta is what an entry changed, each key once, in the order of their first
// change. Spec is nil when nothing in it changed but Index, Now, Affinities
// and entry counts. Activity alone (Touch) is in no Delta: whoever needs Seen
// takes a View.
type Delta struct {
	Index  uint64
	Spec   *Spec
	Upsert []Affinity // made, replaced or raised
	Delete []Key
}

// Machine applies commands; see Apply.
type Machine struct{}

// NewMachine returns an empty one: it accepts Init alone.
func NewMachine() *Machine { return &Machine{} }

// Apply applies one log entry (an encoded Batch) of a higher index than any
// before. An error means that this binary cannot understand the entry or that
// the caller broke the order: nothing was changed, and the node must park. A
// bad command is no error; its Outcome says so.
func (m *Machine) Apply(index uint64, data []byte) (Applied, error) { panic("not yet") }

// View returns the present state, immutable. Any goroutine may call it.
func (m *Machine) View() *View { panic("not yet") }

// Restore replaces everything by a snapshot, or nothing if there is an error.
func (m *Machine) Restore(r io.Reader) error { panic("not yet") }

// View is the whole state at one index, immutable.
type View struct{}

// Spec is never nil; its ClusterID is zero before Init.
func (v *View) Spec() *Spec { panic("not yet") }

// Index of the last applied command.
func (v *View) Index() uint64 { panic("not yet") }

// Len is the number of records.
func (v *View) Len() int { panic("not yet") }

// Affinity finds one record.
func (v *View) Affinity(k Key) (Affinity, bool) { panic("not yet") }

// Affinities yields all records, in an order that is the same on all replicas.
func (v *View) Affinities() iter.Seq[Affinity] { panic("not yet") }

// Expired lists records that are Dead at now, at most limit, in the order of
// Affinities: what the leader proposes to Expire. Much faster than Spec.Dead
// on each.
func (v *View) Expired(now Time, limit int) []Expired { panic("not yet") }

// WriteTo writes the snapshot: the same bytes on all replicas at one index.
func (v *View) WriteTo(w io.Writer) (int64, error) { panic("not yet") }

// Hash is the SHA-256 of the snapshot.
func (v *View) Hash() [32]byte { panic("not yet") }

// EncodeBatch gives the data of a log entry.
func EncodeBatch(b Batch) []byte { panic("not yet") }

// DecodeBatch reads what EncodeBatch wrote.
func DecodeBatch(data []byte) (Batch, error) { panic("not yet") }

// EncodeEnvelopes gives the body of a forwarded proposal.
func EncodeEnvelopes(e []Envelope) []byte { panic("not yet") }

// DecodeEnvelopes reads what EncodeEnvelopes wrote.
func DecodeEnvelopes(data []byte) ([]Envelope, error) { panic("not yet") }

// EncodeOutcomes gives the answer to a forwarded proposal.
func EncodeOutcomes(o []Outcome) []byte { panic("not yet") }

// DecodeOutcomes reads what EncodeOutcomes wrote.
func DecodeOutcomes(data []byte) ([]Outcome, error) { panic("not yet") }

// Check reports whether a command keeps the limits of its encoded form. A
// proposer asks before it encodes; Apply judges everything else.
func Check(c Command) error { panic("not yet") }

func (s *Spec) voidFault(b *Backend, c Class, now Time) string { _ = time.Second; panic("not yet") }
