package dataplane

import (
	"fmt"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Counters reads the per-CPU counters. It costs a few hundred system calls.
func (p *Plane) Counters() (Counters, error) {
	var c Counters
	p.reading.RLock()
	defer p.reading.RUnlock()
	if !p.attached.Load() {
		return c, ErrNotSynced
	}
	for r := range table.ReasonCount {
		var perCPU []bpf.PlaneCount
		if err := p.coll.Maps["counters"].Lookup(uint32(r), &perCPU); err != nil {
			return c, fmt.Errorf("read counters: %w", err)
		}
		for _, v := range perCPU {
			c.Reasons[r].Packets += v.Packets
			c.Reasons[r].Bytes += v.Bytes
		}
	}
	for _, slot := range p.countedSlots() {
		var perCPU []bpf.PlaneReturnCount
		if err := p.coll.Maps["returns"].Lookup(uint32(slot), &perCPU); err != nil {
			return c, fmt.Errorf("read return counters: %w", err)
		}
		for _, v := range perCPU {
			c.Returns[slot].ESP += v.Esp
			c.Returns[slot].SK += v.Sk
		}
	}
	var events []bpf.PlaneEvents
	if err := p.coll.Maps["event_counters"].Lookup(uint32(0), &events); err != nil {
		return c, fmt.Errorf("read event counters: %w", err)
	}
	for _, v := range events {
		c.Events.NextHopMiss += v.NextHopMiss
		c.Events.PendingWritten += v.PendingWritten
		c.Events.PendingFull += v.PendingFull
		c.Events.PartialRepaired += v.PartialRepaired
	}
	c.Events.AffinityFull = p.full.Load()
	return c, nil
}

// countedSlots lists the slots whose return counters are read: those of the
// set, or all while it is not known yet. A taken-over total must not seem to be
// 0 first and fresh traffic then: it is evidence that a server lives.
func (p *Plane) countedSlots() []table.Slot {
	var slots []table.Slot
	if set := p.set.Load(); set != nil {
		for _, b := range set.Backends {
			slots = append(slots, b.Slot)
		}
		return slots
	}
	for s := table.Slot(1); s <= table.MaxSlots; s++ {
		slots = append(slots, s)
	}
	return slots
}
