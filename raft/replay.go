package raft

import (
	"errors"
	"fmt"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// errLost: the store is in order but not all there, or older than it was.
var errLost = errors.New("part of the store is lost")

// replay brings the Machine to the last entry that this node knows to be
// committed, without hearing from anybody: the newest readable snapshot, then
// the log up to the persisted commit index. It also reads the entries beyond,
// because raft, which reads them next, panics where one is missing.
//
// It leaves r.restored, and gives how far the store has come.
func (r *Replica) replay(g *guard, snaps hraft.SnapshotStore) (own Mark, err error) {
	if own.Term, err = g.GetUint64(keyCurrentTerm); err != nil {
		return own, err
	}
	list, err := snaps.List()
	if err != nil {
		return own, err
	}
	if own.Term == 0 && len(list) > 0 {
		// No node has a snapshot before it has a term: raft.db is gone, and with it
		// the votes that this ID has given.
		return own, fmt.Errorf("%w: there is a snapshot of entry %d, but no term", errLost, list[0].Index)
	}
	restored, err := r.restoreNewest(snaps, list)
	if err != nil {
		return own, err
	}
	commit, err := g.GetCommitIndex()
	if err != nil {
		return own, err
	}
	if len(list) > 0 { // raft takes the newest for applied, readable or not
		commit = max(commit, list[0].Index)
		own.LogTerm, own.Index = list[0].Term, list[0].Index
	}
	last, err := g.LastIndex()
	if err != nil {
		return own, err
	}
	if have := max(last, restored); g.store.PersistedCommit() > have || commit > have {
		return own, fmt.Errorf("%w: entry %d was committed, %d is the last", errLost, max(commit, g.store.PersistedCommit()), have)
	}
	for i := restored + 1; i <= last; i++ {
		var l hraft.Log
		if err := g.GetLog(i, &l); errors.Is(err, hraft.ErrLogNotFound) {
			return own, fmt.Errorf("%w: entry %d between snapshot %d and the last entry %d", errLost, i, restored, last)
		} else if err != nil {
			return own, err
		}
		if i <= commit && l.Type == hraft.LogCommand {
			r.fsm.Apply(&l) // an entry it does not know parks the replica; the rest is not applied
		}
		if i > own.Index {
			own.LogTerm, own.Index = l.Term, i
		}
	}
	v := r.View()
	r.mu.Lock()
	r.restored = Restored{ClusterID: v.Spec().ClusterID, Index: v.Index(), Commit: commit}
	r.mu.Unlock()
	return own, nil
}

// restoreNewest restores the newest snapshot that can be read, and gives its
// index; 0 without any. One that is whole, but written by a newer version, is no
// loss: it ends the start, and whoever puts that version back has everything.
func (r *Replica) restoreNewest(snaps hraft.SnapshotStore, list []*hraft.SnapshotMeta) (uint64, error) {
	var errs []error
	for _, m := range list {
		_, rc, err := snaps.Open(m.ID)
		if err == nil {
			if err = r.fsm.Restore(rc); err == nil {
				return m.Index, nil
			}
		}
		err = fmt.Errorf("snapshot %s: %w", m.ID, err)
		if errors.Is(err, state.ErrUnknown) {
			return 0, fmt.Errorf("%w: nothing was changed; start that version of vpnlb again", err)
		}
		errs = append(errs, err)
		r.log.Warn("snapshot unreadable", "snapshot", m.ID, "error", err)
	}
	if len(errs) > 0 {
		return 0, fmt.Errorf("%w: no snapshot can be read: %w", errLost, errors.Join(errs...))
	}
	return 0, nil
}
