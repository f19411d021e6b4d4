package certs

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// pair is a certificate with its key.
type pair struct {
	cert *x509.Certificate
	key  crypto.Signer
}

func (p pair) chain() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.cert.Raw})
}

func (p pair) pkcs8(t *testing.T) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

func (p pair) both(t *testing.T) []byte { return append(p.chain(), p.pkcs8(t)...) }

// issue makes a certificate; nil: self-signed.
func issue(t *testing.T, by *pair, key crypto.Signer, change func(*x509.Certificate)) pair {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "vpn.example.com"}, DNSNames: []string{"vpn.example.com"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(90 * 24 * time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if change != nil {
		change(c)
	}
	parent, signer := c, key
	if by != nil {
		parent, signer = by.cert, by.key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return pair{out, key}
}

func authority(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject.CommonName, c.DNSNames, c.ExtKeyUsage = name, nil, nil
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
	}
}

func ec(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func rsaKey(t *testing.T, bits int) *rsa.PrivateKey {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestParse(t *testing.T) {
	root := issue(t, nil, ec(t), authority("root"))
	middle := issue(t, &root, ec(t), authority("middle"))
	leaf := issue(t, &middle, ec(t), nil)
	stranger := issue(t, nil, ec(t), authority("stranger"))
	big := rsaKey(t, 2048)
	usage := func(u ...x509.ExtKeyUsage) pair {
		return issue(t, nil, ec(t), func(c *x509.Certificate) { c.ExtKeyUsage = u })
	}
	ecDER, err := x509.MarshalECPrivateKey(leaf.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	_, edwards, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, []byte("\n")) }
	block := func(kind string, der []byte, headers map[string]string) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der, Headers: headers})
	}
	withRSA := issue(t, nil, big, nil)
	for _, tt := range []struct {
		name, want string // the refusal; empty: none
		text       []byte
	}{
		{"chain and key", "", join(leaf.chain(), middle.chain(), root.chain(), leaf.pkcs8(t))},
		{"key first, text between", "", join(leaf.pkcs8(t), []byte("subject=vpn"), leaf.chain(), middle.chain())},
		{"EC key with its parameters", "", join(block("EC PARAMETERS", []byte{1}, nil), block("EC PRIVATE KEY", ecDER, nil), leaf.chain())},
		{"RSA key of the old form", "", join(withRSA.chain(), block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(big), nil))},
		{"any usage", "", usage(x509.ExtKeyUsageAny).both(t)},
		{"no usage named", "", usage().both(t)},

		{"nothing", "no certificate in PEM form", nil},
		{"a PFX", "this is a PFX (PKCS #12) file", []byte{0x30, 6, 2, 1, 3, 0x30, 1, 0}},
		{"DER", "this is DER, not PEM", leaf.cert.Raw},
		{"no key", "no key in PEM form", leaf.chain()},
		{"two keys", "two keys", join(leaf.chain(), leaf.pkcs8(t), middle.pkcs8(t))},
		{"another key", "does not belong to the certificate of CN=vpn.example.com", join(leaf.chain(), stranger.pkcs8(t))},
		{"issuer first", "put the server's own certificate first", join(middle.chain(), leaf.chain(), leaf.pkcs8(t))},
		{"a gap", "certificate 2 (CN=root) did not issue the one before it", join(leaf.chain(), root.chain(), leaf.pkcs8(t))},
		{"a stranger", "certificate 3 (CN=stranger) did not issue", join(leaf.chain(), middle.chain(), stranger.chain(), leaf.pkcs8(t))},
		{"a client's", "extended key usage Server Authentication", usage(x509.ExtKeyUsageClientAuth).both(t)},
		{"a CA", "is a CA", root.both(t)},
		{"encrypted", "is encrypted", join(leaf.chain(), block("ENCRYPTED PRIVATE KEY", []byte{1}, nil))},
		{"encrypted in the old form", "is encrypted", join(leaf.chain(), block("RSA PRIVATE KEY", []byte{1}, map[string]string{"DEK-Info": "x"}))},
		{"a broken key", "the key cannot be read", join(leaf.chain(), block("PRIVATE KEY", []byte{1}, nil))},
		{"a broken certificate", "certificate 2 of the chain cannot be read", join(leaf.chain(), block("CERTIFICATE", []byte{1}, nil), leaf.pkcs8(t))},
		{"too many", "at most 8", join(bytes.Repeat(leaf.chain(), MaxChain+1), leaf.pkcs8(t))},
		{"too long", "at most 49152", bytes.Repeat([]byte{'\n'}, MaxPEM+1)},
		{"Ed25519", "does not take", issue(t, nil, edwards, nil).both(t)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse(tt.text)
			if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("got %v, want %q", err, tt.want)
			}
			if err == nil && (c.Leaf() == nil || c.Hash == [32]byte{} || len(c.TLS.Certificate) == 0) {
				t.Errorf("incomplete: %+v", c)
			}
		})
	}
	c, err := Parse(withRSA.both(t))
	if err != nil || c.KeyType() != "RSA 2048" || !c.RSA() || len(c.Names()) != 1 {
		t.Errorf("%v, %v", c, err)
	}
	c, err = Parse(leaf.both(t))
	if err != nil || c.KeyType() != "ECDSA P-256" || c.RSA() {
		t.Errorf("%v, %v", c, err)
	}
	now := time.Now()
	if c.Current(now) != nil || c.Current(now.Add(91*24*time.Hour)) == nil || c.Current(now.Add(-2*time.Hour)) == nil {
		t.Error("the dates are not looked at")
	}
}

