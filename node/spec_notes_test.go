package node

import (
	"net/netip"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// What a change means is said with how many it concerns.
func TestNotes(t *testing.T) {
	r := newRig(t)
	vip := r.vip("vpn", "203.0.113.10")
	r1 := r.backend("r1", "198.51.100.101", vip)
	r.backend("r2", "198.51.100.102", vip)
	r.verdict("r1", state.VerdictUp)
	r.verdict("r2", state.VerdictUp)
	r.learn("198.18.0.1", r1.ID)
	r.learn("198.18.0.2", r1.ID)
	now := func(name string) (*state.Spec, *state.Backend) {
		b, ok := r.spec().BackendByName(name)
		if !ok {
			t.Fatalf("%s is gone", name)
		}
		return r.spec(), b
	}
	admin := func(what, name string, to state.AdminState, want ...string) {
		t.Helper()
		spec, b := now(name)
		said(adminNotes(spec, b, to)).check(t, what, want...)
	}
	remove := func(what, name string, purge bool, want ...string) {
		t.Helper()
		spec, b := now(name)
		said(removeNotes(spec, b, purge)).check(t, what, want...)
	}
	admin("drain", "r1", state.AdminDrain, "its 2 clients stay")
	admin("offline", "r1", state.AdminOffline, "its 2 clients go elsewhere at their next login; users behind one shared address")
	admin("offline, nobody there", "r2", state.AdminOffline)
	remove("remove", "r1", false, "2 clients are recorded on it: it stays listed, and their tunnels work")
	remove("purge", "r1", true, "its 2 clients are forgotten now, and their tunnels break")
	remove("nobody there", "r2", true)
	r.do(state.SetBackendAdmin{ID: r1.ID, Admin: state.AdminDrain})
	admin("the last one", "r2", state.AdminDrain, "its 0 clients stay", "no server of VIP vpn takes new clients for IKE now")
	remove("the last one", "r2", false, "no server of VIP vpn takes new clients for IKE now")
	r.do(state.RemoveBackend{ID: r1.ID, Purge: true})
	if b, ok := r.spec().BackendByName("r1"); ok && b.Purged {
		remove("a second time", "r1", false, "removed with --purge before: its clients are forgotten")
	} else {
		purged := r1
		purged.Purged, purged.Admin, purged.Entries = true, state.AdminRemoved, [2]uint32{2}
		said(removeNotes(r.spec(), &purged, false)).check(t, "a second time", "removed with --purge before: its clients are forgotten")
	}
}

func TestGatewayNotes(t *testing.T) {
	subnets := []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8:1::/64")}
	for addr, want := range map[string][]string{
		"198.51.100.251": nil, "2001:db8:1::251": nil,
		"192.0.2.9": {"192.0.2.9 is in none of the subnets on in0 of this node (198.51.100.0/24, 2001:db8:1::/64)"},
	} {
		said(gatewayNotes("in0", subnets, netip.MustParseAddr(addr))).check(t, addr, want...)
	}
}
