package lab

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

func TestLedgerFindsWhatIsMissing(t *testing.T) {
	reasons := func() map[string]int64 {
		return map[string]int64{"forward_affinity": 90, "forward_maglev": 5, "drop_malformed": 3, "pass_local_vip": 2, "forward_return": 80, "pass_foreign_mac": 999}
	}
	for _, c := range []struct {
		name   string
		change func(*ledger)
		dsr    bool
		spare  int64
		faults int
	}{
		{name: "all there", change: func(*ledger) {}},
		{name: "lost before the nodes", change: func(g *ledger) { g.toVIP++ }, faults: 1},
		{name: "a dead node took it", change: func(g *ledger) { g.toVIP++ }, spare: 1},
		{name: "counted twice", change: func(g *ledger) { g.reasons["forward_maglev"]++; g.atServers++ }, faults: 1},
		{name: "lost behind the nodes", change: func(g *ledger) { g.atServers-- }, faults: 1},
		{name: "lost in a dead link", change: func(g *ledger) { g.atServers-- }, spare: 1},
		{name: "replies from nowhere", change: func(g *ledger) { g.fromVIP += 3 }, faults: 1},
		{name: "replies lost", change: func(g *ledger) { g.fromVIP -= 3 }, faults: 1},
		{name: "replies past the nodes", change: func(g *ledger) { g.fromVIP += 50 }, dsr: true},
		{name: "a sum that looks unfinished, inwards", change: func(g *ledger) { g.reasons["drop_partial_sum"]++; g.toVIP++ }},
		{name: "a sum that looks unfinished, back", change: func(g *ledger) { g.reasons["drop_partial_sum"]++ }},
		{name: "by the kernel, inwards", change: func(g *ledger) { g.reasons["pass_no_neighbour"]++; g.toVIP++; g.atServers++ }},
		{name: "by the kernel, back", change: func(g *ledger) { g.reasons["pass_no_neighbour"]++; g.fromVIP++ }},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := ledger{toVIP: 100, atServers: 95, fromVIP: 82, reasons: reasons()}
			c.change(&g)
			if got := g.faults(c.dsr, c.spare); len(got) != c.faults {
				t.Errorf("%d faults, want %d: %v", len(got), c.faults, got)
			}
		})
	}
}

func TestCompareTCPTellsWhoMayEnd(t *testing.T) {
	start := time.Unix(1000, 0)
	a, b, c := clientAddr(0), clientAddr(1), clientAddr6(2)
	at := func(server uint16, s int) peer.Session {
		return peer.Session{Server: server, From: start.Add(time.Duration(s) * time.Second)}
	}
	was := func(x netip.Addr, server uint16) peer.TCPClientStats {
		return peer.TCPClientStats{Client: x, Up: true, Sessions: []peer.Session{at(server, -9)}}
	}
	before := peer.TCPClientsStats{Now: start, Clients: []peer.TCPClientStats{was(a, 1), was(b, 2), was(c, 3)}}
	ended := was(a, 1)
	ended.Resets, ended.Lost, ended.Sessions = 1, 4, append(ended.Sessions, at(2, 5))
	stalled := was(b, 2)
	stalled.Stalls = []peer.Window{{From: start.Add(-3 * time.Second), To: start.Add(-2 * time.Second)}, {From: start, To: start.Add(2 * time.Second)}}
	again := was(c, 3)
	again.Resets, again.Sessions = 1, append(again.Sessions, at(3, 5))
	after := peer.TCPClientsStats{Clients: []peer.TCPClientStats{ended, stalled, again}}
	v := compareTCP(before, after, nil)
	if v.resets != 2 || len(v.elsewhere) != 1 || v.elsewhere[0] != a || v.records != 4 || v.stall != 2*time.Second {
		t.Errorf("%+v", v)
	}
	if v := compareTCP(before, after, permits{1: start, 3: start}); v.resets != 0 || v.permitted != 2 || len(v.elsewhere) != 0 {
		t.Errorf("with permits: %+v", v)
	}
}
