package bucket

import (
	"slices"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// What a writer that died between two steps leaves, and what no writer does.
func TestMend(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		b := newBed(t, f, 2, 3)
		room := 2*f.ways() + 3
		for i := range room {
			if err := b.Put(entry(client(f, i), 1)); err != nil {
				t.Fatal(err)
			}
		}
		good := slices.Clone(b.words)
		stride := f.stride()
		for name, damage := range map[string]func(){
			"counts too high": func() { b.setOverflow(0, b.overflow(0)+secondOne+stashOne) },
			"counts too low":  func() { b.setOverflow(0, 0); b.setOverflow(1, 0) },
			"counts of noise": func() { b.setOverflow(1, 0xdeadbeefdeadbeef) },
			"useless stash": func() {
				in, _ := b.keyAt(0, b.words[0]) // a bucket has it already
				b.stash.m[in] = b.words[0]
				b.stash.m[client(IPv4+IPv6-f, 1)] = 1 << slotShift
				b.stash.m[client(f, 1000)] = 1<<slotShift | 1<<stateShift // of another client
			},
		} {
			damage()
			b.reopen(t, f)
			if !slices.Equal(good, b.words) || b.Mended() == 0 || b.Len() != room || len(b.stash.m) != 3 {
				t.Errorf("%s: mended %d, %d records, stash %d", name, b.Mended(), b.Len(), len(b.stash.m))
			}
		}
		for name, word := range map[string]uint64{
			"no state":  good[0] &^ stateBits,
			"zero bits": good[0] | 1<<43,
			"a double":  good[1],
		} {
			copy(b.words, good)
			b.words[0] = word
			if f == IPv6 && name == "a double" {
				copy(b.words[keys6:keys6+2], b.words[keys6+2:])
			}
			b.reopen(t, f)
			if b.Len() != room-1 || b.Mended() == 0 {
				t.Errorf("%s: mended %d, %d records", name, b.Mended(), b.Len())
			}
			if at := slices.IndexFunc(b.words[:stride], func(w uint64) bool { return w == 0 }); at > 1 || at < 0 {
				t.Errorf("%s: the word at %d was cleared", name, at)
			}
		}
	})
}

// Records are never thrown away because the caller has another seed.
func TestOtherSeedIsRefused(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		b := newBed(t, f, 100, 3)
		for i := range 200 {
			if err := b.Put(entry(client(f, i), 1)); err != nil {
				t.Fatal(err)
			}
		}
		good := slices.Clone(b.words)
		if _, err := New(b.mem, f, testSeed+1, b.stash, b.clock.now); err == nil || !strings.Contains(err.Error(), "run 'vpnlb plane detach'") {
			t.Errorf("another seed is taken, or the fix is not named: %v", err)
		}
		if !slices.Equal(good, b.words) {
			t.Error("records were changed")
		}
	})
}

// A way that the process before cleared may still be in a program run's hands.
func TestReopenHoldsBackUsedWays(t *testing.T) {
	b := newBed(t, IPv6, 2, 0)
	for i := range 2 * ways6 {
		if err := b.Put(entry(client(IPv6, i), 1)); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Remove(client(IPv6, 3)); err != nil {
		t.Fatal(err)
	}
	b.reopen(t, IPv6)
	if err := b.Put(entry(client(IPv6, 100), 1)); err == nil {
		t.Fatal("another key got the way at once")
	}
	b.clock.advance(2 * GracePeriod)
	if err := b.Put(entry(client(IPv6, 100), 1)); err != nil {
		t.Fatal(err)
	}
}

func FuzzNew(f *testing.F) {
	for _, family := range []Family{IPv4, IPv6} {
		b := newBed(f, family, 3, 2)
		for i := range 3*family.ways() + 1 {
			if err := b.Put(entry(client(family, i), table.Slot(i+1))); err != nil {
				break
			}
		}
		f.Add(slices.Clone(b.mem), family == IPv6, uint64(testSeed))
	}
	f.Add(make([]byte, 256), true, uint64(0))
	f.Add([]byte{1, 2, 3}, false, uint64(0))
	f.Fuzz(func(t *testing.T, data []byte, six bool, seed uint64) {
		family := IPv4
		if six {
			family = IPv6
		}
		mem := aligned((len(data) + 7) / 8 * 8)[:len(data)]
		copy(mem, data)
		stash := newStash(4)
		words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
		for i, w := range words[:min(len(words), 4)] { // the stash may hold anything too
			stash.m[client(Family(4+2*(i&1)), int(w))] = w
		}
		tab, err := New(mem, family, seed, stash, time.Now)
		if err != nil {
			return
		}
		n := 0
		for r, err := range tab.All() {
			got, ok, _ := tab.Lookup(r.Key)
			if n++; err != nil || !ok || got != r {
				t.Fatalf("%+v is not found, but %+v, %v", r, got, ok)
			}
		}
		if n != tab.Len() {
			t.Fatalf("%d records, %d counted", n, tab.Len())
		}
		again, err := New(mem, family, seed, stash, time.Now)
		if err != nil || again.Mended() != 0 || again.Len() != n {
			t.Fatalf("%v, mended again %d", err, again.Mended())
		}
		if _, err := tab.Resync(slices.Values([]table.Entry{})); err != nil {
			t.Fatal(err)
		}
		for r := range tab.All() {
			if err := tab.Remove(r.Key); err != nil {
				t.Fatal(err)
			}
		}
		for b := range tab.n {
			if tab.overflow(b) != 0 {
				t.Fatalf("bucket %d: overflow %#x of no records", b, tab.overflow(b))
			}
		}
	})
}
