package cluster

import (
	"crypto/ed25519"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// pair makes two memberships that talk by bundles alone.
func pair(t *testing.T, boot uint64) (m, peer *Membership, again func(boot uint64) *Membership) {
	t.Helper()
	cluster, key := state.NewClusterID(), NewKey()
	speakers := []speaker{newSpeaker(t, cluster), newSpeaker(t, cluster)}
	member := func(id state.NodeID) (ed25519.PublicKey, bool) {
		for _, s := range speakers {
			if s.id == id {
				return s.key.Public().(ed25519.PublicKey), true
			}
		}
		return nil, false
	}
	start := func(i int, boot uint64) *Membership {
		out, err := New(Config{Cluster: cluster, Node: speakers[i].id, Boot: boot, Bind: "192.0.2.1:7946", Keys: [][]byte{key}},
			Deps{Key: speakers[i].key, Member: member, Peers: func() []string { return nil }})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	return start(0, boot), start(1, 1), func(boot uint64) *Membership { return start(0, boot) }
}

// tell is one contact: m says its status, the peer answers.
func tell(t *testing.T, m, peer *Membership, generation uint64) {
	t.Helper()
	if err := m.SetStatus(NodeStatus{Generation: generation}); err != nil {
		t.Fatal(err)
	}
	answer, err := peer.Answer(m.cfg.Node, m.Bundle())
	if err != nil {
		t.Fatal(err)
	}
	_ = m.Deliver(answer) // the peer may have said nothing of itself yet
}

func heard(peer, m *Membership) uint64 {
	for _, h := range peer.Hints() {
		if h.Node == m.cfg.Node && h.Status != nil {
			return h.Status.Generation
		}
	}
	return 0
}

// The boot counter of a node went back: its peer hands it its own later word, and
// the node goes on above that.
func TestBootThatWentBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, peer, again := pair(t, 70)
		tell(t, m, peer, 7)
		m = again(3)
		tell(t, m, peer, 8)
		if got := heard(peer, m); got != 7 {
			t.Fatalf("the peer believed a lower boot: %d", got)
		}
		tell(t, m, peer, 9)
		if got := heard(peer, m); got != 9 || m.Boot() != 71 {
			t.Errorf("boot %d, and the peer has heard %d", m.Boot(), got)
		}
		tell(t, m, peer, 10)
		if m.Boot() != 71 {
			t.Errorf("boot %d without a new proof", m.Boot())
		}
	})
}

// Two processes with one key do not raise each other's boot without end.
func TestTwoWithOneKeyRaiseSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a, peer, again := pair(t, 5)
		b := again(6)
		for range 40 { // ten seconds of contacts
			tell(t, a, peer, 1)
			tell(t, b, peer, 2)
			time.Sleep(250 * time.Millisecond)
		}
		if top := max(a.Boot(), b.Boot()); top > 6+2*12 {
			t.Errorf("boot %d after ten seconds", top)
		}
	})
}

// A forged reminder raises nothing.
func TestReminderIsVerified(t *testing.T) {
	m, peer, _ := pair(t, 5)
	forged := makeParts(m.cfg.Cluster, m.cfg.Node, peer.deps.Key, kindStatus, order{boot: 900, sequence: 1}, []byte("x"))
	if err := m.Deliver(appendBundle([]byte{bundleVersion}, forged[0], 0)); err == nil || m.Boot() != 5 {
		t.Errorf("boot %d, %v", m.Boot(), err)
	}
}
