package sstp

import (
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rawDial connects without TLS, and sends a byte so that the kernel hands the
// connection over.
func (b *bed) rawDial(first string) *net.TCPConn {
	b.t.Helper()
	c, err := net.Dial("tcp", b.at.String())
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(c, first); err != nil {
		b.t.Fatal(err)
	}
	return c.(*net.TCPConn)
}

const helloBegins = "\x16\x03\x01\x02\x00\x01"

func (b *bed) refusals(reason string) float64 {
	return b.metric(b.metrics.refused.WithLabelValues(reason))
}

func TestNoServer(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	b.route(Route{Slot: 1}, false)
	refused := func(reason string, want float64) {
		t.Helper()
		if _, err := b.dial(nil); err == nil {
			t.Errorf("%s: connected", reason)
		}
		if n := b.refusals(reason); n != want {
			t.Errorf("%s counted %v times, want %v", reason, n, want)
		}
	}
	refused(refusedNoServer, 1)
	b.route(Route{Slot: 5}, true) // a server that this node has not heard of
	refused(refusedNoServer, 2)
	b.route(Route{Slot: 1}, true)
	b.desired.Targets[0].Refuse = true
	if err := b.Apply(b.desired); err != nil {
		t.Fatal(err)
	}
	refused(refusedDraining, 1)
	b.until("nothing is left", func() bool { return b.sources.count() == 0 && len(b.Sessions()) == 0 })
	b.desired.Targets[0].Refuse = false
	if err := b.Apply(b.desired); err != nil {
		t.Fatal(err)
	}
	b.mustDial(nil).open()
}

func TestLimits(t *testing.T) {
	f := newFarEnd(t, nil)
	d := oneTarget(t, f)
	d.Limits = Limits{Connections: 4, PerSource: 3, Handshakes: 64}
	b := newBed(t, d, nil)
	var open []*client
	for range 3 {
		open = append(open, b.mustDial(nil).open())
	}
	if _, err := b.dial(nil); err == nil {
		t.Error("a fourth connection of one source")
	}
	if n := b.refusals(refusedSource); n != 1 {
		t.Errorf("counted %v times", n)
	}
	if r := b.Status().Refused; len(r) != 1 || r[0].Reason != refusedSource || r[0].Count != 1 || !strings.Contains(r[0].Text, "per_source") {
		t.Errorf("the status says %+v", r)
	}
	b.desired.Limits.PerSource = 10
	if err := b.Apply(b.desired); err != nil {
		t.Fatal(err)
	}
	open = append(open, b.mustDial(nil).open())
	if _, err := b.dial(nil); err == nil {
		t.Error("a fifth connection")
	}
	if n := b.refusals(refusedConnections); n != 1 {
		t.Errorf("counted %v times", n)
	}
	for _, c := range open {
		c.Close()
	}
	b.until("they are gone", func() bool { return b.sources.count() == 0 })
	b.sources.mu.Lock()
	if len(b.sources.by) != 0 {
		t.Errorf("left: %v", b.sources.by)
	}
	b.sources.mu.Unlock()
	b.mustDial(nil).open()
}

// Clients that begin a handshake and stop are bounded, do not keep others out
// for long, and are gone after the timeout.
func TestSlowHandshakes(t *testing.T) {
	f := newFarEnd(t, nil)
	d := oneTarget(t, f)
	d.Limits = Limits{Handshakes: 64, HandshakeTimeout: 300 * time.Millisecond}
	b := newBed(t, d, nil)
	var slow []*net.TCPConn
	for range 2 { // a 32nd of 64
		slow = append(slow, b.rawDial(helloBegins))
	}
	b.until("both are under way", func() bool { return b.Status().Handshakes == 2 })
	third := b.rawDial(helloBegins)
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("a third slow handshake of one source")
	}
	if n := b.refusals(refusedHandshakes); n != 1 {
		t.Errorf("counted %v times", n)
	}
	for _, c := range slow {
		if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Error("a slow handshake was not ended")
		}
	}
	if n := b.metric(b.metrics.handshakes.WithLabelValues("timeout", "")); n != 2 {
		t.Errorf("%v timeouts", n)
	}
	b.until("nothing is left", func() bool { return b.sources.count() == 0 })
	b.mustDial(nil).open()
}

// A head that comes byte by byte is ended by the clock, not by its length.
func TestSlowHeads(t *testing.T) {
	f := newFarEnd(t, nil)
	d := oneTarget(t, f)
	d.Limits = Limits{HeadTimeout: 200 * time.Millisecond}
	b := newBed(t, d, nil)
	const many = 50
	var wait sync.WaitGroup
	for range many {
		c := b.mustDial(nil)
		wait.Go(func() {
			tick := time.NewTicker(20 * time.Millisecond)
			defer tick.Stop()
			for i := range len(post) {
				if _, err := io.WriteString(c.Conn, post[i:i+1]); err != nil {
					return
				}
				<-tick.C
			}
			t.Error("a slow head was taken")
		})
	}
	wait.Wait()
	b.until("nothing is left", func() bool { return b.sources.count() == 0 })
	if n := b.metric(b.metrics.heads.WithLabelValues(headTimeout)); n != many {
		t.Errorf("%v timeouts", n)
	}
	if f.conns.Load() != 0 {
		t.Error("the server was bothered")
	}
}

