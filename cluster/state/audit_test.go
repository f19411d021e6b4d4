package state

import (
	"bytes"
	"fmt"
	"testing"
)

// TestAuditIsTheMachine: command by command, a log of entries of several commands
// leads to the same state, and nothing in it breaks invariant A.
func TestAuditIsTheMachine(t *testing.T) {
	moved, made := 0, 0
	for seed := range uint64(2) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			r := newRig(t)
			r.farm(1, 3)
			a := NewAudit()
			if err := a.Restore(bytes.NewReader(r.snapshot())); err != nil {
				t.Fatal(err)
			}
			newChaos(seed).run(t, r, 300, func(_ *View, all []Envelope, _ Applied) {
				if err := a.Apply(r.index, EncodeBatch(Batch{Stamp: r.now, Envelopes: all})); err != nil {
					t.Fatal(err)
				}
				if a.View().Hash() != r.m.View().Hash() {
					t.Fatalf("entry %d: another state", r.index)
				}
			})
			if a.Entries != 300 || a.Commands <= a.Entries {
				t.Errorf("%d commands in %d entries", a.Commands, a.Entries)
			}
			if err := a.Apply(r.index, EncodeBatch(Batch{Stamp: r.now})); err == nil {
				t.Error("an entry was applied twice")
			}
			moved, made = moved+a.Moved, made+a.Made
		})
	}
	if moved == 0 || made == 0 {
		t.Errorf("%d records moved, %d made: too tame", moved, made)
	}
}

// What invariant A forbids is found, whatever the command says of itself.
func TestMovesNeedAPermit(t *testing.T) {
	key := client4(1)
	on := func(r *rig, b BackendID) *View {
		m := NewMachine()
		if err := m.Restore(bytes.NewReader(r.snapshot())); err != nil {
			t.Fatal(err)
		}
		clone := &rig{t: t, m: m, index: r.index, sequence: r.sequence, now: r.now}
		clone.do(Learn{Records: []Learned{{Key: key, Backend: b, State: Confirmed}}})
		return m.View()
	}
	r := newRig(t)
	r.farm(1, 3)
	all := r.m.View().Spec().Backends
	from, to := all[0].ID, all[1].ID
	before, after := on(r, from), on(r, to)
	record, ok := before.Affinity(key)
	if now, moved := after.Affinity(key); !ok || !moved || record.Backend != from || now.Backend != to {
		t.Fatalf("%+v, then %+v", record, now)
	}
	opening := func(replaces uint64) Learn {
		return Learn{Records: []Learned{{Key: key, Backend: to, State: EarnedAuth, Opening: true, Replaces: replaces}}}
	}
	if n, err := Moves(before, before, opening(record.Index)); n != 0 || err != nil {
		t.Errorf("nothing moved: %d, %v", n, err)
	}
	for name, c := range map[string]Command{"no Learn": Tick{}, "its backend takes": opening(record.Index)} {
		if n, err := Moves(before, after, c); n != 1 || err == nil {
			t.Errorf("%s: %d moved, %v", name, n, err)
		}
	}
	r.do(Learn{Records: []Learned{{Key: key, Backend: from, State: Confirmed}}})
	r.ok(SetBackendAdmin{ID: from, Admin: AdminOffline})
	before = r.m.View()
	if record, ok = before.Affinity(key); !ok || record.Backend != from {
		t.Fatalf("%+v", record)
	}
	if n, err := Moves(before, after, opening(record.Index)); n != 1 || err != nil {
		t.Errorf("its backend is offline: %d moved, %v", n, err)
	}
	if _, err := Moves(before, after, opening(record.Index+1)); err == nil {
		t.Error("an opening that replaces another record was a permit")
	}
}
