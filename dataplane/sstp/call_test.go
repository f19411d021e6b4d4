package sstp

import (
	"bufio"
	"io"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Packets of [MS-SSTP] 2.2, as strings.
const (
	connectRequest = "\x10\x01\x00\x0e\x00\x01\x00\x01\x00\x01\x00\x06\x00\x01"
	echoRequest    = "\x10\x01\x00\x08\x00\x08\x00\x00"
	echoResponse   = "\x10\x01\x00\x08\x00\x09\x00\x00"
	disconnect     = "\x10\x01\x00\x08\x00\x06\x00\x00"
	disconnectAck  = "\x10\x01\x00\x08\x00\x07\x00\x00"
	abort          = "\x10\x01\x00\x14\x00\x05\x00\x01\x00\x02\x00\x0c\x00\x00\x00\x03\x00\x00\x00\x04"
)

var connectAck = "\x10\x01\x00\x30\x00\x02\x00\x01\x00\x04\x00\x28\x00\x00\x00\x02" + strings.Repeat("n", 32)

func callConnected(hash Hash) string {
	return "\x10\x01\x00\x70\x00\x04\x00\x01\x00\x03\x00\x68\x00\x00\x00\x02" + strings.Repeat("n", 32) + string(hash[:]) + strings.Repeat("m", 32)
}

func data(s string) string {
	n := len(s) + 4
	return string([]byte{0x10, 0, byte(n >> 8), byte(n)}) + s
}

// rras plays the server's side of a call; good says whether it takes a hash.
func rras(good func(hash string) bool) func(*bufio.Reader, far) {
	return func(r *bufio.Reader, c far) {
		defer c.CloseWrite()
		for {
			header, err := r.Peek(4)
			if err != nil {
				return
			}
			packet := make([]byte, int(header[2]&15)<<8|int(header[3]))
			if _, err := io.ReadFull(r, packet); err != nil {
				return
			}
			answer := ""
			switch {
			case packet[1] == 0:
				answer = string(packet) // data comes back
			case packet[5] == 1:
				answer = connectAck
			case packet[5] == 4 && !good(string(packet[48:80])):
				answer = abort
			case packet[5] == 6:
				answer = disconnectAck
			case packet[5] == 8:
				answer = echoResponse
			}
			if _, err := io.WriteString(c, answer); err != nil || answer == abort || answer == disconnectAck {
				return
			}
		}
	}
}

func anyHash(string) bool { return true }

// call opens a connection and a call on it, up to Call Connected.
func (b *bed) call(hash Hash) *client {
	b.t.Helper()
	c := b.mustDial(nil).open()
	c.send(connectRequest)
	c.want(connectAck)
	c.send(callConnected(hash))
	return c
}

func (b *bed) told() table.Evidence {
	b.t.Helper()
	select {
	case e := <-b.evidence:
		return e
	case <-time.After(10 * time.Second):
		b.t.Fatal("no evidence within 10 s")
		return table.Evidence{}
	}
}

// pass lets n ticks go by, as far as idle times are concerned.
func (b *bed) pass(n int64) {
	for range n {
		b.sweep(b.tick.Add(1))
	}
}

func TestCallAndEvidence(t *testing.T) {
	f := newFarEnd(t, func(f *farEnd) { f.script = rras(anyHash) })
	d := oneTarget(t, f)
	b := newBed(t, d, nil)
	b.route(Route{Slot: 1, Saw: 7}, true)
	key := table.Key{Client: netip.MustParseAddr("127.0.0.1").As16(), Class: table.TCP}
	c := b.mustDial(nil).open()
	c.send(data("ppp"))
	c.want(data("ppp"))
	if len(b.evidence) != 0 {
		t.Error("evidence before the call")
	}
	c.send(connectRequest)
	c.want(connectAck)
	if got, want := b.told(), (table.Evidence{Key: key, Slot: 1, Saw: 7, Level: table.EarnedAuth, Opening: true}); got != want {
		t.Errorf("evidence %+v, want %+v", got, want)
	}
	c.send(data("ppp"))
	c.want(data("ppp"))
	c.send(callConnected(d.Certificates[0].Hash))
	c.send(data("ppp"))
	c.want(data("ppp"))
	confirmed := table.Evidence{Key: key, Slot: 1, Saw: 7, Level: table.Confirmed}
	c.send(echoRequest)
	c.want(echoResponse)
	if len(b.evidence) != 0 {
		t.Error("evidence before the call proved itself")
	}
	if all := b.Sessions(); len(all) != 1 || all[0].State != "connected" || all[0].Echoes != 1 || all[0].EchoLost != 0 || all[0].Proven {
		t.Errorf("sessions %+v", all)
	}
	b.pass(1)
	if up, all := b.metric(b.metrics.up), b.metric(b.metrics.connections); up != 1 || all != 1 {
		t.Errorf("gauges: %v calls, %v connections", up, all)
	}
	b.pass(stayUp)
	if all := b.Sessions(); len(all) != 1 || !all[0].Proven {
		t.Errorf("sessions %+v after %d s", all, stayUp)
	}
	if got := b.told(); got != confirmed {
		t.Errorf("evidence %+v, want %+v", got, confirmed)
	}
	// The record may not have been stored: it is told some more times.
	for range reminders {
		b.pass(remindTicks)
		c.send(echoRequest) // not idle
		c.want(echoResponse)
		if got := b.told(); got != confirmed {
			t.Errorf("evidence %+v, want %+v", got, confirmed)
		}
	}
	b.pass(2 * remindTicks)
	c.send(disconnect)
	c.want(disconnectAck)
	c.gone()
	c.Close()
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	if len(b.evidence) != 0 {
		t.Errorf("more evidence: %+v", <-b.evidence)
	}
	for event, want := range map[string]float64{"acknowledged": 1, "connected": 1, "disconnected_by_client": 1, "echoed": 1 + reminders, "aborted_by_server": 0} {
		if got := b.metric(b.metrics.calls.WithLabelValues(event)); got != want {
			t.Errorf("%s counted %v times, want %v", event, got, want)
		}
	}
}

// What a server sends between Call Connected and its abort confirms nothing:
// such a client has not logged in.
func TestNoConfirmationWithoutLogin(t *testing.T) {
	f := newFarEnd(t, func(f *farEnd) { f.script = rras(func(string) bool { return false }) })
	b := newBed(t, oneTarget(t, f), nil)
	c := b.mustDial(nil).open()
	c.send(connectRequest)
	c.want(connectAck)
	if got := b.told(); got.Level != table.EarnedAuth {
		t.Errorf("evidence %+v", got)
	}
	c.send(data("x") + callConnected(Hash{}))
	c.want(data("x"))
	c.want(abort)
	b.pass(2 * stayUp)
	c.Close()
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	if len(b.evidence) != 0 {
		t.Errorf("evidence %+v", <-b.evidence)
	}
}

// A stream that is no SSTP is relayed all the same.
func TestUnreadableStreamPasses(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	c := b.mustDial(nil).open()
	bulk(t, c, 1<<20)
	if all := b.Sessions(); len(all) != 1 || all[0].State != "unknown" {
		t.Errorf("sessions %+v", all)
	}
	if n := b.metric(b.metrics.calls.WithLabelValues("unreadable")); n != 1 {
		t.Errorf("counted %v times", n)
	}
}

func TestActivity(t *testing.T) {
	f := newFarEnd(t, func(f *farEnd) { f.script = rras(anyHash) })
	b := newBed(t, oneTarget(t, f), nil)
	key := table.Key{Client: netip.MustParseAddr("127.0.0.1").As16(), Class: table.TCP}
	c := b.mustDial(nil).open()
	if got := b.Activity(); len(got) != 0 {
		t.Errorf("activity without a call: %+v", got)
	}
	c.send(connectRequest)
	c.want(connectAck)
	second := b.call(Hash{})
	second.send(data("x"))
	second.want(data("x"))
	if got, want := b.Activity(), []table.Activity{{Key: key, Slot: 1, Heard: true}}; !slices.Equal(got, want) {
		t.Errorf("activity %+v, want %+v", got, want)
	}
	b.pass(30)
	if got := b.Activity(); len(got) != 0 {
		t.Errorf("activity without bytes: %+v", got)
	}
	c.send(disconnectAck) // the server says nothing to this
	b.until("it arrives", func() bool { return b.Sessions()[0].Idle == 0 })
	b.pass(3)
	got := b.Activity()
	if len(got) != 1 || got[0].Heard || got[0].Age < 3 || got[0].Age > 6 {
		t.Errorf("activity %+v, want one that is 3 s old, without the server", got)
	}
}

func TestIdleAndStalled(t *testing.T) {
	f := newFarEnd(t, func(f *farEnd) {
		f.script = func(r *bufio.Reader, c far) { // takes one byte, then nothing more
			r.ReadByte()
			<-t.Context().Done()
		}
	})
	d := oneTarget(t, f)
	b := newBed(t, d, nil)
	quiet, half := b.mustDial(nil).open(), b.mustDial(nil).open()
	half.CloseWrite()
	b.until("the half close arrives", func() bool { return b.table.all()[1].flow[0].closed.Load() })
	b.pass(halfClosedTicks + 2)
	half.gone()
	b.until("it is counted", func() bool { return b.metric(b.metrics.ended.WithLabelValues(endIdle)) == 1 })
	b.pass(300 - halfClosedTicks - 10)
	if all := b.Sessions(); len(all) != 1 || all[0].Idle < 280*time.Second {
		t.Errorf("sessions %+v", all)
	}
	b.pass(20)
	quiet.gone()
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	if n := b.metric(b.metrics.ended.WithLabelValues(endIdle)); n != 2 {
		t.Errorf("%v idle connections ended", n)
	}
	// A server that takes nothing fills all buffers, and holds the client up.
	stalled := b.mustDial(nil).open()
	stopped := make(chan error, 1)
	go func() {
		for {
			if _, err := stalled.Write(make([]byte, 1<<16)); err != nil {
				stopped <- err
				return
			}
		}
	}()
	b.until("the write stands", func() bool {
		c := b.table.all()[0]
		before := c.flow[0].bytes.Load()
		b.pass(2)
		since := c.flow[0].sending.Load()
		return before > 0 && before == c.flow[0].bytes.Load() && since != 0 && b.tick.Load()-since > 10
	})
	b.pass(310)
	<-stopped
	b.until("the session ends", func() bool { return len(b.Sessions()) == 0 })
	if n := b.metric(b.metrics.ended.WithLabelValues(endStalled)); n != 1 {
		t.Errorf("%v stalled connections ended", n)
	}
}
