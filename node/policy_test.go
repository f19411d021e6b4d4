package node

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/sysctl"
	"github.com/vpnlb/vpnlb/node/config"
)

// The forward policy knows servers, VIPs and prefixes of the agreement; without one
// it names the arms alone, which closes the node.
func TestForwardPolicy(t *testing.T) {
	var cfg config.Config
	cfg.Dataplane.Outside, cfg.Dataplane.Inside = "eth0", "eth0"
	if p := forwardPolicy(&cfg, &state.Spec{}); !slices.Equal(p.Outside, []string{"eth0"}) || !slices.Equal(p.Inside, p.Outside) || p.TCP ||
		len(p.Servers)+len(p.VIPs)+len(p.Prefixes) != 0 {
		t.Errorf("nothing agreed: %+v", p)
	}
	vips := []netip.Addr{netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("2001:db8::10")}
	servers := []netip.Addr{netip.MustParseAddr("198.51.100.101"), netip.MustParseAddr("2001:db8:0:3::101")}
	spec := &state.Spec{Settings: state.Settings{ForwardPrefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}}}
	for i := range vips {
		spec.VIPs = append(spec.VIPs, state.VIP{ID: state.VIPID(i + 1), Addr: vips[i]})
		spec.Backends = append(spec.Backends, state.Backend{ID: state.BackendID(i + 1), Addr: servers[i]})
	}
	p := forwardPolicy(&cfg, spec)
	if !slices.Equal(p.VIPs, vips) || !slices.Equal(p.Servers, servers) || !slices.Equal(p.Prefixes, spec.Settings.ForwardPrefixes) || p.TCP {
		t.Errorf("agreed: %+v", p)
	}
	spec.VIPs[1].SSTP = state.SSTPPassthrough
	if p := forwardPolicy(&cfg, spec); !p.TCP {
		t.Error("TCP of a VIP in pass-through is not passed")
	}
}

func TestContestedSettings(t *testing.T) {
	now := time.Now()
	often := sysctl.SetBack{Key: "net.ipv4.conf.eth1.rp_filter", Times: 3, Last: now}
	if err := contested([]sysctl.SetBack{often, {Key: "net.ipv4.conf.all.rp_filter", Times: 2, Last: now}}, now); err == nil ||
		!strings.Contains(err.Error(), often.Key) || strings.Contains(err.Error(), "all") {
		t.Errorf("%v does not name the key that is set back, and it alone", err)
	}
	if err := contested([]sysctl.SetBack{often}, now.Add(contestedFor)); err != nil {
		t.Errorf("long past: %v", err)
	}
}
