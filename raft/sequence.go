package raft

import (
	"context"
	"sync"
)

// sequencer numbers the commands of this boot from 1 and keeps the span from the
// oldest unanswered one to the newest within maxOutstanding: the Machine
// remembers the results of a window of sequences only, and a repeat that fell
// out of it would be refused although it may have been applied.
type sequencer struct {
	mu    sync.Mutex
	next  uint64              // the next sequence
	open  map[uint64]struct{} // first sequence of each unanswered call
	low   uint64              // first sequence of the oldest unanswered call; next if none
	freed chan struct{}       // closed and replaced when low rises
}

func newSequencer() *sequencer {
	return &sequencer{next: 1, low: 1, open: map[uint64]struct{}{}, freed: make(chan struct{})}
}

// acquire takes n consecutive sequences and returns the first.
func (s *sequencer) acquire(ctx context.Context, n int) (uint64, error) {
	for {
		s.mu.Lock()
		first, ok := s.take(n)
		freed := s.freed
		s.mu.Unlock()
		if ok {
			return first, nil
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-freed:
		}
	}
}

// try is acquire without waiting.
func (s *sequencer) try(n int) (uint64, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.take(n)
}

func (s *sequencer) take(n int) (uint64, bool) {
	if s.next+uint64(n)-s.low > maxOutstanding {
		return 0, false
	}
	first := s.next
	s.next += uint64(n)
	s.open[first] = struct{}{}
	return first, true
}

// release gives back the sequences that began with first. One that was given up
// without an answer may still be applied, but nobody repeats it any more.
func (s *sequencer) release(first uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, first)
	low := s.next
	for f := range s.open {
		low = min(low, f)
	}
	if low > s.low {
		s.low = low
		close(s.freed)
		s.freed = make(chan struct{})
	}
}
