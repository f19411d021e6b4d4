package node

import (
	"net/netip"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/node/config"
)

func bgpSection(t *testing.T, section string) *config.Config {
	t.Helper()
	c, faults := config.Parse([]byte("name: n1\ncluster: {address: '198.51.100.1'}\ndataplane: {outside: vpnlb-none0}\nbgp:\n" + section))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return c
}

// Every key of the node file reaches the speaker.
func TestBGPConfig(t *testing.T) {
	addr := netip.MustParseAddr
	c := bgpSection(t, `  asn: 65011
  router_id: 192.0.2.11
  next_hop6: 2001:db8::11
  hold_up: 3s
  prepend: 5
  listen_port: 1179
  neighbours:
    - {address: 192.0.2.1, asn: 64999, hold_time: 9s, local_address: 192.0.2.11, next_hop6: "2001:db8:1::11", port: 2179, passive: true, ttl_security: true}
    - {address: 192.0.2.2, asn: 64998, multihop_ttl: 4}
`)
	c.BGP.Neighbours[0].PasswordFile, c.BGP.Neighbours[0].Password = "/etc/p", "secret"
	got, err := bgpConfig(c)
	want := bgp.Config{
		ASN: 65011, RouterID: addr("192.0.2.11"), NextHop6: addr("2001:db8::11"), HoldUp: 3 * time.Second, Prepend: 5,
		ListenPort: 1179, ListenAddresses: []netip.Addr{addr("192.0.2.11")},
		Neighbours: []bgp.Neighbour{
			{Address: addr("192.0.2.1"), ASN: 64999, HoldTime: 9 * time.Second, LocalAddress: addr("192.0.2.11"), NextHop6: addr("2001:db8:1::11"),
				Port: 2179, Passive: true, TTLSecurity: true, Password: "secret", PasswordFile: "/etc/p"},
			{Address: addr("192.0.2.2"), ASN: 64998, HoldTime: 3 * time.Second, Port: 179, MultihopTTL: 4},
		},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v\nwant %+v", got, err, want)
	}
}

func TestBGPConfigOfTheExample(t *testing.T) {
	data, err := os.ReadFile("../deploy/vpnlb.example.yaml")
	if err != nil {
		t.Fatal(err)
	}
	c, faults := config.Parse(data)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	got, err := bgpConfig(c)
	if err != nil || got.HoldUp != bgp.DefaultHoldUp || got.Prepend != bgp.DefaultPrepend || got.ListenPort != 0 || got.ListenAddresses != nil {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestBGPListensWhereRoutersDial(t *testing.T) {
	const head = "  asn: 65011\n  router_id: 192.0.2.11\n"
	for name, c := range map[string]struct {
		section string
		want    []string
		holdUp  time.Duration
	}{
		"nowhere": {section: "  neighbours: [{address: 192.0.2.1, asn: 64999}]\n", holdUp: time.Second},
		"everywhere, where one session has no address": {section: "  listen_port: 179\n  neighbours:\n" +
			"    - {address: 192.0.2.1, asn: 64999, passive: true, local_address: 192.0.2.11}\n    - {address: 192.0.2.2, asn: 64999, passive: true}\n", holdUp: time.Second},
		"at each address once": {section: "  hold_up: 0s\n  listen_port: 179\n  neighbours:\n" +
			"    - {address: 192.0.2.1, asn: 64999, passive: true, local_address: 192.0.2.11}\n" +
			"    - {address: 192.0.2.2, asn: 64999, passive: true, local_address: 192.0.2.11}\n" +
			"    - {address: 2001:db8::1, asn: 64999, passive: true, local_address: 2001:db8::11}\n" +
			"    - {address: 192.0.2.3, asn: 64999}\n", want: []string{"192.0.2.11", "2001:db8::11"}, holdUp: -1},
	} {
		got, err := bgpConfig(bgpSection(t, head+c.section))
		var at []string
		for _, a := range got.ListenAddresses {
			at = append(at, a.String())
		}
		if err != nil || !slices.Equal(at, c.want) || got.HoldUp != c.holdUp {
			t.Errorf("%s: listens at %v with hold-up %v, %v", name, at, got.HoldUp, err)
		}
	}
}
