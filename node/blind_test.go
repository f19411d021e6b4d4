package node

import (
	"net/netip"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func TestBlindness(t *testing.T) {
	spec := &state.Spec{Backends: []state.Backend{
		{ID: 1, Addr: netip.MustParseAddr("198.51.100.1")},
		{ID: 2, Addr: netip.MustParseAddr("198.51.100.2")},
		{ID: 3, Addr: netip.MustParseAddr("2001:db8::3")},
		{ID: 4, Addr: netip.MustParseAddr("198.51.100.4"), Mode: state.ModeDSR},
	}}
	four, six := netip.MustParseAddr("198.51.100.254"), netip.MustParseAddr("2001:db8::fe")
	b := make(blindness)
	misses := b.misses(spec)
	now := time.Unix(0, 0)
	expect := func(why string, want4, want6 int) {
		t.Helper()
		if n4, n6 := misses(nodeA, four), misses(nodeA, six); n4 != want4 || n6 != want6 {
			t.Errorf("%s: %d and %d, want %d and %d", why, n4, n6, want4, want6)
		}
	}
	expect("nothing said", 0, 0)
	b.note(nodeA, []state.BackendID{1, 3, 4, 9}, now)
	expect("one of each family, one whose replies go elsewhere, one unknown", 1, 1)
	now = now.Add(blindFor / 2)
	b.note(nodeA, []state.BackendID{2}, now)
	expect("another one, the first not long ago", 2, 1)
	now = now.Add(blindFor/2 + 1)
	b.note(nodeA, nil, now)
	expect("the first is over", 1, 0)
	now = now.Add(blindFor)
	b.note(nodeA, nil, now)
	expect("all is over", 0, 0)
	if len(b) != 0 {
		t.Errorf("left behind: %v", b)
	}
}

// A member whose link was cut missed all servers for a while. When it is back it gets
// gateways again at once, and not half a minute later.
func TestBlindnessOfOneThatWasAway(t *testing.T) {
	b, since := make(blindness), make(map[state.NodeID]time.Time)
	now := time.Unix(0, 0)
	fit, all := []state.NodeID{nodeA}, []state.BackendID{1, 2}
	pass := func(fit []state.NodeID, alone ...state.BackendID) int {
		now = now.Add(time.Second)
		b.noteFit(since, fit, map[state.NodeID][]state.BackendID{nodeA: alone}, now)
		return len(b[nodeA])
	}
	for range 10 {
		pass(fit)
	}
	if pass(fit, all...) != 2 {
		t.Error("a fit member's word does not count")
	}
	if pass(fit) != 2 {
		t.Error("it is forgotten at once")
	}
	if pass(nil, all...) != 0 {
		t.Error("a member that is not fit counts as blind")
	}
	if pass(fit, 2) != 1 {
		t.Error("the word of one that is just back does not count")
	}
	if pass(fit) != 0 {
		t.Error("it is remembered while its path comes back")
	}
}

// An owner that alone does not reach a server yields its gateway to one that does,
// keeps it where all miss as many, and gets none back while its path comes and goes.
func TestVirtualBlindOwnerYields(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		followers := others(nodes, leader)
		gateways, of := owners(tw, leader, followers)
		ill, well := followers[0], followers[1]
		server := leader.m.spec().Backends[0].ID
		misses := func(v *vnode, ids ...state.BackendID) {
			if v.m.fit.setAlone(ids) {
				v.m.tellSoon()
			}
		}
		time.Sleep(3 * time.Second)
		misses(ill, server)
		misses(well, server)
		time.Sleep(3 * time.Second)
		if of(gateways[0]) != ill.m.self || of(gateways[1]) != well.m.self {
			t.Fatal("a gateway moved, though its owner misses no more than the others")
		}
		misses(well)
		time.Sleep(blindFor + 3*time.Second)
		moves := 0
		last := of(gateways[0])
		if last != well.m.self {
			t.Error("the gateway is still with the owner that misses a server")
		}
		for i := range 60 { // the path comes and goes
			if i%2 == 0 {
				misses(ill)
			} else {
				misses(ill, server)
			}
			time.Sleep(time.Second)
			if now := of(gateways[0]); now != last {
				moves, last = moves+1, now
			}
		}
		if moves > 0 {
			t.Errorf("%d moves while the path came and went", moves)
		}
	})
}

// The word of a blind owner is told at once, and the gateway moves at once.
func TestVirtualBlindOwnerYieldsSoon(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		followers := others(nodes, leader)
		gateways, of := owners(tw, leader, followers)
		ill, well := followers[0], followers[1]
		time.Sleep(3 * time.Second)
		ill.m.fit.setAlone([]state.BackendID{leader.m.spec().Backends[0].ID})
		ill.m.tellSoon()
		d := tw.eventually(time.Second, "the gateway moves", func() bool { return of(gateways[0]) == well.m.self })
		t.Logf("moved after %v", d)
		if of(gateways[1]) != well.m.self {
			t.Error("the other gateway moved")
		}
	})
}
