package sstppeer

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// testCertificate writes a self-signed one and gives its DER.
func testCertificate(t *testing.T, dir, name string) (der []byte, certFile, keyFile string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour)}
	if der, err = x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key); err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	certFile, keyFile = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key")
	for file, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: der}, keyFile: {Type: "PRIVATE KEY", Bytes: private}} {
		if err := os.WriteFile(file, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return der, certFile, keyFile
}

func hashes(der []byte) (sha1Text, sha256Text string) {
	return hashText(hashSHA1, certHash(hashSHA1, der)), hashText(hashSHA256, certHash(hashSHA256, der))
}

func TestCallOverTLS(t *testing.T) {
	der, certFile, keyFile := testCertificate(t, t.TempDir(), "a")
	s, dev, addr := testServerOn(t, ServerConfig{CertFile: certFile, KeyFile: keyFile})
	c := dialTest(t, addr, &tls.Config{InsecureSkipVerify: true})
	c.begin()
	if c.protocol != hashSHA256 {
		t.Errorf("hash protocols %d are offered", c.protocol)
	}
	c.login()
	local, behind := c.link.addresses()
	if behind != serverInner || local.String() != "198.19.0.10" {
		t.Errorf("the client has %s and sees %s", local, behind)
	}
	c.write(appendData(nil, protoIPv4, ipv4(local, behind, "too early")))
	c.bind(hashSHA256, der, nil)
	eventually(t, "the call", func() bool { st := s.Stats(); return len(st.Calls) == 1 && st.Calls[0].Up })
	_, want := hashes(der)
	st := s.Stats().Calls[0]
	if st.Hash != want || st.User != "c1" || st.State != StateConnected || st.Inner != local || st.From.String() != c.conn.LocalAddr().String() {
		t.Errorf("%+v", st)
	}
	c.write(appendData(nil, protoIPv4, ipv4(behind, behind, "forged source")))
	c.write(appendData(nil, protoIPv4, ipv4(local, behind, "hello")))
	if got := <-dev.out; !bytes.HasSuffix(got, []byte("hello")) {
		t.Errorf("out of the tunnel came %q", got)
	}
	dev.in <- ipv4(behind, local, "and back")
	p, err := readPacket(c.in, &c.buf)
	if err != nil || p.control || !bytes.HasSuffix(p.raw, []byte("and back")) {
		t.Errorf("%q, %v", p.raw, err)
	}
	c.say(echoRequest)
	if m := c.next(); m.kind != echoResponse {
		t.Errorf("%+v", m)
	}
	c.say(callDisconnect)
	if m := c.next(); m.kind != callDisconnectAck {
		t.Errorf("%+v", m)
	}
	c.wantEnd()
	eventually(t, "the end of the call", func() bool { return len(s.Stats().Calls) == 0 })
	if st := s.Stats(); st.Ended[reasonPeerLeft] != 1 || len(st.Ended) != 1 || st.Hashes[want] != 1 || st.Connected != 1 || st.In == 0 || st.Out == 0 {
		t.Errorf("%+v", st)
	}
}

// Behind an offloader the server sees plain HTTP and knows the hash from its
// configuration alone. Each fault is one that passes the login.
func TestBindingIsVerified(t *testing.T) {
	der := []byte("a certificate")
	sha1Text, sha256Text := hashes(der)
	for _, c := range []struct {
		name     string
		hashes   []string
		protocol byte
		der      []byte
		change   func(*binding)
		reason   string // "": the call stands
	}{
		{name: "right", hashes: []string{sha256Text}, protocol: hashSHA256, der: der},
		{name: "right with SHA-1", hashes: []string{sha1Text}, protocol: hashSHA1, der: der},
		{name: "one of two", hashes: []string{hex.EncodeToString(make([]byte, 32)), sha256Text}, protocol: hashSHA256, der: der},
		{name: "another certificate", hashes: []string{sha256Text}, protocol: hashSHA256, der: []byte("another"), reason: reasonHash},
		{name: "SHA-1 where it was not offered", hashes: []string{sha256Text}, protocol: hashSHA1, der: der, reason: reasonProtocol},
		{name: "both at once", hashes: []string{sha256Text, sha1Text}, protocol: hashSHA1, der: der, change: func(b *binding) { b.protocol = 3 }, reason: reasonProtocol},
		{name: "nonce", hashes: []string{sha256Text}, protocol: hashSHA256, der: der, change: func(b *binding) { b.nonce[31] ^= 1 }, reason: reasonNonce},
		{name: "MAC", hashes: []string{sha256Text}, protocol: hashSHA256, der: der, change: func(b *binding) { b.mac[0] ^= 1 }, reason: reasonMAC},
		{name: "hash changed after signing", hashes: []string{sha256Text}, protocol: hashSHA256, der: []byte("another"), change: func(b *binding) { b.hash = certHash(hashSHA256, der) }, reason: reasonMAC},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s, _, addr := testServerOn(t, ServerConfig{Hashes: c.hashes})
			cl := dialTest(t, addr, nil)
			cl.begin()
			cl.login()
			cl.bind(c.protocol, c.der, c.change)
			if c.reason == "" {
				eventually(t, "the call", func() bool { st := s.Stats(); return len(st.Calls) == 1 && st.Calls[0].Up })
				return
			}
			m := cl.next()
			attr, st, ok := statusOf(m)
			if m.kind != callAbort || !ok || attr != attrBinding || st != statusNotSupported {
				t.Fatalf("%+v", m)
			}
			cl.say(callAbort)
			cl.wantEnd()
			eventually(t, "the end of the call", func() bool { return len(s.Stats().Calls) == 0 })
			if st := s.Stats(); st.Ended[c.reason] != 1 || st.Connected != 0 {
				t.Errorf("%+v", st)
			}
		})
	}
}

func TestRequestsAndProbes(t *testing.T) {
	s, _, addr := testServerOn(t, ServerConfig{Hashes: []string{hex.EncodeToString(make([]byte, 32))}})
	for _, c := range []struct{ request, want string }{
		{"HEAD /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 401 Unauthorized"},
		{"HEAD /sra_%7Bba195980-cd49-458b-9e23-c84ee0adcd75%7D/ HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 401 Unauthorized"},
		{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "HTTP/1.1 404 Not Found"},
		{"SSTP_DUPLEX_POST /other/ HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n\r\n", "HTTP/1.1 404 Not Found"},
		{"SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nContent-Length: 5\r\n\r\n", "HTTP/1.1 404 Not Found"},
		{"SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/?tenantid=t HTTP/1.1\r\ncontent-length: 18446744073709551615\r\n\r\n", "HTTP/1.1 200"},
	} {
		if got := dialTest(t, addr, nil).ask(c.request); got != c.want {
			t.Errorf("%.60q: %q, want %q", c.request, got, c.want)
		}
	}
	if st := s.Stats(); st.Probes != 2 || st.Refused != 3 || st.Begun != 1 {
		t.Errorf("%+v", st)
	}
	c := dialTest(t, addr, nil)
	c.write([]byte("SSTP_DUPLEX_POST\n"))
	c.wantEnd()
}

func TestConfiguredHashesMustBeHashes(t *testing.T) {
	for _, list := range [][]string{nil, {"12"}, {"no hex"}, {hex.EncodeToString(make([]byte, 33))}} {
		if _, err := newTrust(list, nil); err == nil {
			t.Errorf("%q was taken", list)
		}
	}
}
