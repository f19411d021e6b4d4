package node

import (
	"context"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/affinity"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// evidenceBook keeps what connections of SSTP proved until it is answered, as the
// data plane's map does for packets: evidence comes once, but may meet a lost
// leader, a full budget, or the learner while it is busy with a weaker one of
// the same client.
type evidenceBook struct {
	offer func([]table.Evidence)

	mu      sync.Mutex
	pending map[table.Key]pendingEvidence
	lost    uint64 // had no room
}

type pendingEvidence struct {
	table.Evidence
	since, next time.Time // when it came; when it is offered again
}

const (
	evidenceTick   = time.Second
	evidenceRepeat = 2 * time.Second  // unanswered: the proposal is under way, or it was left out
	evidenceQuiet  = 10 * time.Second // refused: permits and budgets change with time
	evidenceLife   = 2 * time.Minute  // refused for so long: the next call tells anew
)

func newEvidenceBook(offer func([]table.Evidence)) *evidenceBook {
	return &evidenceBook{offer: offer, pending: make(map[table.Key]pendingEvidence)}
}

// add takes one evidence and never blocks. The newest server counts, and the
// strongest that was seen of it.
func (b *evidenceBook) add(e table.Evidence) {
	now := time.Now()
	b.mu.Lock()
	old, known := b.pending[e.Key]
	if !known && len(b.pending) >= affinity.MaxPending {
		b.lost++
		b.mu.Unlock()
		return
	}
	if known && old.Slot == e.Slot {
		e.Level, e.Opening, e.Saw = max(e.Level, old.Level), e.Opening || old.Opening, old.Saw
	}
	b.pending[e.Key] = pendingEvidence{e, now, now.Add(evidenceRepeat)}
	b.mu.Unlock()
	b.offer([]table.Evidence{e})
}

// answered reports whether the evidence was one of this book. What grew stronger
// meanwhile is offered anew.
func (b *evidenceBook) answered(e table.Evidence, a table.Answer) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	p, ok := b.pending[e.Key]
	if !ok || p.Slot != e.Slot {
		return false
	}
	switch {
	case a == table.Refused:
		p.next = time.Now().Add(evidenceQuiet)
		b.pending[e.Key] = p
	case p.Level > e.Level && a == table.Stored:
		p.next = time.Time{}
		b.pending[e.Key] = p
	default:
		delete(b.pending, e.Key)
	}
	return true
}

// run offers again what is due, until ctx ends.
func (b *evidenceBook) run(ctx context.Context) {
	for pause(ctx, evidenceTick) {
		if due := b.due(time.Now()); len(due) > 0 {
			b.offer(due)
		}
	}
}

func (b *evidenceBook) due(now time.Time) (due []table.Evidence) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for k, p := range b.pending {
		switch {
		case now.Sub(p.since) > evidenceLife:
			delete(b.pending, k)
		case !now.Before(p.next):
			p.next = now.Add(evidenceRepeat)
			b.pending[k] = p
			due = append(due, p.Evidence)
		}
	}
	return due
}

// counts are how many wait, and how many had no room to.
func (b *evidenceBook) counts() (pending int, lost uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.pending), b.lost
}
