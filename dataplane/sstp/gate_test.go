package sstp

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// rawFrom is rawDial from a source of its own.
func (b *bed) rawFrom(source byte, first string) *net.TCPConn {
	b.t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 1, source)}}
	c, err := dialer.Dial("tcp", b.at.String())
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

// hello is what a client of TLS sends first.
func hello(t testing.TB) string {
	t.Helper()
	here, there := net.Pipe()
	go func() {
		tls.Client(here, trusting()).Handshake()
		here.Close()
	}()
	defer there.Close()
	first := make([]byte, 16<<10)
	n, err := there.Read(first)
	if err != nil {
		t.Fatal(err)
	}
	return string(first[:n])
}

// slowOnes is how many slow handshakes a test lets be under way.
const slowOnes = 8

func (b *bed) crowded() float64 {
	return b.metric(b.metrics.handshakes.WithLabelValues("crowded", ""))
}

// open tells whether the other side has not closed the connection.
func open(c *net.TCPConn) bool {
	c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	_, err := io.Copy(io.Discard, c)
	return errors.Is(err, os.ErrDeadlineExceeded)
}

// A handshake that waits for its client keeps no other from computing.
func TestHandshakesDoNotWaitForSlowOnes(t *testing.T) {
	f := newFarEnd(t, nil)
	d := oneTarget(t, f)
	d.Limits = Limits{Handshakes: slowOnes + 1}
	b := newBed(t, d, nil)
	slow := []*net.TCPConn{b.rawFrom(1, helloBegins), b.rawFrom(2, hello(t))}
	b.until("both are under way", func() bool { return b.Status().Handshakes == 2 })
	b.mustDial(nil).open()
	for i, c := range slow {
		if !open(c) {
			t.Errorf("slow client %d was ended, though there was room", i)
		}
	}
	if n := b.crowded(); n != 0 {
		t.Errorf("%v ended for others", n)
	}
}

// Slow clients of many sources take all places: others get in nevertheless.
func TestSlowHandshakesMakeRoom(t *testing.T) {
	whole := hello(t)
	for _, test := range []struct {
		name, first string
	}{{"hello begun", helloBegins}, {"hello sent", whole}} {
		t.Run(test.name, func(t *testing.T) {
			f := newFarEnd(t, nil)
			d := oneTarget(t, f)
			d.Limits = Limits{Handshakes: slowOnes}
			b := newBed(t, d, nil)
			var slow []*net.TCPConn
			for i := range slowOnes {
				slow = append(slow, b.rawFrom(byte(i+1), test.first))
				b.until("it waits", func() bool {
					b.gate.mu.Lock()
					defer b.gate.mu.Unlock()
					return b.gate.waiting[0].Len()+b.gate.waiting[1].Len() == i+1
				})
			}
			began := time.Now()
			c := b.mustDial(nil).open()
			t.Logf("an honest client waited %v", time.Since(began))
			c.send("x")
			c.want("x")
			if n, ended := b.crowded(), b.metric(b.metrics.ended.WithLabelValues(endCrowded)); n != 1 || ended != 1 {
				t.Errorf("%v handshakes, %v connections ended for others", n, ended)
			}
			if open(slow[0]) {
				t.Error("the oldest was not ended")
			}
			if !open(slow[1]) {
				t.Error("another was ended")
			}
			for _, c := range slow {
				c.Close()
			}
			b.until("nothing is under way", func() bool { return b.Status().Handshakes == 0 && b.sources.count() == 1 })
		})
	}
}

// Those without a hello go before those with one, however old.
func TestWhoMakesRoom(t *testing.T) {
	var g gate
	g.init(1, slowOnes)
	begin := func() *turn { return g.enter(&session{}) }
	old := begin()
	old.hello = true
	old.wait()
	old.since = old.since.Add(-time.Minute)
	silent, later := begin(), (*turn)(nil)
	silent.wait()
	later = begin()
	later.wait()
	if got := g.oldest(); got != silent {
		t.Error("not the first without a hello")
	}
	if !silent.goOn() {
		t.Error("it lost its place")
	}
	silent.hello = true
	silent.wait()
	if got := g.oldest(); got != later {
		t.Error("not the one without a hello")
	}
	later.leave()
	later.leave()
	if got := g.oldest(); got != old {
		t.Error("not the oldest with a hello")
	}
	g.remove(old)
	if old.goOn() {
		t.Error("it goes on without its place")
	}
	old.wait()
	old.leave()
	if got := g.oldest(); got != nil {
		t.Error("one that waits only since now must make room")
	}
	silent.leave()
	if n := g.under(); n != 0 {
		t.Errorf("%d are under way", n)
	}
}
