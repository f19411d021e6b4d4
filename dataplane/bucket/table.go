package bucket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// ErrFull: neither a bucket nor the stash has room for the record. A Stash
// wraps it when it is full itself.
var ErrFull = errors.New("affinity table is full")

// GracePeriod is how long a cleared IPv6 way is kept from another key: a
// program run, which takes microseconds, has ended by then.
const GracePeriod = 100 * time.Millisecond

// Stash is the small hash map for records that found no room in their two
// buckets. Values are words as in the buckets. Put, Delete and Walk come one at
// a time, Lookup beside them. The program may store ticks in a value at any time.
type Stash interface {
	// Lookup gives a key's word; false: there is none.
	Lookup(table.Key) (uint64, bool, error)
	// Put writes a word; an error that wraps ErrFull says that there is no room.
	Put(table.Key, uint64) error
	// Delete removes a key; one that is not there is no error.
	Delete(table.Key) error
	// Walk calls for each element until false.
	Walk(func(table.Key, uint64) bool) error
}

// Record is one record as the program sees it.
type Record struct {
	table.Entry
	Tick  uint16 // of the last packet; 0 never
	Heard bool   // a packet from the recorded server since the last sweep
}

// Table is the affinity table of one family. Put, Remove and Resync are for one
// goroutine at a time; the rest may run beside them and each other. Keys of the
// other family are ignored: a caller may give every entry to both tables.
type Table struct {
	family Family
	n      uint32 // buckets
	seed   uint64
	words  []uint64 // the memory that the program reads
	cool   cooling

	stashLock sync.Mutex // a read-modify-write of the stash
	stash     Stash

	count  atomic.Int64
	full   atomic.Uint64
	mended int
}

// New makes a table of mem, which holds buckets of the family, at least 2, and
// stays the caller's; it must stay mapped while the table is used. Records that
// are there are kept. seed must be the one they were written with: where most of
// them are not in their place, New changes nothing and gives an error. Otherwise
// it mends what a writer that died left behind, and clears words that no look-up
// finds. now is monotonic, time.Now but for tests.
func New(mem []byte, family Family, seed uint64, stash Stash, now func() time.Time) (*Table, error) {
	if family != IPv4 && family != IPv6 {
		return nil, fmt.Errorf("open affinity table: family %d is none", family)
	}
	size := family.BucketBytes()
	n := len(mem) / size
	if len(mem)%size != 0 || n < 2 || uint64(n) > 1<<32-1 {
		return nil, fmt.Errorf("open affinity table: %d bytes are not 2 or more buckets of %d", len(mem), size)
	}
	base := unsafe.Pointer(unsafe.SliceData(mem))
	if uintptr(base)%8 != 0 {
		return nil, errors.New("open affinity table: memory is not aligned to 8 bytes")
	}
	t := &Table{family: family, n: uint32(n), seed: seed, stash: stash, words: unsafe.Slice((*uint64)(base), len(mem)/8)}
	if family == IPv6 {
		t.cool = newCooling(n, now)
	}
	if err := t.mend(); err != nil {
		return nil, err
	}
	return t, nil
}

// Read opens a table that somebody else writes: All and Lookup only. Nothing is
// mended, and Len is 0.
func Read(mem []byte, family Family, seed uint64, stash Stash) (*Table, error) {
	size := family.BucketBytes()
	if family != IPv4 && family != IPv6 || len(mem)%size != 0 || len(mem) < 2*size {
		return nil, fmt.Errorf("read affinity table: %d bytes are not 2 or more buckets of %d", len(mem), size)
	}
	base := unsafe.Pointer(unsafe.SliceData(mem))
	if uintptr(base)%8 != 0 {
		return nil, errors.New("read affinity table: memory is not aligned to 8 bytes")
	}
	return &Table{family: family, n: uint32(len(mem) / size), seed: seed, stash: stash,
		words: unsafe.Slice((*uint64)(base), len(mem)/8)}, nil
}

// Len is the number of records.
func (t *Table) Len() int { return int(t.count.Load()) }

// Full is how many records found no room since New.
func (t *Table) Full() uint64 { return t.full.Load() }

// Mended is how many words New had to put right.
func (t *Table) Mended() int { return t.mended }

// spot is a key with its hash done.
type spot struct {
	first, second uint32
	want          uint64 // match and class, as in the word
	hi, lo        uint64 // IPv6: the key
}

// spotOf gives false for a key of the other family.
func (t *Table) spotOf(k table.Key) (s spot, ok bool) {
	hi, lo := binary.LittleEndian.Uint64(k.Client[:]), binary.LittleEndian.Uint64(k.Client[8:])
	mapped := hi == 0 && lo&matchBits == mappedWord
	if mapped != (t.family == IPv4) || k.Class < 1 || k.Class > table.Classes {
		return s, false
	}
	var x uint64
	if mapped {
		s.want = lo >> 32
		x = hash4(uint32(s.want), t.seed)
	} else {
		s.hi, s.lo = hi, lo
		x = hash6(hi, lo, t.seed)
		s.want = uint64(tagOf(x))
	}
	s.want |= uint64(k.Class-1) << classShift
	s.first, s.second = choices(x, t.n)
	return s, true
}

// mappedWord is what precedes the IPv4 address in the second half of a mapped key.
const mappedWord = 0xffff0000

