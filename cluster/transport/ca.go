package transport

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/url"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// CA signs the certificates of one cluster's nodes. Its key is Ed25519, as all
// keys between nodes are.
type CA struct {
	cert *x509.Certificate
	key  ed25519.PrivateKey
}

// Dates are written because X.509 wants them; nobody here reads them. The end
// is RFC 5280 section 4.1.2.5's "no well-defined expiration date".
var (
	certFrom = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	certTo   = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
)

// NewCA draws a key and signs the CA certificate of a cluster.
func NewCA(cluster state.ClusterID) (*CA, error) {
	if cluster.IsZero() {
		return nil, errors.New("create CA: no cluster ID")
	}
	pub, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create CA key: %w", err)
	}
	serial := newSerial()
	tmpl := &x509.Certificate{
		SerialNumber: serial,
		// The serial keeps two CAs of one cluster (rotation) apart by subject.
		Subject:               pkix.Name{CommonName: fmt.Sprintf("vpnlb CA %s %x", cluster, serial.Bytes()[:4])},
		NotBefore:             certFrom,
		NotAfter:              certTo,
		IsCA:                  true,
		MaxPathLenZero:        true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign,
		URIs:                  []*url.URL{urn(uriCluster + cluster.String())},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		return nil, fmt.Errorf("sign CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	return &CA{cert: cert, key: key}, nil
}

// Certificate returns the DER of the CA certificate.
func (c *CA) Certificate() []byte { return c.cert.Raw }

// Hash returns HashCA(c.Certificate()).
func (c *CA) Hash() CAHash { return HashCA(c.cert.Raw) }

// Bytes returns certificate and private key, as ParseCA reads them: a secret,
// to be sealed (Seal) before it goes anywhere.
func (c *CA) Bytes() ([]byte, error) {
	key, err := x509.MarshalPKCS8PrivateKey(c.key)
	if err != nil {
		return nil, fmt.Errorf("encode CA key: %w", err)
	}
	out := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.cert.Raw})
	return append(out, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})...), nil
}

// ParseCA reads what Bytes wrote.
func ParseCA(b []byte) (*CA, error) {
	crt, rest := pem.Decode(b)
	if crt == nil || crt.Type != "CERTIFICATE" {
		return nil, errors.New("parse CA: no certificate")
	}
	k, _ := pem.Decode(rest)
	if k == nil || k.Type != "PRIVATE KEY" {
		return nil, errors.New("parse CA: no private key")
	}
	cert, err := parseRoot(crt.Bytes)
	if err != nil {
		return nil, err
	}
	key, err := parseKey(k.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse CA key: %w", err)
	}
	if pub, ok := cert.PublicKey.(ed25519.PublicKey); !ok || !pub.Equal(key.Public()) {
		return nil, errors.New("parse CA: the key does not belong to the certificate")
	}
	return &CA{cert: cert, key: key}, nil
}

// Issue signs a node certificate for the key of a certificate request. The
// name is the issuer's decision; the node ID in the request must be that of the
// name, so that a request cannot be used for somebody else.
func (c *CA) Issue(csr []byte, name Name) ([]byte, error) {
	req, err := ParseCSR(csr)
	if err != nil {
		return nil, err
	}
	if req.Node != name.Node {
		return nil, fmt.Errorf("issue certificate: the request is for node %s, not %s", req.Node, name.Node)
	}
	uris, err := name.uris()
	if err != nil {
		return nil, fmt.Errorf("issue certificate: %w", err)
	}
	return c.sign(req.PublicKey, uris, name.Node.String())
}

func (c *CA) sign(pub ed25519.PublicKey, uris []*url.URL, cn string) ([]byte, error) {
	tmpl := &x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{CommonName: cn},
		NotBefore:             certFrom,
		NotAfter:              certTo,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:                  uris,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, c.cert, pub, c.key)
	if err != nil {
		return nil, fmt.Errorf("sign node certificate: %w", err)
	}
	return der, nil
}

func newSerial() *big.Int {
	var b [16]byte
	rand.Read(b[:])       // never fails (crypto/rand, Go 1.24)
	b[0] = b[0]&0x7f | 64 // positive, and always 16 bytes long
	return new(big.Int).SetBytes(b[:])
}

// CSR is what a certificate request (RFC 2986) says and proves: that its
// sender holds the private half of PublicKey.
type CSR struct {
	Node      state.NodeID
	PublicKey ed25519.PublicKey
}

// NewCSR signs a certificate request for a node.
func NewCSR(node state.NodeID, key ed25519.PrivateKey) ([]byte, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{
		Subject: pkix.Name{CommonName: node.String()},
		URIs:    []*url.URL{urn(uriNode + node.String())},
	}, key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate request: %w", err)
	}
	return der, nil
}

// ParseCSR checks a certificate request's signature and reads it.
func ParseCSR(der []byte) (CSR, error) {
	req, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return CSR{}, fmt.Errorf("parse certificate request: %w", err)
	}
	pub, ok := req.PublicKey.(ed25519.PublicKey)
	if !ok {
		return CSR{}, fmt.Errorf("parse certificate request: key is %T, not Ed25519", req.PublicKey)
	}
	if err := req.CheckSignature(); err != nil {
		return CSR{}, fmt.Errorf("check certificate request: %w", err)
	}
	if len(req.URIs) != 1 || !strings.HasPrefix(req.URIs[0].String(), uriNode) {
		return CSR{}, errors.New("certificate request names no node")
	}
	node, err := state.ParseNodeID(req.URIs[0].String()[len(uriNode):])
	if err != nil {
		return CSR{}, fmt.Errorf("certificate request: %w", err)
	}
	if node.IsZero() {
		return CSR{}, errors.New("certificate request names the zero node")
	}
	return CSR{Node: node, PublicKey: pub}, nil
}

// CAHash pins a CA: SHA-256 of the DER of its certificate.
type CAHash [sha256.Size]byte

// HashCA returns the pin of a CA certificate.
func HashCA(der []byte) CAHash { return sha256.Sum256(der) }

// String gives 64 hexadecimal digits.
func (h CAHash) String() string { return hex.EncodeToString(h[:]) }

// ParseCAHash reads what String wrote, in either case, also after "sha256:".
func ParseCAHash(s string) (CAHash, error) {
	var h CAHash
	b, err := hex.DecodeString(strings.TrimPrefix(strings.TrimSpace(s), "sha256:"))
	if err != nil || len(b) != len(h) {
		return h, fmt.Errorf("parse CA hash: %q is not 64 hexadecimal digits", s)
	}
	return CAHash(b), nil
}

// parseRoot reads a CA certificate and checks that it is one of ours.
func parseRoot(der []byte) (*x509.Certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse CA certificate: %w", err)
	}
	if !cert.IsCA || !cert.BasicConstraintsValid {
		return nil, errors.New("parse CA certificate: not the certificate of a CA")
	}
	return cert, nil
}

func parseKey(pkcs8 []byte) (ed25519.PrivateKey, error) {
	k, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, err
	}
	key, ok := k.(ed25519.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("key is %T, not Ed25519", k)
	}
	return key, nil
}
