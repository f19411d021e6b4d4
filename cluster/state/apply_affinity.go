package state

import "time"

// learn judges each record by itself, in order.
func (m *Machine) learn(origin NodeID, all []Learned) Outcome {
	if len(all) > MaxBatch {
		return refusal(Full, "%d records in one command are more than %d: send several commands", len(all), MaxBatch)
	}
	o := done(0)
	o.Learns = make([]LearnResult, len(all))
	for i := range all {
		o.Learns[i] = m.learnOne(origin, &all[i])
		if m.unsettled {
			m.settle() // a full backend takes no further record of this command
		}
	}
	return o
}

// learnOne applies the table of DESIGN.md, "Affinity".
func (m *Machine) learnOne(origin NodeID, l *Learned) LearnResult {
	at := m.spec.backendAt(l.Backend)
	if at < 0 || l.Class < 1 || int(l.Class) > len(Classes) || l.State < EarnedSK || l.State > Confirmed {
		return LearnRefused
	}
	stance := m.stance(at, l.Class)
	if !stance.Known() {
		return LearnRefused // it would count as absent at once
	}
	dsr := m.spec.Backends[at].Mode == ModeDSR
	if dsr && l.Class == ClassTCP {
		return LearnRefused // by Maglev only
	}
	p := placeOf(&l.Key)
	r := m.records.find(&p)
	if r == nil {
		return m.insert(origin, l, p, nil)
	}
	old := m.spec.backendAt(r.backend)
	switch oldStance := m.stance(old, l.Class); {
	case !oldStance.Known():
		return m.insert(origin, l, p, r) // counts as absent
	case r.backend == l.Backend:
		return m.raise(l, p, r)
	case l.Replaces == 0 && m.spec.Backends[old].VIP != m.spec.Backends[at].VIP:
		return LearnRefused // one record per client and class, whatever the VIP: see DESIGN.md
	case l.Replaces != r.index:
		return LearnSuperseded
	case !l.Opening || oldStance != StanceLeave || !stance.MayTake() || dsr:
		return LearnRefused
	}
	return m.store(origin, l, p, r)
}

// raise strengthens a record of the same backend; nothing but a higher state
// changes it, so that repeated evidence extends no unconfirmed record.
func (m *Machine) raise(l *Learned, p place, r *record) LearnResult {
	if l.State <= r.state {
		return LearnStored
	}
	if l.State == Confirmed {
		m.release(r)
	}
	r = m.records.edit(&p)
	now := m.seconds()
	r.state, r.seen, r.heard = l.State, now, now
	if l.State == Confirmed {
		r.proposer = 0
	}
	m.note(p, changeUpsert)
	return LearnStored
}

// insert stores a record where none counts (old is one that does not), within
// budgets: who confirms his records is never throttled. At a DSR backend every
// record begins unconfirmed, whatever was seen of it: what clients send alone can
// be forged in any amount.
func (m *Machine) insert(origin NodeID, l *Learned, p place, old *record) LearnResult {
	if b, _ := m.spec.BackendByID(l.Backend); b.Mode == ModeDSR && l.State != EarnedSK {
		first := *l
		first.State = EarnedSK
		l = &first
	}
	if old == nil && m.records.count >= MaxAffinity {
		return LearnRefused
	}
	if l.State != Confirmed {
		if m.prefixes[p.prefix()] >= m.spec.Settings.PrefixBudget {
			return LearnRefused
		}
		for i := range m.proposers {
			if m.proposers[i].id == origin && m.proposers[i].unconfirmed >= m.spec.Settings.NodeBudget {
				return LearnRefused
			}
		}
	}
	return m.store(origin, l, p, old)
}

// store puts the record in the place of old. A replacement asks no budget: it
// adds no record, and a client whose server died must not be stranded.
func (m *Machine) store(origin NodeID, l *Learned, p place, old *record) LearnResult {
	var number uint8
	if l.State != Confirmed {
		var ok bool
		if number, ok = m.proposer(origin); !ok {
			return LearnRefused
		}
	}
	if old != nil {
		m.uncount(old)
	}
	now := m.seconds()
	r := record{
		high: p.high, low: p.low, class: p.class, index: m.index, backend: l.Backend,
		since: now, seen: now, heard: now, state: l.State, proposer: number,
	}
	m.records.put(r)
	m.count(&r, 1)
	if r.proposer != 0 {
		m.proposers[r.proposer-1].unconfirmed++
		m.prefixes[p.prefix()]++
	}
	m.note(p, changeUpsert)
	return LearnStored
}

// proposer gives a node's number, from 1.
func (m *Machine) proposer(id NodeID) (uint8, bool) {
	free := -1
	for i := range m.proposers {
		if m.proposers[i].id == id {
			return uint8(i + 1), true
		}
		if free < 0 && m.proposers[i].unconfirmed == 0 {
			free = i
		}
	}
	switch {
	case free >= 0:
		m.proposers[free].id = id
	case len(m.proposers) < MaxProposers:
		free = len(m.proposers)
		m.proposers = append(m.proposers, proposer{id: id})
	default:
		return 0, false
	}
	return uint8(free + 1), true
}

