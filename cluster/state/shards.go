package state

import (
	"encoding/binary"
	"math/bits"
	"time"
)

// second is the grain of times in records: cluster time cut to whole seconds,
// so that a record stays small. 2^32 of them are 136 years.
const second = Time(time.Second)

// place is a Key as two words and a class: cheap to compare and to hash.
type place struct {
	high, low uint64
	class     Class
}

func placeOf(k *Key) place {
	return place{
		high:  binary.BigEndian.Uint64(k.Client[:8]),
		low:   binary.BigEndian.Uint64(k.Client[8:]),
		class: k.Class,
	}
}

func (p *place) key() (k Key) {
	binary.BigEndian.PutUint64(k.Client[:8], p.high)
	binary.BigEndian.PutUint64(k.Client[8:], p.low)
	k.Class = p.class
	return k
}

func (p *place) compare(q *place) int {
	switch {
	case p.high != q.high:
		if p.high < q.high {
			return -1
		}
		return 1
	case p.low != q.low:
		if p.low < q.low {
			return -1
		}
		return 1
	}
	return int(p.class) - int(q.class)
}

// record is one affinity in 48 bytes.
type record struct {
	high, low uint64
	index     uint64
	backend   BackendID
	since     uint32 // seconds of cluster time
	seen      uint32
	heard     uint32
	class     Class
	state     Confirmation
	proposer  uint8 // number of the proposing node while unconfirmed, else 0
}

func (r *record) place() place { return place{r.high, r.low, r.class} }

func (r *record) affinity() Affinity {
	p := r.place()
	return Affinity{
		Key:     p.key(),
		Backend: r.backend,
		Index:   r.index,
		Since:   Time(r.since) * second,
		Seen:    Time(r.seen) * second,
		Heard:   Time(r.heard) * second,
		State:   r.state,
	}
}

// prefix is the /24 or the /48 of the client, for the budget.
func (p *place) prefix() uint64 {
	if p.high == 0 && p.low>>32 == 0xffff {
		return 1<<63 | p.low&0xffffffff>>8
	}
	return p.high >> 16
}

// Shards: records lie in 2^shardBits sorted slices, chosen by a keyed hash, so
// that order depends on the records alone and a change copies little. Pages
// keep the cost of taking a View at pageCount pointers.
const (
	pageBits  = 7
	shardBits = 14
	pageCount = 1 << pageBits
	pageSize  = 1 << (shardBits - pageBits)
)

type shard struct {
	epoch   uint64
	records []record // by place
}

type page struct {
	epoch  uint64
	shards [pageSize]shard
}

// shards holds all records. A page or a shard of an older epoch is shared
// with a View and is copied before it is written.
type shards struct {
	pages [pageCount]*page
	key   [2]uint64 // Spec.HashKey: nobody outside can aim at one shard
	epoch uint64    // counts the Views taken
	count int
}

func newShards(hashKey [16]byte) *shards {
	return &shards{key: [2]uint64{
		binary.LittleEndian.Uint64(hashKey[:8]), binary.LittleEndian.Uint64(hashKey[8:]),
	}, epoch: 1}
}

// number is the shard of a place. Part of the snapshot's order: never change
// it without a new snapshot format.
func (s *shards) number(p *place) int {
	high, low := bits.Mul64(p.high^s.key[0], 0x9e3779b97f4a7c15)
	h := high ^ low
	high, low = bits.Mul64(h^p.low^s.key[1]^uint64(p.class)<<56, 0xd6e8feb86659fd93)
	h = high ^ low
	h *= 0xff51afd7ed558ccd
	return int(h >> (64 - shardBits))
}

// search finds the place in a shard, or where it belongs.
func (s *shard) search(p *place) (int, bool) {
	low, high := 0, len(s.records)
	for low < high {
		mid := int(uint(low+high) >> 1)
		r := &s.records[mid]
		if r.high < p.high || r.high == p.high && (r.low < p.low || r.low == p.low && r.class < p.class) {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == len(s.records) {
		return low, false
	}
	r := &s.records[low]
	return low, r.high == p.high && r.low == p.low && r.class == p.class
}

// find gives a record to read, nil if there is none. It is valid until the
// next change.
func (s *shards) find(p *place) *record {
	n := s.number(p)
	pg := s.pages[n/pageSize]
	if pg == nil {
		return nil
	}
	sh := &pg.shards[n%pageSize]
	if i, ok := sh.search(p); ok {
		return &sh.records[i]
	}
	return nil
}

// own gives a shard to write. room says that a record will be added.
func (s *shards) own(n int, room int) *shard {
	pg := s.pages[n/pageSize]
	switch {
	case pg == nil:
		pg = &page{epoch: s.epoch}
		s.pages[n/pageSize] = pg
	case pg.epoch != s.epoch:
		c := *pg
		c.epoch = s.epoch
		pg = &c
		s.pages[n/pageSize] = pg
	}
	sh := &pg.shards[n%pageSize]
	if sh.epoch != s.epoch {
		c := make([]record, len(sh.records), len(sh.records)+room)
		copy(c, sh.records)
		sh.epoch, sh.records = s.epoch, c
	}
	return sh
}

// edit gives a record to write, nil if there is none. It is valid until the
// next change or View.
func (s *shards) edit(p *place) *record {
	if s.find(p) == nil {
		return nil // nothing is copied
	}
	sh := s.own(s.number(p), 0)
	i, _ := sh.search(p)
	return &sh.records[i]
}

// put adds or overwrites a record.
func (s *shards) put(r record) {
	p := r.place()
	sh := s.own(s.number(&p), 4)
	i, ok := sh.search(&p)
	if ok {
		sh.records[i] = r
		return
	}
	sh.records = append(sh.records, record{})
	copy(sh.records[i+1:], sh.records[i:])
	sh.records[i] = r
	s.count++
}

// remove deletes a record if it is there.
func (s *shards) remove(p *place) {
	if s.find(p) == nil {
		return
	}
	sh := s.own(s.number(p), 0)
	i, _ := sh.search(p)
	sh.records = append(sh.records[:i], sh.records[i+1:]...)
	s.count--
}

// each calls yield for all records in the order of shards and places.
func (s *shards) each(yield func(*record) bool) {
	for _, pg := range s.pages {
		if pg == nil {
			continue
		}
		for i := range pg.shards {
			records := pg.shards[i].records
			for j := range records {
				if !yield(&records[j]) {
					return
				}
			}
		}
	}
}

// share freezes the present records: the copy keeps them as they are.
func (s *shards) share() *shards {
	c := *s
	s.epoch++
	return &c
}
