package state

import (
	"testing"
	"time"
)

// TestLearn is rules A4 and A9 as a table: what a Learn does to a record of
// server 1 (or to none), by the stance of server 1 and of the learned one.
func TestLearn(t *testing.T) {
	drain := func(r *rig, id BackendID) { r.admin(id, AdminDrain) }
	offline := func(r *rig, id BackendID) { r.admin(id, AdminOffline) }
	isDown := func(r *rig, id BackendID) { r.verdict(id, VerdictDown) }
	remove := func(r *rig, id BackendID) { r.ok(RemoveBackend{ID: id}) }
	purge := func(r *rig, id BackendID) { r.ok(RemoveBackend{ID: id, Purge: true}) }
	void := func(r *rig, id BackendID) {
		isDown(r, id)
		r.after(120 * time.Second).ok(VoidBackend{Backend: id, Class: ClassIKE, Previous: r.backend(id).Health[0].Index})
	}
	tests := []struct {
		name     string
		recorded bool                  // client 1 at server 1
		old, new func(*rig, BackendID) // what happened to servers 1 and 2
		learn    func(index uint64) Learned
		want     LearnResult
		at       BackendID // 0: no record
	}{
		{"insert", false, nil, nil, func(uint64) Learned { return Learned{Backend: 2, State: EarnedSK} }, LearnStored, 2},
		{"insert at a draining server: a sign of life needs no permit", false, nil, drain, func(uint64) Learned { return Learned{Backend: 2, State: EarnedSK} }, LearnStored, 2},
		{"insert at a server called down", false, nil, isDown, func(uint64) Learned { return Learned{Backend: 2, State: Confirmed} }, LearnStored, 2},
		{"insert at an unknown server", false, nil, nil, func(uint64) Learned { return Learned{Backend: 77, State: EarnedSK} }, LearnRefused, 0},
		{"insert at a voided server counts as absent at once", false, nil, void, func(uint64) Learned { return Learned{Backend: 2, State: EarnedSK} }, LearnRefused, 0},
		{"insert without a state", false, nil, nil, func(uint64) Learned { return Learned{Backend: 2} }, LearnRefused, 0},
		{"second insert elsewhere", true, nil, nil, func(uint64) Learned { return Learned{Backend: 2, State: Confirmed, Opening: true} }, LearnSuperseded, 1},
		{"second insert elsewhere, old server down", true, isDown, nil, func(uint64) Learned { return Learned{Backend: 2, State: Confirmed, Opening: true} }, LearnSuperseded, 1},
		{"same again", true, nil, nil, func(uint64) Learned { return Learned{Backend: 1, State: EarnedSK} }, LearnStored, 1},
		{"replace while the old one is up", true, nil, nil, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i} }, LearnRefused, 1},
		{"replace while the old one drains", true, drain, nil, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i} }, LearnRefused, 1},
		{"replace while the old one is down", true, isDown, nil, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i} }, LearnStored, 2},
		{"replace while the old one is offline", true, offline, nil, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i} }, LearnStored, 2},
		{"replace while the old one is removed", true, remove, nil, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i} }, LearnStored, 2},
		{"replace by a draining server", true, isDown, drain, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i} }, LearnStored, 2},
		{"replace by a server that is down too", true, isDown, isDown, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i} }, LearnRefused, 1},
		{"replace without an opening: stale ESP moves nobody", true, isDown, nil, func(i uint64) Learned { return Learned{Backend: 2, State: Confirmed, Replaces: i} }, LearnRefused, 1},
		{"replace of another record", true, isDown, nil, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i - 1} }, LearnSuperseded, 1},
		{"insert over a voided record", true, void, nil, func(uint64) Learned { return Learned{Backend: 2, State: EarnedSK} }, LearnStored, 2},
		{"replace of a voided record", true, void, nil, func(i uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Opening: true, Replaces: i} }, LearnStored, 2},
		{"insert over a purged record", true, purge, nil, func(uint64) Learned { return Learned{Backend: 2, State: EarnedSK} }, LearnStored, 2},
		{"evidence of the voided server itself", true, void, nil, func(uint64) Learned { return Learned{Backend: 1, State: Confirmed} }, LearnRefused, 1},
		{"replace of a record that is gone", false, nil, nil, func(uint64) Learned { return Learned{Backend: 2, State: EarnedSK, Replaces: 3} }, LearnStored, 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			r.farm(1, 3)
			var index uint64
			if tt.recorded {
				index = r.known(client4(1), 1)
			}
			if tt.old != nil {
				tt.old(r, 1)
			}
			if tt.new != nil {
				tt.new(r, 2)
			}
			l := tt.learn(index)
			l.Key = client4(1)
			if got := r.learn(l); got != tt.want {
				t.Errorf("result %d, want %d", got, tt.want)
			}
			a, ok := r.m.View().Affinity(client4(1))
			if a.Backend != tt.at || ok != (tt.at != 0) {
				t.Errorf("record at %d, want %d", a.Backend, tt.at)
			}
			if moved := ok && tt.recorded && a.Backend != 1; moved && a.Index != r.index {
				t.Errorf("a replaced record has index %d, want %d", a.Index, r.index)
			}
		})
	}
}

