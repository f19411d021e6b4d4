package state

import (
	"fmt"
	"slices"
	"time"
)

func (m *Machine) putBackend(c *PutBackend) Outcome {
	b := c.Backend
	at := -1
	if b.ID != 0 {
		if at = m.spec.backendAt(b.ID); at < 0 {
			return refusal(NotFound, "there is no backend %d", b.ID)
		}
	} else if old, ok := m.spec.BackendByName(b.Name); ok && old.Admin != AdminRemoved {
		at = m.spec.backendAt(old.ID)
	}
	if fault := nameFault("backend", b.Name); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if b.Weight > MaxWeight {
		return refusal(Invalid, "backend %s has weight %d: at most %d", b.Name, b.Weight, MaxWeight)
	}
	if b.Mode > ModeDSR {
		return refusal(Invalid, "backend %s has no mode %d: dnat or dsr", b.Name, b.Mode)
	}
	if b.Certificate != "" {
		if _, ok := m.spec.CertificateByName(b.Certificate); !ok {
			return refusal(Invalid, "backend %s names certificate %s, which does not exist: add it first", b.Name, b.Certificate)
		}
	}
	if at >= 0 {
		return m.changeBackend(&m.spec.Backends[at], &b, c.Expect)
	}
	if c.Expect != 0 {
		return refusal(NotFound, "there is no backend %s any more: add it again", b.Name)
	}
	return m.addBackend(b)
}

// changeBackend sets what is not fixed. VIP and address are what records
// and return rules hang on: they stay.
func (m *Machine) changeBackend(old, b *Backend, expect uint64) Outcome {
	switch other, taken := m.spec.BackendByName(b.Name); {
	case expect != old.Version:
		return conflict("backend", old.Name, expect, old.Version)
	case old.Admin == AdminRemoved:
		return refusal(Invalid, "backend %s is removed: add its address again to revive it", old.Name)
	case b.Addr.IsValid() && b.Addr != old.Addr:
		return refusal(Invalid, "backend %s has address %v for good: add another backend for %v and remove this one", old.Name, old.Addr, b.Addr)
	case b.VIP != 0 && b.VIP != old.VIP:
		return refusal(Invalid, "backend %s stays behind its VIP: remove it there and add it to the other one", old.Name)
	case taken && other.Admin != AdminRemoved && other.ID != old.ID:
		return refusal(Invalid, "backend name %s is taken: choose another", b.Name)
	case b.Mode != old.Mode && old.named() > 0:
		return refusal(Invalid, "backend %s stays in mode %v while %d records name it: drain it first, or remove it with --purge and add it again", old.Name, old.Mode, old.named())
	}
	old.set(b)
	old.Version = m.index
	m.changed, m.unsettled = true, true
	return done(uint64(old.ID))
}

// set takes what an administrator may change.
func (b *Backend) set(to *Backend) {
	b.Name, b.Mode, b.Weight, b.Limit = to.Name, to.Mode, to.Weight, to.Limit
	b.SSTPPort, b.Certificate = to.SSTPPort, to.Certificate
	b.fill()
}

// named counts the records of all classes that name b.
func (b *Backend) named() (n uint32) {
	for _, e := range b.Entries {
		n += e
	}
	return n
}

