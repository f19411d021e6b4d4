package model_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// The records of both classes, both families, and servers with DSR.
func TestExplainClasses(t *testing.T) {
	const vip, vip6, client, client6 = "192.0.2.100", "2001:db8:1::100", "203.0.113.7", "2001:db8:c:100:a:b:c:d"
	type records map[table.Class]table.Slot
	for _, c := range []struct {
		name, set, vip, client string
		class                  table.Class
		records                records
		unknown, open, rest    table.Reason
		slots                  [3]table.Slot
		words                  string // Opening's
	}{
		{"unknown", "tls", vip, client, table.TCP, nil, table.ForwardMaglev, table.ForwardMaglev, table.ForwardMaglev,
			[3]table.Slot{1, 1, 1}, "no record; place "},
		{"IKE follows TCP", "tls", vip, client, table.IKE, records{table.TCP: 2},
			table.ForwardOtherClass, table.ForwardOtherClass, table.ForwardOtherClass, [3]table.Slot{2, 2, 2},
			"no record; the record of his other service (TCP) names slot 2, which may take this one too"},
		{"TCP follows IKE", "tls", vip, client, table.TCP, records{table.IKE: 2},
			table.ForwardOtherClass, table.ForwardOtherClass, table.ForwardOtherClass, [3]table.Slot{2, 2, 2},
			"no record; the record of his other service (IKE) names slot 2, which may take this one too"},
		{"the server leaves in this class", "tls", vip, client, table.IKE, records{table.TCP: 4},
			table.ForwardMaglev, table.ForwardMaglev, table.ForwardMaglev, [3]table.Slot{1, 1, 1}, "no record; place "},
		{"his own record first", "tls", vip, client, table.IKE, records{table.IKE: 3, table.TCP: 2},
			table.ForwardOtherClass, table.ForwardAffinity, table.ForwardAffinity, [3]table.Slot{2, 3, 3}, "keeps its clients"},
		{"who leaves goes by Maglev", "tls", vip, client, table.IKE, records{table.IKE: 4, table.TCP: 2},
			table.ForwardOtherClass, table.ForwardReopened, table.ForwardAffinity, [3]table.Slot{2, 1, 4}, "new logins go elsewhere; place "},
		{"every packet of TCP is an opening", "tls", vip, client, table.TCP, records{table.TCP: 3},
			table.ForwardMaglev, table.ForwardReopened, table.ForwardReopened, [3]table.Slot{1, 1, 1}, "new logins go elsewhere; place "},
		{"a void record, and the other class", "tls", vip, client, table.IKE, records{table.IKE: 5, table.TCP: 2},
			table.ForwardOtherClass, table.ForwardOtherClass, table.ForwardOtherClass, [3]table.Slot{2, 2, 2}, "are void; the record of his other service (TCP)"},
		{"TCP does not follow to DSR", "dsr", vip, client, table.TCP, records{table.IKE: 4},
			table.ForwardMaglev, table.ForwardMaglev, table.ForwardMaglev, [3]table.Slot{1, 1, 1}, "no record; place "},
		{"IPv6, by the key of the prefix", "tls", vip6, client6, table.IKE, records{table.IKE: 8},
			table.ForwardMaglev, table.ForwardAffinity, table.ForwardAffinity, [3]table.Slot{7, 8, 8}, "keeps its clients"},
		{"IPv6, the other class", "tls", vip6, client6, table.TCP, records{table.IKE: 8},
			table.ForwardOtherClass, table.ForwardOtherClass, table.ForwardOtherClass, [3]table.Slot{8, 8, 8}, "other service (IKE) names slot 8"},
	} {
		t.Run(c.name, func(t *testing.T) {
			set, err := fixture.Set(c.set)
			if err != nil {
				t.Fatal(err)
			}
			key := netip.MustParseAddr(c.client)
			if key.Is6() {
				p, err := key.Prefix(64)
				if err != nil {
					t.Fatal(err)
				}
				key = p.Addr()
			}
			tables, err := model.FromSet(set, model.Env{Entry: func(k table.Key) (table.Entry, bool) {
				slot := c.records[k.Class]
				return table.Entry{Key: k, Slot: slot, State: table.Confirmed}, slot != 0 && k.Client == key.As16()
			}})
			if err != nil {
				t.Fatal(err)
			}
			x, err := model.Explain(tables, netip.MustParseAddr(c.vip), netip.MustParseAddr(c.client), c.class)
			if err != nil {
				t.Fatal(err)
			}
			if got, want := [3]table.Reason{x.Unknown.Reason, x.Opening.Reason, x.Else.Reason}, [3]table.Reason{c.unknown, c.open, c.rest}; got != want {
				t.Errorf("reasons %v, want %v", got, want)
			}
			if slots := [3]table.Slot{x.Unknown.Slot, x.Opening.Slot, x.Else.Slot}; slots != c.slots {
				t.Errorf("slots %v, want %v", slots, c.slots)
			}
			if !strings.Contains(x.Opening.Words, c.words) {
				t.Errorf("words %q lack %q", x.Opening.Words, c.words)
			}
		})
	}
}
