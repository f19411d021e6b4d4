package bucket

import (
	"errors"
	"fmt"
	"sync/atomic"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Put writes one record. One that is there keeps its tick, and its heard bit
// while the server stays. ErrFull is counted.
func (t *Table) Put(e table.Entry) error {
	if err := check(e); err != nil {
		return err
	}
	s, ok := t.spotOf(e.Key)
	if !ok {
		return nil
	}
	_, err := t.put(e, &s)
	return err
}

// put gives the index of the word, none for the stash.
func (t *Table) put(e table.Entry, s *spot) (int, error) {
	record := pack(s.want, e.Slot, e.State)
	if at, w := t.find(s); at != none {
		t.replace(at, w, record)
		return at, nil
	}
	if _, ok, err := t.findStashed(e.Key, s); err != nil {
		return none, err
	} else if ok {
		return none, t.replaceStashed(e.Key, record)
	}
	at, err := t.insert(e.Key, s, record)
	switch {
	case err == nil:
		t.count.Add(1)
	case errors.Is(err, ErrFull):
		t.full.Add(1)
	}
	return at, err
}

// replaced gives the word for a record that is there already.
func replaced(w, record uint64) uint64 {
	next := w&^uint64(recordBits) | record
	if (w^record)&slotBits != 0 {
		next &^= heardBit
	}
	return next
}

// replace changes a word in one step; the program may store a tick at any time.
func (t *Table) replace(at int, w, record uint64) {
	for w&recordBits != record {
		if atomic.CompareAndSwapUint64(&t.words[at], w, replaced(w, record)) {
			return
		}
		w = atomic.LoadUint64(&t.words[at])
	}
}

// replaceStashed writes a word of the stash whole: a tick that the program
// stores between is lost, and the client's next packet stores it again.
func (t *Table) replaceStashed(k table.Key, record uint64) error {
	return t.editStashed(k, func(w uint64) uint64 { return replaced(w, record) })
}

// editStashed changes a word of the stash if it is there and the edit changes it.
func (t *Table) editStashed(k table.Key, edit func(uint64) uint64) error {
	t.stashLock.Lock()
	defer t.stashLock.Unlock()
	w, ok, err := t.stash.Lookup(k)
	if err == nil && ok {
		if next := edit(w); next != w {
			err = t.stash.Put(k, next)
		}
	}
	if err != nil {
		return fmt.Errorf("change affinity stash: %w", err)
	}
	return nil
}

// insert publishes a new record in the first place that has room.
func (t *Table) insert(k table.Key, s *spot, record uint64) (int, error) {
	if at := t.room(s.first, s); at != none {
		t.publish(at, s, record)
		return at, nil
	}
	over := t.overflow(s.first)
	if over&overflowMax != overflowMax {
		if at := t.room(s.second, s); at != none {
			t.setOverflow(s.first, over+secondOne)
			t.publish(at, s, record)
			return at, nil
		}
	}
	if over>>16&overflowMax == overflowMax {
		return none, ErrFull
	}
	t.setOverflow(s.first, over+stashOne)
	t.stashLock.Lock()
	err := t.stash.Put(k, record)
	t.stashLock.Unlock()
	if err != nil {
		t.setOverflow(s.first, over)
		if errors.Is(err, ErrFull) {
			return none, ErrFull
		}
		return none, fmt.Errorf("write affinity stash: %w", err)
	}
	return none, nil
}

// publish makes a record visible in an empty way: the key first, the word last.
func (t *Table) publish(at int, s *spot, record uint64) {
	if t.family == IPv6 {
		key := keyIndex(at)
		atomic.StoreUint64(&t.words[key], s.hi)
		atomic.StoreUint64(&t.words[key+1], s.lo)
	}
	atomic.StoreUint64(&t.words[at], record)
}

// room gives an empty way of a bucket that the client may have, else none.
func (t *Table) room(b uint32, s *spot) int {
	base := int(b) * t.family.stride()
	for at := base; at < base+t.family.ways(); at++ {
		if atomic.LoadUint64(&t.words[at])&slotBits == 0 && (t.family == IPv4 || t.reusable(at, s)) {
			return at
		}
	}
	return none
}

// Remove deletes a record; one that is not there is no error.
func (t *Table) Remove(k table.Key) error {
	s, ok := t.spotOf(k)
	if !ok {
		return nil
	}
	if at, _ := t.find(&s); at != none {
		t.clear(at)
		if uint32(at/t.family.stride()) != s.first {
			t.setOverflow(s.first, t.overflow(s.first)-secondOne)
		}
		t.count.Add(-1)
		return nil
	}
	_, ok, err := t.findStashed(k, &s)
	if err != nil || !ok {
		return err
	}
	t.stashLock.Lock()
	err = t.stash.Delete(k)
	t.stashLock.Unlock()
	if err != nil {
		return fmt.Errorf("delete from affinity stash: %w", err)
	}
	t.setOverflow(s.first, t.overflow(s.first)-stashOne)
	t.count.Add(-1)
	return nil
}

// clear empties a way. A tick that the program stores afterwards leaves it empty.
func (t *Table) clear(at int) {
	atomic.StoreUint64(&t.words[at], 0)
	if t.family == IPv6 {
		t.cool.add(at)
	}
}
