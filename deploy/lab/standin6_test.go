package lab

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

// TestStandInIPv6 is the dual-stack lab, TCP included, with DSR servers, and
// nothing happening: clients of both families keep one server each, also those that change their
// address within their /64, and logins travel in IPv6 fragments.
func TestStandInIPv6(t *testing.T) {
	l := standInLab(t, Options{Name: "tsix", Nodes: 3, Clients: 64, IPv6: true, Passthrough: true, DSR: true})
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tcpBefore, err := l.tcpSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pause(t, 9*time.Second) // two changes of address
	after, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := after.totals()
	if sum.Up != 64 || sum.Lost != 0 || len(after.Strays) != 0 {
		t.Errorf("totals %+v, strays %v: want 64 up, none lost, no strays", sum, after.Strays)
	}
	if v := before.compare(after, nil); len(v.rehomed)+len(v.moved)+v.relogins != 0 {
		t.Errorf("%+v", v)
	}
	six, servers := 0, map[int]bool{}
	for a, c := range after.Clients {
		if a.Is6() {
			six++
			servers[c.Server] = true
			if c.Sent < 80 {
				t.Errorf("%s sent %d packets", a, c.Sent)
			}
		}
	}
	if six != 16 || len(servers) != 3 {
		t.Errorf("%d of 64 clients speak IPv6, on %d servers", six, len(servers))
	}
	var cs peer.ClientsStats
	if err := peer.Ask(t.Context(), l.path(clientsName+".sock"), "/stats", nil, &cs); err != nil {
		t.Fatal(err)
	}
	moves := int64(0)
	for _, c := range cs.Clients {
		moves += c.Moves
	}
	if moves < 16 {
		t.Errorf("%d changes of address, want two of each of 8 clients", moves)
	}
	tcpAfter, err := l.tcpSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := compareTCP(tcpBefore, tcpAfter, nil)
	if len(tcpAfter.Clients) != 16 || v.resets != 0 || len(v.elsewhere) != 0 || v.stall > 2*time.Second {
		t.Errorf("%d connections: %+v", len(tcpAfter.Clients), v)
	}
	for _, c := range tcpAfter.Clients {
		if c.Echoed < 80 || c.Sent-c.Echoed > 1 || int(c.Sessions[0].Server) != after.Clients[c.Client].Server {
			t.Errorf("%s: %d sent, %d echoed, server %d, by IKE %d", c.Client, c.Sent, c.Echoed, c.Sessions[0].Server, after.Clients[c.Client].Server)
		}
	}
	wantFragments(t, l)
}

func TestStandInIPv6SeesWhoIsRehomed(t *testing.T) {
	l := standInLab(t, Options{Name: "tsixhome", Nodes: 2, Clients: 64, LossAfter: time.Second, IPv6: true, Passthrough: true, DSR: true})
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tcpBefore, err := l.tcpSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 {
		if err := l.standIn(nodeName(i+1), 2); err != nil {
			t.Fatal(err)
		}
	}
	pause(t, 2500*time.Millisecond)
	if err := l.allServed(t.Context(), loginBound); err != nil {
		t.Fatal(err)
	}
	if err := l.tcpServed(t.Context(), loginBound); err != nil {
		t.Fatal(err)
	}
	after, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changed, rehomed := 0, map[netip.Addr]bool{}
	v := before.compare(after, nil)
	for _, a := range v.rehomed {
		rehomed[a] = true
	}
	for a, c := range after.Clients {
		if a.Is6() && c.Server != before.Clients[a].Server {
			changed++
			if !rehomed[a] {
				t.Errorf("%s changed its server unseen", a)
			}
		}
	}
	if changed < 4 {
		t.Errorf("%d of 16 IPv6 clients changed their server", changed)
	}
	tcpAfter, err := l.tcpSnapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := compareTCP(tcpBefore, tcpAfter, nil)
	if w.resets < 4 || w.resets != len(w.elsewhere) {
		t.Errorf("TCP: %+v: every connection that ended should be elsewhere now", w)
	}
	permits := permits{1: before.At, 2: before.At, 3: before.At}
	if p := compareTCP(tcpBefore, tcpAfter, permits); p.resets != 0 || p.permitted != w.resets {
		t.Errorf("TCP with permits: %+v", p)
	}
}
