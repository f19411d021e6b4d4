package state

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"sync"
)

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

// Machine is the deterministic state: the same log gives the same bytes on
// every node. One goroutine applies; View may be called from any.
type Machine struct {
	mu   sync.Mutex
	core // what is in the snapshot, and what follows from it

	published bool  // the Spec was handed out: copy it before the next change
	view      *View // of the present state; nil after a change

	// The entry being applied.
	index     uint64
	changed   bool             // something in the Spec that a Delta shows
	unsettled bool             // stances, generation or removed backends may have changed
	changes   map[place]change // for the Delta
	order     []place          // its keys, first change first
}

// change is how a record ended up within one entry.
type change uint8

const (
	changeUpsert change = 1
	changeDelete change = 2
)

// core is the state itself; Restore builds a new one and swaps.
type core struct {
	spec      *Spec
	last      numbers
	proposers []proposer
	windows   map[NodeID]*window
	records   *shards

	// Derived.
	marks    []mark            // beside spec.Backends
	prefixes map[uint64]uint32 // unconfirmed records per /24 or /48
}

// numbers are those handed out last.
type numbers struct {
	vip     VIPID
	backend BackendID
	gateway GatewayID
	slot    Slot // the search for a free one goes on after it: reuse comes late
}

// proposer is a node with unconfirmed records; records name it by its place
// plus one. A place without records is given to the next node.
type proposer struct {
	id          NodeID
	unconfirmed uint32
}

// mark is what Maglev tables and permits are made of: when one changes, the
// generation does.
type mark struct {
	id      BackendID
	vip     VIPID
	slot    Slot
	weight  uint16
	addr    netip.Addr
	mode    Mode
	stances [len(Classes)]Stance
}

func newCore(hashKey [16]byte) core {
	return core{
		spec:     &Spec{},
		windows:  map[NodeID]*window{},
		records:  newShards(hashKey),
		prefixes: map[uint64]uint32{},
	}
}

// NewMachine returns an empty one: it accepts Init alone.
func NewMachine() *Machine {
	return &Machine{core: newCore([16]byte{}), changes: map[place]change{}}
}

