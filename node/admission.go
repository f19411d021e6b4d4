package node

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
)

// fileMembers holds the member list that came with the admission: a node whose
// log is still empty, or at its first entries, must know whom it may hear.
const fileMembers = "members.json"

// fileAsked holds the hash of the token that was last asked with: a node ID is
// asked for with one token only.
const fileAsked = "join-token"

// membersFile is for the node ID that was admitted with it, and for no other.
type membersFile struct {
	Node    state.NodeID `json:"node"`
	Index   uint64       `json:"index"` // of the list
	Members []knownPeer  `json:"members"`
}

// memberList is a member list of the agreed state at an index: IDs, addresses
// and keys.
type memberList struct {
	Index   uint64
	Members []state.Member
}

func (n *Node) membersPath() string { return filepath.Join(n.identityDir(), fileMembers) }

// readMemberList is the list that this node was admitted with under this ID;
// nil: none was handed over.
func (n *Node) readMemberList(self state.NodeID) *memberList {
	b, err := os.ReadFile(n.membersPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		n.noteFile("the member list of the admission cannot be read, and a node that has its log does not need it: %v", err)
		return nil
	}
	var f membersFile
	if err := json.Unmarshal(b, &f); err != nil {
		n.setFileAside(n.membersPath(), err.Error(), "a node that has its log does not need it")
		return nil
	}
	if f.Node != self || len(f.Members) == 0 {
		return nil
	}
	out := &memberList{Index: f.Index}
	for _, p := range f.Members {
		out.Members = append(out.Members, state.Member{ID: p.ID, Cluster: p.Addr, PublicKey: p.Key})
	}
	return out
}

// adopt makes this node the member self that a cluster's answer says it is. The
// list is written first: the certificate is the truth.
func (n *Node) adopt(self state.NodeID, in joinAnswer) error {
	if len(in.Secret) != 32 {
		return errors.New("the answer has no cluster secret")
	}
	b, err := json.Marshal(membersFile{Node: self, Index: in.Index, Members: in.Members})
	if err != nil {
		return err
	}
	if err := transport.WriteFileAtomic(n.membersPath(), b, 0o600); err != nil {
		return err
	}
	return n.ids.Load().Adopt(transport.Admission{Certificate: in.Certificate, Roots: in.Roots, Secret: [32]byte(in.Secret)})
}

// askAs makes the node ID one that nothing but this token was used for. The
// cluster may have admitted the present one when the answer was lost, or may
// have removed it since: with the same token the join is the same, with
// another one it is a new join.
func (n *Node) askAs(text string) error {
	token, err := transport.ParseToken(text)
	if err != nil {
		return err
	}
	hash := token.Hash()
	want, path := hex.EncodeToString(hash[:]), filepath.Join(n.identityDir(), fileAsked)
	b, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("read the last join: %w", err)
	}
	if strings.TrimSpace(string(b)) == want {
		return nil
	}
	if err := n.ids.Load().SetNode(state.NewNodeID()); err != nil {
		return err
	}
	return transport.WriteFileAtomic(path, []byte(want+"\n"), 0o600)
}
