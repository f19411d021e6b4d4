package transport

import (
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
)

// Peer is who is at the other end of an authenticated connection.
type Peer struct {
	Name
	PublicKey ed25519.PublicKey
	Addr      string // as the connection says; for logs
}

// checkLeaf verifies a node certificate against the roots and reads its name.
// It checks everything that the certificate alone can prove, but not its dates:
// those depend on a clock that nobody here believes.
func checkLeaf(leaf *x509.Certificate, roots []*x509.Certificate) (Name, ed25519.PublicKey, error) {
	name, pub, err := readLeaf(leaf)
	if err == nil && !signedBy(leaf, roots) {
		return Name{}, nil, errors.New("certificate is not signed by this cluster's CA")
	}
	return name, pub, err
}

// signedBy reports whether one of the roots signed it. One step only:
// intermediates do not exist here.
func signedBy(leaf *x509.Certificate, roots []*x509.Certificate) bool {
	return slices.ContainsFunc(roots, func(r *x509.Certificate) bool { return leaf.CheckSignatureFrom(r) == nil })
}

// readLeaf is checkLeaf but for the signature.
func readLeaf(leaf *x509.Certificate) (Name, ed25519.PublicKey, error) {
	pub, ok := leaf.PublicKey.(ed25519.PublicKey)
	switch {
	case !ok:
		return Name{}, nil, fmt.Errorf("certificate key is %T, not Ed25519", leaf.PublicKey)
	case leaf.IsCA:
		return Name{}, nil, errors.New("certificate of a CA, not of a node")
	case len(leaf.UnhandledCriticalExtensions) > 0:
		return Name{}, nil, errors.New("certificate has a critical extension that is not known")
	case !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth),
		!slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth):
		return Name{}, nil, errors.New("certificate is not for both ends of a connection")
	}
	name, err := parseName(leaf.URIs)
	if err != nil {
		return Name{}, nil, err
	}
	return name, pub, nil
}

// checkPeer verifies the certificates that a peer showed: chain, cluster, role.
// Whether the node is (still) a member is asked separately.
func checkPeer(certs []*x509.Certificate, id Identity, want Target) (Peer, error) {
	if len(certs) == 0 {
		return Peer{}, errors.New("peer shows no certificate")
	}
	name, pub, err := readLeaf(certs[0])
	if err == nil && len(id.roots) > 0 { // none: they were lost, and Authorize must know the key
		name, pub, err = checkLeaf(certs[0], id.roots)
	}
	if err != nil {
		return Peer{}, err
	}
	if name.Cluster != id.name.Cluster {
		return Peer{}, fmt.Errorf("peer belongs to cluster %s, not %s", name.Cluster, id.name.Cluster)
	}
	if !want.Node.IsZero() && name.Node != want.Node {
		return Peer{}, fmt.Errorf("peer is node %s, not %s", name.Node, want.Node)
	}
	if want.Key != nil && !pub.Equal(want.Key) {
		return Peer{}, fmt.Errorf("peer is node %s, which shows another key than the one that was to answer", name.Node)
	}
	return Peer{Name: name, PublicKey: pub}, nil
}
