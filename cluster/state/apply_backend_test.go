package state

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestBackendAddressBelongsToOneVIP(t *testing.T) {
	r := newRig(t)
	r.farm(1, 1)
	r.farm(2, 1)
	o := r.do(PutBackend{Backend: Backend{VIP: 2, Name: "twice", Addr: netip.MustParseAddr("203.0.1.1"), Weight: 1}})
	if o.Code != Invalid || !strings.Contains(o.Detail, "203.0.1.1 belongs to backend s1-1 of VIP v1") || !strings.Contains(o.Detail, "remove it there first") {
		t.Errorf("%+v", o)
	}
}

func TestBackendRefusals(t *testing.T) {
	r := newRig(t)
	r.farm(1, 1)
	r.ok(PutGateway{Addr: netip.MustParseAddr("203.0.113.254")})
	b := func(name, addr string) Backend {
		return Backend{VIP: 1, Name: name, Addr: netip.MustParseAddr(addr), Weight: 1}
	}
	change := func(f func(*Backend)) PutBackend {
		v := *r.backend(1)
		p := PutBackend{Backend: Backend{ID: 1, Name: v.Name, Weight: v.Weight}, Expect: v.Version}
		f(&p.Backend)
		return p
	}
	tests := []struct {
		name string
		c    Command
		code Code
	}{
		{"name with a space", PutBackend{Backend: b("a b", "203.0.113.9")}, Invalid},
		{"name too long", PutBackend{Backend: b(strings.Repeat("x", 64), "203.0.113.9")}, Invalid},
		{"exists", PutBackend{Backend: b("s1-1", "203.0.1.1")}, Conflict},
		{"other family", PutBackend{Backend: b("six", "2001:db8::9")}, Invalid},
		{"the VIP's address", PutBackend{Backend: b("v", "192.0.2.1")}, Invalid},
		{"a gateway's address", PutBackend{Backend: b("g", "203.0.113.254")}, Invalid},
		{"a node's address", PutBackend{Backend: b("n", "198.51.100.1")}, Invalid},
		{"multicast", PutBackend{Backend: b("m", "224.0.0.1")}, Invalid},
		{"no VIP", PutBackend{Backend: Backend{VIP: 9, Name: "x", Addr: netip.MustParseAddr("203.0.113.9")}}, Invalid},
		{"too heavy", PutBackend{Backend: Backend{VIP: 1, Name: "x", Addr: netip.MustParseAddr("203.0.113.9"), Weight: MaxWeight + 1}}, Invalid},
		{"gone meanwhile", PutBackend{Backend: b("x", "203.0.113.9"), Expect: 5}, NotFound},
		{"no such ID", PutBackend{Backend: Backend{ID: 9, Name: "x"}}, NotFound},
		{"new address", change(func(b *Backend) { b.Addr = netip.MustParseAddr("203.0.113.9") }), Invalid},
		{"new VIP", change(func(b *Backend) { b.VIP = 2 }), Invalid},
		{"admin of nobody", SetBackendAdmin{ID: 9, Admin: AdminDrain}, NotFound},
		{"admin removed", SetBackendAdmin{ID: 1, Admin: AdminRemoved}, Invalid},
		{"admin at another version", SetBackendAdmin{ID: 1, Admin: AdminDrain, Expect: 1}, Conflict},
		{"remove nobody", RemoveBackend{ID: 9}, NotFound},
		{"health of nobody", SetHealth{Backend: 9, Class: ClassIKE, Verdict: VerdictUp}, NotFound},
		{"health of no class", SetHealth{Backend: 1, Class: 3, Verdict: VerdictUp}, Invalid},
		{"no such verdict", SetHealth{Backend: 1, Class: ClassIKE, Verdict: 3}, Invalid},
		{"health of another time", SetHealth{Backend: 1, Class: ClassIKE, Verdict: VerdictDown, Previous: 1}, Conflict},
		{"void nobody", VoidBackend{Backend: 9, Class: ClassIKE}, NotFound},
		{"remove a VIP in use", RemoveVIP{ID: 1}, Invalid},
		{"VIP into another family", PutVIP{VIP: VIP{Name: "v1", Addr: netip.MustParseAddr("2001:db8::1")}, Expect: r.spec().VIPs[0].Version}, Invalid},
		{"VIP exists", PutVIP{VIP: VIP{Name: "v1", Addr: netip.MustParseAddr("192.0.2.9")}}, Conflict},
		{"VIP address taken", PutVIP{VIP: VIP{Name: "v9", Addr: netip.MustParseAddr("192.0.2.1")}}, Invalid},
		{"VIP is a backend", PutVIP{VIP: VIP{Name: "v9", Addr: netip.MustParseAddr("203.0.1.1")}}, Invalid},
		{"gateway is a VIP", PutGateway{Addr: netip.MustParseAddr("192.0.2.1")}, Invalid},
		{"gateway exists", PutGateway{Addr: netip.MustParseAddr("203.0.113.254")}, Conflict},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			before := r.spec().Generation
			r.refused(tt.c, tt.code)
			if r.last.Delta.Spec != nil || r.spec().Generation != before {
				t.Error("a refused command changed the spec")
			}
		})
	}
}

