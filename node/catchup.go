package node

import (
	"context"
	"time"

	"github.com/vpnlb/vpnlb/raft"
)

const catchUpPoll = 50 * time.Millisecond

// runCatchUp opens the data plane for agreed state, and latches "caught up".
//
// Caught up means: a leader, confirmed by a barrier in its term and by a
// majority, named the index of its own last applied command, and this node's
// maps have reached at least that. What raft calls its commit index is no
// measure: elections raise it without any command.
//
// Without any leader for ColdStartWait, a node with a stored spec forwards from
// that spec; it is announced demoted then, and what is pinned is touched only
// where it is not newer than the store (coldstart.go).
func (m *member) runCatchUp(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.replica.Started():
	}
	opened := false
	open := func() {
		if !opened {
			opened = true
			close(m.sync.gate)
		}
	}
	m.progress(StageStarting, "catching up with the leader")
	var wanted uint64
	known := false
	for {
		if !known {
			// The first answer is the one to reach: under load a later one would
			// always be a step ahead.
			if index, err := m.leaderIndex(ctx); err == nil {
				wanted, known = index, true
			}
		}
		switch {
		case known && m.view().Index() >= max(wanted, m.pinned.Index):
			open()
			if m.sync.index.Load() >= wanted {
				m.becomeCaughtUp(wanted)
				return nil
			}
		case m.mayColdStart():
			m.cold.Store(true)
			m.openCold(open)
			m.progress(StageStarting, "cold start: no leader found, forwarding from the stored state")
			m.readyWithoutRoutes()
		case m.tooOld():
			m.progress(StageStarting, "no leader found, and the stored state was last known good at "+m.storedAt.UTC().Format("2006-01-02 15:04 MST")+": it is not trusted; start the other nodes")
			m.readyWithoutRoutes()
		}
		if !pause(ctx, catchUpPoll) {
			return nil
		}
	}
}

func (m *member) becomeCaughtUp(index uint64) {
	m.caughtUp.Store(true)
	m.cold.Store(false)
	m.keeper.Kick()
	m.log.Info("caught up", "index", index, "after", time.Since(m.started).Round(time.Millisecond).String())
	m.progress(StageRunning, "")
	m.readyWithoutRoutes()
}

// readyWithoutRoutes says READY where there are no routes that would say it.
func (m *member) readyWithoutRoutes() {
	if m.announcer == nil {
		m.node.notify.ready()
	}
}

// leaderIndex asks the leader, which may be this node.
func (m *member) leaderIndex(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if m.replica.Status().Role == raft.RoleLeader {
		return m.replica.LeaderAnswer(ctx)
	}
	var out indexAnswer
	err := m.callLeader(ctx, pathIndex, struct{}{}, &out)
	return out.Index, err
}
