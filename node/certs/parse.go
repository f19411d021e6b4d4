package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"time"
)

// Limits.
const (
	MaxPEM   = 48 << 10 // bytes of chain and key together; sealed they fit a secret
	MaxChain = 8        // certificates; public chains have three or four
	minRSA   = 2048     // bits; what browsers and public CAs ask for
)

// Certificate is a chain with its key.
type Certificate struct {
	TLS  *tls.Certificate // with Leaf
	Hash [32]byte         // SHA-256 of the leaf's DER
}

// Leaf is the certificate that clients are shown.
func (c *Certificate) Leaf() *x509.Certificate { return c.TLS.Leaf }

// RSA reports whether the key is one of RSA: a handshake then costs the node
// some three times what ECDSA costs.
func (c *Certificate) RSA() bool { return c.TLS.Leaf.PublicKeyAlgorithm == x509.RSA }

// KeyType names algorithm and size: "ECDSA P-256", "RSA 2048".
func (c *Certificate) KeyType() string {
	switch k := c.TLS.Leaf.PublicKey.(type) {
	case *rsa.PublicKey:
		return fmt.Sprintf("RSA %d", k.N.BitLen())
	case *ecdsa.PublicKey:
		return "ECDSA " + k.Curve.Params().Name
	}
	return c.TLS.Leaf.PublicKeyAlgorithm.String()
}

// Names lists what the certificate is valid for.
func (c *Certificate) Names() []string {
	names := slices.Clone(c.TLS.Leaf.DNSNames)
	for _, ip := range c.TLS.Leaf.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// Current says why a certificate cannot be shown at a time; nil: it can.
func (c *Certificate) Current(now time.Time) error {
	leaf := c.TLS.Leaf
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("the certificate expired on %s: have it renewed", leaf.NotAfter.UTC().Format(time.DateOnly))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("the certificate is valid from %s on only: look at this host's clock", leaf.NotBefore.UTC().Format(time.DateOnly))
	}
	return nil
}

// Parse reads PEM text that holds one key and its chain, the leaf first and each
// issuer behind what it issued. It reports the first fault, with the way out; it
// does not look at the clock.
func Parse(text []byte) (*Certificate, error) {
	if len(text) > MaxPEM {
		return nil, fmt.Errorf("chain and key have %d bytes of PEM: at most %d", len(text), MaxPEM)
	}
	if err := OtherForm(text); err != nil {
		return nil, err
	}
	chain, key, err := decode(text)
	if err != nil {
		return nil, err
	}
	leaf := chain[0]
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(leaf.PublicKey) {
		if slices.ContainsFunc(chain, func(c *x509.Certificate) bool { return ok && public.Equal(c.PublicKey) }) {
			return nil, errors.New("the key is not that of the first certificate: put the server's own certificate first, then each issuer")
		}
		return nil, fmt.Errorf("the key does not belong to the certificate of %s", subject(leaf))
	}
	for i, c := range chain[1:] {
		if !bytes.Equal(chain[i].RawIssuer, c.RawSubject) || chain[i].CheckSignatureFrom(c) != nil {
			return nil, fmt.Errorf("certificate %d (%s) did not issue the one before it (%s): put the server's own certificate first, then each issuer", i+2, subject(c), subject(chain[i]))
		}
	}
	if err := checkLeaf(leaf); err != nil {
		return nil, err
	}
	out := &tls.Certificate{PrivateKey: key, Leaf: leaf}
	for _, c := range chain {
		out.Certificate = append(out.Certificate, c.Raw)
	}
	return &Certificate{TLS: out, Hash: sha256.Sum256(leaf.Raw)}, nil
}

// OtherForm is the fault of a file in another form than PEM, as Windows exports them: both are
// a DER sequence, of PFX (PKCS #12) with the version 3 in front (RFC 7292 section 4).
// Other text gives nil. Ask before the bytes become text of JSON, which changes them.
func OtherForm(text []byte) error {
	var outer asn1.RawValue
	if _, err := asn1.Unmarshal(text, &outer); err != nil || outer.Tag != asn1.TagSequence || !outer.IsCompound {
		return nil
	}
	var version int
	if _, err := asn1.Unmarshal(outer.Bytes, &version); err == nil && version == 3 {
		return errors.New("this is a PFX (PKCS #12) file, not PEM: convert it with 'openssl pkcs12 -in FILE -nodes -out FILE.pem'")
	}
	return errors.New("this is DER, not PEM: convert a certificate with 'openssl x509 -inform der -in FILE', a key with 'openssl pkey -inform der -in FILE'")
}