// Rule A9: removed, still named, revived.
func TestRemovedBackendIsKeptWhileNamed(t *testing.T) {
	r := newRig(t)
	ids := r.farm(1, 2)
	first := *r.backend(ids[0])
	r.known(client4(1), ids[0])
	r.ok(RemoveBackend{ID: ids[0]})
	b := r.backend(ids[0])
	if b.Admin != AdminRemoved || b.Slot != first.Slot || b.Addr != first.Addr {
		t.Fatalf("%+v", b)
	}
	r.refused(SetBackendAdmin{ID: ids[0], Admin: AdminEnabled}, Invalid)
	// Another server takes the name, not the slot.
	other := BackendID(r.ok(PutBackend{Backend: Backend{VIP: 1, Name: first.Name, Addr: netip.MustParseAddr("203.0.113.77"), Weight: 1}}))
	if b := r.backend(other); b.Slot == first.Slot || b.ID == first.ID {
		t.Errorf("slot %d or ID %d is used twice", b.Slot, b.ID)
	}
	if b, _ := r.spec().BackendByName(first.Name); b.ID != other {
		t.Errorf("the name finds backend %d, want the live one", b.ID)
	}
	// The address comes back: revived.
	if got := r.ok(PutBackend{Backend: Backend{VIP: 1, Name: "again", Addr: first.Addr, Weight: 5}}); got != uint64(ids[0]) {
		t.Fatalf("added as %d, want revived as %d", got, ids[0])
	}
	b = r.backend(ids[0])
	if b.Admin != AdminEnabled || b.Name != "again" || b.Weight != 5 || b.Entries[0] != 1 || b.Health[0].Verdict != VerdictUp {
		t.Errorf("revived as %+v", b)
	}
	// Removed again; the last record goes, and it with it.
	r.ok(RemoveBackend{ID: ids[0]})
	r.ok(Forget{Keys: []Key{client4(1)}})
	if _, ok := r.spec().BackendByID(ids[0]); ok {
		t.Error("a removed backend that nobody names is still there")
	}
	if d := r.last.Delta; d.Spec == nil || len(d.Delete) != 1 {
		t.Errorf("delta %+v", d)
	}
	if got := r.ok(PutBackend{Backend: Backend{VIP: 1, Name: "later", Addr: first.Addr, Weight: 5}}); got <= uint64(other) {
		t.Errorf("ID %d is used again", got)
	}
}

