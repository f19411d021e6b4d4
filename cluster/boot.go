package cluster

import (
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// A node whose boot counter went back (its identity folder came from a backup, or
// the file is gone) is heard by nobody: its hints look older than what the others
// keep. The others cannot believe a lower boot, which may be a repetition, but
// they can hand the node its own newer hint, which carries its own signature. The
// node goes on above that.

// overtakeEvery bounds how often a proof raises the boot: two nodes with one key
// would raise each other's for ever.
const overtakeEvery = time.Second

// maxBoot bounds the counter, so that it never wraps.
const maxBoot = 1 << 62

// Boot is the counter that orders this node's hints now. It only grows; the
// caller persists it.
func (m *Membership) Boot() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boot
}

// Raise makes the boot counter at least n: another place remembers more than
// Config.Boot.
func (m *Membership) Raise(n uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.boot = max(m.boot, min(n, maxBoot))
}

// overtake goes above a hint that this node's key has signed and that is newer
// than all that this process has said.
func (m *Membership) overtake(proof order) {
	m.mu.Lock()
	now := time.Now()
	soon := !m.raised.IsZero() && now.Sub(m.raised) < overtakeEvery
	again := !m.raised.IsZero()
	if !soon && proof.boot >= m.boot && proof.boot < maxBoot {
		m.boot, m.raised = proof.boot+1, now
	}
	boot := m.boot
	m.mu.Unlock()
	switch {
	case soon:
	case again:
		m.log.Error("another node speaks with this node's key", "node", m.cfg.Node.String(), "boot", proof.boot)
	default:
		m.log.Warn("the others remember a later start of this node: the boot counter had gone back", "remembered", proof.boot, "boot", boot)
	}
}

// Answer is Deliver of a peer's bundle, and this node's own in return. Where the
// peer speaks under an older boot than is known of it, its own newest hint is
// added: the peer goes on above it (see Boot).
func (m *Membership) Answer(from state.NodeID, bundle []byte) ([]byte, error) {
	err := m.Deliver(bundle)
	out := m.ledger.bundle(false)
	if m.ledger.fellBack(from, bundle) {
		out = m.ledger.remind(from, out)
	}
	return out, err
}
