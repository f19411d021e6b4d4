package bucket

import (
	"sync/atomic"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// SweepBatch is the most that one delivery of a sweep holds.
const SweepBatch = 4096

// Seen is one record that had packets.
type Seen struct {
	table.Key
	Slot  table.Slot
	Heard bool   // among them packets from the server
	Age   uint16 // ticks since the last of them
}

// sweep is one walk.
type sweep struct {
	t           *Table
	now, window uint16
	seen        []Seen
	heard       []heardAt
	deliver     func([]Seen) error
}

// heardAt is a word whose heard bit is to be cleared once delivered.
type heardAt struct {
	at   int
	word uint64
	key  table.Key // where at is none
}

// Sweep delivers the records that had packets less than window ticks ago, or
// were heard, and then clears their heard bits; a delivery's slice is valid
// during the call. It clears ticks older than StaleTicks. An error of deliver
// ends it and is returned, and what was not delivered keeps its bits. It may run
// beside a writer, beside another sweep not.
func (t *Table) Sweep(now, window uint16, deliver func([]Seen) error) error {
	s := &sweep{t: t, now: now, window: min(window, StaleTicks), deliver: deliver,
		seen: make([]Seen, 0, SweepBatch), heard: make([]heardAt, 0, SweepBatch)}
	for at, w := range t.occupied() {
		old, report := s.judge(w)
		if old {
			// Lost against a tick of the program: then it is not old.
			atomic.CompareAndSwapUint64(&t.words[at], w, w&recordBits)
		}
		if !report {
			continue
		}
		if k, ok := t.keyAt(at, w); ok {
			if err := s.add(k, at, w); err != nil {
				return err
			}
		}
	}
	if err := s.sweepStash(); err != nil {
		return err
	}
	return s.flush()
}

// judge says whether a word's tick is to be cleared, and whether it is news.
func (s *sweep) judge(w uint64) (old, report bool) {
	if w&^uint64(recordBits) == 0 || w&slotBits == 0 {
		return false, false
	}
	age, ok := Age(s.now, tickOf(w))
	if !ok || age > StaleTicks {
		return true, false
	}
	return false, w&heardBit != 0 || age < s.window
}

func (s *sweep) add(k table.Key, at int, w uint64) error {
	age, _ := Age(s.now, tickOf(w))
	s.seen = append(s.seen, Seen{Key: k, Slot: slotOf(w), Heard: w&heardBit != 0, Age: age})
	if w&heardBit != 0 {
		s.heard = append(s.heard, heardAt{at: at, word: w, key: k})
	}
	if len(s.seen) == cap(s.seen) {
		return s.flush()
	}
	return nil
}

// flush delivers, then clears. What the server sends in between is lost as a
// bit; the delivery has said it.
func (s *sweep) flush() error {
	if len(s.seen) == 0 {
		return nil
	}
	if err := s.deliver(s.seen); err != nil {
		return err
	}
	for _, h := range s.heard {
		if h.at == none {
			err := s.t.editStashed(h.key, func(w uint64) uint64 {
				if (w^h.word)&recordBits == 0 {
					w &^= heardBit
				}
				return w
			})
			if err != nil {
				return err
			}
			continue
		}
		s.t.unhear(h.at, h.word)
	}
	s.seen, s.heard = s.seen[:0], s.heard[:0]
	return nil
}

// unhear clears the heard bit unless the record became another one.
func (t *Table) unhear(at int, was uint64) {
	for w := was; ; w = atomic.LoadUint64(&t.words[at]) {
		if (w^was)&recordBits != 0 || w&heardBit == 0 ||
			atomic.CompareAndSwapUint64(&t.words[at], w, w&^uint64(heardBit)) {
			return
		}
	}
}

// sweepStash reads the stash under its lock, and delivers outside of it.
func (s *sweep) sweepStash() error {
	all, err := s.t.stashed()
	if err != nil {
		return err
	}
	for _, e := range all {
		old, report := s.judge(e.word)
		if old {
			err = s.t.editStashed(e.key, func(w uint64) uint64 {
				if w == e.word {
					w &= recordBits
				}
				return w
			})
		}
		if err == nil && report {
			err = s.add(e.key, none, e.word)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
