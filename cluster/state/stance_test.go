package state

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

// pooled is a Spec of one VIP and the given backends.
func pooled(all ...Backend) *Spec {
	s := &Spec{Settings: DefaultSettings(), VIPs: []VIP{{ID: 1, Name: "v", Addr: netip.MustParseAddr("192.0.2.1"), SSTP: SSTPOff}}}
	for i, b := range all {
		b.ID, b.VIP, b.Slot = BackendID(i+1), 1, Slot(i+1)
		s.Backends = append(s.Backends, b)
	}
	return s
}

func up(b Backend) Backend   { b.Health[0].Verdict = VerdictUp; return b }
func down(b Backend) Backend { b.Health[0].Verdict = VerdictDown; return b }

// TestStance is the table of DESIGN.md: what each state of a backend allows.
func TestStance(t *testing.T) {
	plain := Backend{Admin: AdminEnabled, Weight: 100}
	with := func(f func(*Backend)) Backend { b := plain; f(&b); return b }
	drain := with(func(b *Backend) { b.Admin = AdminDrain })
	offline := with(func(b *Backend) { b.Admin = AdminOffline })
	removed := with(func(b *Backend) { b.Admin = AdminRemoved })
	purged := with(func(b *Backend) { b.Admin, b.Purged = AdminRemoved, true })
	light := with(func(b *Backend) { b.Weight = 0 })
	full := with(func(b *Backend) { b.Limit, b.Entries[0], b.Filled = 5, 5, true })
	roomy := with(func(b *Backend) { b.Limit, b.Entries[0] = 5, 4 })
	voided := with(func(b *Backend) { b.Health[0].Voided = 7 })
	tests := []struct {
		name string
		all  []Backend
		want []Stance
	}{
		{"up", []Backend{up(plain)}, []Stance{StanceTake}},
		{"up and down", []Backend{up(plain), down(plain)}, []Stance{StanceTake, StanceLeave}},
		{"up and not judged", []Backend{up(plain), plain}, []Stance{StanceTake, StanceLeave}},
		{"below the limit", []Backend{up(roomy)}, []Stance{StanceTake}},
		{"drain, full, weight 0", []Backend{up(drain), up(full), up(light), up(plain)}, []Stance{StanceKeep, StanceKeep, StanceKeep, StanceTake}},
		{"draining and down", []Backend{down(drain), up(plain)}, []Stance{StanceLeave, StanceTake}},
		{"offline, removed, purged", []Backend{up(offline), up(removed), up(purged), up(plain)}, []Stance{StanceLeave, StanceLeave, StanceVoid, StanceTake}},
		{"voided", []Backend{down(voided), up(plain)}, []Stance{StanceVoid, StanceTake}},
		{"voided and draining", []Backend{with(func(b *Backend) { *b = down(voided); b.Admin = AdminDrain }), up(plain)}, []Stance{StanceVoid, StanceTake}},
		// Never empty.
		{"none judged", []Backend{plain, plain}, []Stance{StanceTake, StanceTake}},
		{"all down", []Backend{down(plain), down(plain)}, []Stance{StanceTake, StanceTake}},
		{"all down, one offline, one draining", []Backend{down(plain), down(offline), down(drain)}, []Stance{StanceTake, StanceLeave, StanceLeave}},
		{"all down, one without weight", []Backend{down(plain), down(light)}, []Stance{StanceTake, StanceLeave}},
		{"the only up one drains", []Backend{down(plain), up(drain)}, []Stance{StanceTake, StanceKeep}},
		{"the only up one is full", []Backend{up(full), down(plain)}, []Stance{StanceKeep, StanceTake}},
		{"all full: the limit is the administrator's word", []Backend{up(full), down(full)}, []Stance{StanceKeep, StanceKeep}},
		{"down before voided", []Backend{down(plain), down(voided)}, []Stance{StanceTake, StanceVoid}},
		{"nothing but voided", []Backend{down(voided), up(drain)}, []Stance{StanceTake, StanceKeep}},
		{"nobody may", []Backend{up(offline), down(removed)}, []Stance{StanceLeave, StanceLeave}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := pooled(tt.all...)
			for i := range s.Backends {
				if got := s.Stance(&s.Backends[i], ClassIKE); got != tt.want[i] {
					t.Errorf("backend %d: %v, want %v", i+1, got, tt.want[i])
				}
				if got := s.Stance(&s.Backends[i], ClassTCP); got != StanceNone {
					t.Errorf("backend %d: TCP %v without SSTP", i+1, got)
				}
				if got := s.Stance(&s.Backends[i], 9); got != StanceNone {
					t.Errorf("backend %d: class 9 %v", i+1, got)
				}
				if s.MayTake(&s.Backends[i], ClassIKE) != (tt.want[i] == StanceTake || tt.want[i] == StanceKeep) {
					t.Errorf("backend %d: MayTake differs", i+1)
				}
			}
		})
	}
}

