package state

import (
	"crypto/sha256"
	"iter"
)

// View is the whole state at one index, immutable: what the Machine changes
// later is changed in copies.
type View struct {
	spec      *Spec
	last      numbers
	marks     []mark
	proposers []NodeID
	windows   []window // by origin
	records   *shards
}

// Spec is never nil; its ClusterID is zero before Init. Read only.
func (v *View) Spec() *Spec { return v.spec }

// Index of the last applied command.
func (v *View) Index() uint64 { return v.spec.Index }

// Len is the number of records.
func (v *View) Len() int { return v.records.count }

// Affinity finds one record.
func (v *View) Affinity(k Key) (Affinity, bool) {
	p := placeOf(&k)
	r := v.records.find(&p)
	if r == nil {
		return Affinity{}, false
	}
	return r.affinity(), true
}

// Affinities yields all records, in an order that is the same on all replicas
// (that of the shards; for a person, sort).
func (v *View) Affinities() iter.Seq[Affinity] {
	return func(yield func(Affinity) bool) {
		v.records.each(func(r *record) bool { return yield(r.affinity()) })
	}
}

// Expired lists records that are Dead at now, at most limit, in the order of
// Affinities: what the leader proposes to Expire. It is much faster than
// Spec.Dead on each.
func (v *View) Expired(now Time, limit int) []Expired {
	var all []Expired
	v.records.each(func(r *record) bool {
		if len(all) >= limit {
			return false
		}
		at := v.spec.backendAt(r.backend)
		if v.marks[at].stances[r.class-1].Known() && !v.spec.Settings.outlivedRecord(r, now) {
			return true
		}
		p := r.place()
		all = append(all, Expired{Key: p.key(), Index: r.index, Seen: Time(r.seen) * second})
		return true
	})
	return all
}

// Hash is the SHA-256 of the snapshot: equal on all replicas at one index.
func (v *View) Hash() (sum [32]byte) {
	h := sha256.New()
	v.WriteTo(h) // a hash never fails
	h.Sum(sum[:0])
	return sum
}
