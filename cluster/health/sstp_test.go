package health

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// certificate is one that no client would accept: self-signed and expired.
var certificate = sync.OnceValue(func() tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Unix(1, 0)},
		&x509.Certificate{SerialNumber: big.NewInt(1)}, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
})

// Checks as the modes want them.
var (
	passed    = SSTPCheck{TLS: true, Port: 443}
	offloaded = SSTPCheck{Port: 80}
)

// web is a server of TCP 443; it gets one connection.
type web func(net.Conn)

// answers is a TLS server that reads a request and writes text.
func answers(text string) web {
	return func(raw net.Conn) {
		c := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{certificate()}})
		defer c.Close()
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				return
			}
			if line == "\r\n" {
				break
			}
		}
		io.WriteString(c, text)
	}
}

var (
	listens = answers("HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
	stopped = answers("HTTP/1.1 404 Not Found\r\n\r\n")
)

// plain is a server of plain HTTP that reads a request and writes text.
func plain(text string) web {
	return func(c net.Conn) {
		r := bufio.NewReader(c)
		for line, err := r.ReadString('\n'); line != "\r\n"; line, err = r.ReadString('\n') {
			if err != nil {
				return
			}
		}
		io.WriteString(c, text)
	}
}

// serve is a Dial to one server over memory.
func serve(w web) Dial {
	return func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
		here, there := net.Pipe()
		go func() {
			defer there.Close()
			w(there)
		}()
		return here, nil
	}
}

func fails(err error) Dial {
	return func(context.Context, netip.Addr, netip.AddrPort) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", err)}
	}
}

// sleeps is a server that connects nobody.
func sleeps(ctx context.Context, _ netip.Addr, _ netip.AddrPort) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func TestAskSSTP(t *testing.T) {
	for _, c := range []struct {
		name   string
		dial   Dial
		note   Note
		detail string
	}{
		{"401", serve(listens), NoteSSTP, ""},
		{"401 alone", serve(answers("HTTP/1.1 401\r\n")), NoteSSTP, ""},
		{"401 and a line feed alone", serve(answers("HTTP/1.1 401 x\n")), NoteSSTP, ""},
		{"404", serve(stopped), NoteOtherStatus, "HTTP/1.1 404 Not Found"},
		{"503", serve(answers("HTTP/1.1 503 Service Unavailable\r\n")), NoteOtherStatus, "HTTP/1.1 503 Service Unavailable"},
		{"200", serve(answers("HTTP/1.1 200 OK\r\n")), NoteOtherStatus, "HTTP/1.1 200 OK"},
		{"4011", serve(answers("HTTP/1.1 4011 x\r\n")), NoteOtherStatus, "HTTP/1.1 4011 x"},
		{"HTTP/1.0", serve(answers("HTTP/1.0 401 x\r\n")), NoteOtherStatus, "HTTP/1.0 401 x"},
		{"no HTTP", serve(answers("SSH-2.0-x\x1b[2J\r\n")), NoteOtherStatus, `SSH-2.0-x\x1b[2J`},
		{"a long line", serve(answers(strings.Repeat("x", 9000))), NoteNoStatus, errNoLine.Error()},
		{"long words", serve(answers(strings.Repeat("x", 3000) + "\n")), NoteOtherStatus, strings.Repeat("x", maxDetail)},
		{"nothing", serve(answers("")), NoteNoStatus, "the server closed the connection"},
		{"half a line", serve(answers("HTTP/1.1 4")), NoteNoStatus, "the server closed the connection"},
		{"closed at once", serve(func(net.Conn) {}), NoteNoTLS, "the server closed the connection"},
		{"no TLS", serve(func(c net.Conn) { c.Read(make([]byte, 4096)); io.WriteString(c, "HTTP/1.1 400 Bad\r\n\r\n") }), NoteNoTLS, "tls: first record"},
		{"silent after TCP", serve(func(c net.Conn) { io.Copy(io.Discard, c) }), NoteNoTLS, "no answer within the timeout"},
		{"silent after TLS", serve(func(c net.Conn) {
			s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate()}})
			io.Copy(io.Discard, s)
		}), NoteNoStatus, "no answer within the timeout"},
		{"refused", fails(syscall.ECONNREFUSED), NoteRefused, ""},
		{"no host", fails(syscall.EHOSTUNREACH), NoteRefused, ""},
		{"no route", fails(syscall.ENETUNREACH), NoteUnsendable, ""},
		{"silent", sleeps, NoteSilent, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				v, err := askSSTP(ctx, c.dial, netip.Addr{}, server1, passed)
				if err != nil || v.note != c.note || !strings.HasPrefix(v.detail, c.detail) || (c.detail == "") != (v.detail == "") {
					t.Errorf("%v %q, %v; want %v %q", v.note, v.detail, err, c.note, c.detail)
				}
				if c.note.Result() == ResultMiss && (&SSTPReport{PortReport: PortReport{Note: v.note}}).Hint() == "" {
					t.Error("a miss has no hint")
				}
			})
		})
	}
	// Faults of this node say nothing of the server.
	for _, err := range []error{syscall.EADDRNOTAVAIL, syscall.EMFILE} {
		if _, got := askSSTP(t.Context(), fails(err), netip.Addr{}, server1, passed); !errors.Is(got, err) {
			t.Errorf("%v became %v", err, got)
		}
	}
}

