package bucket

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// mapStash is a Stash of a Go map with a limit.
type mapStash struct {
	mu    sync.Mutex
	m     map[table.Key]uint64
	limit int
	err   error // what every call says, if set
}

func newStash(limit int) *mapStash { return &mapStash{m: map[table.Key]uint64{}, limit: limit} }

func (s *mapStash) Lookup(k table.Key) (uint64, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w, ok := s.m[k]
	return w, ok, s.err
}

func (s *mapStash) Put(k table.Key, w uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.m[k]; !ok && len(s.m) >= s.limit {
		return fmt.Errorf("stash: %w", ErrFull)
	}
	s.m[k] = w
	return s.err
}

func (s *mapStash) Delete(k table.Key) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, k)
	return s.err
}

func (s *mapStash) Walk(f func(table.Key, uint64) bool) error {
	s.mu.Lock()
	all := maps.Clone(s.m)
	s.mu.Unlock()
	for k, w := range all {
		if !f(k, w) {
			break
		}
	}
	return s.err
}

// aligned gives zeroed memory for buckets, as a mapping would be.
func aligned(bytes int) []byte {
	words := make([]uint64, bytes/8+8)
	raw := unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), len(words)*8)
	skip := -int(uintptr(unsafe.Pointer(&words[0]))) & 63
	return raw[skip : skip+bytes : skip+bytes]
}

// clock is a hand-set time.
type clock struct{ at time.Time }

func (c *clock) now() time.Time          { return c.at }
func (c *clock) advance(d time.Duration) { c.at = c.at.Add(d) }

type bed struct {
	*Table
	mem   []byte
	stash *mapStash
	clock *clock
}

const testSeed = 0x0123456789abcdef

func newBed(t testing.TB, f Family, buckets, stash int) *bed {
	t.Helper()
	b := &bed{mem: aligned(buckets * f.BucketBytes()), stash: newStash(stash), clock: &clock{at: time.Unix(1000, 0)}}
	b.reopen(t, f)
	return b
}

func (b *bed) reopen(t testing.TB, f Family) {
	t.Helper()
	var err error
	if b.Table, err = New(b.mem, f, testSeed, b.stash, b.clock.now); err != nil {
		t.Fatal(err)
	}
}

// client gives the i-th client key of a family.
func client(f Family, i int) table.Key {
	a := netip.AddrFrom4([4]byte{198, 18 + byte(i>>16&1), byte(i >> 8), byte(i)}).As16()
	if f == IPv6 {
		a = netip.MustParseAddr("2001:db8::").As16()
		a[4], a[5], a[6], a[7] = byte(i>>24), byte(i>>16), byte(i>>8), byte(i)
	}
	return table.Key{Client: a, Class: table.IKE}
}

func families(t *testing.T, f func(*testing.T, Family)) {
	t.Run("IPv4", func(t *testing.T) { f(t, IPv4) })
	t.Run("IPv6", func(t *testing.T) { f(t, IPv6) })
}

func entry(k table.Key, slot table.Slot) table.Entry {
	return table.Entry{Key: k, Slot: slot, State: table.Confirmed}
}

// setTick does what the program does.
func (b *bed) setTick(t testing.TB, k table.Key, tick uint16, heard bool) {
	t.Helper()
	half := uint64(tick) << tickShift
	if heard {
		half |= heardBit
	}
	s, _ := b.spotOf(k)
	if at, w := b.find(&s); at != none {
		b.words[at] = w&recordBits | half
		return
	}
	w, ok := b.stash.m[k]
	if !ok {
		t.Fatal("no record to store a tick in")
	}
	b.stash.m[k] = w&recordBits | half
}

func (b *bed) want(t testing.TB, k table.Key, want Record, found bool) {
	t.Helper()
	got, ok, err := b.Lookup(k)
	if err != nil || ok != found || got != want {
		t.Fatalf("lookup %v: %+v, %v, %v, want %+v, %v", k, got, ok, err, want, found)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		f     Family
		bytes int
	}{{IPv4, 0}, {IPv4, 64}, {IPv4, 130}, {IPv6, 128}, {IPv6, 320}, {5, 640}} {
		if _, err := New(aligned(c.bytes), c.f, 1, newStash(1), time.Now); err == nil {
			t.Errorf("family %d, %d bytes are taken", c.f, c.bytes)
		}
	}
	if _, err := New(aligned(192)[4:132], IPv4, 1, newStash(1), time.Now); err == nil {
		t.Error("memory out of line is taken")
	}
}

