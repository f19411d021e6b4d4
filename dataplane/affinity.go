package dataplane

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/bucket"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// batchSize is how many elements one call to the kernel reads or writes, and the
// most that one Activity or Evidence delivery holds.
const batchSize = 4096

func nativeWord(b []byte) uint32 { return binary.NativeEndian.Uint32(b) }

// affinities are the tables of both families, in the memory that the program
// reads. Writing is for one goroutine at a time, reading for any.
type affinities struct {
	pages    [2][]byte // the mappings
	tables   [2]*bucket.Table
	capacity int // records of one family at the fill that is meant
}

// affinityMaps are the kernel's arrays, by family.
var affinityMaps = [2]string{"affinity4", "affinity6"}

var affinityFamilies = [2]bucket.Family{bucket.IPv4, bucket.IPv6}

// openAffinities maps the arrays and reads what they hold.
func openAffinities(coll *ebpf.Collection, seed uint64, now func() time.Time) (*affinities, error) {
	a := &affinities{}
	for i, family := range affinityFamilies {
		m := coll.Maps[affinityMaps[i]]
		size := int(m.MaxEntries()) * family.BucketBytes()
		page := os.Getpagesize()
		memory, err := unix.Mmap(m.FD(), 0, (size+page-1)/page*page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			a.Close()
			return nil, fmt.Errorf("map %s: %w", affinityMaps[i], err)
		}
		a.pages[i] = memory
		s := &stash{m: coll.Maps["affinity_stash"], family: family}
		if a.tables[i], err = bucket.New(memory[:size], family, seed, s, now); err != nil {
			a.Close()
			return nil, err
		}
	}
	a.capacity = int(bucket.Capacity(coll.Maps["affinity4"].MaxEntries(), bucket.IPv4))
	return a, nil
}

func (a *affinities) Close() {
	for i, memory := range a.pages {
		if memory != nil {
			unix.Munmap(memory)
			a.pages[i] = nil
		}
	}
}

func (a *affinities) count() int { return a.tables[0].Len() + a.tables[1].Len() }

// full counts the records that found no room.
func (a *affinities) full() uint64 { return a.tables[0].Full() + a.tables[1].Full() }

// of gives the table that a key belongs to.
func (a *affinities) of(k table.Key) *bucket.Table {
	if a.tables[0].Holds(k) {
		return a.tables[0]
	}
	return a.tables[1]
}

func (a *affinities) lookup(k table.Key) (bucket.Record, bool, error) { return a.of(k).Lookup(k) }
func (a *affinities) put(e table.Entry) error                         { return a.of(e.Key).Put(e) }
func (a *affinities) remove(k table.Key) error                        { return a.of(k).Remove(k) }

// putAll writes entries; a full table does not stop it.
func (a *affinities) putAll(entries iter.Seq[table.Entry]) error {
	var full error
	for e := range entries {
		err := a.put(e)
		if errors.Is(err, bucket.ErrFull) {
			full = ErrFull
		} else if err != nil {
			return err
		}
	}
	return full
}

// resync brings both tables to entries. It writes now and gives what is to be
// deleted, for after the flip.
func (a *affinities) resync(entries iter.Seq[table.Entry]) (stale []table.Key, err error) {
	var full error
	for _, t := range a.tables {
		old, err := t.Resync(entries)
		if errors.Is(err, bucket.ErrFull) {
			full = ErrFull
		} else if err != nil {
			return nil, err
		}
		stale = append(stale, old...)
	}
	return stale, full
}

// all walks the records of both families; an error comes last.
func (a *affinities) all() iter.Seq2[bucket.Record, error] {
	return func(yield func(bucket.Record, error) bool) {
		for _, t := range a.tables {
			for r, err := range t.All() {
				if !yield(r, err) {
					return
				}
			}
		}
	}
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
	window := uint16(bucket.StaleTicks)
	if s.begun {
		window = bucket.Window(now, s.last)
	}
	deliver := func(seen []bucket.Seen) error {
		active := make([]table.Activity, len(seen))
		for i, r := range seen {
			active[i] = table.Activity{Key: r.Key, Slot: r.Slot, Heard: r.Heard, Age: uint32(p.clock.ticks(r.Age) / time.Second)}
		}
		select {
		case p.activity <- active:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, t := range p.affinities.tables {
		if err := t.Sweep(now, window, deliver); err != nil {
			return err
		}
	}
	s.last, s.begun = now, true
	return nil
}

// stash is the kernel's small hash map behind the tables, one family's part.
type stash struct {
	m      *ebpf.Map
	family bucket.Family
}

// Lookup implements bucket.Stash.
func (s *stash) Lookup(k table.Key) (word uint64, ok bool, err error) {
	key := keyOf(k)
	err = s.m.Lookup(&key, &word)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, false, nil
	}
	return word, err == nil, err
}

// Put implements bucket.Stash.
func (s *stash) Put(k table.Key, word uint64) error {
	key := keyOf(k)
	err := s.m.Put(&key, word)
	if errors.Is(err, unix.E2BIG) || errors.Is(err, unix.ENOMEM) {
		return fmt.Errorf("%w: %w", bucket.ErrFull, err)
	}
	return err
}

// Delete implements bucket.Stash.
func (s *stash) Delete(k table.Key) error {
	key := keyOf(k)
	if err := s.m.Delete(&key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return err
	}
	return nil
}

// Walk implements bucket.Stash.
func (s *stash) Walk(f func(table.Key, uint64) bool) error {
	for b := range mapBatches[bpf.PlaneClientKey, uint64](s.m) {
		if b.err != nil {
			return b.err
		}
		for i, k := range b.keys {
			key := table.Key{Client: k.Client, Class: table.Class(k.Class)}
			if (s.family == bucket.IPv4) == mapped(key) && !f(key, b.values[i]) {
				return nil
			}
		}
	}
	return nil
}

var mappedPrefix = [12]byte{10: 0xff, 11: 0xff}

// mapped reports whether a key is an IPv4 client's.
func mapped(k table.Key) bool { return [12]byte(k.Client[:12]) == mappedPrefix }

func keyOf(k table.Key) bpf.PlaneClientKey {
	return bpf.PlaneClientKey{Client: k.Client, Class: uint8(k.Class)}
}

type mapBatch[K, V any] struct {
	keys   []K
	values []V
	err    error
}

// mapBatches walks a hash map by batches; an error comes last.
func mapBatches[K, V any](m *ebpf.Map) iter.Seq[mapBatch[K, V]] {
	return func(yield func(mapBatch[K, V]) bool) {
		size := min(batchSize, int(m.MaxEntries()))
		keys, values := make([]K, size), make([]V, size)
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
