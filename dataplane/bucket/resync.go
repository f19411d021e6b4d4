package bucket

import (
	"errors"
	"iter"
	"sync/atomic"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// resyncBlock is how many entries are looked up together, so that their cache
// misses overlap.
const resyncBlock = 64

// resync is one comparison of the table with the entries it should hold.
type resync struct {
	t       *Table
	touched []uint8 // by bucket, one bit for each way
	stashed map[table.Key]struct{}
	block   [resyncBlock]struct {
		e table.Entry
		s spot
	}
	n    int
	warm uint64
	full error
}

// Resync brings the table to entries. It adds and changes now, and gives what is
// to be deleted after the flip. ErrFull does not stop it. It takes one byte for
// each bucket beside the result. A key may come twice: the last one counts.
func (t *Table) Resync(entries iter.Seq[table.Entry]) (stale []table.Key, err error) {
	r := &resync{t: t, touched: make([]uint8, t.n), stashed: make(map[table.Key]struct{})}
	for e := range entries {
		if err := check(e); err != nil {
			return nil, err
		}
		s, ok := t.spotOf(e.Key)
		if !ok {
			continue
		}
		r.block[r.n].e, r.block[r.n].s = e, s
		if r.n++; r.n == resyncBlock {
			if err := r.flush(); err != nil {
				return nil, err
			}
		}
	}
	if err := r.flush(); err != nil {
		return nil, err
	}
	if stale, err = r.rest(); err != nil {
		return nil, err
	}
	return stale, r.full
}

// flush writes the block.
func (r *resync) flush() error {
	stride := r.t.family.stride()
	for i := range r.n {
		base := int(r.block[i].s.first) * stride
		r.warm += atomic.LoadUint64(&r.t.words[base])
		if r.t.family == IPv6 {
			r.warm += atomic.LoadUint64(&r.t.words[base+stride-1])
		}
	}
	for i := range r.n {
		b := &r.block[i]
		at, err := r.t.put(b.e, &b.s)
		switch {
		case errors.Is(err, ErrFull):
			r.full = ErrFull
		case err != nil:
			return err
		case at == none:
			r.stashed[b.e.Key] = struct{}{}
		default:
			r.touched[at/stride] |= 1 << (at % stride)
		}
	}
	r.n = 0
	return nil
}

// rest gives the keys that no entry touched.
func (r *resync) rest() (stale []table.Key, err error) {
	stride := r.t.family.stride()
	for at, w := range r.t.occupied() {
		if r.touched[at/stride]>>(at%stride)&1 != 0 {
			continue
		}
		if k, ok := r.t.keyAt(at, w); ok {
			stale = append(stale, k)
		}
	}
	elements, err := r.t.stashed()
	for _, e := range elements {
		if _, ok := r.stashed[e.key]; !ok {
			stale = append(stale, e.key)
		}
	}
	return stale, err
}
