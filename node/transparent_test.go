package node

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/transparent"
	"github.com/vpnlb/vpnlb/node/admin"
)

// transparentSpec has VIPs of all kinds, each with a server, and members of these roles.
func transparentSpec(roles ...state.Role) *state.Spec {
	spec := &state.Spec{
		VIPs: []state.VIP{
			{ID: 1, Name: "plain", Addr: netip.MustParseAddr("203.0.113.10"), SSTP: state.SSTPOffload, Transparent: true},
			{ID: 2, Name: "tls", Addr: netip.MustParseAddr("2001:db8::10"), SSTP: state.SSTPReencrypt, Transparent: true},
			{ID: 3, Name: "through", Addr: netip.MustParseAddr("203.0.113.11"), SSTP: state.SSTPPassthrough, Transparent: true},
			{ID: 4, Name: "relayed", Addr: netip.MustParseAddr("203.0.113.12"), SSTP: state.SSTPOffload},
		},
		Backends: []state.Backend{
			{ID: 1, VIP: 1, Addr: netip.MustParseAddr("198.51.100.101")},
			{ID: 2, VIP: 1, Addr: netip.MustParseAddr("198.51.100.102"), SSTPPort: 8080, Admin: state.AdminRemoved},
			{ID: 3, VIP: 2, Addr: netip.MustParseAddr("2001:db8:0:3::101")},
			{ID: 4, VIP: 3, Addr: netip.MustParseAddr("198.51.100.103")},
			{ID: 5, VIP: 4, Addr: netip.MustParseAddr("198.51.100.104")},
		},
	}
	for _, r := range roles {
		spec.Members = append(spec.Members, state.Member{Role: r})
	}
	return spec
}

// Rules are wanted for the servers of transparent VIPs whose TLS the nodes end,
// and for no others: what is passed through must be forwarded.
func TestTransparentReplies(t *testing.T) {
	want := []transparent.Reply{
		{Interface: "eth1", Server: netip.MustParseAddrPort("198.51.100.101:80")},
		{Interface: "eth1", Server: netip.MustParseAddrPort("198.51.100.102:8080")},
		{Interface: "eth1", Server: netip.MustParseAddrPort("[2001:db8:0:3::101]:443")},
	}
	if got := transparentReplies(transparentSpec(), "eth1"); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	if got := transparentReplies(&state.Spec{}, "eth1"); len(got) != 0 {
		t.Errorf("rules of nobody: %v", got)
	}
}

// A cluster of several nodes is not made transparent; one that became it is told
// so. A witness has no data plane and does not count.
func TestTransparencyIsForOneNode(t *testing.T) {
	yes, no := true, false
	for _, c := range []struct {
		roles  []state.Role
		refuse bool
	}{
		{[]state.Role{state.RoleNode}, false},
		{[]state.Role{state.RoleNode, state.RoleWitness, state.RoleWitness}, false},
		{[]state.Role{state.RoleNode, state.RoleNode}, true},
	} {
		spec := transparentSpec(c.roles...)
		spec.Certs = []state.CertificatePlace{{Name: "c"}}
		vip := state.VIP{Name: "new", SSTP: state.SSTPOffload, Certificates: []string{"c"}}
		_, err := vipSSTP(spec, nil, &vip, admin.VIPRequest{Transparent: &yes})
		if (err != nil) != c.refuse || err != nil && !strings.Contains(err.Error(), "works with one node only, and this cluster has 2") {
			t.Errorf("%v: %v", c.roles, err)
		}
		vip = spec.VIPs[0]
		vip.Certificates = []string{"c"}
		for _, in := range []admin.VIPRequest{{Transparent: &no}, {SSTP: "reencrypt"}} { // the way out, and what is not about it
			if _, err := vipSSTP(spec, &spec.VIPs[0], &vip, in); err != nil {
				t.Errorf("%v, %+v: %v", c.roles, in, err)
			}
		}
		var warnings []string
		warnTransparent(spec, func(format string, args ...any) { warnings = append(warnings, fmt.Sprintf(format, args...)) })
		if want := map[bool]int{true: 2}[c.refuse]; len(warnings) != want {
			t.Errorf("%v: %d warnings, want %d: %q", c.roles, len(warnings), want, warnings)
		}
	}
}
