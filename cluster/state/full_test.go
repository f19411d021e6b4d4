package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// limit sets a backend's Limit.
func (r *rig) limit(id BackendID, limit uint32) {
	r.t.Helper()
	b := r.backend(id)
	r.ok(PutBackend{Backend: Backend{ID: id, Name: b.Name, Weight: b.Weight, Limit: limit}, Expect: b.Version})
}

// hold makes the backend hold clients 0 to n-1 and no other.
func (r *rig) hold(id BackendID, n uint32) {
	r.t.Helper()
	for r.backend(id).Entries[ClassIKE-1] > n {
		r.ok(Forget{Keys: []Key{client4(r.backend(id).Entries[ClassIKE-1] - 1)}})
	}
	for r.backend(id).Entries[ClassIKE-1] < n {
		r.known(client4(r.backend(id).Entries[ClassIKE-1]), id)
	}
}

// crowd gives a farm whose first backend has a limit and holds n clients.
func crowd(t *testing.T, limit, n uint32) (*rig, BackendID) {
	r := newRig(t)
	id := r.farm(1, 2)[0]
	r.limit(id, limit)
	r.hold(id, n)
	return r, id
}

func (r *rig) full(id BackendID) bool {
	return r.spec().Stance(r.backend(id), ClassIKE) == StanceKeep
}

// At its limit a backend must not change everybody's tables with each client
// that comes or goes.
func TestGenerationsAtTheLimit(t *testing.T) {
	for _, limit := range []uint32{2, 3, 10, 20, 39, 40, 41, 100} {
		t.Run(fmt.Sprint(limit), func(t *testing.T) {
			r, id := crowd(t, limit, limit-1)
			last, changes := r.spec().Generation, 0
			for range 20 {
				for _, n := range []uint32{limit, limit - 1} {
					was := r.full(id)
					r.hold(id, n)
					g := r.spec().Generation
					if (g != last) != (r.full(id) != was) || (r.last.Delta.Spec != nil) != (g != last) {
						t.Fatalf("generation %d after %d, full %t after %t", g, last, r.full(id), was)
					}
					if g != last {
						changes++
					}
					last = g
				}
			}
			if changes != 1 {
				t.Errorf("40 commands at the limit made %d generations", changes)
			}
		})
	}
}

func TestFullBounds(t *testing.T) {
	tests := []struct{ limit, ends uint32 }{
		{1, 0}, {2, 0}, {3, 1}, {4, 2}, {39, 37}, {40, 38}, {59, 57}, {60, 57}, {100, 95},
	}
	for _, tt := range tests {
		r, id := crowd(t, tt.limit, 0)
		check := func(n uint32, want bool) {
			t.Helper()
			r.hold(id, n)
			if r.full(id) != want || r.backend(id).Full() != want {
				t.Errorf("limit %d, %d records: full %t", tt.limit, n, !want)
			}
		}
		for range 2 {
			check(tt.limit-1, false)
			check(tt.limit, true)
			check(tt.limit+1, true) // a record that was agreed while it was full
			check(tt.ends+1, true)
			check(tt.ends, false)
		}
	}
}

func TestPutBackendFills(t *testing.T) {
	tests := []struct {
		name        string
		limit, peak uint32
		holds, next uint32
		want        bool
	}{
		{"raised far", 100, 100, 100, 200, false},
		{"raised to just the slack above", 100, 100, 100, 105, false},
		{"raised within the slack", 100, 100, 100, 104, true},
		{"raised within the slack, was not full", 100, 99, 99, 103, false},
		{"lowered to the records", 100, 60, 60, 60, true},
		{"lowered below the records", 100, 60, 60, 10, true},
		{"lowered to one above", 100, 60, 60, 61, false},
		{"lowered, still full", 100, 100, 97, 98, true},
		{"unchanged between the bounds", 100, 100, 97, 100, true},
		{"none any more", 100, 100, 100, 0, false},
		{"none before", 0, 60, 60, 60, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, id := crowd(t, tt.limit, tt.peak)
			r.hold(id, tt.holds)
			was, generation := r.full(id), r.spec().Generation
			r.limit(id, tt.next)
			if r.full(id) != tt.want || r.backend(id).Filled != tt.want {
				t.Errorf("full %t, was %t", r.full(id), was)
			}
			if changed := r.spec().Generation != generation; changed != (was != tt.want) {
				t.Errorf("generation changed: %t", changed)
			}
		})
	}
}

// A removed backend comes back with its records and another limit.
func TestReviveFills(t *testing.T) {
	tests := []struct {
		limit, holds, next uint32
		purge, want        bool
	}{
		{20, 20, 21, false, true},
		{20, 20, 21, true, false},
		{20, 20, 22, false, false},
		{30, 20, 20, false, true},
		{30, 20, 20, true, false},
	}
	for _, tt := range tests {
		r, id := crowd(t, tt.limit, tt.holds)
		old := *r.backend(id)
		r.ok(RemoveBackend{ID: id, Purge: tt.purge})
		again := Backend{VIP: old.VIP, Name: old.Name, Addr: old.Addr, Weight: 100, Limit: tt.next}
		if got := r.ok(PutBackend{Backend: again}); BackendID(got) != id {
			t.Fatalf("backend %d was not revived, but is %d", id, got)
		}
		if r.full(id) != tt.want {
			t.Errorf("%+v: full %t with %d records", tt, !tt.want, r.backend(id).Entries[0])
		}
	}
}

// Between the bounds the counts do not tell whether a backend is full.
func TestSnapshotKeepsFilled(t *testing.T) {
	for _, peak := range []uint32{100, 99} {
		r, id := crowd(t, 100, peak)
		r.hold(id, 97)
		want := peak == 100
		m := NewMachine()
		if err := m.Restore(bytes.NewReader(r.snapshot())); err != nil {
			t.Fatal(err)
		}
		if m.View().Hash() != r.m.View().Hash() {
			t.Error("the restored state has another hash")
		}
		hash := m.View().Hash()
		r.m = m
		if r.full(id) != want || r.backend(id).Filled != want {
			t.Errorf("peak %d: full %t after the restore", peak, r.full(id))
		}
		generation := r.spec().Generation
		r.hold(id, 98)
		r.hold(id, 97)
		if r.spec().Generation != generation {
			t.Error("a restored backend changes the generation between the bounds")
		}
		if m.View().Hash() == hash {
			t.Error("nothing was applied")
		}
	}
}

func TestRestoreRefusesWrongFilled(t *testing.T) {
	for _, n := range []uint32{0, 98, 100} {
		r, id := crowd(t, 100, n)
		forged := *r.m.View()
		spec := *forged.spec
		spec.Backends = slices.Clone(spec.Backends)
		b := &spec.Backends[spec.backendAt(id)]
		b.Filled = !b.Filled
		forged.spec = &spec
		var data bytes.Buffer
		if _, err := forged.WriteTo(&data); err != nil {
			t.Fatal(err)
		}
		err := NewMachine().Restore(&data)
		if between := n == 98; (err == nil) != between || err != nil && !strings.Contains(err.Error(), "filled") {
			t.Errorf("%d of 100, told %t: %v", n, b.Filled, err)
		}
	}
}