// Alone reports whether the chain is the server's own certificate and nothing else,
// issued by another one: clients know roots and not intermediate CAs.
func (c *Certificate) Alone() bool {
	leaf := c.TLS.Leaf
	return len(c.TLS.Certificate) == 1 && !bytes.Equal(leaf.RawIssuer, leaf.RawSubject)
}

func checkLeaf(leaf *x509.Certificate) error {
	any := len(leaf.ExtKeyUsage) == 0 && len(leaf.UnknownExtKeyUsage) == 0 // RFC 5280, 4.2.1.12
	if !any && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny) {
		return fmt.Errorf("the certificate of %s may not be used by a server: have it issued with the extended key usage Server Authentication", subject(leaf))
	}
	if leaf.IsCA {
		return fmt.Errorf("the first certificate (%s) is a CA: put the server's own certificate first", subject(leaf))
	}
	switch k := leaf.PublicKey.(type) {
	case *ecdsa.PublicKey:
		return nil
	case *rsa.PublicKey:
		if k.N.BitLen() < minRSA {
			return fmt.Errorf("the key has %d bits: RSA needs %d, or better take ECDSA P-256", k.N.BitLen(), minRSA)
		}
		return nil
	}
	return fmt.Errorf("the key is one of %v, which Windows does not take for TLS: have an ECDSA P-256 or RSA certificate issued", leaf.PublicKeyAlgorithm)
}

func subject(c *x509.Certificate) string {
	if s := c.Subject.String(); s != "" {
		return s
	}
	if len(c.DNSNames) > 0 {
		return c.DNSNames[0]
	}
	return "an empty subject"
}

// decode takes the blocks apart.
func decode(text []byte) (chain []*x509.Certificate, key crypto.Signer, err error) {
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			break
		}
		switch b.Type {
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(b.Bytes)
			if err != nil {
				return nil, nil, fmt.Errorf("certificate %d of the chain cannot be read: %w", len(chain)+1, err)
			}
			chain = append(chain, c)
		case "PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY":
			if key != nil {
				return nil, nil, errors.New("there are two keys: leave the one of the server's own certificate")
			}
			if key, err = parseKey(b); err != nil {
				return nil, nil, err
			}
		case "ENCRYPTED PRIVATE KEY":
			return nil, nil, errors.New("the key is encrypted: write it without a passphrase ('openssl pkey -in KEY'); the cluster encrypts it itself")
		}
	}
	switch {
	case len(chain) == 0:
		return nil, nil, errors.New("there is no certificate in PEM form (-----BEGIN CERTIFICATE-----)")
	case len(chain) > MaxChain:
		return nil, nil, fmt.Errorf("there are %d certificates: at most %d, the server's own and its issuers", len(chain), MaxChain)
	case key == nil:
		return nil, nil, errors.New("there is no key in PEM form (-----BEGIN PRIVATE KEY-----)")
	}
	return chain, key, nil
}

func parseKey(b *pem.Block) (crypto.Signer, error) {
	if b.Headers["DEK-Info"] != "" {
		return nil, errors.New("the key is encrypted: write it without a passphrase ('openssl pkey -in KEY'); the cluster encrypts it itself")
	}
	var key any
	var err error
	switch b.Type {
	case "RSA PRIVATE KEY":
		key, err = x509.ParsePKCS1PrivateKey(b.Bytes)
	case "EC PRIVATE KEY":
		key, err = x509.ParseECPrivateKey(b.Bytes)
	default:
		key, err = x509.ParsePKCS8PrivateKey(b.Bytes)
	}
	if err != nil {
		return nil, fmt.Errorf("the key cannot be read: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("the key (%T) cannot sign: TLS needs ECDSA or RSA", key)
	}
	return signer, nil
}