// A head in pieces, but in time, is a head.
func TestHeadInPieces(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	c := b.mustDial(nil)
	for i := range len(post) {
		c.send(post[i : i+1])
	}
	c.answer()
}

// Floods of what is no TLS, or breaks off, leave nothing behind.
func TestHandshakeFlood(t *testing.T) {
	f := newFarEnd(t, nil)
	d := oneTarget(t, f)
	d.Limits = Limits{Handshakes: 128, PerSource: 64}
	b := newBed(t, d, nil)
	var wait sync.WaitGroup
	for worker := range 8 {
		wait.Go(func() {
			for i := range 40 {
				c, err := net.Dial("tcp", b.at.String())
				if err != nil {
					continue
				}
				switch (worker + i) % 3 {
				case 0:
					io.WriteString(c, "GET / HTTP/1.1\r\n\r\n")
				case 1:
					io.WriteString(c, helloBegins)
				case 2:
					c.(*net.TCPConn).SetLinger(0)
				}
				c.Close()
			}
		})
	}
	wait.Wait()
	b.until("others are served", func() bool { // some of the flood may still wait in the kernel
		c, err := b.dial(nil)
		if err != nil {
			return false
		}
		c.open().Close()
		return true
	})
	b.until("nothing is left", func() bool { return b.sources.count() == 0 && b.Status().Handshakes == 0 && len(b.Sessions()) == 0 })
}

// A server that takes the connection and says nothing is given up, as is one
// that stops within its head.
func TestHalfOpenServer(t *testing.T) {
	for _, said := range []string{"", "HTTP/1.1 200 \r\nContent-"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		var taken sync.WaitGroup
		taken.Go(func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			defer c.Close()
			io.WriteString(c, said)
			io.Copy(io.Discard, c)
		})
		d := Desired{Certificates: []Certificate{newCert(t, "a", ecdsaKey(t), name)}, Limits: Limits{ResponseTimeout: 200 * time.Millisecond},
			Targets: []Target{{Slot: 1, VIP: 3, Name: "rras1", Addr: ln.Addr().(*net.TCPAddr).AddrPort(), Certificate: "a"}}}
		b := newBed(t, d, nil)
		c := b.mustDial(nil)
		c.send(post)
		if got := c.answer(); !strings.HasPrefix(got, "HTTP/1.1 502 ") {
			t.Errorf("answer %q", got)
		}
		c.Close()
		taken.Wait()
	}
}

// A client that wants to renegotiate is told no by TLS itself; what it must not
// do is to make the server work again. With TLS 1.2 a second hello is fatal.
func TestNoRenegotiation(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	config := trusting()
	config.MaxVersion = tls.VersionTLS12
	config.Renegotiation = tls.RenegotiateFreelyAsClient
	c := b.mustDial(config).open()
	// crypto/tls's client never asks for it by itself: a handshake record in clear
	// where an encrypted one is due stands for any attempt.
	io.WriteString(c.tcp, "\x16\x03\x03\x00\x04\x01\x00\x00\x00")
	c.gone()
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
}

// What connects and says nothing stays in the kernel.
func TestSilentConnectionsWaitInTheKernel(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	for range 20 {
		c, err := net.Dial("tcp", b.at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	b.mustDial(nil).open() // came later
	if n := b.metric(b.metrics.accepted); n != 1 {
		t.Errorf("%v connections accepted", n)
	}
}

// Options that matter are on both sockets of a connection.
func TestSocketOptions(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	b.mustDial(nil).open()
	c := b.table.all()[0]
	c.mu.Lock()
	sockets := map[string]*net.TCPConn{"client": c.front.socket(), "server": c.back.socket()}
	c.mu.Unlock()
	for side, tcp := range sockets {
		raw, err := tcp.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		raw.Control(func(fd uintptr) {
			for _, o := range append([]option{{unix.IPPROTO_TCP, unix.TCP_NODELAY, 1}, {unix.SOL_SOCKET, unix.SO_PROTOCOL, unix.IPPROTO_TCP}}, connOptions...) {
				if got, err := unix.GetsockoptInt(int(fd), o.level, o.name); err != nil || got != o.value {
					t.Errorf("%s: option %d of level %d is %d, %v, want %d", side, o.name, o.level, got, err, o.value)
				}
			}
		})
	}
}

// Each reason has a remedy, is logged once, and is forgotten after a while.
func TestRefusalBook(t *testing.T) {
	var log strings.Builder
	logger := slog.New(slog.NewTextHandler(&log, nil))
	var b refusalBook
	now := time.Now()
	for _, reason := range refusals {
		for range 3 {
			b.note(reason, now, logger)
		}
	}
	recent := b.recent(now)
	if len(recent) != len(refusals) || strings.Count(log.String(), "\n") != len(refusals) {
		t.Errorf("%d reasons told, logged %s", len(recent), log.String())
	}
	for _, r := range recent {
		if r.Count != 3 || remedies[r.Reason] == "" {
			t.Errorf("%+v", r)
		}
	}
	if r := b.recent(now.Add(refusalAge)); len(r) != 0 {
		t.Errorf("%+v", r)
	}
	b.note(refusedSource, now.Add(refusalAge), logger)
	if r := b.recent(now.Add(refusalAge)); len(r) != 1 || r[0].Count != 1 {
		t.Errorf("%+v", r)
	}
}
