package transport

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Removal is a statement that a node was removed from a cluster by the log
// entry at Index. A node that receives one withdraws and parks for good.
//
// It is signed with the key of a member, not of the CA: a node that was removed
// itself may still know the CA's key, but its own key is no longer believed.
// The receiver believes the members it knew last.
type Removal struct {
	Cluster state.ClusterID
	Node    state.NodeID // the removed one
	Index   uint64       // log index of the removal
	Signer  state.NodeID
}

// Signed form 1: "vpnlb-removed-1" | cluster (16) | node (16) | index (8, big
// endian) | signer (16); then the signature (64).
const (
	removalDomain = "vpnlb-removed-1"
	removalBody   = len(removalDomain) + 16 + 16 + 8 + 16
)

// SignRemoval makes the bytes of a statement. key belongs to r.Signer.
func SignRemoval(r Removal, key ed25519.PrivateKey) []byte {
	b := make([]byte, 0, removalBody+ed25519.SignatureSize)
	b = append(b, removalDomain...)
	b = append(b, r.Cluster[:]...)
	b = append(b, r.Node[:]...)
	b = binary.BigEndian.AppendUint64(b, r.Index)
	b = append(b, r.Signer[:]...)
	return append(b, ed25519.Sign(key, b)...)
}

// VerifyRemoval reads a statement and checks its signature against the key of
// its signer. lookup answers from the last member list known; a node never
// believes a statement about itself signed by itself.
func VerifyRemoval(b []byte, lookup func(state.NodeID) (ed25519.PublicKey, bool)) (Removal, error) {
	var r Removal
	if len(b) != removalBody+ed25519.SignatureSize || string(b[:len(removalDomain)]) != removalDomain {
		return r, errors.New("verify removal: not a statement of this form")
	}
	p := b[len(removalDomain):]
	copy(r.Cluster[:], p)
	copy(r.Node[:], p[16:])
	r.Index = binary.BigEndian.Uint64(p[32:])
	copy(r.Signer[:], p[40:])
	if r.Signer == r.Node {
		return Removal{}, errors.New("verify removal: signed by the removed node itself")
	}
	pub, ok := lookup(r.Signer)
	if !ok || len(pub) != ed25519.PublicKeySize {
		return Removal{}, fmt.Errorf("verify removal: signer %s is not a member", r.Signer)
	}
	if !ed25519.Verify(pub, b[:removalBody], b[removalBody:]) {
		return Removal{}, fmt.Errorf("verify removal: signature of %s is wrong", r.Signer)
	}
	return r, nil
}