func TestPurge(t *testing.T) {
	r := newRig(t)
	ids := r.farm(1, 2)
	r.farm(2, 1)
	addr := r.backend(ids[0]).Addr
	r.known(client4(1), ids[0])
	r.ok(RemoveBackend{ID: ids[0]})
	r.refused(PutBackend{Backend: Backend{VIP: 2, Name: "moved", Addr: addr, Weight: 1}}, Invalid)
	r.ok(RemoveBackend{ID: ids[0], Purge: true})
	if got := r.spec().Stance(r.backend(ids[0]), ClassIKE); got != StanceVoid {
		t.Errorf("stance %v, want void", got)
	}
	if dead := r.m.View().Expired(r.now, 10); len(dead) != 1 {
		t.Errorf("dead %v: the sweep would leave purged records", dead)
	}
	r.ok(PutBackend{Backend: Backend{VIP: 2, Name: "moved", Addr: addr, Weight: 1}})
	if _, ok := r.m.View().Affinity(client4(1)); ok || len(r.last.Delta.Delete) != 1 {
		t.Error("a purged record came back with its address")
	}
}

func TestVoid(t *testing.T) {
	r := newRig(t)
	ids := r.farm(1, 2)
	k := client4(1)
	r.known(k, ids[0])
	void := func() Command {
		return VoidBackend{Backend: ids[0], Class: ClassIKE, Previous: r.backend(ids[0]).Health[0].Index}
	}
	r.refused(void(), NotAllowed) // up
	r.verdict(ids[0], VerdictDown)
	r.after(119*time.Second).refused(void(), NotAllowed) // too early
	if s := r.spec(); s.MayVoid(r.backend(ids[0]), ClassIKE, r.now) || !s.MayVoid(r.backend(ids[0]), ClassIKE, r.now.Add(time.Second)) {
		t.Error("MayVoid differs from Apply")
	}
	r.after(time.Second).refused(VoidBackend{Backend: ids[0], Class: ClassIKE, Previous: 1}, Conflict)
	r.ok(void())
	if s := r.spec(); s.Stance(r.backend(ids[0]), ClassIKE) != StanceVoid || s.Stance(r.backend(ids[0]), ClassTCP) != StanceLeave || s.Generation != r.index {
		t.Error("the stance does not follow")
	}
	// Up again: what was voided stays forgotten, or a client that lives
	// elsewhere without a record would be torn away.
	r.verdict(ids[0], VerdictUp)
	if _, ok := r.m.View().Affinity(k); ok || r.backend(ids[0]).Entries[0] != 0 {
		t.Error("a voided record counts again")
	}
}

func TestVoidNeedsAnother(t *testing.T) {
	r := newRig(t)
	ids := r.farm(1, 2)
	r.known(client4(1), ids[0])
	r.verdict(ids[0], VerdictDown)
	r.after(time.Hour).ok(VoidBackend{Backend: ids[0], Class: ClassIKE, Previous: r.backend(ids[0]).Health[0].Index})
	r.verdict(ids[1], VerdictDown)
	r.after(time.Hour).refused(VoidBackend{Backend: ids[1], Class: ClassIKE, Previous: r.backend(ids[1]).Health[0].Index}, NotAllowed)
	// The other one goes: the never-empty rule brings the voided one back, as
	// a server that is merely down, without its old records.
	r.ok(RemoveBackend{ID: ids[1]})
	b := r.backend(ids[0])
	if b.Health[0].Voided != 0 || r.spec().Stance(b, ClassIKE) != StanceTake || r.m.View().Len() != 0 {
		t.Errorf("%+v, %d records", b, r.m.View().Len())
	}
}

