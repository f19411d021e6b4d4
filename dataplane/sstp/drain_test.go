package sstp

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestDrain(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	var calls []*client
	for range 6 {
		calls = append(calls, b.mustDial(nil).open())
	}
	b.until("they relay", func() bool { return b.relaying() == 6 })
	const keep, over = 300 * time.Millisecond, 1500 * time.Millisecond // a sixth of over is what a slow machine may be late
	ctx, cancel := context.WithTimeout(context.Background(), keep+over)
	defer cancel()
	began := time.Now()
	done := make(chan time.Duration, 1)
	go func() {
		b.Drain(ctx, over)
		done <- time.Since(began)
	}()
	b.until("it refuses", func() bool {
		c, err := net.Dial("tcp", b.at.String())
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	calls[0].send("still up")
	calls[0].want("still up")
	ends := make([]time.Duration, len(calls))
	var wait sync.WaitGroup
	for i, c := range calls {
		wait.Go(func() {
			_, err := io.ReadAll(c.r) // a clean end: close_notify
			if err != nil {
				t.Errorf("call %d: %v", i, err)
			}
			ends[i] = time.Since(began)
			c.Close()
		})
	}
	wait.Wait()
	if took := <-done; took > keep+over+5*time.Second || took < keep {
		t.Errorf("drained in %v", took)
	}
	if ends[0] < keep || ends[5]-ends[0] < over/2 {
		t.Errorf("calls ended at %v, want them spread from %v on over %v", ends, keep, over)
	}
	if !b.Status().Draining {
		t.Error("status does not say so")
	}
	if err := b.Apply(b.desired); err != nil { // does not listen again
		t.Error(err)
	}
	if s := b.Status().Services[0]; s.Listening {
		t.Error("it listens")
	}
}

// relaying is how many sessions have come that far.
func (b *bed) relaying() (n int) {
	for _, c := range b.table.all() {
		if phase(c.phase.Load()) == phaseRelay {
			n++
		}
	}
	return n
}

func TestDrainWithNothingToDo(t *testing.T) {
	b := newBed(t, oneTarget(t, newFarEnd(t, nil)), nil)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	b.Drain(ctx, time.Second)
	if ctx.Err() != nil {
		t.Error(ctx.Err())
	}
}

// Peers that do not answer a gentle close are left after a while.
func TestCloseTarget(t *testing.T) {
	f := newFarEnd(t, nil)
	d := oneTarget(t, f)
	d.Targets = append(d.Targets, Target{Slot: 2, VIP: 3, Name: "rras2", Addr: f.addr(), Certificate: "a"})
	b := newBed(t, d, nil)
	polite, deaf := b.mustDial(nil).open(), b.mustDial(nil).open()
	b.until("they relay", func() bool { return b.relaying() == 2 })
	if n := b.CloseTarget(2, 0); n != 0 {
		t.Errorf("%d sessions of server 2", n)
	}
	if n := b.CloseTarget(1, 0); n != 2 {
		t.Errorf("%d sessions of server 1", n)
	}
	if _, err := io.ReadAll(polite.r); err != nil {
		t.Error(err)
	}
	polite.Close()
	b.until("one is left", func() bool { return len(b.Sessions()) == 1 })
	if s := b.Sessions()[0].State; s != "closing" {
		t.Errorf("state %s", s)
	}
	b.pass(gentleTicks + 1)
	b.until("none is left", func() bool { return len(b.Sessions()) == 0 })
	deaf.gone()
}

// A call that is closed gently in the midst of traffic is counted as that, and
// both sides get to say goodbye.
func TestCloseUnderTraffic(t *testing.T) {
	const after = 50
	f := newFarEnd(t, func(f *farEnd) {
		f.script = func(r *bufio.Reader, c far) {
			told := make(chan struct{})
			go func() {
				io.Copy(io.Discard, r)
				close(told)
			}()
			for i := 0; i < after; {
				select {
				case <-told:
					i++
				default:
				}
				if _, err := io.WriteString(c, data("downstream")); err != nil {
					t.Errorf("server cannot write on: %v", err)
					return
				}
			}
			c.CloseWrite()
		}
	})
	b := newBed(t, oneTarget(t, f), nil)
	c := b.mustDial(nil).open()
	told := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c.r)
		told <- err
	}()
	b.until("it relays", func() bool { return b.relaying() == 1 })
	for i, closed := 0, false; i < after; {
		c.send(data("upstream"))
		if !closed {
			closed = b.CloseTarget(1, 0) == 1
			continue
		}
		select {
		case err := <-told:
			if err != nil {
				t.Errorf("client was told by %v", err)
			}
			i, told = 1, nil
		default:
			if i > 0 {
				i++
			}
		}
	}
	c.CloseWrite()
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	for _, reason := range ends {
		want := 0.0
		if reason == endClosed {
			want = 1
		}
		if n := b.metric(b.metrics.ended.WithLabelValues(reason)); n != want {
			t.Errorf("%s counted %v times", reason, n)
		}
	}
}