// Where TLS ends on the nodes: plain HTTP, or TLS with one certificate alone.
func TestAskSSTPAsRelay(t *testing.T) {
	leaf := sha256.Sum256(certificate().Certificate[0])
	same := SSTPCheck{TLS: true, Port: 8443, Leaf: leaf, LeafName: "vpn-2026"}
	other := same
	other.Leaf[31] ^= 1
	for _, c := range []struct {
		name  string
		check SSTPCheck
		web   web
		note  Note
		hint  string
	}{
		{"plain 401", offloaded, plain("HTTP/1.1 401 Unauthorized\r\n\r\n"), NoteSSTP, ""},
		{"plain 404", offloaded, plain("HTTP/1.1 404 Not Found\r\n\r\n"), NoteOtherStatus, "Use HTTP"},
		{"plain to TLS", offloaded, listens, NoteNoStatus, "Use HTTP"},
		{"plain, closed", offloaded, func(net.Conn) {}, NoteNoStatus, "TCP connects, but no HTTP"},
		{"the certificate", same, listens, NoteSSTP, ""},
		{"the certificate, 404", same, stopped, NoteOtherStatus, "TCP 8443"},
		{"another certificate", other, listens, NoteOtherLeaf, fmt.Sprintf("the server shows another certificate (sha256 %x) than vpnlb's vpn-2026 (sha256 %x)", leaf, other.Leaf)},
		{"no TLS", same, plain("HTTP/1.1 401 x\r\n\r\n"), NoteNoTLS, "TLS does not come up"},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				var to netip.AddrPort
				v, err := askSSTP(ctx, func(ctx context.Context, local netip.Addr, at netip.AddrPort) (net.Conn, error) {
					to = at
					return serve(c.web)(ctx, local, at)
				}, netip.Addr{}, server1, c.check)
				r := SSTPReport{Check: c.check, PortReport: PortReport{Note: v.note, Port: c.check.Port}, Detail: v.detail}
				if err != nil || v.note != c.note || !strings.Contains(r.Hint(), c.hint) || (c.hint == "") != (r.Hint() == "") {
					t.Errorf("%v, %v: %q", v.note, err, r.Hint())
				}
				if to != netip.AddrPortFrom(server1, c.check.Port) {
					t.Errorf("dialled %s", to)
				}
			})
		})
	}
}