func (m *Machine) addBackend(b Backend) Outcome {
	if fault := m.backendFault(&b); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if old, ok := m.spec.BackendByAddr(b.Addr); ok {
		switch {
		case old.Admin != AdminRemoved:
			v, _ := m.spec.VIPByID(old.VIP)
			return refusal(Invalid, "backend address %v belongs to backend %s of VIP %s: a server stands behind one VIP only (replies have one source), remove it there first", b.Addr, old.Name, v.Name)
		case old.VIP == b.VIP && old.Mode != b.Mode && !old.Purged:
			return refusal(Invalid, "backend address %v is still named by %d records in mode %v: wait for them, or remove %s again with --purge", b.Addr, old.named(), old.Mode, old.Name)
		case old.VIP == b.VIP:
			return m.revive(old, &b)
		case !old.Purged:
			v, _ := m.spec.VIPByID(old.VIP)
			return refusal(Invalid, "backend address %v is still named by %d clients of VIP %s: wait for them or remove %s again with --purge", b.Addr, old.named(), v.Name, old.Name)
		}
		m.dropAll(old.ID) // purged: what is left names it in vain
		m.reap()
	}
	slot := m.freeSlot()
	if slot == 0 {
		return refusal(Full, "%d backends are the most a cluster has, removed ones that clients still name included: purge one first", MaxBackends)
	}
	m.last.slot = slot
	m.last.backend++
	added := Backend{
		ID: m.last.backend, VIP: b.VIP, Name: b.Name, Addr: b.Addr, Slot: slot,
		Mode: b.Mode, Weight: b.Weight, Limit: b.Limit, Admin: AdminEnabled, Version: m.index,
		SSTPPort: b.SSTPPort, Certificate: b.Certificate,
	}
	for i := range added.Health {
		added.Health[i].Since = m.spec.Now
	}
	m.spec.Backends = append(m.spec.Backends, added)
	m.changed, m.unsettled = true, true
	return done(uint64(added.ID))
}

func (m *Machine) backendFault(b *Backend) string {
	if fault := addrFault("backend", b.Addr); fault != "" {
		return fault
	}
	v, ok := m.spec.VIPByID(b.VIP)
	if !ok {
		return fmt.Sprintf("backend %s names VIP %d, which does not exist: add the VIP first", b.Name, b.VIP)
	}
	if v.Addr.Is4() != b.Addr.Is4() {
		return fmt.Sprintf("backend %s has address %v, but VIP %s has %v: both must be of one family", b.Name, b.Addr, v.Name, v.Addr)
	}
	if o, ok := m.spec.VIPByAddr(b.Addr); ok {
		return fmt.Sprintf("address %v is VIP %s: a backend needs an address of its own", b.Addr, o.Name)
	}
	if _, ok := m.spec.GatewayByAddr(b.Addr); ok {
		return fmt.Sprintf("address %v is a gateway: a backend needs an address of its own", b.Addr)
	}
	for i := range m.spec.Members {
		if slices.Contains(m.spec.Members[i].Addrs, b.Addr) {
			return fmt.Sprintf("address %v belongs to node %s: a backend needs an address of its own", b.Addr, m.spec.Members[i].Name)
		}
	}
	return ""
}

// revive takes a removed backend back: same ID, slot, records and verdicts.
// What a purge voided stays forgotten.
func (m *Machine) revive(old, b *Backend) Outcome {
	if old.Purged {
		m.dropAll(old.ID)
	}
	old.set(b)
	old.Admin, old.Purged, old.Version = AdminEnabled, false, m.index
	m.changed, m.unsettled = true, true
	return done(uint64(old.ID))
}

func (m *Machine) dropAll(id BackendID) {
	for _, c := range Classes {
		m.dropRecords(id, c)
	}
}

// freeSlot searches on from the slot given out last, so that a freed one rests
// for as long as possible; 0 when none is free.
func (m *Machine) freeSlot() Slot {
	var used [MaxBackends + 1]bool
	for i := range m.spec.Backends {
		used[m.spec.Backends[i].Slot] = true
	}
	for i := range Slot(MaxBackends) {
		if slot := (m.last.slot+i)%MaxBackends + 1; !used[slot] {
			return slot
		}
	}
	return 0
}

func (m *Machine) setBackendAdmin(c *SetBackendAdmin) Outcome {
	b, ok := m.spec.BackendByID(c.ID)
	switch {
	case !ok:
		return refusal(NotFound, "there is no backend %d", c.ID)
	case stale(c.Expect, b.Version):
		return conflict("backend", b.Name, c.Expect, b.Version)
	case c.Admin != AdminEnabled && c.Admin != AdminDrain && c.Admin != AdminOffline:
		return refusal(Invalid, "backend %s cannot be set to admin state %d: enable, drain, offline or remove it", b.Name, c.Admin)
	case b.Admin == AdminRemoved:
		return refusal(Invalid, "backend %s is removed: add its address again to revive it", b.Name)
	}
	if b.Admin != c.Admin {
		b.Admin, b.Version = c.Admin, m.index
		m.changed, m.unsettled = true, true
	}
	return done(uint64(b.ID))
}

