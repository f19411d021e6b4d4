package state

import (
	"bytes"
	"cmp"
)

// blockSize results share a block: what a View makes Apply copy.
const (
	blockSize  = 64
	blockCount = ResultWindow / blockSize
)

// window remembers the results of one origin's present boot, in a ring by
// sequence number.
type window struct {
	origin NodeID
	boot   uint64
	newest uint64 // highest sequence
	used   uint64 // log index of the last command
	blocks [blockCount]*block
}

type block struct {
	epoch     uint64
	sequences [blockSize]uint64
	outcomes  [blockSize][]byte // encoded: a Learn's results take two bits each
}

// result is the remembered outcome of a sequence that lies in the window.
func (w *window) result(sequence uint64) ([]byte, bool) {
	b := w.blocks[sequence%ResultWindow/blockSize]
	if b == nil || b.sequences[sequence%blockSize] != sequence {
		return nil, false
	}
	return b.outcomes[sequence%blockSize], true
}

// below reports whether a sequence is too old for the window.
func (w *window) below(sequence uint64) bool {
	return sequence < w.newest && w.newest-sequence >= ResultWindow
}

func (w *window) store(epoch, sequence uint64, outcome []byte) {
	at := &w.blocks[sequence%ResultWindow/blockSize]
	switch {
	case *at == nil:
		*at = &block{epoch: epoch}
	case (*at).epoch != epoch:
		c := **at
		c.epoch = epoch
		*at = &c
	}
	(*at).sequences[sequence%blockSize] = sequence
	(*at).outcomes[sequence%blockSize] = outcome
	w.newest = max(w.newest, sequence)
}

// remembered answers a command that was applied before or is too old to tell.
func (m *Machine) remembered(e *Envelope) (Outcome, bool) {
	w := m.windows[e.Origin]
	if w == nil || e.Boot > w.boot || e.Sequence == 0 {
		return Outcome{}, false
	}
	if e.Boot < w.boot {
		o := refusal(TooOld, "the command was sent before its node's last restart (boot %d, now %d)", e.Boot, w.boot)
		o.Index = m.index
		return o, true
	}
	if w.below(e.Sequence) {
		o := refusal(TooOld, "command %d of its node lies more than %d commands back: whether it was applied is not known any more", e.Sequence, ResultWindow)
		o.Index = m.index
		return o, true
	}
	encoded, ok := w.result(e.Sequence)
	if !ok {
		return Outcome{}, false
	}
	r := &reader{b: encoded}
	return r.outcome(), true
}

func (m *Machine) remember(e *Envelope, o *Outcome) {
	w := m.windows[e.Origin]
	switch {
	case w == nil:
		if len(m.windows) >= MaxOrigins {
			m.evict()
		}
		w = &window{origin: e.Origin, boot: e.Boot}
		m.windows[e.Origin] = w
	case w.boot != e.Boot: // a newer one: remembered has refused older ones
		*w = window{origin: e.Origin, boot: e.Boot}
	}
	w.used = m.index
	w.store(m.records.epoch, e.Sequence, appendOutcome(nil, o))
}

// evict forgets the origin that was silent for the longest time; members last.
func (m *Machine) evict() {
	var oldest *window
	var oldestMember bool
	for _, w := range m.windows { // the least of a total order: map order plays no part
		_, member := m.spec.MemberByID(w.origin)
		if oldest == nil || member != oldestMember && !member ||
			member == oldestMember && cmp.Or(cmp.Compare(w.used, oldest.used), bytes.Compare(w.origin[:], oldest.origin[:])) < 0 {
			oldest, oldestMember = w, member
		}
	}
	delete(m.windows, oldest.origin)
}
