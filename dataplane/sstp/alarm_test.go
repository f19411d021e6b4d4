package sstp

import (
	"bufio"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
)

const mismatch = "server rras1 aborts after Call Connected: its configured certificate hash does not match; run 'vpnlb sstp rras rras1'"

func (b *bed) alarm() string {
	var texts []string
	for _, a := range b.Status().Alarms {
		texts = append(texts, a.Text)
	}
	return strings.Join(texts, "; ")
}

// abortedCall is one that the server aborts after Call Connected.
func (b *bed) abortedCall(hash Hash) {
	b.t.Helper()
	before := len(b.Sessions())
	c := b.call(hash)
	c.want(abort)
	c.Close()
	b.until("the session ends", func() bool { return len(b.Sessions()) == before })
}

func TestAlarmOfWrongHash(t *testing.T) {
	want := ""
	f := newFarEnd(t, func(f *farEnd) { f.script = rras(func(hash string) bool { return hash == want }) })
	d := oneTarget(t, f)
	b := newBed(t, d, nil)
	hash := d.Certificates[0].Hash
	alarm, abortedCall := b.alarm, b.abortedCall
	goodCall := func() {
		t.Helper()
		want = string(hash[:])
		c := b.call(hash)
		c.send(data("x"))
		c.want(data("x"))
		b.pass(1)
		if alarm() == "" && want == "" {
			t.Error("the alarm went before the call proved itself")
		}
		b.pass(stayUp)
		c.Close()
		b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
		want = ""
	}
	abortedCall(hash)
	if got := alarm(); got != mismatch {
		t.Errorf("alarm %q", got)
	}
	goodCall()
	if got := alarm(); got != "" {
		t.Errorf("alarm %q after a call that stayed up", got)
	}
	// Anyone can make a server abort: where calls work it takes more than one.
	abortedCall(hash)
	abortedCall(hash)
	if got := alarm(); got != "" {
		t.Errorf("alarm %q after two aborts", got)
	}
	abortedCall(hash)
	if got := alarm(); got != mismatch {
		t.Errorf("alarm %q after three aborts", got)
	}
	goodCall()
	for range abortsInARow {
		abortedCall(Hash{1})
	}
	if got := alarm(); !strings.Contains(got, "something between them and this node opens TLS") {
		t.Errorf("alarm %q for a foreign hash", got)
	}
	// An alarm goes with its server.
	b.desired.Targets[0].Slot = 9
	if err := b.Apply(b.desired); err != nil || alarm() != "" {
		t.Errorf("%v, alarm %q of a server that is gone", err, alarm())
	}
}

// Where calls stand that the server took, strangers do not raise the alarm one
// by one, though nobody has logged in for long; a hash that was set since does.
// An alarm without a new cause ends.
func TestAlarmWithStandingCalls(t *testing.T) {
	var want atomic.Pointer[string]
	f := newFarEnd(t, func(f *farEnd) { f.script = rras(func(hash string) bool { return hash == *want.Load() }) })
	d := oneTarget(t, f)
	b := newBed(t, d, nil)
	hash := d.Certificates[0].Hash
	want.Store(new(string(hash[:])))
	standing := b.call(hash)
	echo := func() {
		t.Helper()
		standing.send(echoRequest)
		standing.want(echoResponse)
	}
	echo()
	b.pass(stayUp + 1)
	for range 2 {
		b.pass(quietTicks + 1)
		echo()
		b.abortedCall(Hash{1})
	}
	if got := b.alarm(); got != "" {
		t.Errorf("alarm %q of two strangers", got)
	}
	b.pass(alarmTicks / 4)
	want.Store(new("another"))
	b.abortedCall(hash)
	if got := b.alarm(); got != mismatch {
		t.Errorf("alarm %q after a third abort", got)
	}
	for range 4 {
		echo()
		b.pass(alarmTicks/4 - 10)
		if got := b.alarm(); got != mismatch {
			t.Errorf("alarm %q, though no new call stood", got)
		}
	}
	echo()
	b.pass(40)
	if got := b.alarm(); got != "" {
		t.Errorf("alarm %q long after its last cause", got)
	}
	b.abortedCall(hash)
	b.abortedCall(hash)
	if got := b.alarm(); got != "" {
		t.Errorf("alarm %q of two aborts, and some long ago", got)
	}
	b.abortedCall(hash)
	if got := b.alarm(); got != mismatch {
		t.Errorf("alarm %q after three aborts", got)
	}
}

// A server that aborts a call which it took says nothing about its hash.
func TestNoAlarmOfProvenCalls(t *testing.T) {
	var took atomic.Bool
	took.Store(true)
	f := newFarEnd(t, func(f *farEnd) { f.script = rras(func(string) bool { return took.Load() }) })
	d := oneTarget(t, f)
	b := newBed(t, d, nil)
	hash := d.Certificates[0].Hash
	var calls []*client
	for range abortsInARow {
		c := b.call(hash)
		c.send(echoRequest)
		c.want(echoResponse)
		calls = append(calls, c)
	}
	b.pass(stayUp + 1)
	took.Store(false)
	for _, c := range calls {
		c.send(callConnected(hash)) // makes this server abort
		c.want(abort)
		c.Close()
	}
	b.until("the sessions end", func() bool { return len(b.Sessions()) == 0 })
	if n := b.metric(b.metrics.calls.WithLabelValues("aborted_by_server")); n != abortsInARow {
		t.Errorf("%v aborts", n)
	}
	if got := b.alarm(); got != "" {
		t.Errorf("alarm %q", got)
	}
}

// A server that closes or resets the connection instead of an abort is noticed,
// too, but not by one call: it may have been restarted.
func TestAlarmOfDroppedCalls(t *testing.T) {
	for _, how := range []string{"close", "reset"} {
		t.Run(how, func(t *testing.T) {
			f := newFarEnd(t, func(f *farEnd) {
				f.script = func(r *bufio.Reader, c far) {
					r.Discard(len(connectRequest))
					io.WriteString(c, connectAck)
					r.Discard(len(callConnected(Hash{})))
					if how == "reset" {
						c.(*net.TCPConn).SetLinger(0)
					}
				}
			})
			d := oneTarget(t, f)
			b := newBed(t, d, nil)
			for i := range abortsInARow {
				if got := b.alarm(); got != "" {
					t.Errorf("alarm %q after %d", got, i)
				}
				c := b.call(d.Certificates[0].Hash)
				c.gone()
				c.Close()
				b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
			}
			if got := b.alarm(); !strings.Contains(got, "server rras1 closes connections right after Call Connected") {
				t.Errorf("alarm %q", got)
			}
			if n := b.metric(b.metrics.calls.WithLabelValues("dropped_by_server")); n != abortsInARow {
				t.Errorf("counted %v times", n)
			}
		})
	}
	// A client that goes first is no fault of the server's.
	f := newFarEnd(t, func(f *farEnd) { f.script = rras(anyHash) })
	d := oneTarget(t, f)
	b := newBed(t, d, nil)
	for range abortsInARow {
		c := b.call(d.Certificates[0].Hash)
		c.send(echoRequest)
		c.want(echoResponse)
		c.Close()
		b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	}
	if n := b.metric(b.metrics.calls.WithLabelValues("dropped_by_server")); n != 0 || b.alarm() != "" {
		t.Errorf("counted %v times, alarm %q", n, b.alarm())
	}
}