func TestPutChangeRemove(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		b := newBed(t, f, 16, 4)
		k := client(f, 7)
		other := k
		other.Class = table.TCP
		put := func(e table.Entry) {
			t.Helper()
			if err := b.Put(e); err != nil {
				t.Fatal(err)
			}
		}
		put(table.Entry{Key: k, Slot: 255, State: table.EarnedSK})
		put(table.Entry{Key: other, Slot: 2, State: table.EarnedAuth})
		b.setTick(t, k, 0x7fff, true)
		b.want(t, k, Record{table.Entry{Key: k, Slot: 255, State: table.EarnedSK}, 0x7fff, true}, true)
		b.want(t, other, Record{table.Entry{Key: other, Slot: 2, State: table.EarnedAuth}, 0, false}, true)
		put(entry(k, 255)) // the server stays: so does what was heard of it
		b.want(t, k, Record{entry(k, 255), 0x7fff, true}, true)
		put(entry(k, 1)) // not heard yet from the new one
		b.want(t, k, Record{entry(k, 1), 0x7fff, false}, true)
		if b.Len() != 2 {
			t.Fatalf("%d records", b.Len())
		}
		for range 2 {
			if err := b.Remove(k); err != nil {
				t.Fatal(err)
			}
		}
		b.want(t, k, Record{}, false)
		put(entry(k, 9)) // the same key may return at once, with nothing of the old one
		b.want(t, k, Record{entry(k, 9), 0, false}, true)
		if b.Len() != 2 || b.Full() != 0 {
			t.Fatalf("%d records, %d full", b.Len(), b.Full())
		}
	})
}

func TestPutRefuses(t *testing.T) {
	b := newBed(t, IPv4, 16, 4)
	k := client(IPv4, 1)
	for _, e := range []table.Entry{{}, {Key: k, Slot: 1}, {Key: k, State: 1}, {Key: k, Slot: 256, State: 1}, {Key: k, Slot: 1, State: 4},
		{Key: table.Key{Client: k.Client, Class: 3}, Slot: 1, State: 1}} {
		if err := b.Put(e); err == nil {
			t.Errorf("%+v is taken", e)
		}
		if _, err := b.Resync(slices.Values([]table.Entry{e})); err == nil {
			t.Errorf("%+v is taken by resync", e)
		}
	}
	if b.Len() != 0 {
		t.Errorf("%d records", b.Len())
	}
}

// Each table takes what is of its family, so a caller may give all to both.
func TestOtherFamilyIsIgnored(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		b := newBed(t, f, 16, 4)
		k := client(IPv4+IPv6-f, 1)
		if err := b.Put(entry(k, 1)); err != nil || b.Holds(k) || !b.Holds(client(f, 1)) {
			t.Fatal(err, b.Holds(k))
		}
		if _, err := b.Resync(slices.Values([]table.Entry{entry(k, 1)})); err != nil || b.Len() != 0 {
			t.Fatal(err, b.Len())
		}
		if err := b.Remove(k); err != nil {
			t.Fatal(err)
		}
		b.want(t, k, Record{}, false)
	})
}

// Two buckets fill up, then the stash, then nothing is left; taking all out
// again leaves no overflow.
func TestOverflow(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		b := newBed(t, f, 2, 3)
		room := 2*f.ways() + 3
		var keys []table.Key
		for i := range room {
			keys = append(keys, client(f, i))
			if err := b.Put(entry(keys[i], table.Slot(i+1))); err != nil {
				t.Fatalf("record %d of %d: %v", i, room, err)
			}
		}
		last := client(f, room)
		if err := b.Put(entry(last, 1)); !errors.Is(err, ErrFull) || b.Full() != 1 {
			t.Fatalf("%v, %d full", err, b.Full())
		}
		seconds := b.overflow(0)&overflowMax + b.overflow(1)&overflowMax
		stashed := b.overflow(0)>>16 + b.overflow(1)>>16
		if len(b.stash.m) != 3 || stashed != 3 || seconds == 0 || b.Len() != room {
			t.Fatalf("stash %d, counted %d, second %d, records %d", len(b.stash.m), stashed, seconds, b.Len())
		}
		for i, k := range keys {
			b.setTick(t, k, 9, true)
			if err := b.Put(entry(k, table.Slot(i+2))); err != nil {
				t.Fatal(err)
			}
			b.want(t, k, Record{entry(k, table.Slot(i+2)), 9, false}, true)
		}
		n := 0
		for r, err := range b.All() {
			if n++; err != nil || r.Slot != table.Slot(slices.Index(keys, r.Key)+2) {
				t.Errorf("walk: %+v, %v", r, err)
			}
		}
		if n != room {
			t.Errorf("walked %d of %d", n, room)
		}
		for _, k := range keys {
			if err := b.Remove(k); err != nil {
				t.Fatal(err)
			}
		}
		if b.overflow(0)|b.overflow(1) != 0 || b.Len() != 0 || len(b.stash.m) != 0 {
			t.Fatalf("left: overflow %x %x, %d records", b.overflow(0), b.overflow(1), b.Len())
		}
	})
}

