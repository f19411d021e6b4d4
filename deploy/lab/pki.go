package lab

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"time"
)

// Names in the certificates of the real peers.
const (
	serverID = "vpn.example.test"
	clientID = "client.example.test"
)

// oidIKEIntermediate is the extended key usage that Windows looks for.
var oidIKEIntermediate = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 8, 2, 2}

// pki is the authority of one lab with the one certificate that all servers
// share and the one that all certificate clients share. RSA-4096, so that
// IKE_AUTH is larger than the MTU and really fragmented by IP.
type pki struct {
	ca     *x509.Certificate
	caKey  crypto.Signer
	serial int64
}

// writePKI makes ca.crt, server.{crt,key} and client.{crt,key} in dir.
func writePKI(dir string) error {
	p, err := newPKI(dir)
	if err != nil {
		return err
	}
	if err := p.issue(dir, "server", serverID, x509.ExtKeyUsageServerAuth); err != nil {
		return err
	}
	return p.issue(dir, "client", clientID, x509.ExtKeyUsageClientAuth)
}

// newPKI makes an authority and its ca.crt.
func newPKI(dir string) (*pki, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make authority key: %w", err)
	}
	p := &pki{caKey: key, serial: 1}
	tmpl := p.template("Lab CA")
	tmpl.IsCA, tmpl.BasicConstraintsValid = true, true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	p.ca = tmpl
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make authority: %w", err)
	}
	if p.ca, err = x509.ParseCertificate(der); err != nil {
		return nil, fmt.Errorf("read authority back: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make PKI folder: %w", err)
	}
	return p, writePEM(filepath.Join(dir, "ca.crt"), "CERTIFICATE", der)
}

func (p *pki) template(name string) *x509.Certificate {
	now := time.Now()
	t := &x509.Certificate{
		SerialNumber: big.NewInt(p.serial), Subject: pkix.Name{CommonName: name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 1, 0),
	}
	p.serial++
	return t
}

func (p *pki) issue(dir, file, name string, usage x509.ExtKeyUsage) error {
	key, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		return fmt.Errorf("make key of %s: %w", file, err)
	}
	t := p.template(name)
	t.DNSNames = []string{name}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	t.UnknownExtKeyUsage = []asn1.ObjectIdentifier{oidIKEIntermediate}
	der, err := x509.CreateCertificate(rand.Reader, t, p.ca, key.Public(), p.caKey)
	if err != nil {
		return fmt.Errorf("issue certificate of %s: %w", file, err)
	}
	if err := writePEM(filepath.Join(dir, file+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	return writePEM(filepath.Join(dir, file+".key"), "RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key))
}

// issueTLS makes a certificate for TLS.
func (p *pki) issueTLS(dir, file, name string, key crypto.Signer) error {
	t := p.template(name)
	t.DNSNames = []string{name}
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, t, p.ca, key.Public(), p.caKey)
	if err != nil {
		return fmt.Errorf("issue certificate of %s: %w", file, err)
	}
	if err := writePEM(filepath.Join(dir, file+".crt"), "CERTIFICATE", der); err != nil {
		return err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode key of %s: %w", file, err)
	}
	return writePEM(filepath.Join(dir, file+".key"), "PRIVATE KEY", private)
}

func writePEM(path, kind string, der []byte) error {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		return fmt.Errorf("write PEM file: %w", err)
	}
	return nil
}
