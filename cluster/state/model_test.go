package state

import (
	"fmt"
	"maps"
	"slices"
	"testing"
)

const modelClients = 50

// model is the dumb affinity table: one map, every count made anew, the rules
// written down a second time.
type model struct {
	spec     Spec // with Backends of its own
	records  map[Key]Affinity
	proposer map[Key]NodeID // of unconfirmed records
}

func modelOf(v *View, proposer map[Key]NodeID) *model {
	m := &model{spec: *v.Spec(), records: map[Key]Affinity{}, proposer: proposer}
	m.spec.Backends = slices.Clone(m.spec.Backends)
	for a := range v.Affinities() {
		m.records[a.Key] = a
	}
	return m
}

func (m *model) recount() {
	m.spec.Backends = slices.DeleteFunc(m.spec.Backends, func(b Backend) bool {
		return b.Admin == AdminRemoved && !slices.ContainsFunc(slices.Collect(maps.Values(m.records)), func(a Affinity) bool { return a.Backend == b.ID })
	})
	for i := range m.spec.Backends {
		b := &m.spec.Backends[i]
		b.Entries = [len(Classes)]uint32{}
		for _, a := range m.records {
			if a.Backend == b.ID {
				b.Entries[a.Class-1]++
			}
		}
		// Full from the limit on, until a twentieth, two at least, or all are gone.
		gone := int64(b.Limit) - int64(b.Entries[0])
		switch n := int64(b.Entries[0]); {
		case b.Limit == 0 || n == 0 || gone >= 2 && gone >= int64(b.Limit)/20:
			b.Filled = false
		case n >= int64(b.Limit):
			b.Filled = true
		}
	}
}

func (m *model) stance(id BackendID, c Class) Stance {
	b, ok := m.spec.BackendByID(id)
	if !ok {
		return StanceNone
	}
	return m.spec.Stance(b, c)
}

func net24(c Client) string {
	if a := c.Addr(); a.Is6() {
		p, _ := a.Prefix(48)
		return p.String()
	}
	p, _ := c.Addr().Prefix(24)
	return p.String()
}

func (m *model) learn(origin NodeID, index uint64, now Time, l Learned) LearnResult {
	now -= now % second
	m.recount()
	defer m.forgetDSR()
	to := m.stance(l.Backend, l.Class)
	if to == StanceNone || to == StanceVoid {
		return LearnRefused
	}
	anew, _ := m.spec.BackendByID(l.Backend)
	if anew.Mode == ModeDSR && l.Class == ClassTCP {
		return LearnRefused
	}
	a, found := m.records[l.Key]
	from := StanceVoid
	if found {
		from = m.stance(a.Backend, l.Class)
	}
	fresh := Affinity{Key: l.Key, Backend: l.Backend, Index: index, Since: now, Seen: now, Heard: now, State: l.State}
	if !found || from == StanceVoid || from == StanceNone { // insert
		if anew.Mode == ModeDSR {
			l.State, fresh.State = EarnedSK, EarnedSK
		}
		if l.State < Confirmed {
			node, prefix := uint32(0), uint32(0)
			for k, r := range m.records {
				if r.State < Confirmed && m.proposer[k] == origin {
					node++
				}
				if r.State < Confirmed && net24(k.Client) == net24(l.Client) {
					prefix++
				}
			}
			if node >= m.spec.Settings.NodeBudget || prefix >= m.spec.Settings.PrefixBudget {
				return LearnRefused
			}
		}
		m.records[l.Key], m.proposer[l.Key] = fresh, origin
		return LearnStored
	}
	if a.Backend == l.Backend {
		if l.State > a.State {
			a.State, a.Seen, a.Heard = l.State, now, now
			m.records[l.Key] = a
		}
		return LearnStored
	}
	old, _ := m.spec.BackendByID(a.Backend)
	if l.Replaces == 0 && old.VIP != anew.VIP {
		return LearnRefused
	}
	if l.Replaces != a.Index {
		return LearnSuperseded
	}
	if l.Opening && anew.Mode == ModeDNAT && from == StanceLeave && (to == StanceTake || to == StanceKeep) {
		m.records[l.Key], m.proposer[l.Key] = fresh, origin
		return LearnStored
	}
	return LearnRefused
}

// forgetDSR: what counts as absent at a DSR backend is gone for good.
func (m *model) forgetDSR() {
	m.recount()
	for k, a := range m.records {
		b, _ := m.spec.BackendByID(a.Backend)
		if s := m.stance(b.ID, a.Class); b.Mode == ModeDSR && (s == StanceVoid || s == StanceNone) {
			delete(m.records, k)
		}
	}
	m.recount()
}