// The request is what RRAS answers: a proper Host, by family.
func TestSSTPRequest(t *testing.T) {
	for _, server := range []netip.Addr{server1, server2} {
		got := make(chan string, 1)
		to := make(chan netip.AddrPort, 1)
		dial := func(ctx context.Context, local netip.Addr, at netip.AddrPort) (net.Conn, error) {
			to <- at
			return serve(func(c net.Conn) {
				s := tls.Server(c, &tls.Config{Certificates: []tls.Certificate{certificate()}})
				b := make([]byte, 4096)
				n, _ := s.Read(b)
				got <- string(b[:n])
				io.WriteString(s, "HTTP/1.1 401 x\r\n")
			})(ctx, local, at)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		if v, err := askSSTP(ctx, dial, netip.Addr{}, server, passed); err != nil || v.note != NoteSSTP {
			t.Errorf("%s: %+v, %v", server, v, err)
		}
		cancel()
		host := "198.51.100.11"
		if server.Is6() {
			host = "[2001:db8::12]"
		}
		want := fmt.Sprintf("HEAD /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n", host)
		if request := <-got; request != want {
			t.Errorf("%q, want %q", request, want)
		}
		if at := <-to; at != netip.AddrPortFrom(server, 443) {
			t.Errorf("dialled %s", at)
		}
	}
}

// TestDialTCP uses the kernel: it refuses at once, and the local address counts.
func TestDialTCP(t *testing.T) {
	for _, loopback := range []string{"127.0.0.1", "::1"} {
		l, err := net.Listen("tcp", net.JoinHostPort(loopback, "0"))
		if err != nil {
			t.Logf("%s: %v", loopback, err)
			continue
		}
		at := netip.MustParseAddrPort(l.Addr().String())
		accepted := make(chan net.Conn, 2)
		go func() {
			for c, err := l.Accept(); err == nil; c, err = l.Accept() {
				accepted <- c
			}
		}()
		c, err := dialTCP(t.Context(), at.Addr(), at)
		if err != nil {
			t.Fatal(err)
		}
		if from := netip.MustParseAddrPort(c.LocalAddr().String()); from.Addr() != at.Addr() {
			t.Errorf("from %s", from)
		}
		c.Close()
		(<-accepted).Close()

		// All of it on real sockets.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		go func() { listens(<-accepted) }()
		v, err := askSSTP(ctx, func(ctx context.Context, local netip.Addr, _ netip.AddrPort) (net.Conn, error) {
			return dialTCP(ctx, local, at)
		}, at.Addr(), at.Addr(), passed)
		if cancel(); err != nil || v.note != NoteSSTP {
			t.Errorf("a check of %s: %+v, %v", at, v, err)
		}
		l.Close()
		_, err = dialTCP(t.Context(), netip.Addr{}, at)
		if note, err := dialNote(t.Context(), err); note != NoteRefused || err != nil {
			t.Errorf("a closed port: %v, %v", note, err)
		}
		_, err = dialTCP(t.Context(), netip.MustParseAddr("192.0.2.77"), at)
		if note, err := dialNote(t.Context(), err); err == nil {
			t.Errorf("from an address of nobody: %v", note)
		}
	}
}

// hall is a bench whose first server has SSTP too.
func hall(t *testing.T, body func(b *bench, set func(Dial))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		dial := serve(listens)
		f := &fabric{servers: map[netip.Addr]behaviour{server1: rejects, server2: rejects},
			refuses: map[netip.Addr]bool{}, delay: time.Millisecond}
		p, err := NewProber(Config{Boot: 7}, Deps{Listen: f.listen, Dial: func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
			mu.Lock()
			d := dial
			mu.Unlock()
			return d(ctx, local, to)
		}})
		if err != nil {
			t.Fatal(err)
		}
		p.SetTargets([]Target{{Backend: 1, Addr: server1, SSTP: &passed}, {Backend: 2, Addr: server2}}, DefaultTiming())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		body(&bench{f, p}, func(d Dial) {
			mu.Lock()
			defer mu.Unlock()
			dial = d
		})
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		time.Sleep(time.Second)
	})
}