func (m *Machine) removeBackend(c *RemoveBackend) Outcome {
	b, ok := m.spec.BackendByID(c.ID)
	switch {
	case !ok:
		return refusal(NotFound, "there is no backend %d", c.ID)
	case stale(c.Expect, b.Version):
		return conflict("backend", b.Name, c.Expect, b.Version)
	}
	if b.Admin != AdminRemoved || c.Purge && !b.Purged {
		b.Admin, b.Version = AdminRemoved, m.index
		b.Purged = b.Purged || c.Purge
		b.Certificate = "" // it gets no connection any more
		m.changed, m.unsettled = true, true
	}
	return done(uint64(c.ID))
}

func (m *Machine) setHealth(c *SetHealth) Outcome {
	b, ok := m.spec.BackendByID(c.Backend)
	switch {
	case !ok:
		return refusal(NotFound, "there is no backend %d", c.Backend)
	case c.Class < 1 || int(c.Class) > len(Classes):
		return refusal(Invalid, "there is no service class %d", c.Class)
	case c.Verdict > VerdictDown:
		return refusal(Invalid, "there is no verdict %d", c.Verdict)
	}
	h := &b.Health[c.Class-1]
	if h.Index != c.Previous {
		return refusal(Conflict, "the %v verdict of backend %s was set at index %d, not %d: judge again", c.Class, b.Name, h.Index, c.Previous)
	}
	if h.Verdict == c.Verdict {
		return done(uint64(b.ID))
	}
	h.Verdict, h.Index, h.Since = c.Verdict, m.index, m.spec.Now
	if c.Verdict == VerdictUp {
		h.UpSince = m.spec.Now
		if h.Voided != 0 {
			m.dropRecords(b.ID, c.Class) // voided for good: they must not count again
			h.Voided = 0
		}
	}
	m.changed, m.unsettled = true, true
	return done(uint64(b.ID))
}

func (m *Machine) voidBackend(c *VoidBackend) Outcome {
	b, ok := m.spec.BackendByID(c.Backend)
	switch {
	case !ok:
		return refusal(NotFound, "there is no backend %d", c.Backend)
	case c.Class < 1 || int(c.Class) > len(Classes):
		return refusal(Invalid, "there is no service class %d", c.Class)
	}
	h := &b.Health[c.Class-1]
	if h.Index != c.Previous {
		return refusal(Conflict, "the %v verdict of backend %s was set at index %d, not %d: judge again", c.Class, b.Name, h.Index, c.Previous)
	}
	if h.Voided != 0 {
		return done(uint64(b.ID))
	}
	if fault := m.spec.voidFault(b, c.Class, m.spec.Now); fault != "" {
		return refusal(NotAllowed, "%s", fault)
	}
	h.Voided = m.index
	m.changed, m.unsettled = true, true
	return done(uint64(b.ID))
}

// voidFault says why the entries of b may not be voided; "" when they may.
func (s *Spec) voidFault(b *Backend, c Class, now Time) string {
	if c < 1 || int(c) > len(Classes) {
		return fmt.Sprintf("there is no service class %d", c)
	}
	h := &b.Health[c-1]
	switch {
	case b.Mode == ModeDSR:
		return fmt.Sprintf("backend %s is in mode DSR: a verdict down voids its records at once", b.Name)
	case h.Verdict != VerdictDown:
		return fmt.Sprintf("backend %s is not down for %v: its clients stay", b.Name, c)
	case h.Voided != 0:
		return fmt.Sprintf("the %v entries of backend %s are void already", c, b.Name)
	case now.Sub(h.Since) < s.Settings.VoidAfter:
		return fmt.Sprintf("backend %s is down for %v since %v only: wait until it is %v", b.Name, c, now.Sub(h.Since).Truncate(time.Second), s.Settings.VoidAfter)
	case !s.pool(b.VIP, c).taken:
		return fmt.Sprintf("no other backend takes the %v clients of backend %s: voiding would only forget where they are", c, b.Name)
	}
	return ""
}
