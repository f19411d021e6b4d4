package bucket

import (
	"errors"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

func TestAgeAndWindow(t *testing.T) {
	for _, c := range []struct {
		now, tick, age uint16
		ok             bool
	}{
		{5, 0, 0, false}, {5, 5, 0, true}, {5, 3, 2, true}, {5, 6, 0, true}, {5, 18, 0, true},
		{5, 21, TickMask + 1 - 16, true}, {1, 0x7fff, 2, true}, {0x7fff, 1, 0, true},
	} {
		if age, ok := Age(c.now, c.tick); age != c.age || ok != c.ok {
			t.Errorf("at %d, tick %d: age %d, %v, want %d, %v", c.now, c.tick, age, ok, c.age, c.ok)
		}
	}
	if Window(10, 10) != 1 || Window(3, 0x7ffe) != 6 || Window(30000, 1) != StaleTicks {
		t.Error(Window(10, 10), Window(3, 0x7ffe), Window(30000, 1))
	}
	if Tick(0) != 1 || Tick(1<<15) != 1 || Tick(1<<15+5) != 5 || Tick(0xffff) != 0x7fff {
		t.Error("ticks are cut wrongly")
	}
}

func TestSweep(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		b := newBed(t, f, 2, 20)
		n := 2*f.ways() + 16 // so that each kind is in the stash too
		const now = 20000
		kind := func(i int) (tick uint16, heard bool) {
			switch i % 8 {
			case 0:
				return now - 2, true
			case 1:
				return now - 3, false
			case 2: // before the last sweep
				return now - 10, false
			case 3: // as 2, but not delivered then
				return now - 11, true
			case 4: // of another CPU
				return now + 1, false
			case 5: // old
				return now - StaleTicks - 1, true
			case 6: // not old yet
				return now - StaleTicks, false
			}
			return 0, false
		}
		slots := map[table.Key]int{}
		for i := range n {
			k := client(f, i)
			slots[k] = i + 1
			if err := b.Put(entry(k, table.Slot(i+1))); err != nil {
				t.Fatal(err)
			}
			tick, heard := kind(i)
			b.setTick(t, k, tick, heard)
		}
		broken := errors.New("broken")
		if err := b.Sweep(now, 10, func([]Seen) error { return broken }); err != broken {
			t.Fatal(err)
		}
		got := map[table.Key]Seen{}
		collect := func(batch []Seen) error {
			for _, s := range batch {
				got[s.Key] = s
			}
			return nil
		}
		if err := b.Sweep(now, 10, collect); err != nil {
			t.Fatal(err)
		}
		for k, slot := range slots {
			i := slot - 1
			tick, heard := kind(i)
			want, ok := Seen{Key: k, Slot: table.Slot(slot), Heard: heard}, true
			switch i % 8 {
			case 0, 1, 3:
				want.Age = now - tick
			case 4:
			default:
				want, ok = Seen{}, false
			}
			if s, found := got[k]; s != want || found != ok {
				t.Errorf("client %d, kind %d: %+v, want %+v", i, i%8, s, want)
			}
			if i%8 == 5 {
				tick = 0
			}
			b.want(t, k, Record{entry(k, table.Slot(slot)), tick, false}, true)
		}
		clear(got)
		if err := b.Sweep(now+1, Window(now+1, now), collect); err != nil {
			t.Fatal(err)
		}
		for k, s := range got {
			if (slots[k]-1)%8 != 4 || s.Heard {
				t.Errorf("told again: %+v", s)
			}
		}
	})
}

// What was delivered is cleared from the record it was delivered of, not from
// one that came in its place meanwhile.
func TestSweepMeetsWriter(t *testing.T) {
	b := newBed(t, IPv4, 2, 4)
	for i := range 16 {
		if err := b.Put(entry(client(IPv4, i), 1)); err != nil {
			t.Fatal(err)
		}
		b.setTick(t, client(IPv4, i), 9, true)
	}
	err := b.Sweep(9, 5, func([]Seen) error {
		for i := range 16 {
			k := client(IPv4, i)
			if i%2 == 0 {
				if err := b.Put(entry(k, 2)); err != nil {
					return err
				}
			}
			b.setTick(t, k, 10, true)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 16 {
		k := client(IPv4, i)
		if i%2 == 0 {
			b.want(t, k, Record{entry(k, 2), 10, true}, true)
		} else {
			b.want(t, k, Record{entry(k, 1), 10, false}, true)
		}
	}
}

func TestSweepBatches(t *testing.T) {
	const n = 2*SweepBatch + 100
	b := newBed(t, IPv4, int(Buckets(n, IPv4)), 100)
	for i := range n {
		if err := b.Put(entry(client(IPv4, i), 1)); err != nil {
			t.Fatal(err)
		}
		b.setTick(t, client(IPv4, i), 5, true)
	}
	var sizes []int
	for range 2 {
		if err := b.Sweep(5, 1, func(s []Seen) error { sizes = append(sizes, len(s)); return nil }); err != nil {
			t.Fatal(err)
		}
	}
	if len(sizes) != 6 || sizes[0] != SweepBatch || sizes[2] != 100 {
		t.Errorf("batches of %v", sizes)
	}
}