func (b *bench) sstp(want Opinion, limit time.Duration) time.Duration {
	start := time.Now()
	for time.Since(start) <= limit {
		if r := b.Reports()[0]; r.SSTP != nil && r.SSTP.Opinion == want {
			return time.Since(start)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return -1
}

// SSTP goes down within 15 s, whatever fails, comes back, and IKE of the same
// server does not feel it.
func TestProberSSTP(t *testing.T) {
	for name, dead := range map[string]Dial{
		"silent": sleeps, "refused": fails(syscall.ECONNREFUSED), "404": serve(stopped),
		"no TLS": serve(func(net.Conn) {}), "hangs": serve(func(c net.Conn) { io.Copy(io.Discard, c) }),
	} {
		t.Run(name, func(t *testing.T) {
			hall(t, func(b *bench, set func(Dial)) {
				if d := b.sstp(OpinionUp, 10*time.Second); d < 0 {
					t.Fatalf("not up: %+v", b.Reports()[0].SSTP)
				}
				time.Sleep(time.Minute)
				set(dead)
				d := b.sstp(OpinionDown, 15*time.Second)
				if d < 0 {
					t.Fatalf("not down within 15 s: %+v", b.Reports()[0].SSTP)
				}
				t.Logf("down after %v: %s", d, b.Reports()[0].SSTP.Hint())
				o := b.Observe(nil)
				ike, _ := o.Of(1, state.ClassIKE)
				tcp, ok := o.Of(1, state.ClassTCP)
				if ike.Opinion != OpinionUp || !ok || tcp.Opinion != OpinionDown || tcp.Misses < 3 {
					t.Errorf("observed: ike %+v, tcp %+v", ike, tcp)
				}
				if _, ok := o.Of(2, state.ClassTCP); ok {
					t.Error("a server without SSTP is observed for it")
				}
				if back, err := DecodeObservation(o.Encode()); err != nil || len(back.Seen) != 3 {
					t.Errorf("%+v, %v", back, err)
				}
				time.Sleep(time.Minute)
				set(serve(listens))
				if d := b.sstp(OpinionUp, 15*time.Second); d < 0 {
					t.Errorf("not up again: %+v", b.Reports()[0].SSTP)
				}
				// IKE dies, SSTP goes on.
				b.set(server1, nil)
				if d := b.until(1, OpinionDown, 5*time.Second); d < 0 || b.sstp(OpinionUp, 0) != 0 {
					t.Errorf("ike %v, sstp %+v", b.opinion(1), b.Reports()[0].SSTP)
				}
			})
		})
	}
}

// Checks are rare where there is no doubt, and end when they are not asked for.
func TestProberSSTPPace(t *testing.T) {
	hall(t, func(b *bench, set func(Dial)) {
		var mu sync.Mutex
		n := 0
		count := func() (was int) {
			mu.Lock()
			defer mu.Unlock()
			was, n = n, 0
			return was
		}
		set(func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
			mu.Lock()
			n++
			mu.Unlock()
			return serve(listens)(ctx, local, to)
		})
		time.Sleep(20 * time.Second)
		count()
		time.Sleep(time.Minute)
		if got := count(); got < 12 || got > 14 {
			t.Errorf("%d checks a minute", got)
		}
		set(fails(syscall.EADDRNOTAVAIL)) // this node cannot ask: the opinion stands, and ages
		time.Sleep(time.Minute)
		o := b.Observe(nil)
		if s, _ := o.Of(1, state.ClassTCP); s.Opinion != OpinionUp || s.Age < 50*time.Second {
			t.Errorf("%+v", s)
		}
		b.SetTargets([]Target{{Backend: 1, Addr: server1}}, DefaultTiming())
		time.Sleep(time.Second)
		o = b.Observe(nil)
		if s, ok := o.Of(1, state.ClassTCP); ok || b.Reports()[0].SSTP != nil {
			t.Errorf("%+v", s)
		}
		if ike, ok := o.Of(1, state.ClassIKE); !ok || ike.Opinion != OpinionUp {
			t.Error("the target lost what was known of its IKE")
		}
	})
}

// Another certificate asked for: the opinion stands until checks of it say else,
// and a check that is under way counts for nothing.
func TestProberSSTPChanges(t *testing.T) {
	hall(t, func(b *bench, set func(Dial)) {
		if d := b.sstp(OpinionUp, 10*time.Second); d < 0 {
			t.Fatal("not up")
		}
		time.Sleep(time.Minute)
		with := func(leaf [32]byte) {
			check := passed
			check.Leaf = leaf
			b.SetTargets([]Target{{Backend: 1, Addr: server1, SSTP: &check}}, DefaultTiming())
		}
		with(sha256.Sum256(certificate().Certificate[0]))
		for range 100 {
			time.Sleep(100 * time.Millisecond)
			if r := b.Reports()[0].SSTP; r.Opinion != OpinionUp {
				t.Fatalf("%+v", r)
			}
		}
		with([32]byte{1})
		if d := b.sstp(OpinionDown, 5*time.Second); d < 0 || b.Reports()[0].SSTP.Note != NoteOtherLeaf {
			t.Errorf("%+v", b.Reports()[0].SSTP)
		}
		with([32]byte{})
		if d := b.sstp(OpinionUp, 10*time.Second); d < 0 {
			t.Errorf("%+v", b.Reports()[0].SSTP)
		}
		time.Sleep(time.Minute)
		started, release := make(chan struct{}), make(chan struct{})
		set(func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
			close(started)
			<-release
			return fails(syscall.ECONNREFUSED)(ctx, local, to)
		})
		<-started
		with([32]byte{2})
		set(serve(listens))
		close(release)
		time.Sleep(100 * time.Millisecond)
		if r := b.Reports()[0].SSTP; r.Note != NoteOtherLeaf || r.Misses != 1 {
			t.Errorf("%+v", r)
		}
	})
}

