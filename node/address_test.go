package node

import (
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

func TestUnicast(t *testing.T) {
	for text, why := range map[string]string{
		"203.0.113.10": "", "2001:db8::10": "",
		"":                    "is no address",
		"vpn.example":         "is no address",
		"203.0.113.0/24":      "is no address",
		"2001:db8::1%eth0":    "has a zone",
		"::ffff:203.0.113.10": "write 203.0.113.10",
		"0.0.0.0":             "unspecified",
		"::":                  "unspecified",
		"127.0.0.1":           "loopback",
		"::1":                 "loopback",
		"224.0.0.1":           "for many",
		"ff02::1":             "for many",
		"255.255.255.255":     "for many",
		"169.254.1.1":         "link-local",
		"fe80::1":             "link-local",
		"240.0.0.1":           "reserved",
		"0.1.2.3":             "reserved",
	} {
		a, err := unicast("the VIP's address", "203.0.113.10", text)
		if why == "" {
			if err != nil || a.String() != text {
				t.Errorf("%q: %v, %v", text, a, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), why) || !strings.HasPrefix(err.Error(), "the VIP's address is a unicast address") {
			t.Errorf("%q: %v, want a sentence with %q", text, err, why)
		}
	}
}

func TestOwnOn(t *testing.T) {
	if v4, v6 := ownOn("vpnlb-none0"); v4.IsValid() || v6.IsValid() {
		t.Errorf("an interface that is not there has %v and %v", v4, v6)
	}
	if v4, v6 := ownOn("lo"); v4.IsLoopback() || v6.IsLoopback() {
		t.Errorf("loopback addresses are nobody's own: %v, %v", v4, v6)
	}
}

// sixes is a cluster with IPv6 VIPs that cut clients at different lengths, and
// one of IPv4.
func sixes(t *testing.T) *rig {
	r := newRig(t)
	put := func(name, addr string, bits uint8, sstp state.SSTPMode) {
		r.do(state.PutVIP{VIP: state.VIP{Name: name, Addr: netip.MustParseAddr(addr), ClientBits: bits, SSTP: sstp}})
		v, _ := r.spec().VIPByName(name)
		server := "2001:db8:1::" + name[1:]
		if v.Addr.Is4() {
			server = "198.51.100.101"
		}
		r.backend("s"+name[1:], server, v.ID)
	}
	put("v48", "2001:db8::48", 48, state.SSTPOff)
	put("v64", "2001:db8::64", 64, state.SSTPPassthrough)
	put("v4", "203.0.113.10", 64, state.SSTPOff)
	return r
}

func (r *rig) record(client, server string, c state.Class) {
	r.t.Helper()
	b, _ := r.spec().BackendByName(server)
	v, _ := r.spec().VIPByID(b.VIP)
	r.do(state.Learn{Records: []state.Learned{{
		Key: state.Key{Client: state.ClientOf(netip.MustParseAddr(client), int(v.ClientBits)), Class: c}, Backend: b.ID, State: state.Confirmed,
	}}})
}

// A client is looked up under the key that each VIP makes of it.
func TestRecordsOf(t *testing.T) {
	r := sixes(t)
	r.record("2001:db8:7:1::9", "s48", state.ClassIKE) // the key of all of 2001:db8:7::/48
	r.record("2001:db8:7:1::9", "s64", state.ClassTCP) // of its /64
	r.record("2001:db8:8::9", "s64", state.ClassIKE)   // a /64 whose bytes are those of a /48
	r.record("198.18.0.1", "s4", state.ClassIKE)
	view := r.m.View()
	for client, want := range map[string]string{
		"2001:db8:7:1::1": "2001:db8:7::/48 s48 ike, 2001:db8:7:1::/64 s64 tcp",
		"2001:db8:7:2::1": "2001:db8:7::/48 s48 ike",
		"2001:db8:7:1::":  "2001:db8:7::/48 s48 ike, 2001:db8:7:1::/64 s64 tcp",
		"2001:db8:8::1":   "2001:db8:8::/64 s64 ike",
		"2001:db8:8:1::1": "", // the record under these bytes is another VIP's
		"2001:db8:9::1":   "",
		"198.18.0.1":      "198.18.0.1 s4 ike",
		"198.18.0.2":      "",
	} {
		var got []string
		for _, a := range recordsOf(view, netip.MustParseAddr(client)) {
			x := (&teller{spec: view.Spec()}).answer(a)
			got = append(got, x.Key+" "+x.Backend+" "+x.Class)
		}
		if text := strings.Join(got, ", "); text != want {
			t.Errorf("%s: %q, want %q", client, text, want)
		}
	}
}

func TestParseClient(t *testing.T) {
	for text, want := range map[string]string{
		"198.18.0.1": "198.18.0.1", "::ffff:198.18.0.1": "198.18.0.1", "2001:db8:7:1::9": "2001:db8:7:1::9", "2001:db8:7:1::/64": "2001:db8:7:1::",
		"2001:db8:7:1::9/64": "", "198.18.0.0/24": "", "fe80::1%eth0": "", "": "", "x": "",
	} {
		a, err := parseClient(text)
		if want == "" != (err != nil) || err == nil && a.String() != want {
			t.Errorf("%q: %v, %v", text, a, err)
		}
	}
}

func TestDialled(t *testing.T) {
	spec := sixes(t).spec()
	for _, c := range []struct{ name, client, want, refusal string }{
		{"", "198.18.0.1", "v4", ""},
		{"v48", "2001:db8:7::1", "v48", ""},
		{"", "2001:db8:7::1", "", "there are 2 VIPs that 2001:db8:7::1 could dial"},
		{"none", "198.18.0.1", "", `no VIP is called "none"`},
	} {
		v, err := dialled(spec, c.name, netip.MustParseAddr(c.client))
		switch {
		case c.refusal != "" && (err == nil || !strings.Contains(err.Error(), c.refusal)):
			t.Errorf("%+v: %v", c, err)
		case c.refusal == "" && (err != nil || v.Name != c.want):
			t.Errorf("%+v: %v, %v", c, v, err)
		}
	}
	if _, err := dialled(newRig(t).spec(), "", netip.MustParseAddr("2001:db8::1")); err == nil || !strings.Contains(err.Error(), "of the family") {
		t.Errorf("without VIPs: %v", err)
	}
	off, _ := spec.VIPByName("v4")
	pass, _ := spec.VIPByName("v64")
	for _, c := range []struct {
		word, refusal string
		vip           *state.VIP
		want          state.Class
	}{
		{"", "", off, state.ClassIKE}, {"ike", "", off, state.ClassIKE}, {"tcp", "", pass, state.ClassTCP},
		{"tcp", "has no SSTP", off, 0}, {"esp", "--class is ike or tcp", pass, 0},
	} {
		got, err := queryClass(httptest.NewRequest("GET", admin.PathExplain+"?class="+c.word, nil), c.vip)
		if got != c.want || (err == nil) != (c.refusal == "") || err != nil && !strings.Contains(err.Error(), c.refusal) {
			t.Errorf("%q: %v, %v", c.word, got, err)
		}
	}
}

func TestHasIPv6(t *testing.T) {
	r := newRig(t)
	r.vip("v4", "203.0.113.10")
	if hasIPv6(r.spec()) {
		t.Error("a cluster of IPv4 has IPv6")
	}
	r.do(state.PutGateway{Addr: netip.MustParseAddr("2001:db8:1::251")})
	if !hasIPv6(r.spec()) || !hasIPv6(sixes(t).spec()) {
		t.Error("an IPv6 gateway or VIP is no IPv6")
	}
}

func TestCheckBits(t *testing.T) {
	r := sixes(t)
	vip := func(name string, bits uint8) (*state.VIP, *state.VIP) {
		old, _ := r.spec().VIPByName(name)
		anew := *old
		anew.ClientBits = bits
		return old, &anew
	}
	check := func(name string, bits uint8, want string) {
		t.Helper()
		old, anew := vip(name, bits)
		err := checkBits(r.spec(), old, anew)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s %d: %v, want %q", name, bits, err, want)
		}
	}
	check("v4", 64, "is for IPv6")
	check("v48", 31, "32 to 128")
	check("v48", 129, "32 to 128")
	check("v48", 56, "")
	r.record("2001:db8:7:1::9", "s48", state.ClassIKE)
	check("v48", 48, "")
	check("v48", 56, "1 records are kept so")
}

// What a member of an older version does not know is not proposed.
func TestUnderstood(t *testing.T) {
	r := newRig(t)
	r.do(state.AddToken{Hash: [32]byte{1}, Life: 10 * 60e9})
	older := memberOf(nodeB, "b", "198.51.100.2")
	older.Format = 1
	r.do(state.AdmitMember{Token: [32]byte{1}, Member: older})
	dsr := state.PutBackend{Backend: state.Backend{Mode: state.ModeDSR}}
	if err := understood(r.spec(), dsr); err == nil || !strings.Contains(err.Error(), "node b runs a version") {
		t.Errorf("a command of format 2: %v", err)
	}
	if err := understood(r.spec(), state.Tick{}); err != nil {
		t.Errorf("a command of format 1: %v", err)
	}
	older.Format = 2
	r.do(state.UpdateMember{Member: older})
	if err := understood(r.spec(), dsr); err != nil {
		t.Errorf("after the upgrade: %v", err)
	}
}
