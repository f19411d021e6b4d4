package sstp

import (
	"bufio"
	"crypto/tls"
	"io"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
)

// parked waits until both directions of all sessions wait without a goroutine.
func (b *bed) parked() {
	b.t.Helper()
	b.until("all directions are parked", func() bool {
		for _, c := range b.table.all() {
			c.mu.Lock()
			all := c.flow[0].parked && c.flow[1].parked
			c.mu.Unlock()
			if !all {
				return false
			}
		}
		return true
	})
}

func TestParked(t *testing.T) {
	for _, mode := range []Mode{Offload, Reencrypt} {
		say := make(chan string)
		cert := newCert(t, "a", ecdsaKey(t), name)
		f := newFarEnd(t, func(f *farEnd) {
			if mode == Reencrypt {
				f.config = &tls.Config{Certificates: []tls.Certificate{*cert.TLS}}
			}
			f.script = func(r *bufio.Reader, c far) {
				go func() {
					for s := range say {
						io.WriteString(c, s)
					}
				}()
				io.Copy(struct{ io.Writer }{c}, struct{ io.Reader }{r})
				c.CloseWrite()
			}
		})
		d := oneTarget(t, f)
		d.Certificates[0] = cert
		b := newBed(t, d, func(v *Service) { v.Mode = mode })
		c := b.mustDial(nil).open()
		for range 3 {
			b.parked()
			c.send("from the client")
			c.want("from the client")
			b.parked()
			say <- "from the server"
			c.want("from the server")
		}
		b.parked()
		bulk(t, c, 3<<20)
		b.parked()
		if s := b.Sessions()[0]; s.State == "closing" || s.In < 3<<20 {
			t.Errorf("session %+v", s)
		}
		close(say)
		c.CloseWrite() // the half close goes through, and comes back
		if rest, err := io.ReadAll(c.r); err != nil || len(rest) != 0 {
			t.Errorf("%q, %v", rest, err)
		}
		b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	}
}

// Whatever ends a session ends a parked one.
func TestParkedEnds(t *testing.T) {
	for name, end := range map[string]func(*bed, *client){
		"client resets": func(_ *bed, c *client) { c.tcp.SetLinger(0); c.tcp.Close() },
		"client closes": func(_ *bed, c *client) { c.Close() },
		"idle":          func(b *bed, _ *client) { b.pass(310) },
		"closed": func(b *bed, _ *client) {
			b.CloseTarget(1, 0)
			b.until("it closes", func() bool { return b.Sessions()[0].State == "closing" && b.table.all()[0].closing() != 0 })
			b.pass(gentleTicks + 1)
		},
		"stopped": func(b *bed, _ *client) { b.stop() },
	} {
		f := newFarEnd(t, nil)
		b := newBed(t, oneTarget(t, f), nil)
		c := b.mustDial(nil).open()
		b.parked()
		end(b, c)
		b.until(name+": the session ends", func() bool { return len(b.Sessions()) == 0 })
		c.gone()
	}
}

// Idle sessions have no goroutines, and do not leak any.
func TestParkedGoroutines(t *testing.T) {
	f := newFarEnd(t, func(f *farEnd) { f.script = func(r *bufio.Reader, _ far) { io.Copy(io.Discard, r) } })
	b := newBed(t, oneTarget(t, f), nil)
	const many = 50
	before := runtime.NumGoroutine()
	var calls []*client
	for range many {
		calls = append(calls, b.mustDial(nil).open())
	}
	b.parked()
	// One for each is the far end's.
	b.until("pumps are gone", func() bool { return runtime.NumGoroutine() <= before+many+5 })
	for _, c := range calls {
		c.Close()
	}
	b.until("all are gone", func() bool { return len(b.Sessions()) == 0 && runtime.NumGoroutine() <= before+5 })
}

// Parking while bytes come loses none.
func TestParkRace(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	b.stop()
	b.reg, b.linger = nil, 20*time.Microsecond
	b.start(nil)
	c := b.mustDial(nil).open()
	bulk(t, c, 8<<20)
	piece := strings.Repeat("x", 3000)
	for i := range 2000 {
		n := 1 + i%len(piece)
		c.send(piece[:n])
		c.want(piece[:n])
	}
	session := b.table.all()[0]
	session.mu.Lock()
	if f := &session.flow[control.Client]; !f.known {
		t.Error("it was never parked")
	}
	session.mu.Unlock()
	c.Close()
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
}
