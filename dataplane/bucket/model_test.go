package bucket

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// modelRun drives a table and a plain map with the same random calls.
type modelRun struct {
	*bed
	f    Family
	rng  *rand.Rand
	want map[table.Key]Record
	keys []table.Key
	full uint64
}

func TestAgainstModel(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		full := uint64(0)
		defer func() {
			if full == 0 {
				t.Error("never full: the test is too easy")
			}
		}()
		for seed := range uint64(20) {
			t.Run(fmt.Sprint(seed), func(t *testing.T) {
				buckets := 2 + int(seed%5)
				m := &modelRun{bed: newBed(t, f, buckets, int(seed%7)), f: f, rng: rand.New(rand.NewPCG(seed, 1)), want: map[table.Key]Record{}}
				for i := range buckets * f.ways() * 2 / 3 {
					k := client(f, i)
					m.keys = append(m.keys, k)
					k.Class = table.TCP
					m.keys = append(m.keys, k)
				}
				for range 4000 {
					m.step(t)
				}
				full += m.full
			})
		}
	})
}

func (m *modelRun) key() table.Key { return m.keys[m.rng.IntN(len(m.keys))] }

func (m *modelRun) entry(k table.Key) table.Entry {
	return table.Entry{Key: k, Slot: table.Slot(1 + m.rng.IntN(3)), State: table.Confirmation(1 + m.rng.IntN(3))}
}

func (m *modelRun) step(t *testing.T) {
	m.clock.advance(time.Duration(m.rng.IntN(40)) * time.Millisecond)
	k := m.key()
	switch m.rng.IntN(40) {
	default:
		m.putOne(t, m.entry(k))
	case 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30:
		if err := m.Remove(k); err != nil {
			t.Fatal(err)
		}
		delete(m.want, k)
	case 31, 32, 33, 34:
		if r, ok := m.want[k]; ok {
			r.Tick, r.Heard = uint16(1+m.rng.IntN(TickMask)), m.rng.IntN(2) == 0
			m.setTick(t, k, r.Tick, r.Heard)
			m.want[k] = r
		}
	case 35:
		m.sweepAll(t)
	case 36:
		m.resyncAll(t)
	case 37:
		// The writer died: the next one finds what it left.
		m.reopen(t, m.f)
		m.full = 0
		if m.Mended() != 0 {
			t.Fatalf("%d words were not as they should", m.Mended())
		}
	}
	m.compare(t, k)
}

func (m *modelRun) putOne(t *testing.T, e table.Entry) {
	have, found := m.want[e.Key]
	switch err := m.Put(e); {
	case errors.Is(err, ErrFull) && !found && len(m.stash.m) == m.stash.limit:
		m.full++
	case err != nil:
		t.Fatal(err)
	default:
		m.accept(e, have)
	}
}

func (m *modelRun) accept(e table.Entry, have Record) {
	m.want[e.Key] = Record{Entry: e, Tick: have.Tick, Heard: have.Heard && have.Slot == e.Slot}
}

func (m *modelRun) sweepAll(t *testing.T) {
	now := uint16(1 + m.rng.IntN(TickMask))
	seen := map[table.Key]Seen{}
	err := m.Sweep(now, StaleTicks, func(batch []Seen) error {
		for _, s := range batch {
			seen[s.Key] = s
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for k, r := range m.want {
		age, ok := Age(now, r.Tick)
		if ok = ok && age <= StaleTicks; !ok {
			r.Tick = 0
		} else if age < StaleTicks || r.Heard {
			if s := seen[k]; s != (Seen{Key: k, Slot: r.Slot, Heard: r.Heard, Age: age}) {
				t.Fatalf("swept %+v of %+v at %d", s, r, now)
			}
			delete(seen, k)
		}
		r.Heard = false
		m.want[k] = r
	}
	if len(seen) != 0 {
		t.Fatalf("swept too much: %v", seen)
	}
}

func (m *modelRun) resyncAll(t *testing.T) {
	desired := map[table.Key]table.Entry{}
	for _, k := range m.keys {
		if m.rng.IntN(2) == 0 {
			desired[k] = m.entry(k)
		}
	}
	stale, err := m.Resync(maps.Values(desired))
	if err != nil && !errors.Is(err, ErrFull) {
		t.Fatal(err)
	}
	full := 0
	for k, e := range desired {
		have, found := m.want[k]
		if _, in, _ := m.Lookup(k); !in {
			if found {
				t.Fatal("a record that was there is gone")
			}
			full++
			continue
		}
		m.accept(e, have)
	}
	if (full > 0) != (err != nil) {
		t.Fatalf("%d entries found no room: %v", full, err)
	}
	m.full += uint64(full)
	for k := range m.want {
		if _, keep := desired[k]; keep == slices.Contains(stale, k) {
			t.Fatalf("%v: wanted %v, stale %v", k, keep, !keep)
		}
	}
	for _, k := range stale {
		if err := m.Remove(k); err != nil {
			t.Fatal(err)
		}
		delete(m.want, k)
	}
}

func (m *modelRun) compare(t *testing.T, k table.Key) {
	r, ok := m.want[k]
	m.bed.want(t, k, r, ok)
	if m.Len() != len(m.want) || m.Full() != m.full {
		t.Fatalf("%d records, %d full, want %d, %d", m.Len(), m.Full(), len(m.want), m.full)
	}
	if m.rng.IntN(10) != 0 {
		return
	}
	n := 0
	for r, err := range m.All() {
		if n++; err != nil || m.want[r.Key] != r {
			t.Fatalf("walk: %+v, %v, want %+v", r, err, m.want[r.Key])
		}
	}
	if n != len(m.want) {
		t.Fatalf("walked %d of %d", n, len(m.want))
	}
	seconds, stashed := 0, 0
	for b := range m.n {
		seconds += int(m.overflow(b) & overflowMax)
		stashed += int(m.overflow(b) >> 16)
	}
	for at, w := range m.occupied() {
		k, _ := m.keyAt(at, w)
		if s, _ := m.spotOf(k); int(s.first) != at/m.family.stride() {
			seconds--
		}
	}
	if seconds != 0 || stashed != len(m.stash.m) {
		t.Fatalf("overflow counts are off by %d and %d", seconds, stashed-len(m.stash.m))
	}
}
