package state

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

// TestStanceDSR: a DSR backend takes, keeps or is void, it never leaves.
func TestStanceDSR(t *testing.T) {
	plain := Backend{Admin: AdminEnabled, Weight: 100, Mode: ModeDSR}
	with := func(f func(*Backend)) Backend { b := plain; f(&b); return b }
	judged := func(b Backend, v Verdict) Backend {
		b.Health[0].Verdict, b.Health[1].Verdict = v, v
		return b
	}
	up, down := VerdictUp, VerdictDown
	drain := with(func(b *Backend) { b.Admin = AdminDrain })
	offline := with(func(b *Backend) { b.Admin = AdminOffline })
	light := with(func(b *Backend) { b.Weight = 0 })
	full := with(func(b *Backend) { b.Limit, b.Entries[0], b.Filled = 5, 5, true })
	dnat := with(func(b *Backend) { b.Mode = ModeDNAT })
	tests := []struct {
		name     string
		all      []Backend
		ike, tcp Stance // of the first
	}{
		{"up", []Backend{judged(plain, up), judged(plain, up)}, StanceTake, StanceTake},
		{"down", []Backend{judged(plain, down), judged(plain, up)}, StanceVoid, StanceVoid},
		{"not judged", []Backend{plain, judged(plain, up)}, StanceVoid, StanceVoid},
		{"offline", []Backend{judged(offline, up), judged(plain, up)}, StanceVoid, StanceVoid},
		{"drain", []Backend{judged(drain, up), judged(plain, up)}, StanceKeep, StanceVoid},
		{"weight 0", []Backend{judged(light, up), judged(plain, up)}, StanceKeep, StanceVoid},
		{"full: of clients of IKE", []Backend{judged(full, up), judged(plain, up)}, StanceKeep, StanceTake},
		{"all down", []Backend{judged(plain, down), judged(plain, down)}, StanceTake, StanceTake},
		{"all down, the other not DSR", []Backend{judged(plain, down), judged(dnat, down)}, StanceTake, StanceTake},
		{"all down and full", []Backend{judged(full, down), judged(light, down)}, StanceKeep, StanceTake},
		{"all offline", []Backend{judged(offline, up)}, StanceVoid, StanceVoid},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := pooled(tt.all...)
			s.VIPs[0].SSTP = SSTPPassthrough
			if ike, tcp := s.Stance(&s.Backends[0], ClassIKE), s.Stance(&s.Backends[0], ClassTCP); ike != tt.ike || tcp != tt.tcp {
				t.Errorf("ike %v, tcp %v, want %v and %v", ike, tcp, tt.ike, tt.tcp)
			}
		})
	}
}

// dsrFarm is a farm of two DSR backends and one of DNAT, all up.
func dsrFarm(t *testing.T) (*rig, []BackendID) {
	r := newRig(t)
	ids := r.farm(1, 1)
	for i := range 2 {
		id := BackendID(r.ok(PutBackend{Backend: Backend{VIP: 1, Name: []string{"d1", "d2"}[i], Mode: ModeDSR, Weight: 100,
			Addr: netip.AddrFrom4([4]byte{203, 0, 113, byte(100 + i)})}}))
		r.verdict(id, VerdictUp)
		ids = append(ids, id)
	}
	return r, ids
}

