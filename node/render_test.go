package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Render converts by number: both sides must count alike.
func TestStanceNumbers(t *testing.T) {
	for s, want := range map[state.Stance]table.Stance{
		state.StanceNone: table.None, state.StanceTake: table.Take, state.StanceKeep: table.Keep,
		state.StanceLeave: table.Leave, state.StanceVoid: table.Void,
	} {
		if table.Stance(s) != want || s.MayTake() != want.MayTake() || s.Known() != want.Known() {
			t.Errorf("stance %v of the agreement is %d of the data plane", s, want)
		}
	}
	for c, want := range map[state.Class]table.Class{state.ClassIKE: table.IKE, state.ClassTCP: table.TCP} {
		if table.Class(c) != want {
			t.Errorf("class %v of the agreement is %d of the data plane", c, want)
		}
	}
	if len(state.Classes) != table.Classes {
		t.Errorf("%d classes are agreed, the data plane has %d", len(state.Classes), table.Classes)
	}
	for c, want := range map[state.Confirmation]table.Confirmation{
		state.EarnedSK: table.EarnedSK, state.EarnedAuth: table.EarnedAuth, state.Confirmed: table.Confirmed,
	} {
		if table.Confirmation(c) != want {
			t.Errorf("confirmation %d of the agreement is %d of the data plane", c, want)
		}
	}
	if state.MaxVIPs > table.MaxVIPs || state.MaxBackends > table.MaxSlots {
		t.Error("the agreement may hold more than the data plane can")
	}
	if n := state.MaxMembers*state.MaxAddrs + state.MaxGateways + state.MaxPrefixes; n > table.MaxPrefixes {
		t.Errorf("limits allow %d prefixes that are no clients, the data plane takes %d", n, table.MaxPrefixes)
	}
}

// world is a spec with one of everything.
func world(t *testing.T) *rig {
	r := newRig(t)
	r.do(state.AddToken{Hash: [32]byte{1}, Life: 10 * 60e9})
	r.do(state.AdmitMember{Token: [32]byte{1}, Member: memberOf(nodeB, "b", "198.51.100.2", "192.0.2.12")})
	vpn := r.vip("vpn", "203.0.113.10")
	lab := r.vip("lab", "203.0.113.20")
	r.backend("r1", "198.51.100.101", vpn)
	r.backend("r2", "198.51.100.102", vpn)
	r3 := r.backend("r3", "198.51.100.103", vpn)
	r.backend("r4", "198.51.100.104", vpn)
	r.backend("l1", "198.51.100.111", lab)
	r.verdict("r1", state.VerdictUp)
	r.verdict("r2", state.VerdictUp)
	r.verdict("r3", state.VerdictUp)
	r.verdict("r4", state.VerdictDown)
	r2, _ := r.spec().BackendByName("r2")
	r.do(state.SetBackendAdmin{ID: r2.ID, Admin: state.AdminDrain, Expect: r2.Version})
	r.learn("198.18.0.1", r3.ID)
	r3now, _ := r.spec().BackendByName("r3")
	r.do(state.RemoveBackend{ID: r3.ID, Expect: r3now.Version})
	r.do(state.PutGateway{Addr: netip.MustParseAddr("198.51.100.251")})
	r.do(state.PutVIP{VIP: state.VIP{Name: "six", Addr: netip.MustParseAddr("2001:db8::10"), ClientBits: 56, SSTP: state.SSTPPassthrough}})
	six, _ := r.spec().VIPByName("six")
	r.backend("s1", "2001:db8:1::101", six.ID)
	r.do(state.PutBackend{Backend: state.Backend{Name: "d1", VIP: six.ID, Addr: netip.MustParseAddr("2001:db8:1::102"), Mode: state.ModeDSR, Weight: 100}})
	r.verdict("d1", state.VerdictUp)
	r.do(state.PutGateway{Addr: netip.MustParseAddr("2001:db8:1::251")})
	s := r.spec().Settings
	s.SourceLimit = 2000
	s.InsidePrefixes = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/48")}
	r.do(state.SetSettings{Settings: s, Expect: s.Version})
	return r
}

