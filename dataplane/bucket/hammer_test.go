package bucket

import (
	"encoding/binary"
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// program is the reader's half of the algorithm, written from the layout and
// not from this package's code.
type program struct {
	words []uint64
	six   bool
	n     uint64
	stash *mapStash
}

// run looks a client up, stores a tick in what it finds, and gives the slot.
func (p *program) run(k table.Key, half uint16) uint64 {
	hi, lo := binary.LittleEndian.Uint64(k.Client[:8]), binary.LittleEndian.Uint64(k.Client[8:])
	x := hi ^ testSeed
	if p.six {
		x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
		x ^= lo
	} else {
		x = lo>>32 ^ testSeed
	}
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	x ^= x >> 31
	first := x >> 32 * p.n >> 32
	second := x & 0xffffffff * p.n >> 32
	if first == second {
		if second = first ^ 1; second >= p.n {
			second = first - 1
		}
	}
	match := lo >> 32
	stride, over := uint64(8), uint64(7)
	if p.six {
		match = x * 0xbf58476d1ce4e5b9 >> 32
		stride, over = 16, 5
	}
	match |= uint64(k.Class-1) << 42

	if slot := p.bucket(first*stride, over, match, hi, lo, half); slot != 0 {
		return slot
	}
	counts := atomic.LoadUint64(&p.words[first*stride+over])
	if counts&0xffff != 0 {
		if slot := p.bucket(second*stride, over, match, hi, lo, half); slot != 0 {
			return slot
		}
	}
	if counts>>16&0xffff == 0 {
		return 0
	}
	w, _, _ := p.stash.Lookup(k)
	if (w^match)&(1<<42|0xffffffff) != 0 {
		return 0
	}
	return w >> 32 & 0xff
}

func (p *program) bucket(base, ways, match, hi, lo uint64, half uint16) uint64 {
	for i := range ways {
		w := atomic.LoadUint64(&p.words[base+i])
		if (w^match)&(1<<42|0xffffffff) != 0 || w>>32&0xff == 0 {
			continue
		}
		if half&0xe == 0 {
			linger()
		}
		if p.six && (atomic.LoadUint64(&p.words[base+6+2*i]) != hi || atomic.LoadUint64(&p.words[base+7+2*i]) != lo) {
			continue
		}
		storeTick(&p.words[base+i], half)
		return w >> 32 & 0xff
	}
	return 0
}

// linger makes a run longer in the place where most may happen, as an interrupt
// would.
func linger() {
	var x atomic.Uint64
	for range 300 {
		x.Add(1)
	}
}

// hammer is one writer beside programs, sweeps and readers. The i-th client may
// only ever have slots that are i modulo 16.
type hammer struct {
	tab     *Table
	p       *program
	keys    []table.Key
	done    atomic.Bool
	hits    atomic.Uint64
	skipped atomic.Uint64
}

const hammerSets = 16

// hammerSlot draws one of the slots that a client may have, 1..255.
func hammerSlot(i int, rng *rand.Rand) table.Slot {
	return table.Slot(i%hammerSets + hammerSets*rng.IntN(15) + 1)
}

// foreignSlot reports whether a slot is none of a client's.
func foreignSlot(i int, slot table.Slot) bool { return int(slot-1)%hammerSets != i%hammerSets }

// overrun is how long a run may take to count. The program's takes microseconds;
// a goroutine may lose its CPU in the middle of one for longer than the grace period.
const overrun = 20 * time.Millisecond

func (h *hammer) program(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	for !h.done.Load() {
		i := rng.IntN(len(h.keys))
		began := time.Now()
		slot := h.p.run(h.keys[i], uint16(rng.Uint32())|1)
		if time.Since(began) > overrun {
			h.skipped.Add(1)
			continue
		}
		if slot == 0 {
			continue
		}
		h.hits.Add(1)
		if foreignSlot(i, table.Slot(slot)) {
			t.Errorf("client %d was sent to slot %d", i, slot)
			return
		}
	}
}

// reader uses the package's own lookups.
func (h *hammer) reader(t *testing.T) {
	index := map[table.Key]int{}
	for i, k := range h.keys {
		index[k] = i
	}
	wrong := func(r Record) bool {
		i, ok := index[r.Key]
		return !ok || foreignSlot(i, r.Slot)
	}
	for !h.done.Load() {
		for r := range h.tab.All() {
			if wrong(r) {
				t.Errorf("walk gave %+v", r)
				return
			}
			if r, ok, _ := h.tab.Lookup(r.Key); ok && wrong(r) {
				t.Errorf("lookup gave %+v", r)
				return
			}
		}
		err := h.tab.Sweep(uint16(time.Now().UnixNano()>>20)&TickMask|1, StaleTicks, func(batch []Seen) error {
			for _, s := range batch {
				if wrong(Record{Entry: table.Entry{Key: s.Key, Slot: s.Slot}}) {
					t.Errorf("sweep gave %+v", s)
				}
			}
			return nil
		})
		if err != nil {
			t.Error(err)
		}
	}
}

// write makes random changes while more says so, and gives what must be there.
func (h *hammer) write(t *testing.T, more func(int) bool) map[table.Key]table.Entry {
	rng := rand.New(rand.NewPCG(9, 9))
	want := map[table.Key]table.Entry{}
	for n := 0; more(n); n++ {
		i := rng.IntN(len(h.keys))
		k := h.keys[i]
		e := table.Entry{Key: k, Slot: hammerSlot(i, rng), State: table.Confirmation(1 + rng.IntN(3))}
		switch {
		case rng.IntN(5000) == 0:
			stale, err := h.tab.Resync(maps.Values(want))
			if err != nil || len(stale) != 0 {
				t.Fatalf("resync of what is there: %v, %v", stale, err)
			}
		case rng.IntN(5) < 2:
			if err := h.tab.Remove(k); err != nil {
				t.Fatal(err)
			}
			delete(want, k)
		default:
			switch err := h.tab.Put(e); {
			case err == nil:
				want[k] = e
			case !errors.Is(err, ErrFull):
				t.Fatal(err)
			}
		}
	}
	return want
}

func (h *hammer) all(t *testing.T, more func(int) bool) {
	var wg sync.WaitGroup
	for i := range uint64(3) {
		wg.Go(func() { h.program(t, i) })
	}
	wg.Go(func() { h.reader(t) })
	want := h.write(t, more)
	h.done.Store(true)
	wg.Wait()
	got := map[table.Key]table.Entry{}
	for r := range h.tab.All() {
		got[r.Key] = r.Entry
	}
	if !maps.Equal(got, want) || h.tab.Len() != len(want) {
		t.Errorf("%d records at the end, %d counted, want %d, or others", len(got), h.tab.Len(), len(want))
	}
	if h.hits.Load() == 0 {
		t.Error("no program found anything")
	}
	t.Logf("%d hits, %d runs taken too long, %d times full", h.hits.Load(), h.skipped.Load(), h.tab.Full())
}

func newHammer(t *testing.T, f Family, buckets int, keys []table.Key, now func() time.Time) *hammer {
	t.Helper()
	mem, stash := aligned(buckets*f.BucketBytes()), newStash(8)
	tab, err := New(mem, f, testSeed, stash, now)
	if err != nil {
		t.Fatal(err)
	}
	words := unsafe.Slice((*uint64)(unsafe.Pointer(unsafe.SliceData(mem))), len(mem)/8)
	return &hammer{tab: tab, keys: keys, p: &program{words: words, six: f == IPv6, n: uint64(buckets), stash: stash}}
}

func hammerKeys(f Family, n int) (keys []table.Key) {
	for i := range n {
		k := client(f, i/2)
		if f == IPv6 { // all 16 bytes differ, so that halves of two keys are a third
			x := finish(uint64(i / 2))
			binary.LittleEndian.PutUint64(k.Client[8:], x)
		}
		k.Class = table.Class(1 + i%2)
		keys = append(keys, k)
	}
	return keys
}

const hammerWrites = 300_000 / slowdown

func TestHammer(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		// The clock runs a grace period ahead with each write: ways are reused at
		// once, and only the order of stores and the tags protect a reader.
		var ms atomic.Int64
		now := func() time.Time { return time.UnixMilli(100 * ms.Add(1)) }
		h := newHammer(t, f, 6, hammerKeys(f, 60), now)
		h.all(t, func(n int) bool { return n < hammerWrites })
	})
}

