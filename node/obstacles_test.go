package node

import (
	"net/netip"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/config"
)

func TestPassages(t *testing.T) {
	var cfg config.Config
	cfg.Dataplane.Outside, cfg.Dataplane.Inside = "eth0", "eth1"
	spec := &state.Spec{
		VIPs: []state.VIP{
			{ID: 1, Name: "vpn", Addr: netip.MustParseAddr("203.0.113.10"), SSTP: state.SSTPOffload},
			{ID: 2, Name: "vpn6", Addr: netip.MustParseAddr("2001:db8::10"), SSTP: state.SSTPPassthrough},
		},
		Backends: []state.Backend{
			{ID: 1, Name: "rras1", VIP: 1, Addr: netip.MustParseAddr("198.51.100.101")},
			{ID: 2, Name: "rras2", VIP: 2, Addr: netip.MustParseAddr("2001:db8:0:3::102")},
		},
	}
	names := func() map[string]int {
		out := map[string]int{}
		for _, p := range passages(&cfg, spec) {
			if p.Source.Is4() != p.Dest.Is4() || p.In == p.Out || p.In == "" {
				t.Errorf("%+v", p)
			}
			out[p.Name]++
		}
		return out
	}
	got := names()
	for _, want := range []string{"SSTP to vpn", "packets of clients to rras1", "replies of rras1", "packets of clients to rras2", "replies of rras2"} {
		if got[want] != 1 {
			t.Errorf("%s: %d times in %v", want, got[want], got)
		}
	}
	if len(got) != 5 {
		t.Errorf("%v", got)
	}
	spec.Gateways = []state.Gateway{{ID: 1}}
	if got := names(); got["own traffic of rras1 (RADIUS, directory)"] != 1 {
		t.Errorf("with a gateway: %v", got)
	}
}
