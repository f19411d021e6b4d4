package transport

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Identity is what a node is, at one moment: an immutable value.
type Identity struct {
	Node   state.NodeID
	Key    ed25519.PrivateKey
	Boot   uint64   // starts of this node so far, this one included
	Secret [32]byte // cluster secret; zero before the node is a member
	name   Name     // zero before the node is a member
	leaf   *x509.Certificate
	roots  []*x509.Certificate
}

// Admission is what a node gets when it is admitted to a cluster.
type Admission struct {
	Certificate []byte   // DER: for the node's key; names cluster, node and role
	Roots       [][]byte // DER of the CA certificates to believe, 1..MaxRoots
	Secret      [32]byte // the cluster secret
}

// MaxRoots bounds the CA certificates believed at once: two during a rotation,
// and room for one that was interrupted.
const MaxRoots = 4

// NewIdentity makes an identity without a disk. The Admission may be nil: the
// node is then no member yet.
func NewIdentity(node state.NodeID, key ed25519.PrivateKey, boot uint64, a *Admission) (Identity, error) {
	id := Identity{Node: node, Key: key, Boot: boot}
	if a == nil {
		return id, nil
	}
	roots, err := parseRoots(a.Roots)
	if err != nil {
		return Identity{}, err
	}
	leaf, err := x509.ParseCertificate(a.Certificate)
	if err != nil {
		return Identity{}, fmt.Errorf("parse node certificate: %w", err)
	}
	name, pub, err := checkLeaf(leaf, roots)
	if err != nil {
		return Identity{}, fmt.Errorf("check node certificate: %w", err)
	}
	if !pub.Equal(key.Public()) {
		return Identity{}, errors.New("check node certificate: it is not for this node's key")
	}
	if a.Secret == [32]byte{} {
		return Identity{}, errors.New("admission without a cluster secret")
	}
	id.Node, id.name, id.leaf, id.roots, id.Secret = name.Node, name, leaf, roots, a.Secret
	return id, nil
}

// Member reports whether the node holds a certificate of a cluster.
func (id Identity) Member() bool { return id.leaf != nil }

// Cluster is the cluster the node was admitted to; zero before.
func (id Identity) Cluster() state.ClusterID { return id.name.Cluster }

// Role is the role the node was admitted with; zero before.
func (id Identity) Role() state.Role { return id.name.Role }

// PublicKey is the public half of Key: in the certificate and the member list.
func (id Identity) PublicKey() ed25519.PublicKey { return id.Key.Public().(ed25519.PublicKey) }

// Roots returns the DER of the CA certificates the node believes.
func (id Identity) Roots() [][]byte {
	var out [][]byte
	for _, r := range id.roots {
		out = append(out, r.Raw)
	}
	return out
}

// Certificate returns the DER of the node's certificate, nil before it has one.
func (id Identity) Certificate() []byte {
	if id.leaf == nil {
		return nil
	}
	return id.leaf.Raw
}

// CSR signs a certificate request under the node's own ID.
func (id Identity) CSR() ([]byte, error) { return NewCSR(id.Node, id.Key) }

// tlsCertificate gives the chain shown to peers: the leaf and the root that
// signed it, which is how a joining node sees the CA that it pinned.
func (id Identity) tlsCertificate() tls.Certificate {
	chain := [][]byte{id.leaf.Raw}
	for _, r := range id.roots {
		if id.leaf.CheckSignatureFrom(r) == nil {
			chain = append(chain, r.Raw)
			break
		}
	}
	return tls.Certificate{Certificate: chain, PrivateKey: id.Key, Leaf: id.leaf}
}

func parseRoots(ders [][]byte) ([]*x509.Certificate, error) {
	if len(ders) == 0 || len(ders) > MaxRoots {
		return nil, fmt.Errorf("%d CA certificates: want 1 to %d", len(ders), MaxRoots)
	}
	var roots []*x509.Certificate
	for _, der := range ders {
		r, err := parseRoot(der)
		if err != nil {
			return nil, err
		}
		roots = append(roots, r)
	}
	return roots, nil
}
