package node

import (
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane"
)

// Packets in and none out are a warning after ten seconds, whichever node counts the
// answers; so is a node without a packet while servers answer clients.
func TestTrafficWatch(t *testing.T) {
	spec := &state.Spec{Backends: []state.Backend{{ID: 1, Slot: 3}, {ID: 2, Slot: 4}}}
	var w trafficWatch
	var c dataplane.Counters
	elsewhere := map[state.BackendID]uint64{}
	now := time.Unix(1, 0)
	run := func(seconds int, in, out, other uint64) {
		for range seconds {
			now = now.Add(time.Second)
			c.In[3].Packets += in
			c.Out[3].Packets += out
			elsewhere[1] += other
			w.look(spec, &c, elsewhere, now)
		}
	}
	expect := func(why string, silent, idle bool) {
		t.Helper()
		_, _, s := w.silent(1, now)
		if _, i := w.idle(now); s != silent || i != idle {
			t.Errorf("%s: silent %v, idle %v", why, s, i)
		}
	}
	run(5, 5, 5, 0)
	expect("answered", false, false)
	run(60, 5, 0, 5)
	expect("answered by way of another node", false, false)
	run(9, 5, 0, 0)
	expect("45 packets, 8 s", false, false)
	run(3, 5, 0, 0)
	expect("60 packets, 11 s", true, false)
	if _, _, ok := w.silent(2, now); ok {
		t.Error("a server without clients is silent")
	}
	run(1, 5, 1, 0)
	expect("answered again", false, false)
	run(19, 1, 0, 0)
	expect("19 packets, 18 s", false, false)
	run(2, 1, 0, 0)
	expect("21 packets, 20 s", true, false)
	run(1, 0, 1, 0)
	run(58, 0, 0, 1)
	expect("no packet comes, not for long", false, false)
	run(2, 0, 0, 1)
	expect("no packet comes, while servers answer", false, true)
	run(11, 0, 0, 0)
	expect("no packet comes, and servers are quiet", false, false)
	c.In[3].Packets, c.Out[3].Packets = 0, 0 // the maps were made anew
	run(1, 5, 0, 0)
	expect("reset", false, false)
}