func TestLearnDSR(t *testing.T) {
	r, ids := dsrFarm(t)
	tcp := client4(1)
	tcp.Class = ClassTCP
	if got := r.learn(Learned{Key: tcp, Backend: ids[1], State: Confirmed, Opening: true}); got != LearnRefused {
		t.Errorf("a TCP record at a DSR backend: %v", got)
	}
	// Whatever was seen, it begins unconfirmed, within the budgets.
	set := r.spec().Settings
	set.PrefixBudget = 2
	r.ok(SetSettings{Settings: set, Expect: set.Version})
	for i, want := range []LearnResult{LearnStored, LearnStored, LearnRefused} {
		if got := r.learn(Learned{Key: client4(uint32(i)), Backend: ids[1], State: Confirmed}); got != want {
			t.Errorf("record %d: %v, want %v", i, got, want)
		}
	}
	if a, _ := r.m.View().Affinity(client4(0)); a.State != EarnedSK {
		t.Errorf("the first record is %v", a.State)
	}
	if got := r.learn(Learned{Key: client4(0), Backend: ids[1], State: Confirmed}); got != LearnStored {
		t.Errorf("confirm: %v", got)
	}
	a, _ := r.m.View().Affinity(client4(0))
	if a.State != Confirmed {
		t.Errorf("the confirmed record is %v", a.State)
	}
	// Nothing is heard of the server: activity alone keeps a tunnel's record.
	for range 15 * 4 {
		r.after(15 * time.Minute)
		if n := r.ok(Touch{Records: []Touched{{Key: a.Key, Index: a.Index}}}); n != 1 {
			t.Fatalf("at %v a touch does nothing", r.now)
		}
		if dead := r.m.View().Expired(r.now, 10); len(dead) > 0 {
			r.ok(Expire{Records: dead})
		}
	}
	if _, ok := r.m.View().Affinity(a.Key); !ok {
		t.Error("a record of an active client expired")
	}
	// It never replaces, not even what says that it is an opening.
	index := r.known(client4(900), ids[0])
	r.verdict(ids[0], VerdictDown)
	if got := r.learn(Learned{Key: client4(900), Backend: ids[1], State: Confirmed, Replaces: index, Opening: true}); got != LearnRefused {
		t.Errorf("a replacement by a DSR backend: %v", got)
	}
}

// A verdict down, offline and removal forget the records at once; nothing counts
// again when the backend is back.
func TestDSRLosesRecords(t *testing.T) {
	for name, lose := range map[string]func(r *rig, id BackendID){
		"down":    func(r *rig, id BackendID) { r.verdict(id, VerdictDown) },
		"offline": func(r *rig, id BackendID) { r.admin(id, AdminOffline) },
		"removed": func(r *rig, id BackendID) { r.ok(RemoveBackend{ID: id}) },
	} {
		t.Run(name, func(t *testing.T) {
			r, ids := dsrFarm(t)
			for i := range uint32(20) {
				if got := r.learn(Learned{Key: client4(i), Backend: ids[1+i%2], State: EarnedSK}); got != LearnStored {
					t.Fatal(got)
				}
			}
			lose(r, ids[1])
			if n := r.m.View().Len(); n != 10 {
				t.Errorf("%d records are left, want 10", n)
			}
			b, listed := r.spec().BackendByID(ids[1])
			if listed != (name != "removed") {
				t.Error("a removed DSR backend is still listed")
			}
			if listed && b.Entries != [2]uint32{} {
				t.Errorf("entries %v", b.Entries)
			}
			r.refused(VoidBackend{Backend: ids[2], Class: ClassIKE, Previous: r.backend(ids[2]).Health[0].Index}, NotAllowed)
			consistent(t, r.m.View())
		})
	}
}

func TestChangeMode(t *testing.T) {
	r, ids := dsrFarm(t)
	change := func(id BackendID, mode Mode) PutBackend {
		b := *r.backend(id)
		b.Mode = mode
		return PutBackend{Backend: b, Expect: b.Version}
	}
	generation := r.spec().Generation
	r.ok(change(ids[1], ModeDNAT))
	if r.spec().Generation == generation {
		t.Error("a change of the mode is no generation")
	}
	r.known(client4(1), ids[1])
	r.refused(change(ids[1], ModeDSR), Invalid)
	r.refused(change(ids[1], 2), Invalid)
	if r.backend(ids[1]).Mode != ModeDNAT {
		t.Error("a refused change took place")
	}
	// Removed but named: it comes back in its old mode only, or after a purge.
	b := *r.backend(ids[1])
	r.ok(RemoveBackend{ID: b.ID})
	again := Backend{VIP: 1, Name: "d1", Addr: b.Addr, Mode: ModeDSR, Weight: 1}
	r.refused(PutBackend{Backend: again}, Invalid)
	r.ok(RemoveBackend{ID: b.ID, Purge: true})
	id := BackendID(r.ok(PutBackend{Backend: again}))
	if got := r.backend(id); got.Mode != ModeDSR || got.Entries != [2]uint32{} {
		t.Errorf("it came back as %+v", got)
	}
}

