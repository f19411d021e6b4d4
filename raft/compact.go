package raft

import (
	"context"
	"errors"
	"fmt"
	"time"

	hraft "github.com/hashicorp/raft"
)

const (
	compactEvery = 5 * time.Second
	minTrailing  = 16      // entries behind a snapshot, at least: of the largest, some 5 MB
	maxTrailing  = 1 << 16 // and at most
)

// compact takes a snapshot when enough bytes, or entries, of log have gathered
// since the last one. raft counts entries, but ours are batches of any size.
func (r *Replica) compact() {
	t := time.NewTicker(compactEvery)
	defer t.Stop()
	r.mu.Lock()
	rt := r.raft
	r.mu.Unlock()
	if rt == nil {
		return
	}
	g := r.guard.Load()
	var mark int64                                       // bytes in the store after the last snapshot
	shot := statistic(rt.Stats(), "last_snapshot_index") // index of it
	if shot > 0 {                                        // what trails it does not count
		mark = min(g.logBytes(), r.cfg.TrailingBytes)
	}
	for {
		select {
		case <-r.done:
			return
		case <-r.parkedCh:
			return
		case <-t.C:
		}
		last := rt.AppliedIndex()
		mark = min(mark, g.logBytes()) // compaction and truncation shrink it
		if g.logBytes()-mark < r.cfg.SnapshotBytes && last-min(last, shot) < replayEntries {
			continue
		}
		err := r.snapshot(context.Background(), rt) // ends with raft
		if err != nil && !errors.Is(err, ErrParked) && !errors.Is(err, ErrNotStarted) {
			r.metrics.snapshotFailures.Inc()
			r.log.Warn("snapshot failed", "error", err)
			continue // again at the next turn
		}
		mark, shot = g.logBytes(), last
	}
}

func (r *Replica) snapshot(ctx context.Context, rt *hraft.Raft) error {
	g := r.guard.Load()
	n, err := trailing(g, r.cfg.TrailingBytes)
	if err != nil {
		return fmt.Errorf("measure the log: %w", err)
	}
	if err := rt.ReloadConfig(r.reloadable(n)); err != nil {
		return fmt.Errorf("set trailing logs: %w", err)
	}
	err = r.await(ctx, func() error { return rt.Snapshot().Error() })
	if errors.Is(err, hraft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}

// trailing gives the entries to keep behind a snapshot: as many of the last ones
// as keep bytes hold. Sizes differ a thousandfold, so a mean would not do.
func trailing(g *guard, keep int64) (n uint64, err error) {
	first, err := g.store.FirstIndex()
	if err != nil {
		return 0, err
	}
	last, err := g.store.LastIndex()
	if err != nil {
		return 0, err
	}
	for i := last; n < maxTrailing && i >= max(first, 1); i-- {
		var l hraft.Log
		if err := g.own(func() error { return g.store.GetLog(i, &l) }); errors.Is(err, hraft.ErrLogNotFound) {
			break // cut meanwhile
		} else if err != nil {
			break // spoiled: whoever has to read it parks; a snapshot must not wait for it
		}
		if keep -= int64(len(l.Data)); keep < 0 && n >= minTrailing {
			break
		}
		n++
	}
	return max(n, minTrailing), nil
}

func (r *Replica) reloadable(trailing uint64) hraft.ReloadableConfig {
	return hraft.ReloadableConfig{
		TrailingLogs:      trailing,
		SnapshotInterval:  time.Hour,
		SnapshotThreshold: 1 << 62,
		HeartbeatTimeout:  r.cfg.Heartbeat,
		ElectionTimeout:   r.cfg.Heartbeat,
	}
}