func TestRaise(t *testing.T) {
	r := newRig(t)
	r.farm(1, 2)
	k := client4(1)
	r.learn(Learned{Key: k, Backend: 1, State: EarnedSK})
	first, _ := r.m.View().Affinity(k)
	r.after(time.Minute).learn(Learned{Key: k, Backend: 1, State: EarnedSK, Opening: true})
	if a, _ := r.m.View().Affinity(k); a != first {
		t.Errorf("repeated evidence changed the record to %+v", a)
	}
	if len(r.last.Delta.Upsert) != 0 || r.last.Delta.Spec != nil {
		t.Errorf("repeated evidence is in the delta: %+v", r.last.Delta)
	}
	r.learn(Learned{Key: k, Backend: 1, State: EarnedAuth})
	a, _ := r.m.View().Affinity(k)
	if a.State != EarnedAuth || a.Seen != r.now || a.Index != first.Index || a.Since != first.Since {
		t.Errorf("raised to %+v", a)
	}
	r.learn(Learned{Key: k, Backend: 1, State: Confirmed})
	if r.learn(Learned{Key: k, Backend: 1, State: EarnedSK}); len(r.last.Delta.Upsert) != 0 {
		t.Error("weaker evidence is in the delta")
	}
	if a, _ := r.m.View().Affinity(k); a.State != Confirmed {
		t.Errorf("weaker evidence changed the record to %+v", a)
	}
}

func TestFirstCommitWins(t *testing.T) {
	r := newRig(t)
	r.farm(1, 2)
	k := client4(1)
	out := r.apply(
		Envelope{Origin: nodeA, Boot: 1, Sequence: 500, Command: Learn{Records: []Learned{{Key: k, Backend: 2, State: EarnedSK}}}},
		Envelope{Origin: nodeB, Boot: 1, Sequence: 1, Command: Learn{Records: []Learned{{Key: k, Backend: 1, State: Confirmed}, {Key: client4(2), Backend: 1, State: Confirmed}}}},
	)
	if out[0].Learns[0] != LearnStored || out[1].Learns[0] != LearnSuperseded || out[1].Learns[1] != LearnStored {
		t.Errorf("results %v, %v", out[0].Learns, out[1].Learns)
	}
	if d := r.last.Delta; len(d.Upsert) != 2 || d.Upsert[0].Backend != 2 {
		t.Errorf("delta %+v", d)
	}
}

