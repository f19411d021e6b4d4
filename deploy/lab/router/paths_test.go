package router

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

var (
	node1 = netip.MustParseAddr("198.51.100.11")
	node2 = netip.MustParseAddr("198.51.100.12")
	vip   = netip.MustParseAddr("203.0.113.10")
)

func TestBestGroup(t *testing.T) {
	a := candidate{next: node1, pref: 100, length: 1}
	b := candidate{next: node2, pref: 100, length: 1}
	longer, preferred, incomplete := b, b, b
	longer.length = 4
	preferred.pref, preferred.length = 200, 9
	incomplete.origin = 2
	tests := []struct {
		name string
		in   []candidate
		want []netip.Addr
	}{
		{"none", nil, nil},
		{"equal paths are used together", []candidate{b, a}, []netip.Addr{node1, node2}},
		{"the same next hop twice", []candidate{a, a}, []netip.Addr{node1}},
		{"shorter AS path", []candidate{longer, a}, []netip.Addr{node1}},
		{"shorter AS path, other order", []candidate{a, longer}, []netip.Addr{node1}},
		{"local preference before length", []candidate{a, preferred}, []netip.Addr{node2}},
		{"lower origin", []candidate{incomplete, a}, []netip.Addr{node1}},
		{"all demoted are used together", []candidate{{node1, 100, 4, 1}, {node2, 100, 4, 1}}, []netip.Addr{node1, node2}},
	}
	for _, tc := range tests {
		if got := bestGroup(tc.in); !slices.Equal(got, tc.want) {
			t.Errorf("%s: got %v, want %v", tc.name, got, tc.want)
		}
	}
}

func TestValidateReportsEveryFault(t *testing.T) {
	c := Config{Nodes: []Node{{}}, VIPs: []netip.Addr{{}}, HoldTime: 1, Port: -1}
	err := c.Validate()
	for _, want := range []string{"router_id", "nodes[0].address", "nodes[0].asn", "vips[0]", "hold_time", "port"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no fault %q in: %v", want, err)
		}
	}
}
