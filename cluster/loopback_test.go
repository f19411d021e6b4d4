package cluster

import (
	"context"
	"crypto/ed25519"
	"net"
	"os"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// freePort finds a port that is free for UDP and TCP on the loopback interface.
func freePort(t *testing.T, host string) string {
	t.Helper()
	ln, err := net.Listen("tcp", net.JoinHostPort(host, "0"))
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skipf("no %s here: %v", host, err)
	}
	defer ln.Close()
	pc, err := net.ListenPacket("udp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	return ln.Addr().String()
}

// The library's own UDP and TCP transport, on real sockets of both families.
func TestLoopback(t *testing.T) {
	for _, host := range []string{"127.0.0.1", "::1"} {
		t.Run(host, func(t *testing.T) { onLoopback(t, host) })
	}
}

func onLoopback(t *testing.T, host string) {
	cluster, key := state.NewClusterID(), NewKey()
	speakers := []speaker{newSpeaker(t, cluster), newSpeaker(t, cluster)}
	addrs := []string{freePort(t, host), freePort(t, host)}
	member := func(id state.NodeID) (ed25519.PublicKey, bool) {
		for _, s := range speakers {
			if s.id == id {
				return s.key.Public().(ed25519.PublicKey), true
			}
		}
		return nil, false
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, len(speakers))
	var ms []*Membership
	for i, s := range speakers {
		m, err := New(Config{Cluster: cluster, Node: s.id, Boot: 1, Bind: addrs[i], Keys: [][]byte{key}, Rejoin: 100 * time.Millisecond},
			Deps{Key: s.key, Member: member, Peers: func() []string { return addrs }})
		if err != nil {
			t.Fatal(err)
		}
		ms = append(ms, m)
		go func() { done <- m.Run(ctx) }()
	}
	changed, stop := ms[1].Watch()
	defer stop()
	again := time.NewTicker(100 * time.Millisecond)
	defer again.Stop()
	limit := time.After(20 * time.Second)
	for heard := false; !heard; {
		select {
		case <-changed:
		case <-again.C:
			if err := ms[0].SetObservations([]byte("seen")); err != nil {
				t.Fatal(err)
			}
		case <-limit:
			t.Fatalf("nothing heard; peers: %+v", ms[1].Peers())
		}
		for _, h := range ms[1].Hints() {
			heard = heard || h.Node == speakers[0].id && string(h.Observations) == "seen" && h.Alive
		}
	}
	cancel()
	for range speakers {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}
