package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/transport"
)

// fileLastGood holds when this node last was caught up and heard a leader that a
// majority stands behind. The files of the store would not do: every start
// writes to them.
const fileLastGood = "last-good"

// lastGoodEvery is how often that file is written; the limit it serves is days.
const lastGoodEvery = 3 * time.Minute

func (n *Node) lastGoodPath() string { return filepath.Join(n.identityDir(), fileLastGood) }

// readLastGood gives when the stored state was last known good; zero: nothing is
// stored. A store from before this file existed is as old as its last write,
// which is kept from now on: the next start would find a newer one.
func (n *Node) readLastGood() time.Time {
	b, err := os.ReadFile(n.lastGoodPath())
	if err == nil {
		var t time.Time
		if t, err = time.Parse(time.RFC3339, strings.TrimSpace(string(b))); err == nil {
			return t
		}
	}
	if !errors.Is(err, os.ErrNotExist) {
		n.log.Warn("read when the store was last good", "error", err.Error())
	}
	info, err := os.Stat(filepath.Join(n.storeDir(), "raft.db"))
	if err != nil {
		return time.Time{} // no store
	}
	if err := n.writeLastGood(info.ModTime()); err != nil {
		n.log.Warn("remember how old the store is", "error", err.Error())
	}
	return info.ModTime()
}

func (n *Node) writeLastGood(t time.Time) error {
	return transport.WriteFileAtomic(n.lastGoodPath(), []byte(t.UTC().Format(time.RFC3339)+"\n"), 0o600)
}

// keepLastGood is to be called every few seconds, by one goroutine.
func (m *member) keepLastGood() {
	if !m.caughtUp.Load() || m.quorumLost() > 0 || !m.goodWritten.IsZero() && time.Since(m.goodWritten) < lastGoodEvery {
		return
	}
	now := time.Now()
	if err := m.node.writeLastGood(now); err != nil {
		m.log.Warn("remember that the state is good", "error", err.Error())
		return
	}
	m.goodWritten = now
}

// stateAge is how long ago the stored state of this start was last known good,
// by the wall clock: the only one that goes on while a machine is off.
func (m *member) stateAge() time.Duration {
	if m.storedAt.IsZero() {
		return 0
	}
	return time.Since(m.storedAt)
}
