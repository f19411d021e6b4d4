package sstp

import (
	"bufio"
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

const name = "vpn.example.test"

// authority signs the certificates of a test.
var authority = sync.OnceValue(func() *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test CA"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	return signed(template, template, key, key)
})

func signed(template, parent *x509.Certificate, key crypto.Signer, parentKey crypto.Signer) *tls.Certificate {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), parentKey)
	if err != nil {
		panic(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

var serial atomic.Int64

// newCert makes a certificate that the authority signed.
func newCert(t testing.TB, named string, key crypto.Signer, hosts ...string) Certificate {
	t.Helper()
	ca := authority()
	template := &x509.Certificate{SerialNumber: big.NewInt(100 + serial.Add(1)), Subject: pkix.Name{CommonName: named}, DNSNames: hosts,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	c := signed(template, ca.Leaf, key, ca.PrivateKey.(crypto.Signer))
	c.Certificate = append(c.Certificate, ca.Leaf.Raw)
	return Certificate{Name: named, Hash: sha256.Sum256(c.Leaf.Raw), TLS: c}
}

func ecdsaKey(t testing.TB) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

var rsaKey = sync.OnceValue(func() crypto.Signer {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		panic(err)
	}
	return key
})

// farEnd is a server behind the balancer: it takes an SSTP request and lets a
// script talk.
type farEnd struct {
	ln     net.Listener
	config *tls.Config                  // nil: plain
	answer string                       // instead of a 200
	script func(r *bufio.Reader, c far) // after the 200; nil: echo everything
	heads  chan string                  // request heads as they came
	conns  atomic.Int32
	wait   sync.WaitGroup
}

// far is a connection that can be half closed.
type far interface {
	net.Conn
	CloseWrite() error
}

func newFarEnd(t testing.TB, change func(*farEnd)) *farEnd {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &farEnd{ln: ln, heads: make(chan string, 1000)}
	if change != nil {
		change(f)
	}
	f.wait.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			f.conns.Add(1)
			f.wait.Go(func() { f.serve(c.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() { ln.Close(); f.wait.Wait() })
	return f
}

func (f *farEnd) addr() netip.AddrPort { return f.ln.Addr().(*net.TCPAddr).AddrPort() }

const ok200 = "HTTP/1.1 200 \r\nContent-Length: 18446744073709551615\r\nServer: Microsoft-HTTPAPI/2.0\r\n\r\n"

func (f *farEnd) serve(tcp *net.TCPConn) {
	defer tcp.Close()
	tcp.SetDeadline(time.Now().Add(20 * time.Second))
	var c far = tcp
	if f.config != nil {
		c = tls.Server(tcp, f.config)
	}
	r := bufio.NewReader(c)
	var got strings.Builder
	for !strings.HasSuffix(got.String(), "\r\n\r\n") {
		line, err := r.ReadString('\n')
		if err != nil {
			return
		}
		got.WriteString(line)
	}
	f.heads <- got.String()
	answer := f.answer
	if answer == "" {
		answer = ok200
	}
	if _, err := io.WriteString(c, answer); err != nil || f.answer != "" {
		return
	}
	if f.script != nil {
		f.script(r, c)
		return
	}
	io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{r})
	c.CloseWrite()
}

// bed is a Server that runs, with what it told.
type bed struct {
	*Server
	t        testing.TB
	at       netip.AddrPort
	reg      *prometheus.Registry
	evidence chan table.Evidence
	choose   atomic.Pointer[func(netip.Addr) (Route, bool)]
	instead  atomic.Uint64 // slot of the server to go to where another is dead; 0: none
	vip      atomic.Int32  // that the chooser must be asked for
	linger   time.Duration
	from     *net.TCPAddr // of clients; nil: any
	desired  Desired
	stop     func()
}

// newBed runs a Server with one service on loopback, for d's certificates and
// targets.
func newBed(t testing.TB, d Desired, change func(*Service)) *bed {
	t.Helper()
	b := &bed{t: t, at: freePort(t), reg: prometheus.NewRegistry(), evidence: make(chan table.Evidence, 1000)}
	b.vip.Store(3)
	b.route(Route{Slot: 1, Reason: "test"}, true)
	service := Service{VIP: 3, Name: "vpn", Addr: b.at.Addr(), Mode: Offload}
	if change != nil {
		change(&service)
	}
	d.Services = append(d.Services, service)
	b.desired, b.linger = d, 20*time.Millisecond
	b.start(nil)
	return b
}

// route is what the chooser says from now on.
func (b *bed) route(r Route, ok bool) {
	b.choose.Store(new(func(netip.Addr) (Route, bool) { return r, ok }))
}

// start makes the Server and runs it; with the listeners of one before it.
func (b *bed) start(inherited map[string]*net.TCPListener) {
	b.t.Helper()
	var reg prometheus.Registerer
	if b.reg != nil {
		reg = b.reg
	}
	s, err := New(Config{Port: b.at.Port(), Self: "n1"}, Deps{
		Choose: func(vip uint8, client netip.Addr) (Route, bool) {
			if vip != uint8(b.vip.Load()) {
				b.t.Errorf("asked for VIP %d", vip)
			}
			return (*b.choose.Load())(client)
		},
		Instead: func(_ uint8, _ [16]byte, avoid func(table.Slot) bool) (Route, bool) {
			slot := table.Slot(b.instead.Load())
			return Route{Slot: slot}, slot != 0 && !avoid(slot)
		},
		Evidence:  func(e table.Evidence) { b.evidence <- e },
		Inherited: inherited, Log: slog.New(slog.DiscardHandler), Metrics: reg,
	})
	if err != nil {
		b.t.Fatal(err)
	}
	if err := s.Apply(b.desired); err != nil {
		b.t.Fatal(err)
	}
	if b.linger != 0 {
		s.linger.first, s.linger.longest = b.linger, b.linger
	}
	b.Server = s
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	var once sync.Once
	b.stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				b.t.Error(err)
			}
		})
	}
	b.t.Cleanup(b.stop)
}

