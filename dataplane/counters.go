package dataplane

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Counters reads the per-CPU counters. It costs some tens of system calls.
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
	if err := p.readSlots(&c); err != nil {
		return c, err
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
		c.Events.AnswersWithheld += v.AnswersWithheld
		c.Events.TraceLost += v.TraceLost
	}
	c.Events.TablesMended = p.mended.Load()
	c.Events.PinsMended = p.repinned.Load()
	c.Events.AffinityFull = p.affinities.full()
	return c, nil
}

// readSlots reads all slots, not only those of the set: a total that was there
// must not seem to be 0 first and fresh traffic then, whether it was taken over
// or belongs to a slot that is used again. It is evidence that a server lives.
func (p *Plane) readSlots(c *Counters) error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return fmt.Errorf("count processors: %w", err)
	}
	m := p.coll.Maps["by_slot"]
	keys := make([]uint32, m.MaxEntries())
	values := make([]bpf.PlaneSlotState, len(keys)*cpus)
	var cursor ebpf.MapBatchCursor
	n, err := m.BatchLookup(&cursor, keys, values, nil)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) { // which says: that was all
		return fmt.Errorf("read counters of backends: %w", err)
	}
	for i, slot := range keys[:n] {
		for _, v := range values[i*cpus : (i+1)*cpus] {
			c.Returns[slot].ESP += v.Esp
			c.Returns[slot].SK += v.Sk
			c.In[slot].add(v.In)
			c.Out[slot].add(v.Out)
		}
	}
	return nil
}

func (c *Count) add(v bpf.PlaneCount) {
	c.Packets += v.Packets
	c.Bytes += v.Bytes
}
