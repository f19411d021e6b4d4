package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/raft/boltstore"
)

const (
	auditDir  = "audit"
	keptShots = 2
)

// Audit ends the daemons of the members and checks the log that they agreed on, from
// its beginning or the oldest snapshot: each client had one server between two permits
// (invariant A). It is the last thing to do with a lab before Down, and gives a line
// that says what was looked at.
func (l *Lab) Audit(ctx context.Context) (string, error) {
	for _, n := range l.members() {
		if err := l.kill(ctx, n); err != nil {
			return "", fmt.Errorf("audit: %w", err)
		}
	}
	best, first := "", uint64(0)
	for _, n := range l.members() {
		s, err := l.copyStore(n)
		if err != nil {
			return "", fmt.Errorf("audit: %s: %w", n, err)
		}
		from, err := s.FirstIndex()
		if err := errors.Join(err, s.Close()); err != nil {
			return "", fmt.Errorf("audit: %s: %w", n, err)
		}
		if from > 0 && (best == "" || from < first) {
			best, first = n, from
		}
	}
	if best == "" {
		return "", errors.New("audit: no member has a log")
	}
	a, last, err := audit(l.path(auditDir, best))
	if err != nil {
		return "", fmt.Errorf("audit: log of %s: %w", best, err)
	}
	if l.st.Options.Clients > 0 && a.Made == 0 {
		return "", fmt.Errorf("audit: log of %s: no client was recorded in %d commands: nothing was proved", best, a.Commands)
	}
	return fmt.Sprintf("log of %s, entries %d to %d: %d commands, %d records made, %d moved by permit", best, first, last, a.Commands, a.Made, a.Moved), nil
}

// copyStore copies what a stopped member has agreed to, and opens the copy.
func (l *Lab) copyStore(node string) (*boltstore.Store, error) {
	to := l.path(auditDir, node)
	if err := os.RemoveAll(to); err != nil {
		return nil, err
	}
	if err := os.CopyFS(to, os.DirFS(l.path(node, "data", "raft"))); err != nil {
		return nil, fmt.Errorf("copy store: %w", err)
	}
	return boltstore.Open(filepath.Join(to, storeName))
}

const storeName = "raft.db"

// audit reads a copied store.
func audit(dir string) (a *state.Audit, last uint64, err error) {
	s, err := boltstore.Open(filepath.Join(dir, storeName))
	if err != nil {
		return nil, 0, err
	}
	defer s.Close()
	first, err := s.FirstIndex()
	if err != nil {
		return nil, 0, err
	}
	if last, err = s.GetCommitIndex(); err != nil {
		return nil, 0, err
	}
	a = state.NewAudit()
	if first > 1 {
		if err := restoreOldest(a, dir, first); err != nil {
			return nil, 0, err
		}
	}
	for i := max(first, a.View().Index()+1); i <= last; i++ {
		var l hraft.Log
		if err := s.GetLog(i, &l); err != nil {
			return nil, 0, fmt.Errorf("read entry %d: %w", i, err)
		}
		if l.Type != hraft.LogCommand {
			continue
		}
		if err := a.Apply(i, l.Data); err != nil {
			return nil, 0, err
		}
	}
	return a, last, nil
}

// restoreOldest begins with the oldest snapshot that the log follows.
func restoreOldest(a *state.Audit, dir string, first uint64) error {
	shots, err := hraft.NewFileSnapshotStore(dir, keptShots, io.Discard)
	if err != nil {
		return fmt.Errorf("open snapshots: %w", err)
	}
	list, err := shots.List()
	if err != nil {
		return fmt.Errorf("list snapshots: %w", err)
	}
	for i := len(list) - 1; i >= 0; i-- { // the newest comes first
		if list[i].Index+1 < first {
			continue
		}
		_, r, err := shots.Open(list[i].ID)
		if err != nil {
			return fmt.Errorf("open snapshot %s: %w", list[i].ID, err)
		}
		defer r.Close()
		return a.Restore(r)
	}
	return fmt.Errorf("the log begins with entry %d, and no snapshot leads there", first)
}