func place(t *testing.T, name, path string, p pair) state.CertificatePlace {
	t.Helper()
	c, err := Parse(p.both(t))
	if err != nil {
		t.Fatal(err)
	}
	return state.CertificatePlace{Name: name, SHA256: c.Hash, Path: path, Version: 1}
}

// A sealed certificate is opened once for each version, and only if it is the
// agreed one.
func TestBookSealed(t *testing.T) {
	first, second := issue(t, nil, ec(t), nil), issue(t, nil, ec(t), nil)
	opened := 0
	var fail error
	b := NewBook(func(name string, sealed []byte) ([]byte, error) {
		opened++
		if name != "cert/vpn" {
			t.Errorf("opened %s", name)
		}
		return sealed, fail // sealed by nothing
	})
	spec := &state.Spec{Certs: []state.CertificatePlace{place(t, "vpn", "", first)}}
	if !b.Update(spec) || b.All()[0].Certificate != nil || !strings.Contains(b.All()[0].Fault, "not in the agreed state") {
		t.Errorf("without its secret: %+v", b.All())
	}
	spec.Secrets = []state.Secret{{Name: "cert/vpn", Version: 2, Sealed: first.both(t)}}
	if !b.Update(spec) || b.All()[0].Certificate == nil || b.All()[0].Fault != "" {
		t.Errorf("with its secret: %+v", b.All())
	}
	if b.Update(spec) || opened != 1 {
		t.Errorf("opened %d times without a change", opened)
	}
	spec.Secrets = []state.Secret{{Name: "cert/vpn", Version: 3, Sealed: second.both(t)}}
	if !b.Update(spec) || b.All()[0].Certificate == nil || !strings.Contains(b.All()[0].Fault, "another certificate") {
		t.Errorf("with another certificate: %+v", b.All())
	}
	spec.Certs = []state.CertificatePlace{place(t, "vpn", "", second)}
	spec.Certs[0].Version = 4
	if !b.Update(spec) || b.All()[0].Fault != "" || b.All()[0].Certificate.Hash != spec.Certs[0].SHA256 {
		t.Errorf("agreed on: %+v", b.All())
	}
	fail = errors.New("another cluster secret")
	spec.Secrets = []state.Secret{{Name: "cert/vpn", Version: 5}}
	if !b.Update(spec) || b.All()[0].Fault != "another cluster secret" || b.All()[0].Certificate == nil {
		t.Errorf("sealed otherwise: %+v", b.All())
	}
	if !b.Update(&state.Spec{}) || len(b.All()) != 0 {
		t.Error("a removed certificate stays open")
	}
}

