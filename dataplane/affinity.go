package dataplane

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// batchSize is how many elements one call to the kernel reads or writes, and the
// most that one Activity or Evidence delivery holds.
const batchSize = 4096

// staleTicks is the age at which the sweep clears a tick, well before 16 bits
// wrap; the sweep must come by once in the rest (12 h and more).
const staleTicks = 1 << 14

var mappedPrefix = [12]byte{10: 0xff, 11: 0xff}

// affinities writes the affinity map. Not safe for several goroutines.
type affinities struct {
	m     *ebpf.Map
	full  uint64 // entries that found no room
	count int
}

// key4 gives the kernel's key of an IPv4 client; false: another family.
func key4(k table.Key) (bpf.PlaneAffinity4Key, bool) {
	if [12]byte(k.Client[:12]) != mappedPrefix {
		return bpf.PlaneAffinity4Key{}, false
	}
	return bpf.PlaneAffinity4Key{Client: nativeWord(k.Client[12:]), Class: uint8(k.Class)}, true
}

func keyOf(k bpf.PlaneAffinity4Key) table.Key {
	out := table.Key{Class: table.Class(k.Class)}
	copy(out.Client[:], mappedPrefix[:])
	putNativeWord(out.Client[12:], k.Client)
	return out
}

// lookup reads one record.
func (a *affinities) lookup(k table.Key) (v bpf.PlaneAffinity, ok bool, err error) {
	key, is4 := key4(k)
	if !is4 {
		return v, false, nil
	}
	err = a.m.Lookup(&key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("read affinity entry: %w", err)
	}
	return v, true, nil
}

// put writes one record. Ticks go on while the server stays; a tick that the
// program stores between this read and the write is lost, and the client's next
// packet stores it again.
func (a *affinities) put(e table.Entry) error {
	key, is4 := key4(e.Key)
	if !is4 {
		return nil
	}
	have, found, err := a.lookup(e.Key)
	if err != nil {
		return err
	}
	want := bpf.PlaneAffinity{Slot: uint16(e.Slot), State: uint8(e.State), ClientTick: have.ClientTick}
	if found && have.Slot == want.Slot {
		want.ServerTick = have.ServerTick
	}
	if found && have == want {
		return nil
	}
	if err := a.m.Put(&key, &want); err != nil {
		if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) {
			a.full++
			return ErrFull
		}
		return fmt.Errorf("write affinity entry: %w", err)
	}
	if !found {
		a.count++
	}
	return nil
}

func (a *affinities) remove(k table.Key) error {
	key, is4 := key4(k)
	if !is4 {
		return nil
	}
	err := a.m.Delete(&key)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("delete affinity entry: %w", err)
	}
	a.count--
	return nil
}

// putAll writes entries; ErrFull does not stop it.
func (a *affinities) putAll(entries iter.Seq[table.Entry]) error {
	var full error
	for e := range entries {
		err := a.put(e)
		if errors.Is(err, ErrFull) {
			full = ErrFull
		} else if err != nil {
			return err
		}
	}
	return full
}

type mapBatch[K, V any] struct {
	keys   []K
	values []V
	err    error
}

// mapBatches walks a hash map by batches; an error comes last.
func mapBatches[K, V any](m *ebpf.Map) iter.Seq[mapBatch[K, V]] {
	return func(yield func(mapBatch[K, V]) bool) {
		keys, values := make([]K, batchSize), make([]V, batchSize)
		var cursor ebpf.MapBatchCursor
		for {
			n, err := m.BatchLookup(&cursor, keys, values, nil)
			end := errors.Is(err, ebpf.ErrKeyNotExist)
			if n > 0 && !yield(mapBatch[K, V]{keys: keys[:n], values: values[:n]}) {
				return
			}
			if err != nil {
				if !end {
					yield(mapBatch[K, V]{err: fmt.Errorf("walk map %s: %w", m.String(), err)})
				}
				return
			}
		}
	}
}

