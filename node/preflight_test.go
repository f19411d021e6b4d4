package node

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/config"
)

func TestPreflight(t *testing.T) {
	self := netip.MustParseAddr("198.51.100.1")
	cfg := &config.Config{
		Cluster:   config.Cluster{Address: netip.AddrPortFrom(self, 7950), Gossip: netip.AddrPortFrom(self, 7946)},
		Dataplane: config.Dataplane{PinDir: "/sys/fs/bpf/vpnlb"},
	}
	mine, other := state.NewClusterID(), state.NewClusterID()
	good := hostFacts{
		own:    []netip.Addr{netip.MustParseAddr("192.0.2.11"), self},
		listen: func(string, string) error { return nil },
		pins:   func() ([16]byte, error) { return [16]byte{}, nil },
	}
	for name, c := range map[string]struct {
		change  func(*hostFacts)
		cluster state.ClusterID
		want    []string // in this order, one for each fault
	}{
		"all well":                {func(*hostFacts) {}, mine, nil},
		"its own pins":            {func(f *hostFacts) { f.pins = func() ([16]byte, error) { return mine, nil } }, mine, nil},
		"pins, cluster not known": {func(f *hostFacts) { f.pins = func() ([16]byte, error) { return other, nil } }, state.ClusterID{}, nil},
		"foreign pins": {func(f *hostFacts) { f.pins = func() ([16]byte, error) { return other, nil } }, mine,
			[]string{"/sys/fs/bpf/vpnlb belongs to cluster " + other.String()}},
		"pins that cannot be read": {func(f *hostFacts) { f.pins = func() ([16]byte, error) { return mine, errors.New("no permission") } }, mine, []string{"no permission"}},
		"address elsewhere": {func(f *hostFacts) { f.own = f.own[:1] }, mine,
			[]string{"cluster.address 198.51.100.1 is on none", "cluster.gossip 198.51.100.1 is on none"}},
		"ports not asked": {func(f *hostFacts) { f.listen = nil }, mine, nil},
		"gossip port taken": {func(f *hostFacts) {
			f.listen = func(network, addr string) error {
				if network == "udp" && addr == "198.51.100.1:7946" {
					return errors.New("address in use")
				}
				return nil
			}
		}, mine, []string{"cluster.gossip: nothing can listen there: address in use"}},
		"several": {func(f *hostFacts) {
			f.own = nil
			f.plane = []error{errors.New("interface in0: not found"), errors.New("not on a bpffs")}
		}, mine, []string{"cluster.address", "cluster.gossip", "in0", "bpffs"}},
	} {
		facts := good
		facts.own = slices.Clone(good.own)
		c.change(&facts)
		got := preflight(cfg, facts, c.cluster)
		ok := len(got) == len(c.want)
		for i := range c.want {
			ok = ok && strings.Contains(got[i], c.want[i])
		}
		if !ok {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