// setText is a set for a person to compare.
func setText(set *table.Set) string {
	var b strings.Builder
	fmt.Fprintf(&b, "cluster %x index %d generation %d key %x size %d source limit %d\n", set.ClusterID, set.Index, set.Generation, set.HashKey, set.TableSize, set.SourceLimit)
	for _, v := range set.VIPs {
		fmt.Fprintf(&b, "vip %d %s client bits %d passthrough %v\n", v.Index, v.Addr, v.ClientBits, v.Passthrough)
	}
	for _, x := range set.Backends {
		fmt.Fprintf(&b, "backend slot %d id %d vip %d %s dsr %v weight %d ike %s tcp %s\n",
			x.Slot, x.ID, x.VIP, x.Addr, x.DSR, x.Weight, state.Stance(x.Stance[0]), state.Stance(x.Stance[1]))
	}
	for _, p := range set.NotReturn {
		fmt.Fprintf(&b, "not return %s\n", p)
	}
	return b.String()
}

func TestRenderGolden(t *testing.T) {
	set := Render(world(t).spec())
	golden(t, t.Name()+".txt", []byte(setText(set)))
	if _, err := model.FromSet(set, model.Env{}); err != nil {
		t.Error(err)
	}
}

// A VIP keeps its place when one that was added before it goes.
func TestRenderPlacesAreStable(t *testing.T) {
	r := newRig(t)
	first := r.vip("first", "203.0.113.10")
	r.vip("second", "203.0.113.20")
	place := func() uint8 {
		for _, v := range Render(r.spec()).VIPs {
			if v.Addr == netip.MustParseAddr("203.0.113.20") {
				return v.Index
			}
		}
		t.Fatal("the VIP is not rendered")
		return 0
	}
	before := place()
	v, _ := r.spec().VIPByID(first)
	r.do(state.RemoveVIP{ID: first, Expect: v.Version})
	if after := place(); after != before {
		t.Errorf("the place of a VIP that stays moved from %d to %d", before, after)
	}
}

func TestNotReturn(t *testing.T) {
	got := notReturn(world(t).spec())
	for _, want := range []string{
		"198.51.100.1/32", "192.0.2.11/32", "198.51.100.2/32", "192.0.2.12/32", // members
		"198.51.100.251/32", "2001:db8:1::251/128", // gateways
		"198.51.100.0/24", "2001:db8:1::/48", // inside
	} {
		if !slices.Contains(got, netip.MustParsePrefix(want)) {
			t.Errorf("%s is missing in %v", want, got)
		}
	}
	if len(got) != 8 {
		t.Errorf("%v", got)
	}
}

func TestRenderEntry(t *testing.T) {
	r := world(t)
	var a state.Affinity
	for a = range r.m.View().Affinities() {
	}
	e, ok := renderEntry(r.spec(), a)
	b, _ := r.spec().BackendByID(a.Backend)
	if !ok || e.Slot != table.Slot(b.Slot) || e.State != table.Confirmed || e.Key != tableKey(a.Key) || stateKey(e.Key) != a.Key {
		t.Errorf("record %+v became %+v, %v", a, e, ok)
	}
	a.Backend = 4711 // gone meanwhile
	if e, ok := renderEntry(r.spec(), a); ok {
		t.Errorf("a record of a backend that is gone became %+v", e)
	}
}

// A removed server is rendered with its slot as long as a record names it.
func TestRenderRemovedBackend(t *testing.T) {
	r := world(t)
	has := func() bool {
		return slices.ContainsFunc(Render(r.spec()).Backends, func(b table.Backend) bool {
			return b.Addr == netip.MustParseAddr("198.51.100.103") && b.Stance[table.IKE-1] == table.Leave
		})
	}
	if !has() {
		t.Error("a removed server with a client lost its return rule")
	}
	r.do(state.Forget{Keys: []state.Key{keyOf("198.18.0.1")}})
	if has() {
		t.Error("a removed server without clients is still rendered")
	}
}
