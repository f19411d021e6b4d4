package bgp

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

func TestValidateReportsEveryFault(t *testing.T) {
	c := Config{
		Prepend: 11, HoldUp: -1, ListenAddresses: []netip.Addr{{}},
		Neighbours: []Neighbour{
			{},
			{Address: netip.MustParseAddr("192.0.2.1"), ASN: 1, Port: 70000, HoldTime: 2500 * time.Millisecond, ConnectRetry: time.Millisecond,
				LocalAddress: netip.MustParseAddr("2001:db8::1"), Passive: true, Password: strings.Repeat("x", 81), MultihopTTL: 2, TTLSecurity: true},
			{Address: netip.MustParseAddr("192.0.2.1"), ASN: 1, PasswordFile: "/nowhere", MultihopTTL: 256, NextHop6: netip.MustParseAddr("fe80::1")},
			{Address: netip.MustParseAddr("2001:db8::1"), ASN: 1, NextHop6: netip.MustParseAddr("2001:db8::11")},
		},
		NextHop6: netip.MustParseAddr("192.0.2.11"),
	}
	err := c.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"asn: must not be 0", "router_id:", "prepend: 11", "listen_addresses: given", "listen_addresses[0]",
		"neighbours[0].address", "neighbours[0].asn", "neighbours[1].port", "neighbours[1].hold_time", "neighbours[1].connect_retry",
		"neighbours[1].local_address", "neighbours[1].passive", "neighbours[1].password:", "neighbours[1].multihop_ttl: excludes",
		"neighbours[2].address: 192.0.2.1 appears twice", "neighbours[2].password_file", "neighbours[2].multihop_ttl: 256",
		"next_hop6: 192.0.2.11 is not a global", "neighbours[2].next_hop6: fe80::1 is not a global", "neighbours[3].next_hop6: is for a session of IPv4",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("no fault %q in:\n%s", want, err)
		}
	}
	if strings.Contains(err.Error(), "xxx") {
		t.Error("a password is in the message")
	}
	good := Config{ASN: 65011, RouterID: netip.MustParseAddr("192.0.2.11"),
		Neighbours: []Neighbour{{Address: netip.MustParseAddr("192.0.2.1"), ASN: 64999}}}
	if err := good.Validate(); err != nil {
		t.Errorf("good configuration: %v", err)
	}
	d := good.withDefaults()
	if n := d.Neighbours[0]; n.Port != 179 || n.HoldTime != 3*time.Second || n.ConnectRetry != time.Second || d.ListenPort != -1 || d.Prepend != 3 {
		t.Errorf("defaults %+v", d)
	}
	if good.Neighbours[0].Port != 0 {
		t.Error("withDefaults changed the original")
	}
}