// A file is read again when it changes. Whatever it holds then, what is shown is
// the agreed certificate or none.
func TestBookFile(t *testing.T) {
	first, second := issue(t, nil, ec(t), nil), issue(t, nil, ec(t), nil)
	path := filepath.Join(t.TempDir(), "vpn.pem")
	stamp := time.Now()
	write := func(text []byte, mode os.FileMode) {
		t.Helper()
		stamp = stamp.Add(time.Second) // file systems have coarse clocks
		if err := errors.Join(os.WriteFile(path, text, 0o600), os.Chmod(path, mode), os.Chtimes(path, stamp, stamp)); err != nil {
			t.Fatal(err)
		}
	}
	b := NewBook(nil)
	spec := &state.Spec{Certs: []state.CertificatePlace{place(t, "vpn", path, first)}}
	check := func(when string, shown bool, fault string) {
		t.Helper()
		b.Update(spec)
		got := b.All()[0]
		if (got.Certificate != nil) != shown || (fault == "") != (got.Fault == "") || !strings.Contains(got.Fault, fault) {
			t.Errorf("%s: %+v", when, got)
		}
		if got.Certificate != nil && got.Certificate.Hash != spec.Certs[0].SHA256 {
			t.Errorf("%s: another certificate than the agreed one is shown", when)
		}
	}
	check("no file", false, "does not exist on this node")
	write(first.both(t), 0o640)
	check("others may read it", false, "has mode 0640")
	write(first.both(t), 0o600)
	check("good", true, "")
	if b.Update(spec) {
		t.Error("an unchanged file is a change")
	}
	write(second.both(t), 0o600)
	check("renewed", true, "holds another certificate")
	write([]byte("-----BEGIN"), 0o600)
	check("half written", true, "no certificate")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	check("gone", true, "does not exist")
	write(second.both(t), 0o600)
	spec.Certs = []state.CertificatePlace{place(t, "vpn", path, second)}
	spec.Certs[0].Version = 2
	check("agreed on", true, "")
	write(first.both(t), 0o600)
	b = NewBook(nil) // a new process
	check("another one at start", false, "holds another certificate")
}

// What kept a file from being read may pass without a trace in the file; what was
// wrong in it does not.
func TestBookTriesAgain(t *testing.T) {
	good, other := issue(t, nil, ec(t), nil), issue(t, nil, ec(t), nil)
	path := filepath.Join(t.TempDir(), "vpn.pem")
	if err := os.WriteFile(path, good.both(t), 0o600); err != nil {
		t.Fatal(err)
	}
	b := NewBook(nil)
	reads := 0
	fail := syscall.EMFILE
	b.read = func(path string) ([]byte, error) {
		if reads++; fail != 0 {
			return nil, fail
		}
		return ReadFile(path)
	}
	spec := &state.Spec{Certs: []state.CertificatePlace{place(t, "vpn", path, good)}}
	if !b.Update(spec) || b.All()[0].Certificate != nil || b.All()[0].Fault == "" {
		t.Errorf("too many open files: %+v", b.All())
	}
	if b.Update(spec) {
		t.Error("the same fault again is a change")
	}
	fail = 0
	if !b.Update(spec) || b.All()[0].Certificate == nil || b.All()[0].Fault != "" {
		t.Errorf("the cause is gone, the file is as it was: %+v", b.All())
	}
	if b.Update(spec) || reads != 3 {
		t.Errorf("an unchanged file was read %d times", reads)
	}
	spec.Certs = []state.CertificatePlace{place(t, "vpn", path, other)}
	spec.Certs[0].Version = 2
	for range 2 {
		b.Update(spec)
	}
	if reads != 4 || !strings.Contains(b.All()[0].Fault, "another certificate") {
		t.Errorf("a file that was read to its end was read %d times: %+v", reads, b.All())
	}
}

func TestReadFileOfAPipe(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := ReadFile(path)
		done <- err
	}()
	select {
	case err := <-done:
		if err == nil || !strings.Contains(err.Error(), "not a regular file") {
			t.Errorf("a pipe: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("it waits for a writer")
	}
}

func TestAlone(t *testing.T) {
	root := issue(t, nil, ec(t), authority("root"))
	leaf, own := issue(t, &root, ec(t), nil), issue(t, nil, ec(t), nil)
	for _, tt := range []struct {
		name string
		text []byte
		want bool
	}{
		{"without its issuer", leaf.both(t), true},
		{"with its issuer", append(leaf.both(t), root.chain()...), false},
		{"self-signed", own.both(t), false},
	} {
		c, err := Parse(tt.text)
		if err != nil {
			t.Fatal(err)
		}
		if c.Alone() != tt.want {
			t.Errorf("%s: alone %t", tt.name, c.Alone())
		}
	}
}
