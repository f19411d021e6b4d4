package node

import (
	"crypto/ed25519"
	"fmt"
	"slices"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/raft"
)

// authorize asks the agreement whether a node is a member under this key. A
// blank node (joining, its log still empty) knows no members yet: it believes
// whoever the CA vouched for, as it must to be sent its first log entry.
func (m *member) authorize(id state.NodeID, key []byte) error {
	spec := m.spec()
	if spec.ClusterID.IsZero() {
		return nil
	}
	if r, ok := spec.RemovedByID(id); ok {
		if m.inRaft(id) || replaced(spec, key) {
			return nil
		}
		return fmt.Errorf("node %s was removed at log index %d", id, r.Index)
	}
	member, ok := spec.MemberByID(id)
	switch {
	case !ok:
		return m.authorizeBehind(id)
	case !ed25519.PublicKey(member.PublicKey).Equal(ed25519.PublicKey(key)):
		return fmt.Errorf("node %s showed another key than the one it was admitted with", id)
	}
	return nil
}

// inRaft reports whether raft's configuration names a node. A member that was
// removed keeps its connections until raft has followed: it may be the vote
// that its own removal needs.
func (m *member) inRaft(id state.NodeID) bool {
	return slices.ContainsFunc(m.replica.Status().Servers, func(s raft.Server) bool { return s.ID == id })
}

// replaced reports whether a present member has this key: who lost its store
// and the answer with its new ID may ask again under the old one.
func replaced(spec *state.Spec, key []byte) bool {
	return slices.ContainsFunc(spec.Members, func(o state.Member) bool {
		return ed25519.PublicKey(o.PublicKey).Equal(ed25519.PublicKey(key))
	})
}

// authorizeBehind lets a node through that this node's log does not know yet
// while the log may be behind: else a member that was away could never hear
// from a leader that joined meanwhile. The certificate was checked already.
func (m *member) authorizeBehind(id state.NodeID) error {
	if !m.caughtUp.Load() {
		return nil
	}
	return fmt.Errorf("node %s is no member", id)
}