// Holds reports whether a key is of the table's family.
func (t *Table) Holds(k table.Key) bool {
	_, ok := t.spotOf(k)
	return ok
}

// none is the index of a word that is not in the buckets.
const none = -1

// findIn gives the index of a client's word in one bucket, and the word.
func (t *Table) findIn(b uint32, s *spot) (int, uint64) {
	if t.family == IPv6 {
		return t.findIn6(b, s)
	}
	base := int(b) * stride4
	ways := t.words[base : base+ways4]
	for i := range ways {
		w := atomic.LoadUint64(&ways[i])
		if w&wantBits == s.want && w&slotBits != 0 {
			return base + i, w
		}
	}
	return none, 0
}

// findIn6 looks at the word again after the key: unlike the program, a
// goroutine may sleep in between for longer than the grace period.
func (t *Table) findIn6(b uint32, s *spot) (int, uint64) {
	base := int(b) * stride6
	bucket := t.words[base : base+stride6]
	for i := range ways6 {
		w := atomic.LoadUint64(&bucket[i])
		for w&wantBits == s.want && w&slotBits != 0 {
			same := atomic.LoadUint64(&bucket[keys6+2*i]) == s.hi && atomic.LoadUint64(&bucket[keys6+2*i+1]) == s.lo
			again := atomic.LoadUint64(&bucket[i])
			if (w^again)&recordBits == 0 {
				if same {
					return base + i, again
				}
				break
			}
			w = again
		}
	}
	return none, 0
}

// find gives a client's word in its buckets.
func (t *Table) find(s *spot) (int, uint64) {
	if at, w := t.findIn(s.first, s); at != none {
		return at, w
	}
	if t.overflow(s.first)&overflowMax == 0 {
		return none, 0
	}
	return t.findIn(s.second, s)
}

func (t *Table) overflow(b uint32) uint64 {
	return atomic.LoadUint64(&t.words[int(b)*t.family.stride()+t.family.overflow()])
}

func (t *Table) setOverflow(b uint32, v uint64) {
	atomic.StoreUint64(&t.words[int(b)*t.family.stride()+t.family.overflow()], v)
}

// findStashed gives a client's word in the stash.
func (t *Table) findStashed(k table.Key, s *spot) (uint64, bool, error) {
	if t.overflow(s.first)>>16&overflowMax == 0 {
		return 0, false, nil
	}
	w, ok, err := t.stash.Lookup(k)
	if err != nil {
		return 0, false, fmt.Errorf("read affinity stash: %w", err)
	}
	return w, ok && w&wantBits == s.want && w&slotBits != 0, nil
}

// Lookup reads one record.
func (t *Table) Lookup(k table.Key) (Record, bool, error) {
	s, ok := t.spotOf(k)
	if !ok {
		return Record{}, false, nil
	}
	at, w := t.find(&s)
	if at == none {
		var err error
		if w, ok, err = t.findStashed(k, &s); err != nil || !ok {
			return Record{}, false, err
		}
	}
	return recordOf(k, w), true, nil
}

func recordOf(k table.Key, w uint64) Record {
	return Record{Entry: table.Entry{Key: k, Slot: slotOf(w), State: stateOf(w)}, Tick: tickOf(w), Heard: w&heardBit != 0}
}

// keyAt gives the key of a word at an index; false: it went away meanwhile.
func (t *Table) keyAt(at int, w uint64) (k table.Key, ok bool) {
	k.Class = classOf(w)
	if t.family == IPv4 {
		binary.LittleEndian.PutUint64(k.Client[8:], w<<32|mappedWord)
		return k, true
	}
	key := keyIndex(at)
	binary.LittleEndian.PutUint64(k.Client[:], atomic.LoadUint64(&t.words[key]))
	binary.LittleEndian.PutUint64(k.Client[8:], atomic.LoadUint64(&t.words[key+1]))
	return k, (atomic.LoadUint64(&t.words[at])^w)&recordBits == 0
}

// occupied walks the words that are not empty, by index.
func (t *Table) occupied() iter.Seq2[int, uint64] {
	return func(yield func(int, uint64) bool) {
		stride, ways := t.family.stride(), t.family.ways()
		for base := 0; base < len(t.words); base += stride {
			for at := base; at < base+ways; at++ {
				if w := atomic.LoadUint64(&t.words[at]); w&slotBits != 0 && !yield(at, w) {
					return
				}
			}
		}
	}
}

// All walks the records, in no order. One that comes or goes meanwhile may be
// seen or not; an error comes last.
func (t *Table) All() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		for at, w := range t.occupied() {
			if k, ok := t.keyAt(at, w); ok && !yield(recordOf(k, w), nil) {
				return
			}
		}
		elements, err := t.stashed()
		for _, e := range elements {
			if !yield(recordOf(e.key, e.word), nil) {
				return
			}
		}
		if err != nil {
			yield(Record{}, err)
		}
	}
}

// element is one of the stash.
type element struct {
	key  table.Key
	word uint64
}

// stashed reads the whole stash.
func (t *Table) stashed() (all []element, err error) {
	t.stashLock.Lock()
	defer t.stashLock.Unlock()
	err = t.stash.Walk(func(k table.Key, w uint64) bool {
		all = append(all, element{k, w})
		return true
	})
	if err != nil {
		return all, fmt.Errorf("walk affinity stash: %w", err)
	}
	return all, nil
}
