package sstp

import (
	"strings"
	"testing"
)

// A server whose port is dead costs one new call, not all until its verdict; a
// client with a record stays with its server.
func TestDeadPort(t *testing.T) {
	alive := newFarEnd(t, nil)
	d := oneTarget(t, alive)
	d.Targets[0].Slot, d.Targets[0].Name = 2, "rras2"
	d.Targets = append(d.Targets, Target{Slot: 1, VIP: 3, Name: "rras1", Addr: freePort(t), Certificate: "a"})
	b := newBed(t, d, nil)
	b.instead.Store(2)
	refused := func(when string) {
		t.Helper()
		c := b.mustDial(nil)
		c.send(post)
		if got := c.answer(); !strings.HasPrefix(got, "HTTP/1.1 502 ") {
			t.Errorf("%s: answer %q", when, got)
		}
	}
	refused("the first call")
	c := b.mustDial(nil).open()
	c.send("x")
	c.want("x")
	b.route(Route{Slot: 1, Saw: 1}, true)
	refused("a client with a record")
	b.route(Route{Slot: 1}, true)
	b.instead.Store(0)
	refused("no other server")
}

func TestDeadForAWhile(t *testing.T) {
	var d dead
	d.note(1, false, 5)
	if !d.is(1, 5+deadTicks-1) || d.is(1, 5+deadTicks) || d.is(2, 5) {
		t.Error("a failed dial counts for another server, or not as long as it should")
	}
	if d.note(1, true, 6); d.is(1, 6) {
		t.Error("a server that was reached is dead")
	}
}