func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).AddrPort()
}

// client is a TLS connection to the bed's service.
type client struct {
	*tls.Conn
	t   testing.TB
	tcp *net.TCPConn
	r   *bufio.Reader
}

func trusting() *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(authority().Leaf)
	return &tls.Config{RootCAs: roots, ServerName: name}
}

func (b *bed) dial(config *tls.Config) (*client, error) {
	b.t.Helper()
	tcp, err := (&net.Dialer{LocalAddr: b.local()}).Dial("tcp", b.at.String())
	if err != nil {
		return nil, err
	}
	b.t.Cleanup(func() { tcp.Close() })
	tcp.SetDeadline(time.Now().Add(20 * time.Second))
	if config == nil {
		config = trusting()
	}
	c := tls.Client(tcp, config)
	if err := c.Handshake(); err != nil {
		tcp.Close()
		return nil, err
	}
	return &client{Conn: c, t: b.t, tcp: tcp.(*net.TCPConn), r: bufio.NewReader(c)}, nil
}

// local is a nil interface where clients have no address of their own.
func (b *bed) local() net.Addr {
	if b.from == nil {
		return nil
	}
	return b.from
}

func (b *bed) mustDial(config *tls.Config) *client {
	b.t.Helper()
	c, err := b.dial(config)
	if err != nil {
		b.t.Fatal(err)
	}
	return c
}

const post = "SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nContent-Length: 18446744073709551615\r\n" +
	"Host: vpn.example.test\r\nSSTPCORRELATIONID: {7BFABA44-D234-AC43-46B61CA2}\r\n\r\n"

func (c *client) send(s string) {
	c.t.Helper()
	if _, err := io.WriteString(c.Conn, s); err != nil {
		c.t.Fatal(err)
	}
}

// answer reads a response head.
func (c *client) answer() string {
	c.t.Helper()
	var got strings.Builder
	for !strings.HasSuffix(got.String(), "\r\n\r\n") {
		line, err := c.r.ReadString('\n')
		got.WriteString(line)
		if err != nil {
			c.t.Fatalf("after %q: %v", got.String(), err)
		}
	}
	return got.String()
}

// open sends the request and wants a 200.
func (c *client) open() *client {
	c.t.Helper()
	c.send(post)
	if got := c.answer(); !strings.HasPrefix(got, "HTTP/1.1 200 \r\n") {
		c.t.Fatalf("answer %q", got)
	}
	return c
}

func (c *client) want(s string) {
	c.t.Helper()
	b := make([]byte, len(s))
	if _, err := io.ReadFull(c.r, b); err != nil || !bytes.Equal(b, []byte(s)) {
		c.t.Fatalf("got %q, %v, want %q", b, err, s)
	}
}

// gone waits for the end of the connection, clean or not.
func (c *client) gone() {
	c.t.Helper()
	if _, err := io.Copy(io.Discard, c.r); errors.Is(err, context.DeadlineExceeded) {
		c.t.Fatal(err)
	}
}

// until polls a condition.
func (b *bed) until(what string, done func() bool) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			b.t.Fatalf("not within 15 s: %s", what)
		case <-tick.C:
		}
	}
}

func (b *bed) metric(c prometheus.Collector) float64 { return testutil.ToFloat64(c) }

// oneTarget is what most tests want: one server with one certificate.
func oneTarget(t testing.TB, f *farEnd) Desired {
	t.Helper()
	return Desired{Certificates: []Certificate{newCert(t, "a", ecdsaKey(t), name)},
		Targets: []Target{{Slot: 1, VIP: 3, Name: "rras1", Addr: f.addr(), Certificate: "a"}}}
}

func sha(b []byte) [32]byte { return sha256.Sum256(b) }