func TestBudgets(t *testing.T) {
	r := newRig(t)
	r.farm(1, 2)
	s := r.spec().Settings
	s.NodeBudget, s.PrefixBudget = 6, 4
	r.ok(SetSettings{Settings: s, Expect: s.Version})
	at := func(prefix, host uint32) Learned {
		return Learned{Key: client4(prefix<<8 + host), Backend: 1, State: EarnedSK}
	}
	for i := range uint32(4) {
		if got := r.learn(at(0, i)); got != LearnStored {
			t.Fatalf("unconfirmed record %d: %d", i, got)
		}
	}
	if got := r.learn(at(0, 4)); got != LearnRefused {
		t.Errorf("beyond the prefix budget: %d", got)
	}
	if got := r.learn(Learned{Key: client4(4), Backend: 1, State: Confirmed}); got != LearnStored {
		t.Errorf("a confirmed record is throttled by the prefix budget: %d", got)
	}
	r.learn(at(1, 0))
	r.learn(at(1, 1))
	if got := r.learn(at(2, 0)); got != LearnRefused {
		t.Errorf("beyond the node budget: %d", got)
	}
	out := r.apply(Envelope{Origin: nodeB, Boot: 1, Sequence: 1, Command: Learn{Records: []Learned{at(2, 0)}}})
	if out[0].Learns[0] != LearnStored {
		t.Errorf("another node is throttled too: %v", out[0].Learns)
	}
	r.learn(Learned{Key: client4(0), Backend: 1, State: Confirmed}) // a client logs in and gives its share back
	if got := r.learn(at(0, 5)); got != LearnStored {
		t.Errorf("after one was confirmed: %d", got)
	}
	// A replacement is not throttled: its client would be stranded.
	r.verdict(1, VerdictDown)
	a, _ := r.m.View().Affinity(client4(4))
	if got := r.learn(Learned{Key: client4(4), Backend: 2, State: EarnedSK, Opening: true, Replaces: a.Index}); got != LearnStored {
		t.Errorf("a replacement is throttled: %d", got)
	}
	// What expires gives its share back.
	r.after(3 * time.Minute)
	r.do(Tick{})
	dead := r.m.View().Expired(r.now, 100)
	if len(dead) != 8 {
		t.Fatalf("%d records are dead, want 8", len(dead))
	}
	if n := r.ok(Expire{Records: dead}); n != 8 {
		t.Errorf("%d expired, want 8", n)
	}
	if len(r.m.prefixes) != 0 || r.m.proposers[0].unconfirmed != 0 || r.m.proposers[1].unconfirmed != 0 {
		t.Errorf("budgets are not given back: %v %v", r.m.prefixes, r.m.proposers)
	}
}

func TestTouch(t *testing.T) {
	r := newRig(t)
	r.farm(1, 1)
	k := client4(1)
	index := r.known(k, 1)
	made := r.now
	seen := func() (Time, Time) { a, _ := r.m.View().Affinity(k); return a.Seen, a.Heard }

	r.after(30 * time.Minute).ok(Touch{Records: []Touched{{Key: k, Index: index + 1, Heard: true}}})
	if s, _ := seen(); s != made {
		t.Error("a touch of another record counts")
	}
	if n := r.ok(Touch{Records: []Touched{{Key: k, Index: index, Age: 60}}}); n != 1 {
		t.Errorf("%d records touched, want 1", n)
	}
	if s, h := seen(); s != r.now.Add(-time.Minute) || h != made {
		t.Errorf("seen %v, heard %v", s, h)
	}
	if d := r.last.Delta; d.Spec != nil || len(d.Upsert)+len(d.Delete) != 0 {
		t.Errorf("a touch is in the delta: %+v", d)
	}
	for range 30 { // forged keepalives
		r.after(30 * time.Minute).ok(Touch{Records: []Touched{{Key: k, Index: index}}})
	}
	s, h := seen()
	if s.Sub(h) > 12*time.Hour {
		t.Errorf("touches without the server extend to %v after it was heard", s.Sub(h))
	}
	if dead := r.m.View().Expired(r.now, 10); len(dead) != 1 {
		t.Errorf("dead %v", dead)
	}
	r.ok(Touch{Records: []Touched{{Key: k, Index: index, Heard: true}}})
	if s, h := seen(); s != r.now || h != r.now {
		t.Errorf("seen %v, heard %v, want both %v", s, h, r.now)
	}
	if n := r.ok(Touch{Records: []Touched{{Key: k, Index: index, Heard: true, Age: 7}}}); n != 0 {
		t.Error("an older touch counts")
	}

	r.learn(Learned{Key: client4(2), Backend: 1, State: EarnedAuth})
	a, _ := r.m.View().Affinity(client4(2))
	if n := r.after(time.Minute).ok(Touch{Records: []Touched{{Key: a.Key, Index: a.Index, Heard: true}}}); n != 0 {
		t.Error("a touch extends an unconfirmed record")
	}
}