func (m *model) touch(now Time, t Touched) {
	a, ok := m.records[t.Key]
	m.recount()
	s := m.stance(a.Backend, t.Class)
	if !ok || a.Index != t.Index || a.State != Confirmed || s == StanceVoid || s == StanceNone {
		return
	}
	if b, _ := m.spec.BackendByID(a.Backend); b.Mode == ModeDSR {
		t.Heard = true
	}
	now -= now % second
	at := max(0, now-Time(t.Age)*second)
	if !t.Heard && at.Sub(a.Heard) > m.spec.Settings.UnheardTimeout {
		return
	}
	a.Seen = max(a.Seen, at)
	if t.Heard {
		a.Heard = max(a.Heard, at)
	}
	m.records[t.Key] = a
}

func (m *model) apply(origin NodeID, index uint64, c Command) (learns []LearnResult, known bool) {
	now := m.spec.Now
	switch c := c.(type) {
	case Learn:
		for _, l := range c.Records {
			learns = append(learns, m.learn(origin, index, now, l))
		}
	case Touch:
		for _, t := range c.Records {
			m.touch(now, t)
		}
	case Expire:
		for _, e := range c.Records {
			m.recount()
			if a, ok := m.records[e.Key]; ok && a.Index == e.Index && a.Seen <= e.Seen && m.spec.Dead(a, now) {
				delete(m.records, e.Key)
			}
		}
	case Forget:
		for _, k := range c.Keys {
			delete(m.records, k)
		}
	default:
		return nil, false
	}
	m.forgetDSR()
	return learns, true
}

// TestModel: the Machine's records are those of the dumb model after every
// single command; and invariant A: a record changes its server by permit only.
func TestModel(t *testing.T) {
	moved, between := 0, 0
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRig(t)
			r.farm(1, 3)
			c := newChaos(seed)
			c.clients = modelClients
			proposer := map[Key]NodeID{}
			done := map[string]bool{}
			c.run(t, r, 1200, func(before *View, all []Envelope, applied Applied) {
				e := all[0]
				id := fmt.Sprint(e.Origin, e.Sequence)
				after := r.m.View()
				consistent(t, after)
				between += stillFull(after.Spec())
				n, err := Moves(before, after, e.Command)
				if moved += n; err != nil {
					t.Fatalf("entry %d: %v", r.index, err)
				}
				if done[id] || applied.Outcomes[0].Index != r.index {
					if before.Len() != after.Len() {
						t.Fatalf("entry %d: a command was applied twice", r.index)
					}
					return
				}
				if applied.Outcomes[0].Code == NotAllowed { // of a removed node
					return
				}
				done[id] = true
				m := modelOf(before, proposer)
				m.spec.Now = max(m.spec.Now, r.now)
				learns, known := m.apply(e.Origin, r.index, e.Command)
				if !known {
					return
				}
				if !slices.Equal(learns, applied.Outcomes[0].Learns) {
					t.Fatalf("entry %d: %+v\ngives %v, the model %v", r.index, e.Command, applied.Outcomes[0].Learns, learns)
				}
				compare(t, m, before, after, applied.Delta)
			})
		})
	}
	if moved == 0 {
		t.Error("no record was ever replaced: the test is too tame")
	}
	if between == 0 {
		t.Error("no backend was ever full below its limit: the test is too tame")
	}
}

func compare(t *testing.T, m *model, before, after *View, d Delta) {
	t.Helper()
	if len(m.records) != after.Len() {
		t.Fatalf("%d records, the model has %d", after.Len(), len(m.records))
	}
	m.recount()
	for i := range m.spec.Backends {
		want := &m.spec.Backends[i]
		if got, ok := after.Spec().BackendByID(want.ID); !ok || got.Filled != want.Filled || got.Entries != want.Entries {
			t.Fatalf("backend %+v, the model has %+v", got, want)
		}
	}
	changed := map[Key]Affinity{}
	for _, a := range d.Upsert {
		changed[a.Key] = a
	}
	for a := range after.Affinities() {
		if m.records[a.Key] != a {
			t.Fatalf("record %+v, the model has %+v", a, m.records[a.Key])
		}
		old, ok := before.Affinity(a.Key)
		same := ok && old.Backend == a.Backend && old.Index == a.Index && old.State == a.State
		if got, listed := changed[a.Key]; listed && got != a || !listed && !same {
			t.Fatalf("record %+v is not what the delta says: %+v", a, got)
		}
	}
	for a := range before.Affinities() {
		if _, ok := after.Affinity(a.Key); !ok && !slices.Contains(d.Delete, a.Key) {
			t.Fatalf("the delta does not delete %v", a.Key)
		}
	}
}
