package lab

import (
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

func TestCompareTellsMovedFromRehomed(t *testing.T) {
	start := time.Unix(1000, 0)
	at := func(s int) time.Time { return start.Add(time.Duration(s) * time.Second) }
	client := clientAddr(0)
	first := session{Server: 1, From: at(-10)}
	for _, c := range []struct {
		name                     string
		after                    []session
		strays                   int64
		permits                  permits
		rehomed, moved, relogins int
	}{
		{name: "nothing happened", after: []session{first}},
		{name: "same server again", after: []session{first, {Server: 1, From: at(5)}}, relogins: 1},
		{name: "another server, no permit", after: []session{first, {Server: 2, From: at(5)}}, rehomed: 1},
		{name: "another server, its own died", after: []session{first, {Server: 2, From: at(5)}}, permits: permits{1: at(1)}, moved: 1},
		{name: "moved before its own died", after: []session{first, {Server: 2, From: at(5)}}, permits: permits{1: at(6)}, rehomed: 1},
		{name: "another one died", after: []session{first, {Server: 2, From: at(5)}}, permits: permits{2: at(1)}, rehomed: 1},
		{name: "there and back", after: []session{first, {Server: 2, From: at(5)}, {Server: 1, From: at(6)}}, rehomed: 1},
		{name: "moved, then on without a permit", after: []session{first, {Server: 2, From: at(5)}, {Server: 3, From: at(6)}}, permits: permits{1: at(1)}, rehomed: 1},
		{name: "one packet on a wrong server", after: []session{first}, strays: 1, rehomed: 1},
		{name: "packets at its restarted server", after: []session{first, {Server: 2, From: at(5)}}, strays: 3, permits: permits{1: at(1)}, moved: 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			before := snapshot{At: start, Clients: map[netip.Addr]clientView{client: {Up: true, Server: 1, Logins: 1, Sessions: []session{first}}}}
			after := snapshot{
				At: at(10), Strays: map[netip.Addr]int64{client: c.strays},
				Clients: map[netip.Addr]clientView{client: {Up: true, Logins: int64(len(c.after)), Sessions: c.after}},
			}
			v := before.compare(after, c.permits)
			if len(v.rehomed) != c.rehomed || len(v.moved) != c.moved || v.relogins != c.relogins {
				t.Errorf("%d re-homed, %d moved, %d logged in again; want %d, %d, %d",
					len(v.rehomed), len(v.moved), v.relogins, c.rehomed, c.moved, c.relogins)
			}
		})
	}
}

func TestCompareCountsLosses(t *testing.T) {
	start := time.Unix(1000, 0)
	a, b := clientAddr(0), clientAddr(1)
	old := window{From: start.Add(-5 * time.Second), To: start.Add(-time.Second), Lost: 9}
	before := snapshot{At: start, Clients: map[netip.Addr]clientView{a: {Server: 1, Lost: 9, Windows: []window{old}}, b: {Server: 2}}}
	after := snapshot{Clients: map[netip.Addr]clientView{
		a: {Server: 1, Lost: 12, Windows: []window{old, {From: start.Add(time.Second), To: start.Add(2 * time.Second), Lost: 3}}},
		b: {Server: 2},
	}}
	v := before.compare(after, nil)
	if v.lost != 3 || v.lostOthers != 3 || len(v.losers) != 1 || v.longest != time.Second {
		t.Errorf("%+v", v)
	}
	// What a client lost counts from the first to the last, whatever came through in between.
	twice := after.Clients[a]
	twice.Windows = append(slices.Clone(twice.Windows), window{From: start.Add(5 * time.Second), To: start.Add(6 * time.Second), Lost: 3})
	after.Clients[a] = twice
	if v := before.compare(after, nil); v.longest != 5*time.Second {
		t.Errorf("two windows, from 1 s to 6 s: %s", v.longest)
	}
	// A client that gave up and logged in again was without service all the time.
	after.Clients[b] = clientView{Server: 2, Logins: 1, Sessions: []session{{Server: 2, From: start.Add(9 * time.Second), Gap: 8 * time.Second, Cause: peer.CauseLoss}}}
	if v := before.compare(after, nil); v.longest != 8*time.Second {
		t.Errorf("longest time without an echo %s, want 8 s", v.longest)
	}
}

func TestClientAddresses(t *testing.T) {
	for _, o := range []Options{{}, {IPv6: true}} {
		var all []netip.Addr
		kinds, six := map[int]int{}, 0
		for i := range maxStrangers {
			a := o.client(i)
			bad := spoofPrefix.Contains(a) || spoofPrefix6.Contains(a) || scatterPrefix.Contains(a)
			if clientIndex(a) != i || !clientPrefix.Contains(a) && !clientPrefix6.Contains(a) || bad || peer.Key(a) != a {
				t.Fatalf("client %d has address %s", i, a)
			}
			if a.Is6() {
				six++
				kinds[i%sixEvery]++
			}
			all = append(all, a)
		}
		slices.SortFunc(all, netip.Addr.Compare)
		if len(slices.Compact(all)) != maxStrangers {
			t.Error("addresses are not distinct")
		}
		if o.IPv6 && (six != maxStrangers/sixEvery || len(kinds) != sixEvery) {
			t.Errorf("%d of %d speak IPv6, kinds %v", six, maxStrangers, kinds)
		}
	}
}

func TestOptionsReportEveryFault(t *testing.T) {
	o, err := Options{}.withDefaults()
	if err != nil || o.Nodes != 3 || o.Servers != 3 || o.Clients != 200 || o.Peers != Embedded {
		t.Errorf("defaults: %+v, %v", o, err)
	}
	_, err = Options{Name: "Not This", Nodes: 9, Spares: 1, Servers: 99, Peers: "toy"}.withDefaults()
	if joined, ok := err.(interface{ Unwrap() []error }); !ok || len(joined.Unwrap()) != 4 {
		t.Errorf("faults: %v", err)
	}
}