func TestExpireIsJudgedAgain(t *testing.T) {
	r := newRig(t)
	r.farm(1, 1)
	k := client4(1)
	index := r.known(k, 1)
	r.after(41 * time.Minute)
	dead := r.m.View().Expired(r.now, 10)
	if len(dead) != 1 || dead[0].Index != index {
		t.Fatalf("dead %+v", dead)
	}
	if n := r.ok(Expire{Records: []Expired{{Key: k, Index: index + 1, Seen: dead[0].Seen}}}); n != 0 {
		t.Error("another record expired")
	}
	r.ok(Touch{Records: []Touched{{Key: k, Index: index, Heard: true}}})
	if n := r.ok(Expire{Records: dead}); n != 0 {
		t.Error("a record expired that was touched meanwhile")
	}
	r.after(40 * time.Minute)
	if n := r.ok(Expire{Records: dead}); n != 0 {
		t.Error("a record expired by a proposal older than its last touch")
	}
	dead = r.m.View().Expired(r.now, 10)
	if n := r.ok(Expire{Records: append(dead, dead...)}); n != 1 {
		t.Errorf("%d expired, want 1", n)
	}
	if d := r.last.Delta; len(d.Delete) != 1 || d.Delete[0] != k {
		t.Errorf("delta %+v", d)
	}
	if r.backend(1).Entries[0] != 0 || r.spec().Affinities != 0 {
		t.Error("counts are wrong after expiry")
	}
}

func TestDeltaNamesEachKeyOnce(t *testing.T) {
	r := newRig(t)
	r.farm(1, 1)
	k, j := client4(1), client4(2)
	r.batch(
		Learn{Records: []Learned{{Key: k, Backend: 1, State: EarnedSK}, {Key: j, Backend: 1, State: EarnedSK}}},
		Learn{Records: []Learned{{Key: k, Backend: 1, State: Confirmed}}},
		Forget{Keys: []Key{j}},
	)
	d := r.last.Delta
	if len(d.Upsert) != 1 || d.Upsert[0].Key != k || d.Upsert[0].State != Confirmed || len(d.Delete) != 1 || d.Delete[0] != j {
		t.Errorf("delta %+v", d)
	}
}

// A full backend takes no further client, in the same command already where a
// permit is asked for, and the generation says so.
func TestFull(t *testing.T) {
	r := newRig(t)
	ids := r.farm(1, 2)
	b := *r.backend(ids[0])
	r.ok(PutBackend{Backend: Backend{ID: b.ID, Name: b.Name, Weight: b.Weight, Limit: 2}, Expect: b.Version})
	r.known(client4(1), ids[0])
	if r.spec().Generation == r.index {
		t.Error("a record below the limit made a generation")
	}
	r.known(client4(2), ids[0])
	if s := r.spec(); s.Generation != r.index || s.Stance(r.backend(ids[0]), ClassIKE) != StanceKeep {
		t.Error("a full backend still takes clients")
	}
	if r.last.Delta.Spec == nil {
		t.Error("the delta does not say that a backend is full")
	}
	r.ok(Forget{Keys: []Key{client4(1)}})
	if s := r.spec(); s.Generation == r.index || s.Stance(r.backend(ids[0]), ClassIKE) != StanceKeep {
		t.Error("the first client to go ends being full")
	}
	r.ok(Forget{Keys: []Key{client4(2)}})
	if s := r.spec(); s.Generation != r.index || s.Stance(r.backend(ids[0]), ClassIKE) != StanceTake {
		t.Error("a backend well below its limit takes no clients")
	}
}

// One record per client and class: a client of two VIPs keeps its first.
func TestSecondVIP(t *testing.T) {
	r := newRig(t)
	first, second := r.farm(1, 1)[0], r.farm(2, 1)[0]
	r.known(client4(1), first)
	if got := r.learn(Learned{Key: client4(1), Backend: second, State: Confirmed}); got != LearnRefused {
		t.Errorf("result %d, want refused (the plane keeps quiet for a while)", got)
	}
	k := client4(1)
	k.Class = ClassTCP
	if got := r.learn(Learned{Key: k, Backend: second, State: Confirmed}); got != LearnStored {
		t.Errorf("the other class: %d", got)
	}
}
