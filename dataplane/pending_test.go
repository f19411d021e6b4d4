package dataplane

import (
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/bucket"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

func places(t testing.TB, m *ebpf.Map) (n int) {
	t.Helper()
	for b := range mapBatches[bpf.PlaneClientKey, bpf.PlanePending](m) {
		if b.err != nil {
			t.Fatal(b.err)
		}
		n += len(b.keys)
	}
	return n
}

// Refusals in plenty must leave room for evidence without an answer.
func TestRefusedTakesNoRoom(t *testing.T) {
	p, _ := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	runPlane(t, p)
	pending, silences := p.coll.Maps["pending_proofs"], p.coll.Maps["silences"]
	send := func() { run(t, p.coll.Programs["vpnlb"], buildFrame(t, esp1), p.InterfaceIndex("leg")) }
	send()
	e := takeBatch(t, p.Evidence())[0]
	p.Answer(e.Key, e, table.Refused)
	send()
	if n, quiet := places(t, pending), places(t, silences); n != 0 || quiet != 1 {
		t.Errorf("%d places taken, %d silences, want 0 and 1", n, quiet)
	}
	// Its time over, it is forgotten, and heard of again.
	if err := p.proofs.silence(keyOf(e.Key), e, time.Millisecond); err != nil {
		t.Fatal(err)
	}
	eventually(t, "end of the silence", func() bool { return places(t, silences) == 0 })
	send()
	if again := takeBatch(t, p.Evidence())[0]; again != e {
		t.Errorf("told %+v, want %+v", again, e)
	}
}

// A record that the writer has not changed yet is as quiet as one it has not made.
func TestAgreedChangeIsQuietUntilWritten(t *testing.T) {
	e := table.Evidence{Slot: 2, Saw: 1, Level: table.EarnedAuth, Opening: true}
	for _, c := range []struct {
		name  string
		v     bucket.Record
		found bool
		want  bool
	}{
		{"no record", bucket.Record{}, false, false},
		{"still what was seen", bucket.Record{Entry: table.Entry{Slot: 1, State: 3}}, true, false},
		{"written, but less", bucket.Record{Entry: table.Entry{Slot: 2, State: 1}}, true, false},
		{"written", bucket.Record{Entry: table.Entry{Slot: 2, State: 2}}, true, true},
		{"a third server", bucket.Record{Entry: table.Entry{Slot: 3, State: 1}}, true, true},
	} {
		if got := answered(e, c.v, c.found); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

// What the program writes between taking and putting back is put together with
// what was taken, and told at once.
func TestPutBackMerges(t *testing.T) {
	p, _ := newSmallPlane(t)
	key := keyOf(clientKey(1))
	older := bpf.PlanePending{Slot: 1, Level: 2, Opening: 1}
	for _, c := range []struct{ meanwhile, want bpf.PlanePending }{
		{bpf.PlanePending{Slot: 1, Level: 3}, bpf.PlanePending{Slot: 1, Level: 3, Opening: 1}},
		{bpf.PlanePending{Slot: 1, Saw: 4, Level: 1}, bpf.PlanePending{Slot: 1, Saw: 4, Level: 2, Opening: 1}},
		{bpf.PlanePending{Slot: 2, Level: 1}, bpf.PlanePending{Slot: 2, Level: 1}},
	} {
		if err := p.proofs.pending.Put(&key, &c.meanwhile); err != nil {
			t.Fatal(err)
		}
		if err := p.proofs.putBack(key, older); err != nil {
			t.Fatal(err)
		}
		var got bpf.PlanePending
		if err := p.proofs.pending.Lookup(&key, &got); err != nil || got != c.want {
			t.Errorf("%+v and %+v give %+v (%v), want %+v", older, c.meanwhile, got, err, c.want)
		}
	}
	if err := p.proofs.answer(clientKey(1), table.Evidence{Slot: 1, Level: table.EarnedSK}, 0); err != nil {
		t.Fatal(err)
	}
	if !p.proofs.again.Load() {
		t.Error("evidence that grew is not told at once")
	}
}

// Whom an IKE SA's last message went to is remembered for ten minutes, from message to
// message; then another client may have it.
func TestSAIsRememberedForItsTime(t *testing.T) {
	p, _ := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	leg := p.InterfaceIndex("leg")
	answer := func(client string) bool {
		before := allCounts(t, p)
		run(t, p.coll.Programs["vpnlb"], buildFrame(t, "eth s1 > outside | ip s1 > "+client+" | udp 4500 > 4500 | marker | ike auth response next=46 id=1 | fill 80"), leg)
		clearMap[bpf.PlaneClientKey, bpf.PlanePending](t, p.coll.Maps["pending_proofs"])
		return allCounts(t, p).Events.PendingWritten != before.Events.PendingWritten
	}
	age := func(seconds uint32) {
		now, err := p.clock.now()
		if err != nil {
			t.Fatal(err)
		}
		key := spisOf(model.SA{Initiator: 0x1111111111111111, Responder: 0x2222222222222222})
		var v bpf.PlaneSaClient
		if err := p.coll.Maps["sa_clients"].Lookup(&key, &v); err != nil {
			t.Fatal(err)
		}
		v.At = now - seconds*p.clock.hz
		if err := p.coll.Maps["sa_clients"].Put(&key, &v); err != nil {
			t.Fatal(err)
		}
	}
	step := func(client string, want bool) {
		t.Helper()
		if got := answer(client); got != want {
			t.Errorf("an answer to %s is evidence: %t, want %t", client, got, want)
		}
	}
	step("client", true)
	step("client2", false)
	age(500)
	step("client", true) // and its time begins anew
	age(500)
	step("client2", false)
	age(601)
	step("client2", true)
	step("client", false)
}