func TestTargetsOf(t *testing.T) {
	s := &state.Spec{
		Members: []state.Member{{Format: deepFormat}, {Format: deepFormat}},
		VIPs: []state.VIP{{ID: 1}, {ID: 2, SSTP: state.SSTPPassthrough}, {ID: 3, SSTP: state.SSTPOffload},
			{ID: 4, SSTP: state.SSTPReencrypt}},
		Backends: []state.Backend{{ID: 1, VIP: 1, Addr: server1}, {ID: 2, VIP: 2, Addr: server2, SSTPPort: 8443}, {ID: 3, VIP: 3, Addr: server1},
			{ID: 4, VIP: 4, Addr: server1, SSTPPort: 8443}, {ID: 5, VIP: 9, Addr: server1}},
	}
	try := func(deep time.Duration) {
		t.Helper()
		want := []*SSTPCheck{nil, {TLS: true, Port: 443, Deep: deep}, {Port: 80, Deep: deep, DeepVotes: true},
			{TLS: true, Port: 8443, Deep: deep, DeepVotes: true}, nil}
		for i, got := range TargetsOf(s) {
			if got.Backend != s.Backends[i].ID || got.Addr != s.Backends[i].Addr || !reflect.DeepEqual(got.SSTP, want[i]) {
				t.Errorf("%+v %+v, want %+v", got, got.SSTP, want[i])
			}
		}
	}
	for admin, deep := range map[state.AdminState]time.Duration{state.AdminEnabled: DeepInterval, state.AdminDrain: DeepInterval,
		state.AdminOffline: 0, state.AdminRemoved: 0} {
		for i := range s.Backends {
			s.Backends[i].Admin = admin
		}
		s.Members[1].Format = deepFormat
		try(deep)
		s.Members[1].Format-- // it could not read what a call met
		try(0)
	}
}