func (m *Machine) seconds() uint32 { return uint32(m.spec.Now / second) }

// count adds d to the entries of the record's backend.
func (m *Machine) count(r *record, d int32) {
	b := &m.spec.Backends[m.spec.backendAt(r.backend)]
	full := b.Full()
	b.Entries[r.class-1] += uint32(d)
	b.fill()
	if b.Full() != full || b.Admin == AdminRemoved && b.Entries == [len(Classes)]uint32{} {
		m.unsettled = true
	}
}

// release gives an unconfirmed record's share of the budgets back.
func (m *Machine) release(r *record) {
	if r.proposer == 0 {
		return
	}
	m.proposers[r.proposer-1].unconfirmed--
	p := r.place()
	n := p.prefix()
	if m.prefixes[n]--; m.prefixes[n] == 0 {
		delete(m.prefixes, n)
	}
}

// uncount takes a record out of all counts, before it is removed or overwritten.
func (m *Machine) uncount(r *record) {
	m.release(r)
	m.count(r, -1)
}

func (m *Machine) drop(p place, r *record) {
	m.uncount(r)
	m.records.remove(&p)
	m.note(p, changeDelete)
}

// dropRecords removes the records of one class that name a backend.
func (m *Machine) dropRecords(id BackendID, c Class) {
	b, ok := m.spec.BackendByID(id)
	if !ok || b.Entries[c-1] == 0 {
		return
	}
	all := make([]place, 0, b.Entries[c-1])
	m.records.each(func(r *record) bool {
		if r.backend == id && r.class == c {
			all = append(all, r.place())
		}
		return true
	})
	for _, p := range all {
		m.drop(p, m.records.find(&p))
	}
}

// touch extends confirmed records; ID counts them.
func (m *Machine) touch(all []Touched) Outcome {
	if len(all) > MaxBatch {
		return refusal(Full, "%d records in one command are more than %d: send several commands", len(all), MaxBatch)
	}
	n := uint64(0)
	for i := range all {
		if m.touchOne(&all[i]) {
			n++
		}
	}
	return done(n)
}

func (m *Machine) touchOne(t *Touched) bool {
	p := placeOf(&t.Key)
	r := m.records.find(&p)
	if r == nil || r.index != t.Index || r.state != Confirmed {
		return false
	}
	at := m.spec.backendAt(r.backend)
	if !m.stance(at, r.class).Known() {
		return false
	}
	// No server behind DSR is ever heard: activity alone must do.
	heard := t.Heard || m.spec.Backends[at].Mode == ModeDSR
	active := m.seconds()
	active -= min(active, t.Age)
	unheard := uint64(m.spec.Settings.UnheardTimeout / time.Second)
	if !heard && uint64(active) > uint64(r.heard)+unheard {
		return false
	}
	if active <= r.seen && (!heard || active <= r.heard) {
		return false
	}
	r = m.records.edit(&p)
	r.seen = max(r.seen, active)
	if heard {
		r.heard = max(r.heard, active)
	}
	return true
}

// expire removes records whose time is up now, whoever says so; ID counts them.
func (m *Machine) expire(all []Expired) Outcome {
	if len(all) > MaxBatch {
		return refusal(Full, "%d records in one command are more than %d: send several commands", len(all), MaxBatch)
	}
	n := uint64(0)
	for i := range all {
		e := &all[i]
		p := placeOf(&e.Key)
		r := m.records.find(&p)
		if r == nil || r.index != e.Index || Time(r.seen)*second > e.Seen || !m.dead(r) {
			continue
		}
		m.drop(p, r)
		n++
	}
	return done(n)
}

// dead is Spec.Dead from the marks.
func (m *Machine) dead(r *record) bool {
	return !m.stance(m.spec.backendAt(r.backend), r.class).Known() || m.spec.Settings.outlivedRecord(r, m.spec.Now)
}

func (s *Settings) outlivedRecord(r *record, now Time) bool {
	if now.Sub(Time(r.seen)*second) >= s.Lifetime(r.state) {
		return true
	}
	return r.state == Confirmed && now.Sub(Time(r.heard)*second) >= s.UnheardTimeout
}

// forget removes records at an administrator's word; ID counts them.
func (m *Machine) forget(all []Key) Outcome {
	if len(all) > MaxBatch {
		return refusal(Full, "%d keys in one command are more than %d: send several commands", len(all), MaxBatch)
	}
	n := uint64(0)
	for i := range all {
		p := placeOf(&all[i])
		if r := m.records.find(&p); r != nil {
			m.drop(p, r)
			n++
		}
	}
	return done(n)
}