// Clients with equal tags, whom only the grace period and the choice of ways
// keep apart.
func TestHammerEqualTags(t *testing.T) {
	var keys []table.Key
	for _, k := range hammerKeys(IPv6, 24) {
		if k.Class == table.TCP {
			continue
		}
		hi, lo := binary.LittleEndian.Uint64(k.Client[:8]), binary.LittleEndian.Uint64(k.Client[8:])
		twin := client(IPv6, len(keys)<<8)
		x := binary.LittleEndian.Uint64(twin.Client[:8]) ^ testSeed
		binary.LittleEndian.PutUint64(twin.Client[8:], sameTag(hash6(hi, lo, testSeed))^(x^x>>30)*mix1)
		keys = append(keys, k, twin)
	}
	h := newHammer(t, IPv6, 2, keys, time.Now)
	tags := map[uint64]bool{}
	for _, k := range keys {
		s, _ := h.tab.spotOf(k)
		tags[s.want] = true
	}
	if len(tags) != len(keys)/2 {
		t.Fatalf("%d tags of %d keys", len(tags), len(keys))
	}
	end := time.Now().Add(3 * time.Second)
	h.all(t, func(int) bool { return time.Now().Before(end) })
}

// A tick that the program stored is in the record until it stores another,
// however often the server changes meanwhile.
func TestTickIsKept(t *testing.T) {
	families(t, func(t *testing.T, f Family) {
		k := client(f, 1)
		h := newHammer(t, f, 2, []table.Key{k}, time.Now)
		if err := h.tab.Put(entry(k, 1)); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for n := 0; !h.done.Load(); n++ {
				if err := h.tab.Put(entry(k, table.Slot(1+n%200))); err != nil {
					t.Error(err)
					return
				}
			}
		})
		for n := range 2_000_000 / slowdown {
			tick := Tick(uint64(n))
			h.p.run(k, tick)
			if r, ok, _ := h.tab.Lookup(k); !ok || r.Tick != tick || r.Heard {
				t.Errorf("stored tick %d, found %+v, %v", tick, r, ok)
				break
			}
		}
		h.done.Store(true)
		wg.Wait()
	})
}
