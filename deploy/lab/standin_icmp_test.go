package lab

import (
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

// TestStandInPieces sends fragments in odd orders where no balancer judges them:
// the servers' kernels take the good ones and refuse what overlaps.
func TestStandInPieces(t *testing.T) {
	l := standInLab(t, Options{Name: "tpieces", Nodes: 3, IPv6: true, DSR: true})
	who, err := l.strangers(2)
	if err != nil {
		t.Fatal(err)
	}
	var results []peer.PiecesResult
	if err := l.errand(t.Context(), "pieces", peer.PiecesConfig{VIP: vipAddr, VIP6: vip6Addr, Clients: who}, &results); err != nil {
		t.Fatal(err)
	}
	good := 0
	for _, r := range results {
		if r.Answered != r.Wanted && r.Malformed == 0 {
			t.Errorf("%+v", r)
		}
		if r.Wanted {
			good++
		}
	}
	if good != 3*len(who) {
		t.Errorf("%d good cases of %d clients", good, len(who))
	}
}

// TestStandInSeesMisledErrors proves that the drill on path MTU would fail where
// ICMP errors go by their own source: stand-ins send all of one router's to one
// server.
func TestStandInSeesMisledErrors(t *testing.T) {
	l := standInLab(t, Options{Name: "tmisled", Nodes: 3, IPv6: true, DSR: true, ICMP: true, Clients: 4})
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := &drill{l: l, res: Result{Pass: true}, permits: permits{}}
	if err := d.smallOutside(t.Context()); err != nil {
		t.Fatal(err)
	}
	misled, families := 0, map[bool]bool{}
	for _, line := range d.res.Details {
		if strings.Contains(line, "which server") {
			misled++
			families[strings.Contains(line, "2001:db8:c:")] = true
		}
	}
	if d.res.Pass || misled < 4 || len(families) != 2 {
		t.Errorf("%d misled errors seen, in both families %t:\n%s", misled, len(families) == 2, strings.Join(d.res.Details, "\n"))
	}
}
