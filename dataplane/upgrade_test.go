package dataplane

import (
	"maps"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// A binary with another layout of the maps takes over under traffic without losing
// a packet, and the first one back again. The maps of the other go each time.
func TestAnotherSchemaTakesOverAndBack(t *testing.T) {
	l := newLane(t)
	go echo(listen(t, l.server, laneServer+":4500"))
	ping := newPinger(t, l)
	dir := newBPFFS(t)
	with := func(schema uint32) *Plane {
		p := newPlane(t, dir, "outside", "inside")
		p.cfg.schema = schema
		return p
	}
	p := with(0)
	attachPlane(t, p)
	mustResync(t, p, laneSet(100), nil)
	ping.send(t, 0)
	eventually(t, "first answer", func() bool { n, _ := ping.got(); return n == 1 })

	stop := ping.stream(t)
	waitFor := func(more int) { ping.awaitMore(t, more) }
	index := uint64(101)
	for _, schema := range []uint32{77, 0, 78} {
		waitFor(100)
		p.Close()
		q := with(schema)
		if pinned := attachPlane(t, q); len(pinned.TakenOver) != 2 || pinned.Found {
			t.Errorf("schema %d: took over %v, found %t", schema, pinned.TakenOver, pinned.Found)
		}
		waitFor(50) // the other one's program forwards still
		mustResync(t, q, laneSet(index), nil)
		index++
		waitFor(100)
		pins, err := pinsIn(dir)
		if err != nil {
			t.Fatal(err)
		}
		for name := range maps.Keys(pins) {
			if !strings.HasPrefix(name, "link_") && !strings.HasSuffix(name, q.cfg.schemaSuffix()) {
				t.Errorf("schema %d: %s is left", schema, name)
			}
		}
		p = q
	}
	sent := stop()
	eventually(t, "all answers", func() bool { n, _ := ping.got(); return n == int(sent) })
	if c := allCounts(t, p); c.Reasons[table.ForwardMaglev].Packets == 0 {
		t.Error("the last program counted nothing")
	}
	t.Logf("%d datagrams over three take-overs, 0 lost", sent)
}

// What a server proved after the new binary had attached, and before its program ran,
// is in the old maps: it is told none the less, once for all.
func TestProofsOutliveAChangeOfSchema(t *testing.T) {
	p, dir := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	q := newPlane(t, dir, "leg")
	q.cfg.schema = 77
	attachPlane(t, q)
	runPlane(t, q)
	leg := p.InterfaceIndex("leg")
	auth := "eth s1 > outside | ip s1 > client | udp 4500 > 4500 | marker | ike auth response next=46 id=1 | fill 80"
	run(t, p.coll.Programs["vpnlb"], buildFrame(t, auth), leg) // the one that is attached still
	mustResync(t, q, farm(t, 101), nil)
	e := takeBatch(t, q.Evidence())[0]
	if e.Slot != 1 || e.Level != table.EarnedSK || !e.Opening {
		t.Fatalf("evidence %+v", e)
	}
	q.Answer(e.Key, e, table.Stored)
	if n := len(pending(t, q)); n != 0 {
		t.Errorf("%d proofs are left after the answer", n)
	}
}

func pending(t *testing.T, p *Plane) (out []table.Evidence) {
	t.Helper()
	for b := range mapBatches[bpf.PlaneClientKey, bpf.PlanePending](p.proofs.pending) {
		if b.err != nil {
			t.Fatal(b.err)
		}
		for i, k := range b.keys {
			out = append(out, evidenceOf(k, b.values[i]))
		}
	}
	return out
}
