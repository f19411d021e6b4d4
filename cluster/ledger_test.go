package cluster

import (
	"bytes"
	"crypto/ed25519"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// speaker signs hints as one member would.
type speaker struct {
	cluster state.ClusterID
	id      state.NodeID
	key     ed25519.PrivateKey
}

func newSpeaker(t *testing.T, cluster state.ClusterID) speaker {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return speaker{cluster, state.NewNodeID(), key}
}

func (s speaker) says(boot, sequence uint64, payload []byte) [][]byte {
	return makeParts(s.cluster, s.id, s.key, kindObservations, order{boot, sequence}, payload)
}

func newTestLedger(t *testing.T, members ...speaker) *ledger {
	t.Helper()
	return newLedger(Config{Cluster: members[0].cluster, Node: state.NewNodeID()}, Deps{
		Member: func(id state.NodeID) (ed25519.PublicKey, bool) {
			for _, m := range members {
				if m.id == id {
					return m.key.Public().(ed25519.PublicKey), true
				}
			}
			return nil, false
		},
	})
}

func TestLedgerJudges(t *testing.T) {
	cluster := state.NewClusterID()
	a, stranger := newSpeaker(t, cluster), newSpeaker(t, cluster)
	abroad := newSpeaker(t, state.NewClusterID())
	l := newTestLedger(t, a, abroad)
	impostor := stranger
	impostor.id = a.id
	abroad.id = a.id
	flipped := slices.Clone(a.says(2, 5, []byte("x"))[0])
	flipped[len(flipped)-1] ^= 1
	abroad.key = a.key
	for _, tc := range []struct {
		name string
		raw  []byte
		want verdict
	}{
		{"first", a.says(2, 5, []byte("first"))[0], partFresh},
		{"replayed", a.says(2, 5, []byte("first"))[0], partStale},
		{"older sequence", a.says(2, 4, []byte("old"))[0], partStale},
		{"older boot, higher sequence", a.says(1, 900, []byte("old"))[0], partStale},
		{"newer sequence", a.says(2, 6, []byte("second"))[0], partFresh},
		{"newer boot", a.says(3, 1, []byte("third"))[0], partFresh},
		{"unknown node", stranger.says(9, 9, nil)[0], partStranger},
		{"another's key", impostor.says(9, 9, nil)[0], partForged},
		{"another cluster", abroad.says(9, 9, nil)[0], partForged},
		{"changed bit", flipped, partStale},
		{"sequence 0", a.says(4, 0, nil)[0], partMalformed},
		{"empty", nil, partMalformed},
		{"short", []byte{1, 1}, partMalformed},
	} {
		if _, got := l.receive(tc.raw, 0, order{}); got != tc.want {
			t.Errorf("%s: %s, want %s", tc.name, got, tc.want)
		}
	}
	h := l.hints(func(state.NodeID) bool { return true })
	if len(h) != 1 || string(h[0].Observations) != "third" {
		t.Errorf("hints: %+v", h)
	}
}

func TestOwnHintsAndClones(t *testing.T) {
	me := newSpeaker(t, state.NewClusterID())
	l := newTestLedger(t, me)
	l.self = me.id
	if _, v := l.receive(me.says(3, 10, nil)[0], 0, order{3, 10}); v != partOwn {
		t.Errorf("own hint: %s", v)
	}
	if _, v := l.receive(me.says(3, 11, nil)[0], 0, order{3, 10}); v != partClone {
		t.Errorf("clone: %s", v)
	}
	if len(l.hints(func(state.NodeID) bool { return false })) != 0 {
		t.Error("a clone's hint was kept as our own")
	}
}

// Parts may come in any order, twice, mixed with those of other hints.
func TestAssembly(t *testing.T) {
	a := newSpeaker(t, state.NewClusterID())
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		l := newTestLedger(t, a)
		old, next := bytes.Repeat([]byte{1}, 1+rnd.IntN(MaxPayload)), bytes.Repeat([]byte{2}, 1+rnd.IntN(MaxPayload))
		parts := append(a.says(1, 1, old), a.says(1, 2, next)...)
		parts = append(parts, parts...)
		rnd.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
		for _, p := range parts {
			l.receive(p, 0, order{})
		}
		h := l.hints(func(state.NodeID) bool { return true })
		if len(h) != 1 || !bytes.Equal(h[0].Observations, next) {
			t.Fatalf("after all parts of %d and %d bytes: %+v", len(old), len(next), h)
		}
	}
	l := newTestLedger(t, a)
	parts := a.says(1, 1, make([]byte, 3*maxPart))
	l.receive(parts[0], 0, order{})
	l.receive(parts[2], 0, order{})
	if h := l.hints(func(state.NodeID) bool { return true }); h[0].Observations != nil {
		t.Error("an incomplete hint is shown")
	}
}

func TestAgeIsTheReceivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newSpeaker(t, state.NewClusterID())
		l := newTestLedger(t, a)
		age := func() time.Duration { return l.hints(func(state.NodeID) bool { return true })[0].ObservationsAge }
		l.receive(a.says(1, 1, []byte("x"))[0], 2*time.Second, order{})
		time.Sleep(time.Second)
		if age() != 3*time.Second {
			t.Errorf("age %v, want 3 s", age())
		}
		l.receive(a.says(1, 1, []byte("x"))[0], 0, order{}) // a replay makes nothing younger
		if age() != 3*time.Second {
			t.Errorf("age %v after a replay, want 3 s", age())
		}
		// The age travels on.
		l2 := newTestLedger(t, a)
		if err := readBundle(l.bundle(true), func(raw []byte, age time.Duration) { l2.receive(raw, age, order{}) }); err != nil {
			t.Fatal(err)
		}
		if got := l2.hints(func(state.NodeID) bool { return true })[0].ObservationsAge; got != 3*time.Second {
			t.Errorf("age %v at the next node, want 3 s", got)
		}
		// What is old is not passed on.
		time.Sleep(worthPassingOn)
		if n := len(l.bundle(true)); n != 1 {
			t.Errorf("an old hint is still passed on: %d bytes", n)
		}
	})
}

func TestBundleIsBounded(t *testing.T) {
	cluster := state.NewClusterID()
	var members []speaker
	for range state.MaxMembers {
		members = append(members, newSpeaker(t, cluster))
	}
	l := newTestLedger(t, members...)
	l.self = members[0].id
	for _, m := range members {
		for _, p := range m.says(1, 1, make([]byte, MaxPayload)) {
			l.receive(p, 0, order{})
		}
	}
	own := members[0].says(1, 2, make([]byte, MaxPayload))
	l.put(kindObservations, order{1, 2}, make([]byte, MaxPayload), own, nil)
	b := l.bundle(true)
	if len(b) > MaxBundle {
		t.Errorf("bundle of %d bytes", len(b))
	}
	if !bytes.Contains(b, own[0]) {
		t.Error("our own hints had no room")
	}
	if len(l.bundle(false)) > 2*(MaxPayload+maxParts*(maxHint-maxPart+8)) {
		t.Errorf("own bundle of %d bytes", len(l.bundle(false)))
	}
}

// A node that is removed disappears with all it said.
func TestRemovedMemberIsForgotten(t *testing.T) {
	a := newSpeaker(t, state.NewClusterID())
	l := newTestLedger(t, a)
	l.receive(a.says(1, 1, []byte("x"))[0], 0, order{})
	l.member = func(state.NodeID) (ed25519.PublicKey, bool) { return nil, false }
	if h := l.hints(func(state.NodeID) bool { return true }); len(h) != 0 || len(l.records) != 0 {
		t.Errorf("still there: %+v", h)
	}
}
