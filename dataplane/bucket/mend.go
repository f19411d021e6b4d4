package bucket

import (
	"errors"
	"fmt"
	"sync/atomic"
)

var errSeed = errors.New("open affinity table: most records are not in their place (another seed, after a 'vpnlb plane detach' that was cut short?): stop the service and run 'vpnlb plane detach', which ends forwarding here until the next start")

// mend counts the records and makes the table as Put and Remove leave it.
// Level-triggered: the overflow words are computed from what is there.
func (t *Table) mend() error {
	unsound, err := t.inspect()
	if err != nil {
		return err
	}
	for _, at := range unsound {
		t.drop(at)
	}
	if t.family == IPv6 {
		t.coolUsed()
	}
	over := make(map[uint32]uint64) // by first bucket, where not 0
	for at, w := range t.occupied() {
		k, _ := t.keyAt(at, w)
		s, _ := t.spotOf(k)
		b := uint32(at / t.family.stride())
		have, _ := t.findIn(s.first, &s)
		if b != s.first && have == none {
			have, _ = t.findIn(b, &s)
		}
		if have != at || b != s.first && over[s.first]&overflowMax == overflowMax {
			t.drop(at) // a lookup finds another one before it
			continue
		}
		if b != s.first {
			over[s.first] += secondOne
		}
		t.count.Add(1)
	}
	if err := t.mendStash(over); err != nil {
		return err
	}
	for b := range t.n {
		if want := over[b]; t.overflow(b) != want {
			t.setOverflow(b, want)
			t.mended++
		}
	}
	return nil
}

// inspect gives the words that no lookup finds or that Put cannot have written.
// It changes nothing.
func (t *Table) inspect() (unsound []int, err error) {
	records := 0
	for at, w := range t.occupied() {
		records++
		k, _ := t.keyAt(at, w)
		s, ok := t.spotOf(k)
		b := uint32(at / t.family.stride())
		if !ok || !sound(w) || w&wantBits != s.want || b != s.first && b != s.second {
			unsound = append(unsound, at)
		}
	}
	if len(unsound)*2 > records {
		return nil, errSeed
	}
	return unsound, nil
}

func (t *Table) drop(at int) {
	t.clear(at)
	t.mended++
}

// coolUsed holds back the empty ways that had a key: the writer before may have
// cleared them a moment ago.
func (t *Table) coolUsed() {
	for base := 0; base < len(t.words); base += stride6 {
		for at := base; at < base+ways6; at++ {
			key := keyIndex(at)
			if atomic.LoadUint64(&t.words[at])&slotBits == 0 && t.words[key]|t.words[key+1] != 0 {
				t.cool.add(at)
			}
		}
	}
}

// mendStash counts the elements of the stash and removes those that are no use.
func (t *Table) mendStash(over map[uint32]uint64) error {
	elements, err := t.stashed()
	if err != nil {
		return err
	}
	for _, e := range elements {
		s, ok := t.spotOf(e.key)
		if ok && t.soundStashed(e, &s) && over[s.first]>>16 != overflowMax {
			over[s.first] += stashOne
			t.count.Add(1)
			continue
		}
		if err := t.stash.Delete(e.key); err != nil {
			return fmt.Errorf("delete from affinity stash: %w", err)
		}
		t.mended++
	}
	return nil
}

// soundStashed reports whether a lookup finds an element of the stash.
func (t *Table) soundStashed(e element, s *spot) bool {
	for _, b := range [2]uint32{s.first, s.second} {
		if at, _ := t.findIn(b, s); at != none {
			return false
		}
	}
	return e.word&slotBits != 0 && sound(e.word) && e.word&wantBits == s.want
}