// The next process takes the sockets: what waits in their queue is served.
func TestHandover(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	standing := b.mustDial(nil).open()
	inherited := map[string]*net.TCPListener{}
	for at, file := range b.Listeners() {
		ln, err := net.FileListener(file)
		if err != nil {
			t.Fatal(err)
		}
		file.Close()
		inherited[at] = ln.(*net.TCPListener)
	}
	if len(inherited) != 1 || inherited[b.at.String()] == nil {
		t.Fatalf("listeners %v", inherited)
	}
	unwanted, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	inherited[unwanted.Addr().String()] = unwanted.(*net.TCPListener)

	first := b.Server
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	drained := make(chan struct{})
	go func() { first.Drain(ctx, 10*time.Second); close(drained) }()
	b.until("the first accepts no more", func() bool { return first.Status().Draining })
	waiting := b.rawDial(helloBegins) // nobody accepts now
	b.stop()                          // ends the first: metrics and port are free
	<-drained
	standing.gone()
	b.reg = nil
	b.start(inherited)
	b.until("what waited is under way", func() bool { return b.Status().Handshakes == 1 })
	waiting.Close()
	b.mustDial(nil).open()
	if _, err := unwanted.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("an unwanted listener: %v", err)
	}
}

func TestFaultsOfApply(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	standing := b.mustDial(nil).open()
	good := b.desired
	d := good
	wrong := newCert(t, "wrong", ecdsaKey(t), name)
	wrong.Hash[0]++
	d.Certificates = append(d.Certificates[:1:1], wrong, Certificate{Name: "empty"})
	d.Services = append(d.Services[:1:1],
		Service{VIP: 4, Name: "mode", Addr: b.at.Addr().Next(), Mode: 7},
		Service{VIP: 5, Name: "twice", Addr: b.at.Addr(), Mode: Offload},
		Service{VIP: 6, Name: "lacking", Addr: b.at.Addr().Next().Next(), Mode: Offload})
	d.Targets = append(d.Targets[:1:1],
		Target{Slot: 1, VIP: 3, Name: "slot", Addr: f.addr()},
		Target{Slot: 2, VIP: 3, Name: "nocert", Addr: f.addr(), Certificate: "missing"},
		Target{Slot: 3, VIP: 6, Name: "fine", Addr: f.addr(), Certificate: "a"},
		Target{Slot: 4, VIP: 6, Name: "lacking", Addr: f.addr(), Certificate: "wrong"})
	d.Limits.IdleTimeout = time.Minute
	err := b.Apply(d)
	if err == nil {
		t.Fatal("no fault")
	}
	for _, want := range []string{"certificate wrong: its hash", "certificate empty:", "service mode: mode 7", "service twice: address", `server lacking: its certificate "wrong"`,
		"server slot: slot 1", `server nocert: its certificate "missing"`, "idle timeout 1m0s would end living calls"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not among the faults:\n%v", want, err)
		}
	}
	if n := len(b.Status().Faults); n != 8 {
		t.Errorf("status has %d faults: %q", n, b.Status().Faults)
	}
	standing.send("x")
	standing.want("x")
	b.mustDial(nil).open()
	at := b.at
	b.at = netip.AddrPortFrom(at.Addr().Next().Next(), at.Port())
	b.vip.Store(6)
	b.route(Route{Slot: 3}, true)
	if c, err := b.dial(nil); err == nil {
		c.Close()
	} else {
		t.Errorf("the service without one of its certificates: %v", err)
	}
	b.at = at
	if err := b.Apply(good); err != nil || len(b.Status().Faults) != 0 {
		t.Errorf("%v, status %q", err, b.Status().Faults)
	}
}
