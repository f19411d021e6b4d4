package node

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

func TestExplainOddClients(t *testing.T) {
	r := newRig(t)
	vip := r.vip("vpn", "203.0.113.10")
	r.backend("r1", "198.51.100.101", vip)
	r.do(state.PutGateway{Addr: netip.MustParseAddr("198.51.100.251")})
	settings := r.spec().Settings
	expect := settings.Version
	settings.InsidePrefixes = []netip.Prefix{netip.MustParsePrefix("198.18.9.0/24")}
	r.do(state.SetSettings{Settings: settings, Expect: expect})
	for client, want := range map[string]string{
		"198.18.0.1": "", "203.0.113.10": "is VIP vpn", "198.51.100.251": "is a gateway", "198.51.100.1": "is node a", "198.18.9.7": "is in 198.18.9.0/24 of inside_prefixes",
	} {
		a := netip.MustParseAddr(client)
		if _, is := hairpin(r.spec(), a); is {
			t.Errorf("%s is taken for a server", client)
		}
		if got := noReplies(r.spec(), a); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s: %q, want %q", client, got, want)
		}
	}
	cases, is := hairpin(r.spec(), netip.MustParseAddr("198.51.100.101"))
	if !is || len(cases) != 1 || cases[0].Reason != table.DropHairpin.String() || cases[0].Backend != "" {
		t.Errorf("a server: %+v", cases)
	}
}

func TestExplainLimits(t *testing.T) {
	r := newRig(t)
	b := r.backend("r1", "198.51.100.101", r.vip("vpn", "203.0.113.10"))
	r.verdict("r1", state.VerdictUp)
	r.do(state.SetBackendAdmin{ID: b.ID, Admin: state.AdminDrain})
	entry := &table.Entry{Slot: table.Slot(b.Slot)}
	for what, c := range map[string]struct {
		x    model.Explanation
		want []string
	}{
		"no record":   {model.Explanation{Class: table.IKE}, []string{"without a record: a client that has a tunnel came from another address (it roamed, or its carrier"}},
		"no TCP":      {model.Explanation{Class: table.TCP}, nil},
		"well":        {model.Explanation{Class: table.IKE, Record: entry, RecordStance: table.Take}, nil},
		"it drains":   {model.Explanation{Class: table.IKE, Record: entry, RecordStance: table.Keep}, []string{"r1 takes no new clients (drain), and keeps this one: where many users share the address it stays busy"}},
		"it goes off": {model.Explanation{Class: table.IKE, Record: entry, RecordStance: table.Leave}, []string{"users behind this address share the record"}},
	} {
		said(limitNotes(r.spec(), &c.x)).check(t, what, c.want...)
	}
}
