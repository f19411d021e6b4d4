package node

import (
	"bytes"
	"crypto/ed25519"
	"fmt"
	"slices"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/raft"
)

// authorize asks the newest member list that this node has whether a node is in
// it under this key. Who is not in it may have joined while this node was away:
// it is refused, and the members that this node knows are asked meanwhile (see
// strangers), so that its next attempt is judged by what they say.
func (m *member) authorize(id state.NodeID, key []byte) error {
	view := m.view()
	spec := view.Spec()
	lostCA := len(m.ids.Identity().Roots()) == 0 // then only keys in the list count: no certificate was checked
	if r, ok := spec.RemovedByID(id); ok {
		if m.inRaft(id) && !lostCA || hasKey(spec.Members, key) {
			return nil
		}
		return fmt.Errorf("node %s was removed at log index %d", id, r.Index)
	}
	members := m.newestMembers(view)
	switch at := slices.IndexFunc(members, func(o state.Member) bool { return o.ID == id }); {
	case at >= 0 && bytes.Equal(members[at].PublicKey, key):
		return nil
	case at >= 0:
		return fmt.Errorf("node %s showed another key than the one it was admitted with", id)
	case hasKey(members, key):
		return nil // a member that lost its store has a new ID; what it may do by its key it may do under the old one
	case lostCA:
		return errNoCA
	case len(members) == 0 && m.first == nil:
		return nil // blank, and admitted by a version that hands no list over
	}
	return m.strangers.judge(id, key)
}

// newestMembers are those of the log, or, while the log is behind the list that
// came with the admission, of that one.
func (m *member) newestMembers(view *state.View) []state.Member {
	if a := m.admitted; a != nil && view.Index() < a.Index {
		return a.Members
	}
	return view.Spec().Members
}

// inRaft reports whether raft's configuration names a node. A member that was
// removed keeps its connections until raft has followed: it may be the vote
// that its own removal needs.
func (m *member) inRaft(id state.NodeID) bool {
	return slices.ContainsFunc(m.replica.Status().Servers, func(s raft.Server) bool { return s.ID == id })
}

// hasKey reports whether a member has this key: who lost its store and the
// answer with its new ID may ask again under the old one.
func hasKey(members []state.Member, key []byte) bool {
	return len(key) == ed25519.PublicKeySize && slices.ContainsFunc(members, func(o state.Member) bool { return bytes.Equal(o.PublicKey, key) })
}
