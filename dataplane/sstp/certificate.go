package sstp

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"slices"

	"github.com/vpnlb/vpnlb/dataplane/sstp/staple"
)

// certificate is one that can be shown, with the TLS sides that go with it.
type certificate struct {
	name  string
	hash  Hash
	tls   *tls.Certificate
	entry *staple.Entry
	front *tls.Config // shows it
	older *tls.Config // likewise, to clients without TLS 1.3
	back  *tls.Config // wants it from a server
}

// suites for TLS 1.2: forward secrecy and AEAD alone. Those of TLS 1.3 are not
// configurable.
var suites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
}

func newCertificate(c Certificate, entry *staple.Entry, keys [][32]byte) *certificate {
	made := &certificate{name: c.Name, hash: c.Hash, tls: c.TLS, entry: entry}
	derived := ticketKeys(keys, c.Hash)
	made.front, made.older = made.showing(derived), made.showing(derived)
	made.older.CurvePreferences = []tls.CurveID{tls.CurveP256, tls.CurveP384}
	made.front.GetConfigForClient = made.forClient
	made.back = &tls.Config{
		MinVersion:                  tls.VersionTLS12,
		CipherSuites:                suites,
		NextProtos:                  []string{"http/1.1"},
		DynamicRecordSizingDisabled: true,
		// Which certificate it must be is known to the byte. Names and dates are
		// the clients' to check, on the same certificate. There is no session
		// cache: a server proves that it holds the key at every connect.
		InsecureSkipVerify: true,
		VerifyConnection:   func(cs tls.ConnectionState) error { return made.same(cs.PeerCertificates) },
	}
	if names := c.TLS.Leaf.DNSNames; len(names) > 0 {
		made.back.ServerName = names[0]
	}
	return made
}

// showing makes a server's side that shows the certificate.
func (c *certificate) showing(keys [][32]byte) *tls.Config {
	config := frontConfig()
	config.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.entry.Certificate(), nil }
	if config.SessionTicketsDisabled = len(keys) == 0; len(keys) > 0 {
		config.SetSessionTicketKeys(keys)
	}
	return config
}

// forClient lets clients of TLS 1.2 agree keys on P-256, which has assembler
// code here, where the library would take X25519, which has none: measured 72
// against 110 us. In TLS 1.3 that could cost a round trip, since clients guess a
// group in advance.
func (c *certificate) forClient(hello *tls.ClientHelloInfo) (*tls.Config, error) {
	if l, ok := hello.Conn.(*link); ok && l.turn != nil {
		l.turn.hello = true
	}
	if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) && slices.Contains(hello.SupportedCurves, tls.CurveP256) {
		return c.older, nil
	}
	return nil, nil // front
}

func frontConfig() *tls.Config {
	return &tls.Config{
		MinVersion:   tls.VersionTLS12,
		CipherSuites: suites,
		NextProtos:   []string{"http/1.1"},
		// Small first records help a browser to draw early; a call's packets are
		// small by themselves, and bulk only pays for them.
		DynamicRecordSizingDisabled: true,
	}
}

// errOtherCertificate: RRAS supports re-encryption with the very certificate
// that clients saw, and no other.
var errOtherCertificate = errors.New("server shows another certificate than its clients see here")

func (c *certificate) same(chain []*x509.Certificate) error {
	if len(chain) == 0 || sha256.Sum256(chain[0].Raw) != c.hash {
		return errOtherCertificate
	}
	return nil
}

// ticketKeys derives the keys for one certificate. A resumed session shows no
// certificate, and the client answers the crypto binding with the one that it
// saw when the session began: a ticket must open only where the same one would
// be shown.
func ticketKeys(keys [][32]byte, of Hash) [][32]byte {
	out := make([][32]byte, len(keys))
	for i, key := range keys {
		mac := hmac.New(sha256.New, key[:])
		mac.Write([]byte("vpnlb sstp session ticket"))
		mac.Write(of[:])
		mac.Sum(out[i][:0])
	}
	return out
}
