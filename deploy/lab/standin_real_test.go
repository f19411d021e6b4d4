package lab

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
)

func needRealPeers(t *testing.T) {
	t.Helper()
	needRoot(t)
	for _, path := range []string{charonPath, swanctlPath, frrDaemons + "/zebra", frrDaemons + "/bgpd", frrDaemons + "/staticd"} {
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("real peers are not installed: %v", err)
			}
			t.Skipf("real peers are not installed: %v", err)
		}
	}
}

func TestStandInRealPeers(t *testing.T) {
	realPeersServe(t, Options{Name: "treal", Nodes: 2, Servers: 2, Clients: 30, Peers: Real})
}

// TestStandInRealPeersIPv6 has clients of both families, each with both kinds of
// login; those of IPv6 are fragmented and pinged through too.
func TestStandInRealPeersIPv6(t *testing.T) {
	l := realPeersServe(t, Options{Name: "treal6", Nodes: 2, Servers: 2, Clients: 30, Peers: Real, IPv6: true})
	s, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	six := 0
	for a, c := range s.Clients {
		if a.Is6() && c.Up {
			six++
		}
	}
	if six != 7 {
		t.Errorf("%d tunnels over IPv6, want 7", six)
	}
}

func realPeersServe(t *testing.T, o Options) *Lab {
	t.Helper()
	needRealPeers(t)
	l := standInLab(t, o)
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pause(t, 3*time.Second)
	s, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	wantPings(t, l, before, s)
	if sum := s.totals(); sum.Up != 30 || sum.Lost != 0 {
		t.Errorf("totals %+v: want 30 up, none lost", sum)
	}
	for i := range 2 {
		if n := len(s.on(i + 1)); n < 5 {
			t.Errorf("server %d has %d of 30 clients", i+1, n)
		}
	}
	wantFragments(t, l)
	for _, vip := range l.st.Options.vips() {
		if hops, err := l.ecmp(vip); err != nil || len(hops) != 2 {
			t.Errorf("next hops of %s: %v, %v", vip, hops, err)
		}
	}
	return l
}

// wantPings checks that a tunnel of each kind was pinged all the time.
func wantPings(t *testing.T, l *Lab, before, after snapshot) {
	t.Helper()
	kinds := 2 * len(l.st.Options.families())
	if n := len(l.st.Options.pinged()); n != kinds {
		t.Errorf("%d tunnels are pinged, want %d", n, kinds)
	}
	took := after.At.Sub(before.At)
	for _, i := range l.st.Options.pinged() {
		a := l.st.Options.client(i)
		if n := after.Clients[a].Sent - before.Clients[a].Sent; n < int64(took/pingInterval)*9/10 {
			t.Errorf("client %d sent %d pings in %s", i, n, took)
		}
	}
}

// TestStandInRoutersLearn lets speakers in the nodes' namespaces announce the VIPs
// of both families to each kind of router, without nodes.
func TestStandInRoutersLearn(t *testing.T) {
	for _, kind := range []PeerKind{Embedded, Real} {
		t.Run(string(kind), func(t *testing.T) {
			if kind == Real {
				needRealPeers(t)
			}
			l := standInFrame(t, Options{Name: "tlearn", Nodes: 2, Servers: 1, Peers: kind, IPv6: true})
			if err := l.peers.startRouter(t.Context()); err != nil {
				t.Fatal(err)
			}
			for i := range 2 {
				n := nodeName(i + 1)
				if err := l.start("speaker-"+n, n, nil, l.st.Options.Binary, speakerArg, n); err != nil {
					t.Fatal(err)
				}
			}
			if err := l.waitHops(t.Context(), announceBound, nodeName(1), nodeName(2)); err != nil {
				l.showLogs(t)
				t.Fatal(err)
			}
			if err := l.kill(t.Context(), "speaker-"+nodeName(1)); err != nil {
				t.Fatal(err)
			}
			if err := l.waitHops(t.Context(), peerBound, nodeName(2)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

const speakerArg = "lab-test-speaker"

// speak announces both VIPs from a node's addresses until it is told to end.
func speak(node string) error {
	i := index(node)
	cfg := bgp.Config{ASN: uint32(nodeASNBase + i), RouterID: nodeOutside(i)}
	var ads []bgp.Advertisement
	o := Options{IPv6: true}
	for _, f := range o.families() {
		cfg.Neighbours = append(cfg.Neighbours, bgp.Neighbour{Address: f.routerOutside.Addr(), ASN: routerASN, LocalAddress: f.nodeOutside(i)})
		ads = append(ads, bgp.Advertisement{VIP: f.vip, Action: bgp.Announce})
	}
	s, err := bgp.NewGoBGP(cfg, bgp.Deps{})
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	if err := s.Set(ctx, ads); err != nil {
		return fmt.Errorf("announce: %w", err)
	}
	return s.Run(ctx)
}