// resync brings the map to entries. It writes now and gives what is to be
// deleted, for after the flip.
func (a *affinities) resync(entries iter.Seq[table.Entry]) (stale []table.Key, err error) {
	have := make(map[bpf.PlaneAffinity4Key]bpf.PlaneAffinity)
	for b := range mapBatches[bpf.PlaneAffinity4Key, bpf.PlaneAffinity](a.m) {
		if b.err != nil {
			return nil, b.err
		}
		for i, k := range b.keys {
			have[k] = b.values[i]
		}
	}
	a.count = len(have)
	var full error
	for e := range entries {
		key, is4 := key4(e.Key)
		if !is4 {
			continue
		}
		v, found := have[key]
		delete(have, key)
		if found && v.Slot == uint16(e.Slot) && v.State == uint8(e.State) {
			continue
		}
		err := a.put(e)
		if errors.Is(err, ErrFull) {
			full = ErrFull
		} else if err != nil {
			return nil, err
		}
	}
	for k := range have {
		stale = append(stale, keyOf(k))
	}
	return stale, full
}

// sweeper turns ticks into activity.
type sweeper struct {
	last  uint16 // tick at which the last complete sweep began
	begun bool   // there was one
}

// sweep walks all records once and delivers those with packets since the last
// sweep began.
func (p *Plane) sweep(ctx context.Context, s *sweeper) error {
	now, err := p.clock.tick()
	if err != nil {
		return err
	}
	window := uint16(staleTicks)
	if s.begun {
		// One more: the tick in which the last sweep began goes on after it.
		window = min(now-s.last+1, staleTicks)
	}
	var stale []table.Key
	for b := range mapBatches[bpf.PlaneAffinity4Key, bpf.PlaneAffinity](p.affinities.m) {
		if b.err != nil {
			return b.err
		}
		active := make([]table.Activity, 0, len(b.keys))
		for i, k := range b.keys {
			client, okC := tickAge(now, b.values[i].ClientTick)
			server, okS := tickAge(now, b.values[i].ServerTick)
			if okC && client > staleTicks || okS && server > staleTicks {
				stale = append(stale, keyOf(k))
			}
			heard := okS && server < window
			if !heard && (!okC || client >= window) {
				continue
			}
			age := client
			if !okC || okS && server < client {
				age = server
			}
			active = append(active, table.Activity{Key: keyOf(k), Slot: table.Slot(b.values[i].Slot),
				Heard: heard, Age: uint32(p.clock.ticks(age) / time.Second)})
		}
		if len(active) == 0 {
			continue
		}
		select {
		case p.activity <- active:
		case <-ctx.Done():
			return nil
		}
	}
	if err := p.clearTicks(stale, now); err != nil {
		return err
	}
	s.last, s.begun = now, true
	return nil
}

// tickAge gives how long ago a tick was; false: never. A tick of the future is
// another CPU's, a moment ahead.
func tickAge(now, tick uint16) (uint16, bool) {
	if tick == 0 {
		return 0, false
	}
	age := now - tick
	if age > 1<<16-16 {
		age = 0
	}
	return age, true
}

// clearTicks forgets ticks that would soon look new again.
func (p *Plane) clearTicks(keys []table.Key, now uint16) error {
	p.writer.Lock()
	defer p.writer.Unlock()
	for _, k := range keys {
		v, found, err := p.affinities.lookup(k)
		if err != nil {
			return err
		}
		if !found {
			continue
		}
		if age, ok := tickAge(now, v.ClientTick); ok && age > staleTicks {
			v.ClientTick = 0
		}
		if age, ok := tickAge(now, v.ServerTick); ok && age > staleTicks {
			v.ServerTick = 0
		}
		key, _ := key4(k)
		if err := p.affinities.m.Update(&key, &v, ebpf.UpdateExist); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("clear ticks: %w", err)
		}
	}
	return nil
}
