package node

import (
	"sync"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// mayColdStart reports whether this node may forward, without a leader's word,
// by what was agreed when it last ran.
func (m *member) mayColdStart() bool {
	return m.quorumLost() >= m.limits.ColdStartWait && m.specStored() &&
		m.removed.Load() == nil && !m.cold.Load() &&
		(m.stateAge() <= m.limits.StateAge || m.node.deps.ForceCold)
}

// tooOld reports whether nothing but the age of the stored state stands in the
// way of a cold start.
func (m *member) tooOld() bool {
	return m.quorumLost() >= m.limits.ColdStartWait && m.specStored() && !m.cold.Load() &&
		m.stateAge() > m.limits.StateAge && !m.node.deps.ForceCold
}

// specStored: the store held a spec with a VIP when it was opened.
func (m *member) specStored() bool {
	st := m.replica.Status()
	return !st.Restored.ClusterID.IsZero() && len(m.spec().VIPs) > 0
}

// openCold opens the gate of the tables for a cold start, where they may be
// written at all.
func (m *member) openCold(open func()) {
	if m.pinsAreNewer() {
		m.log.Warn("cold start by the pinned tables, which are newer than the store", "pinned_index", m.pinned.Index, "index", m.view().Index())
		return
	}
	open()
}

// pinsAreNewer: the pinned tables hold more than the store is known to. After a
// crash they always do: they are written with an entry at once, while that it was
// committed reaches the disk only with the next one, and a lone node gets no next
// one. Such tables stay as they are, whatever happens, until a leader is there.
func (m *member) pinsAreNewer() bool { return m.view().Index() < m.pinned.Index }

// holdsTables reports whether the kernel's tables hold an agreed state that may
// be announced: this process wrote them, or the cold start rests on the pinned
// ones (of this cluster: others are refused when the plane is attached).
func (m *member) holdsTables() bool {
	return m.sync.index.Load() > 0 || m.cold.Load() && m.pinned.Index > 0
}

// tablesMayWait reports whether what keeps this node's routes back is something
// else than tables that are not written: it has not caught up, and may not start
// without a leader. That is then the reason to tell.
func (m *member) tablesMayWait() bool {
	return !m.caughtUp.Load() && !m.cold.Load() && !m.mayColdStart()
}

// tablesInForce gives a reader of the set that is in the kernel's tables; nil:
// none yet. Where a cold start rests on newer pins it is rendered from the store,
// which lacks the last entries before the crash. That is near enough for SSTP to
// choose a server by; nothing is written from it.
func (m *member) tablesInForce() func() *table.Set {
	var mu sync.Mutex
	var spec *state.Spec // that set is of
	var set *table.Set
	return func() *table.Set {
		if written := m.plane.Dump(); written != nil || !m.holdsTables() {
			return written
		}
		mu.Lock()
		defer mu.Unlock()
		if now := m.spec(); now != spec {
			spec, set = now, Render(now)
		}
		return set
	}
}
