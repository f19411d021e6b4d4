package bucket

import (
	"sync/atomic"
	"time"
)

// cooling remembers which IPv6 ways were cleared within the grace period: one
// bit for each way and epoch, two epochs. An epoch lasts a grace period or
// more, so a way is held back for one to two of them and the memory is fixed.
type cooling struct {
	now       func() time.Time
	began     time.Time // of the present epoch
	cur, prev []uint8   // by bucket
}

func newCooling(buckets int, now func() time.Time) cooling {
	return cooling{now: now, began: now(), cur: make([]uint8, buckets), prev: make([]uint8, buckets)}
}

// turn begins an epoch if the present one is over.
func (c *cooling) turn() {
	now := c.now()
	since := now.Sub(c.began)
	if since < GracePeriod {
		return
	}
	c.cur, c.prev = c.prev, c.cur
	clear(c.cur)
	if since >= 2*GracePeriod {
		clear(c.prev)
	}
	c.began = now
}

// add notes a way that was just cleared.
func (c *cooling) add(at int) {
	c.turn()
	c.cur[at/stride6] |= 1 << (at % stride6)
}

// has reports whether a way was cleared too short a time ago.
func (c *cooling) has(at int) bool {
	c.turn()
	b := at / stride6
	return (c.cur[b]|c.prev[b])>>(at%stride6)&1 != 0
}

// reusable reports whether an empty IPv6 way may be given to a key: the key that
// is still there may return at once, another after the grace period. Two keys
// that a packet could be taken for while they change are kept apart for good,
// so that the order of the program's loads does not matter (see the package
// comment, case 4).
func (t *Table) reusable(at int, s *spot) bool {
	key := keyIndex(at)
	hi, lo := atomic.LoadUint64(&t.words[key]), atomic.LoadUint64(&t.words[key+1])
	if hi == s.hi && lo == s.lo {
		return true
	}
	return !t.cool.has(at) && !t.confusable(hi, lo, s.hi, s.lo)
}

// confusable reports whether a mixture of two keys has the tag of one of them.
func (t *Table) confusable(hi, lo, newHi, newLo uint64) bool {
	before, after := t.tag(hi, lo), t.tag(newHi, newLo)
	if before == after {
		return true
	}
	if hi == newHi || lo == newLo {
		return false // a mixture is one of the two
	}
	for _, mixed := range [2]uint32{t.tag(hi, newLo), t.tag(newHi, lo)} {
		if mixed == before || mixed == after {
			return true
		}
	}
	return false
}

func (t *Table) tag(hi, lo uint64) uint32 { return tagOf(hash6(hi, lo, t.seed)) }
