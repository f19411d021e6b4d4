package lab

import (
	"maps"
	"net/netip"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/node/admin"
)

func TestAgreedMeansTheSameHash(t *testing.T) {
	one := admin.Status{Index: 7, StateHash: "ab"}
	for _, c := range []struct {
		name  string
		other admin.Status
		want  bool
	}{
		{"equal", one, true},
		{"another index", admin.Status{Index: 8, StateHash: "ab"}, false},
		{"another hash", admin.Status{Index: 7, StateHash: "cd"}, false},
	} {
		if got := agreed(map[string]admin.Status{"n1": one, "n2": c.other}); got != c.want {
			t.Errorf("%s: agreed %t", c.name, got)
		}
	}
	if agreed(nil) || agreed(map[string]admin.Status{"n1": {Index: 7}, "n2": {Index: 7}}) {
		t.Error("who says nothing agrees")
	}
}

func TestRecordsOfADumpAreCompared(t *testing.T) {
	const dump = `meta schema=4 cluster=ab index=9 generation=3 selector=1
backend 3 198.51.100.101 vip=0 ike=take tcp=take dsr=false
backend 4 2001:db8:0:3::102 vip=1 ike=take tcp=none dsr=false
affinity 198.18.16.1 class=ike slot=3 state=confirmed tick=4 heard=true
affinity 198.18.16.1 class=tcp slot=3 state=confirmed tick=4 heard=true
affinity 2001:db8:c:: class=ike slot=4 state=earned_auth tick=4 heard=true
pending_proofs 198.18.16.9 class=1 slot=3 saw=1 level=1 opening=true
`
	a, six := netip.MustParseAddr("198.18.16.1"), netip.MustParseAddr("2001:db8:c::")
	want := map[held]netip.Addr{{a, "ike"}: serverAddr(1), {a, "tcp"}: serverAddr(1), {six, "ike"}: serverAddr6(2)}
	have, err := parseDump([]byte(dump))
	if err != nil || !maps.Equal(have, want) {
		t.Fatalf("%v, %v", have, err)
	}
	if why := differ(want, have); why != "" {
		t.Errorf("equal: %s", why)
	}
	for name, c := range map[string]struct {
		change func(want map[held]netip.Addr)
		why    string
	}{
		"missing":       {func(w map[held]netip.Addr) { w[held{clientAddr(3), "ike"}] = serverAddr(1) }, "1 are missing and 0 name"},
		"another":       {func(w map[held]netip.Addr) { w[held{a, "tcp"}] = serverAddr(2) }, "0 are missing and 1 name"},
		"too many":      {func(w map[held]netip.Addr) { delete(w, held{six, "ike"}) }, "1 are too many"},
		"of no backend": {func(w map[held]netip.Addr) { w[held{a, "ike"}] = netip.Addr{} }, "1 name another"},
	} {
		w := maps.Clone(want)
		c.change(w)
		if why := differ(w, have); !strings.Contains(why, c.why) {
			t.Errorf("%s: %q", name, why)
		}
	}
	if _, err := parseDump([]byte("affinity nobody class=ike slot=3\n")); err == nil {
		t.Error("a line that cannot be read is skipped")
	}
}