// Apply applies one log entry (an encoded Batch) of a higher index than any
// before. An error means that this binary cannot understand the entry or that
// the caller broke the order: nothing was changed, and the node must park. A
// bad command is no error; its Outcome says so.
func (m *Machine) Apply(index uint64, data []byte) (Applied, error) {
	batch, err := decodeBatch(data, false)
	if err != nil {
		return Applied{}, fmt.Errorf("apply entry %d: %w", index, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if index <= m.spec.Index {
		return Applied{}, fmt.Errorf("apply entry %d: entry %d was applied before", index, m.spec.Index)
	}
	m.begin(index, batch.Stamp)
	applied := Applied{Outcomes: make([]Outcome, len(batch.Envelopes))}
	for i := range batch.Envelopes {
		applied.Outcomes[i] = m.envelope(&batch.Envelopes[i])
	}
	applied.Delta = m.finish()
	return applied, nil
}

// begin makes the Spec writable: its struct and its Backends (for the entry
// counts). All else in it is copied by the command that changes it.
func (m *Machine) begin(index uint64, stamp Time) {
	m.view = nil
	m.index = index
	m.changed = false
	if m.published {
		spec := *m.spec
		spec.Backends = slices.Clone(spec.Backends)
		m.spec = &spec
		m.published = false
	}
	m.spec.Index = index
	m.spec.Now = max(m.spec.Now, stamp)
	if len(m.order) > 4*MaxBatch { // a backend's records were dropped at once: give the memory back
		m.changes, m.order = map[place]change{}, nil
	}
	clear(m.changes)
	m.order = m.order[:0]
}

func (m *Machine) finish() Delta {
	m.spec.Affinities = m.records.count
	d := Delta{Index: m.index}
	if m.changed {
		d.Spec = m.spec
		m.published = true
	}
	for i := range m.order {
		p := &m.order[i]
		if m.changes[*p] == changeDelete {
			d.Delete = append(d.Delete, p.key())
			continue
		}
		if d.Upsert == nil {
			d.Upsert = make([]Affinity, 0, len(m.order)-i)
		}
		d.Upsert = append(d.Upsert, m.records.find(p).affinity())
	}
	return d
}

func (m *Machine) note(p place, c change) {
	if _, ok := m.changes[p]; !ok {
		m.order = append(m.order, p)
	}
	m.changes[p] = c
}

// refusal makes an Outcome whose Detail is one sentence: the fault and the way
// out.
func refusal(c Code, format string, args ...any) Outcome {
	detail := fmt.Sprintf(format, args...)
	return Outcome{Code: c, Detail: detail[:min(len(detail), MaxDetail)]}
}

func done(id uint64) Outcome { return Outcome{Code: OK, ID: id} }

// envelope applies one command once.
func (m *Machine) envelope(e *Envelope) Outcome {
	if o, ok := m.remembered(e); ok {
		return o
	}
	o, lasting := m.admit(e)
	if o.Code == 0 {
		o = m.execute(e)
		if m.unsettled {
			m.settle()
		}
	}
	o.Index = m.index
	if lasting {
		m.remember(e, &o)
	}
	return o
}

// admit refuses what may not be applied at all. Such an answer is not
// remembered: the same command may be right later.
func (m *Machine) admit(e *Envelope) (o Outcome, lasting bool) {
	_, first := e.Command.(Init)
	switch removed, gone := m.spec.RemovedByID(e.Origin); {
	case m.spec.ClusterID.IsZero() && !first:
		return refusal(NotAllowed, "the cluster is not initialised: run `vpnlb cluster init` on its first node"), false
	case gone:
		return refusal(NotAllowed, "node %s was removed from the cluster at index %d: join again under a new ID", removed.Name, removed.Index), false
	case e.Origin.IsZero() || e.Sequence == 0:
		return refusal(Invalid, "the envelope has no origin or no sequence number (they begin at 1)"), false
	}
	return Outcome{}, true
}

func (m *Machine) execute(e *Envelope) Outcome {
	switch c := e.Command.(type) {
	case Init:
		return m.initialise(&c)
	case PutVIP:
		return m.putVIP(&c)
	case RemoveVIP:
		return m.removeVIP(&c)
	case PutBackend:
		return m.putBackend(&c)
	case SetBackendAdmin:
		return m.setBackendAdmin(&c)
	case RemoveBackend:
		return m.removeBackend(&c)
	case SetHealth:
		return m.setHealth(&c)
	case VoidBackend:
		return m.voidBackend(&c)
	case PutGateway:
		return m.putGateway(&c)
	case RemoveGateway:
		return m.removeGateway(&c)
	case OwnGateway:
		return m.ownGateway(&c)
	case SetSettings:
		return m.setSettings(&c)
	case AddToken:
		return m.addToken(&c)
	case AdmitMember:
		return m.admitMember(&c)
	case UpdateMember:
		return m.updateMember(&c)
	case RemoveMember:
		return m.removeMember(&c)
	case ReplaceMember:
		return m.replaceMember(&c)
	case PutSecret:
		return m.putSecret(&c)
	case PutCertificate:
		return m.putCertificate(&c)
	case RemoveCertificate:
		return m.removeCertificate(&c)
	case Learn:
		return m.learn(e.Origin, c.Records)
	case Touch:
		return m.touch(c.Records)
	case Expire:
		return m.expire(c.Records)
	case Forget:
		return m.forget(c.Keys)
	}
	return done(0) // Tick
}

// settle brings what follows from the Spec up to date: removed backends that
// nobody names any more, voided ones that the never-empty rule brings back,
// the stances, the generation.
func (m *Machine) settle() {
	m.unsettled = false
	m.reap()
	marks := m.spec.marks()
	unvoided := m.unvoid(marks)
	if forgot := m.forgetDSR(marks); unvoided || forgot {
		m.reap()
		marks = m.spec.marks()
		m.unsettled = false
	}
	if !slices.Equal(marks, m.marks) {
		m.marks = marks
		m.spec.Generation = m.index
		m.changed = true
	}
}

// reap forgets removed backends when no record names them.
func (m *Machine) reap() {
	kept := slices.DeleteFunc(m.spec.Backends, func(b Backend) bool {
		return b.Admin == AdminRemoved && b.Entries == [len(Classes)]uint32{}
	})
	if len(kept) != len(m.spec.Backends) {
		m.spec.Backends = kept
		m.changed = true
	}
}

// unvoid ends the voidance of backends that take clients all the same because
// there is no other. Their old records go for good: what they earn from now on
// must not be voided with them when another server comes up.
func (m *Machine) unvoid(marks []mark) (any bool) {
	for i := range m.spec.Backends {
		b := &m.spec.Backends[i]
		for _, c := range Classes {
			if b.Health[c-1].Voided != 0 && marks[i].stances[c-1].MayTake() {
				m.dropRecords(b.ID, c)
				b.Health[c-1].Voided = 0
				m.changed, any = true, true
			}
		}
	}
	return any
}

// forgetDSR removes the records of DSR backends that count as absent. They must
// not count again when the backend comes back: nothing that its clients send
// could move those that were served elsewhere meanwhile.
func (m *Machine) forgetDSR(marks []mark) (any bool) {
	for i := range m.spec.Backends {
		b := &m.spec.Backends[i]
		for _, c := range Classes {
			if b.Mode == ModeDSR && b.Entries[c-1] > 0 && !marks[i].stances[c-1].Known() {
				m.dropRecords(b.ID, c)
				any = true
			}
		}
	}
	return any
}

func (s *Spec) marks() []mark {
	all := make([]mark, len(s.Backends))
	for i := range s.Backends {
		b := &s.Backends[i]
		all[i] = mark{id: b.ID, vip: b.VIP, slot: b.Slot, weight: b.Weight, addr: b.Addr, mode: b.Mode}
		for _, c := range Classes {
			all[i].stances[c-1] = s.Stance(b, c)
		}
	}
	return all
}

// stance is Spec.Stance from the marks: by the place in spec.Backends.
func (m *Machine) stance(at int, c Class) Stance { return m.marks[at].stances[c-1] }

// View returns the present state, immutable. Any goroutine may call it.
func (m *Machine) View() *View {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.view != nil {
		return m.view
	}
	v := &View{
		spec:      m.spec,
		last:      m.last,
		marks:     m.marks,
		proposers: make([]NodeID, len(m.proposers)),
		windows:   make([]window, 0, len(m.windows)),
		records:   m.records.share(),
	}
	for i := range m.proposers {
		v.proposers[i] = m.proposers[i].id
	}
	for _, w := range m.windows {
		v.windows = append(v.windows, *w)
	}
	slices.SortFunc(v.windows, func(a, b window) int { return bytes.Compare(a.origin[:], b.origin[:]) })
	m.published = true
	m.view = v
	return v
}

// edited returns a copy of a published slice with one element changed.
func edited[T any](all []T, at int, v T) []T {
	all = slices.Clone(all)
	all[at] = v
	return all
}

// without returns a copy of a published slice with one element less.
func without[T any](all []T, at int) []T {
	return slices.Concat(all[:at], all[at+1:])
}

// with returns a copy of a published slice with one element more.
func with[T any](all []T, v T) []T {
	return append(slices.Clip(all), v)
}

func byNodeID(a, b Member) int { return bytes.Compare(a.ID[:], b.ID[:]) }