func TestStanceColumns(t *testing.T) {
	tests := []struct {
		s              Stance
		mayTake, known bool
	}{
		{StanceNone, false, false}, {StanceTake, true, true}, {StanceKeep, true, true},
		{StanceLeave, false, true}, {StanceVoid, false, false},
	}
	for _, tt := range tests {
		if tt.s.MayTake() != tt.mayTake || tt.s.Known() != tt.known {
			t.Errorf("%v: may take %v, known %v", tt.s, tt.s.MayTake(), tt.s.Known())
		}
	}
}

func TestDead(t *testing.T) {
	s := pooled(up(Backend{Admin: AdminEnabled, Weight: 1}), Backend{Admin: AdminRemoved, Purged: true})
	at := func(d time.Duration) Time { return Time(d) }
	tests := []struct {
		name        string
		state       Confirmation
		backend     BackendID
		seen, heard time.Duration
		now         time.Duration
		want        bool
	}{
		{"earned by SK, young", EarnedSK, 1, 0, 0, 2*time.Minute - 1, false},
		{"earned by SK, old", EarnedSK, 1, 0, 0, 2 * time.Minute, true},
		{"earned by AUTH, young", EarnedAuth, 1, 0, 0, 10*time.Minute - 1, false},
		{"earned by AUTH, old", EarnedAuth, 1, 0, 0, 10 * time.Minute, true},
		{"confirmed, young", Confirmed, 1, 0, 0, 40*time.Minute - 1, false},
		{"confirmed, old", Confirmed, 1, 0, 0, 40 * time.Minute, true},
		{"confirmed, touched, not heard for 12 h", Confirmed, 1, 12*time.Hour - 1, 0, 12 * time.Hour, true},
		{"confirmed, touched, heard within 12 h", Confirmed, 1, 12*time.Hour - 1, 1, 12 * time.Hour, false},
		{"purged", Confirmed, 2, 0, 0, 0, true},
		{"no such backend", Confirmed, 3, 0, 0, 0, true},
		{"no state", 0, 1, 0, 0, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := Affinity{Key: client4(1), Backend: tt.backend, State: tt.state, Seen: at(tt.seen), Heard: at(tt.heard)}
			if got := s.Dead(a, at(tt.now)); got != tt.want {
				t.Errorf("dead %v, want %v", got, tt.want)
			}
		})
	}
}

func TestSettingsValidate(t *testing.T) {
	s := DefaultSettings()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	s.AffinityTimeout, s.DownAfter = 0, 0
	s.InsidePrefixes = []netip.Prefix{netip.MustParsePrefix("198.51.100.1/24")}
	err := s.Validate()
	if err == nil {
		t.Fatal("no fault is found")
	}
	for _, want := range []string{"affinity timeout", "down-after", "198.51.100.1/24"} { // all at once
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not name %s", err, want)
		}
	}
}