// A state is written in the lowest format that holds it, and an older node is
// admitted only while that is the first.
func TestFormats(t *testing.T) {
	r := settled(t)
	older := memberOf(nodeC, "older")
	older.ID[1] = 9
	older.PublicKey = bytes.Repeat([]byte{9}, keySize)
	r.ok(AddToken{Hash: [32]byte{77}, Life: time.Hour})
	if data := r.snapshot(); data[7] != 1 || r.spec().Format() != 1 {
		t.Errorf("format %d", data[7])
	}
	set := r.spec().Settings
	set.SourceLimit = 5000
	limit := SetSettings{Settings: set, Expect: set.Version}
	dsr := PutBackend{Backend: Backend{VIP: 1, Name: "d", Mode: ModeDSR, Addr: netip.MustParseAddr("203.0.113.77")}}
	for _, c := range []Command{limit, dsr, PutVIP{VIP: VIP{SSTP: SSTPPassthrough}}, PutVIP{VIP: VIP{Addr: netip.MustParseAddr("2001:db8::1")}}} {
		if FormatOf(c) != 2 {
			t.Errorf("%T is of format %d", c, FormatOf(c))
		}
	}
	if FormatOf(PutVIP{}) != 1 || FormatOf(PutBackend{}) != 1 || FormatOf(SetSettings{}) != 1 || FormatOf(Tick{}) != 1 {
		t.Error("what format 1 knows is of another one")
	}
	if n, lowest := r.spec().LowestFormat(); n == nil || lowest != 1 {
		t.Errorf("the lowest format is %d of %v", lowest, n)
	}
	if n, lowest := (&Spec{}).LowestFormat(); n != nil || lowest != 0 {
		t.Errorf("nobody understands format %d", lowest)
	}
	r.ok(limit)
	r.refused(AdmitMember{Token: [32]byte{77}, Member: older}, NotAllowed)
	r.ok(dsr)
	data := r.snapshot()
	golden(t, "snapshot_2", data)
	m := NewMachine()
	if err := m.Restore(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if m.View().Hash() != r.m.View().Hash() || m.View().Spec().Settings.SourceLimit != 5000 {
		t.Error("the restored state differs")
	}
	back := memberOf(NodeID{0xb, 15: 77}, "b")
	r.refused(ReplaceMember{Old: nodeB, Member: back}, NotAllowed)
	b, _ := m.View().Spec().BackendByName("d")
	if b.Mode != ModeDSR {
		t.Errorf("the restored backend is %+v", b)
	}
	// Back to what the first format holds.
	r.ok(RemoveBackend{ID: b.ID})
	r.ok(SetSettings{Settings: DefaultSettings(), Expect: r.spec().Settings.Version})
	if data := r.snapshot(); data[7] != 1 {
		t.Errorf("format %d", data[7])
	}
	older.Format = 2
	r.ok(AdmitMember{Token: [32]byte{77}, Member: older})
}

// IPv6: a backend is of its VIP's family, clients are keyed by the VIP's bits,
// and budgets count the /48.
func TestIPv6(t *testing.T) {
	r := newRig(t)
	vip := VIPID(r.ok(PutVIP{VIP: VIP{Name: "six", Addr: netip.MustParseAddr("2001:db8::10"), ClientBits: 56}}))
	put := func(name, addr string, vip VIPID) PutBackend {
		return PutBackend{Backend: Backend{VIP: vip, Name: name, Addr: netip.MustParseAddr(addr), Weight: 1}}
	}
	r.refused(put("s", "203.0.113.1", vip), Invalid)
	id := BackendID(r.ok(put("s", "2001:db8:1::1", vip)))
	r.refused(put("t", "2001:db8:1::1", vip), Invalid)
	other := VIPID(r.ok(PutVIP{VIP: VIP{Name: "six2", Addr: netip.MustParseAddr("2001:db8::11")}}))
	r.refused(put("t", "2001:db8:1::1", other), Invalid) // one VIP for each address
	for _, bad := range []uint8{31, 129} {
		v := r.spec().VIPs[0]
		v.ClientBits = bad
		r.refused(PutVIP{VIP: v, Expect: v.Version}, Invalid)
	}
	r.verdict(id, VerdictUp)
	key := func(a string) Key {
		return Key{Client: ClientOf(netip.MustParseAddr(a), 56), Class: ClassIKE}
	}
	if key("2001:db8:9:1::1") != key("2001:db8:9:ff:1:2:3:4") || key("2001:db8:9:100::1") == key("2001:db8:9:1::1") {
		t.Error("clients are not cut at 56 bits")
	}
	set := r.spec().Settings
	set.PrefixBudget = 2
	r.ok(SetSettings{Settings: set, Expect: set.Version})
	for a, want := range map[string]LearnResult{"2001:db8:9::": LearnStored, "2001:db8:9:100::": LearnStored} {
		if got := r.learn(Learned{Key: key(a), Backend: id, State: EarnedSK}); got != want {
			t.Errorf("%s: %v", a, got)
		}
	}
	if got := r.learn(Learned{Key: key("2001:db8:9:200::"), Backend: id, State: EarnedSK}); got != LearnRefused {
		t.Errorf("a third of one /48: %v", got)
	}
	if got := r.learn(Learned{Key: key("2001:db8:a::"), Backend: id, State: EarnedSK}); got != LearnStored {
		t.Errorf("one of another /48: %v", got)
	}
}

// TCP of a pass-through VIP: its own record and verdict beside those of IKE.
func TestLearnTCP(t *testing.T) {
	r := newRig(t)
	ids := r.farm(1, 3)
	ike, tcp := client4(5), client4(5)
	tcp.Class = ClassTCP
	r.known(ike, ids[0])
	index := r.known(tcp, ids[0])
	replace := func() LearnResult {
		return r.learn(Learned{Key: tcp, Backend: ids[1], State: Confirmed, Replaces: index, Opening: true})
	}
	if got := replace(); got != LearnRefused {
		t.Errorf("a record of a server that is up was replaced: %v", got)
	}
	r.ok(SetHealth{Backend: ids[0], Class: ClassTCP, Verdict: VerdictDown, Previous: r.backend(ids[0]).Health[1].Index})
	if got := replace(); got != LearnStored {
		t.Errorf("replace: %v", got)
	}
	if a, _ := r.m.View().Affinity(ike); a.Backend != ids[0] {
		t.Error("the record of IKE went with that of TCP")
	}
	if a, _ := r.m.View().Affinity(tcp); a.Backend != ids[1] || a.State != Confirmed {
		t.Errorf("the record of TCP is %+v", a)
	}
	b := r.backend(ids[0])
	if s := r.spec(); s.Stance(b, ClassIKE) != StanceTake || s.Stance(b, ClassTCP) != StanceLeave {
		t.Errorf("stances %v and %v", s.Stance(b, ClassIKE), s.Stance(b, ClassTCP))
	}
	v := r.spec().VIPs[0]
	v.SSTP = SSTPOff
	r.ok(PutVIP{VIP: v, Expect: v.Version})
	if s := r.spec(); s.Stance(r.backend(ids[1]), ClassTCP) != StanceNone {
		t.Error("a VIP without SSTP has a stance for TCP")
	}
	if got := r.learn(Learned{Key: tcp, Backend: ids[1], State: Confirmed}); got != LearnRefused {
		t.Errorf("a record of a service that is off: %v", got)
	}
}