// A packet in flight may hold the word of the key before.
func TestGracePeriod(t *testing.T) {
	b := newBed(t, IPv6, 2, 0)
	for i := range 2 * ways6 {
		if err := b.Put(entry(client(IPv6, i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	b.clock.advance(time.Hour)
	if err := b.Remove(client(IPv6, 0)); err != nil {
		t.Fatal(err)
	}
	for _, step := range []time.Duration{0, GracePeriod - 1} {
		b.clock.advance(step)
		if err := b.Put(entry(client(IPv6, 100), 2)); !errors.Is(err, ErrFull) {
			t.Fatalf("another key got the way after %v: %v", step, err)
		}
	}
	b.clock.advance(GracePeriod + 1)
	if err := b.Put(entry(client(IPv6, 100), 2)); err != nil {
		t.Fatal(err)
	}
}

func TestStashErrors(t *testing.T) {
	b := newBed(t, IPv4, 2, 3)
	for i := range 2*ways4 + 1 {
		if err := b.Put(entry(client(IPv4, i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	broken := errors.New("broken")
	b.stash.err = broken
	k := client(IPv4, 2*ways4)
	_, _, lookup := b.Lookup(k)
	_, resync := b.Resync(slices.Values([]table.Entry{}))
	var walk error
	for _, err := range b.All() {
		walk = err
	}
	_, reopen := New(b.mem, IPv4, testSeed, b.stash, b.clock.now)
	for name, err := range map[string]error{"lookup": lookup, "put": b.Put(entry(k, 2)), "new": b.Put(entry(client(IPv4, 99), 2)),
		"remove": b.Remove(k), "resync": resync, "walk": walk, "reopen": reopen,
		"sweep": b.Sweep(1, 1, func([]Seen) error { return nil })} {
		if !errors.Is(err, broken) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestResync(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		b := newBed(t, f, 64, 50)
		var want []table.Entry
		for i := range 300 {
			e := entry(client(f, i), 1)
			if err := b.Put(e); err != nil && i < 64*f.ways() {
				t.Fatal(err)
			}
			switch {
			case i%10 == 0: // to go
			case i%10 == 1:
				e.Slot = 2
				fallthrough
			default:
				want = append(want, e)
			}
		}
		want = append(want, entry(client(f, 1000), 7))
		stale, err := b.Resync(slices.Values(want))
		if err != nil || len(stale) != 30 || b.Len() != 301 {
			t.Fatalf("%v, %d stale, %d records", err, len(stale), b.Len())
		}
		for _, k := range stale {
			if err := b.Remove(k); err != nil {
				t.Fatal(err)
			}
		}
		got := map[table.Key]table.Entry{}
		for r := range b.All() {
			got[r.Key] = r.Entry
		}
		for _, e := range want {
			if got[e.Key] != e {
				t.Errorf("%+v, want %+v", got[e.Key], e)
			}
		}
		if len(got) != len(want) {
			t.Errorf("%d records, want %d", len(got), len(want))
		}
	})
}

func TestResyncFull(t *testing.T) {
	b := newBed(t, IPv4, 2, 1)
	all := func(yield func(table.Entry) bool) {
		for i := range 20 {
			if !yield(entry(client(IPv4, i), 1)) {
				return
			}
		}
	}
	if stale, err := b.Resync(all); !errors.Is(err, ErrFull) || len(stale) != 0 || b.Full() != 5 || b.Len() != 15 {
		t.Fatalf("%v, %v, %d full, %d records", stale, err, b.Full(), b.Len())
	}
}