func TestGeneration(t *testing.T) {
	r := newRig(t)
	ids := r.farm(1, 2)
	b := *r.backend(ids[0])
	tests := []struct {
		name string
		c    func() Command
		want bool
	}{
		{"weight", func() Command {
			return PutBackend{Backend: Backend{ID: b.ID, Name: b.Name, Weight: 7}, Expect: r.backend(b.ID).Version}
		}, true},
		{"name", func() Command {
			return PutBackend{Backend: Backend{ID: b.ID, Name: "other", Weight: 7}, Expect: r.backend(b.ID).Version}
		}, false},
		{"drain", func() Command { return SetBackendAdmin{ID: b.ID, Admin: AdminDrain} }, true},
		{"drain again", func() Command { return SetBackendAdmin{ID: b.ID, Admin: AdminDrain} }, false},
		{"down", func() Command {
			return SetHealth{Backend: b.ID, Class: ClassIKE, Verdict: VerdictDown, Previous: r.backend(b.ID).Health[0].Index}
		}, true},
		{"offline and down", func() Command { return SetBackendAdmin{ID: b.ID, Admin: AdminOffline} }, true}, // TCP was up
		{"token", func() Command { return AddToken{Hash: [32]byte{1}, Life: time.Minute} }, false},
		{"learn", func() Command {
			return Learn{Records: []Learned{{Key: client4(1), Backend: ids[1], State: Confirmed}}}
		}, false},
		{"SSTP off", func() Command {
			v := r.spec().VIPs[0]
			v.SSTP = SSTPOff
			return PutVIP{VIP: v, Expect: v.Version}
		}, true},
		{"tick", func() Command { return Tick{} }, false},
	}
	for _, tt := range tests {
		r.t = t
		r.ok(tt.c())
		if got := r.spec().Generation == r.index; got != tt.want {
			t.Errorf("%s: new generation %v, want %v", tt.name, got, tt.want)
		}
	}
}

func TestSlots(t *testing.T) {
	r := newRig(t)
	r.ok(PutVIP{VIP: VIP{Name: "v", Addr: netip.MustParseAddr("192.0.2.1")}})
	add := func(n int) Outcome {
		return r.do(PutBackend{Backend: Backend{VIP: 1, Name: "s" + string(rune('a'+n%26)) + strings.Repeat("x", n/26), Addr: netip.AddrFrom4([4]byte{203, 0, 113, byte(n)}), Weight: 1}})
	}
	for n := range MaxBackends {
		if o := add(n); o.Code != OK || o.ID != uint64(n+1) {
			t.Fatalf("backend %d: %+v", n, o)
		}
	}
	if o := r.do(PutBackend{Backend: Backend{VIP: 1, Name: "more", Addr: netip.MustParseAddr("198.19.0.1"), Weight: 1}}); o.Code != Full || o.Detail == "" {
		t.Errorf("%+v", o)
	}
	r.known(client4(1), 7)
	r.ok(RemoveBackend{ID: 7})
	if o := r.do(PutBackend{Backend: Backend{VIP: 1, Name: "more", Addr: netip.MustParseAddr("198.19.0.1"), Weight: 1}}); o.Code != Full {
		t.Errorf("the slot of a removed but named backend is given out: %+v", o)
	}
	r.ok(RemoveBackend{ID: 9})
	id := r.ok(PutBackend{Backend: Backend{VIP: 1, Name: "more", Addr: netip.MustParseAddr("198.19.0.1"), Weight: 1}})
	if b := r.backend(BackendID(id)); b.Slot != 9 || b.ID != MaxBackends+1 {
		t.Errorf("%+v", b)
	}
}

func TestVIPPlaces(t *testing.T) {
	r := newRig(t)
	add := func(n byte) uint64 {
		return r.ok(PutVIP{VIP: VIP{Name: "v" + string('a'+n), Addr: netip.AddrFrom4([4]byte{192, 0, 2, n + 1})}})
	}
	for n := range byte(MaxVIPs) {
		add(n)
	}
	r.refused(PutVIP{VIP: VIP{Name: "more", Addr: netip.MustParseAddr("192.0.2.99")}}, Full)
	r.ok(RemoveVIP{ID: 4})
	id := add(20)
	v, _ := r.spec().VIPByID(VIPID(id))
	if id != MaxVIPs+1 || v.Place != 3 {
		t.Errorf("VIP %d at place %d, want a new ID at the free place 3", id, v.Place)
	}
	v, _ = r.spec().VIPByID(5)
	if v.Place != 4 {
		t.Errorf("VIP 5 moved to place %d", v.Place)
	}
}
