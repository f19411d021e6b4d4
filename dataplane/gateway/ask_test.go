package gateway

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func (s *segment) askedFor(a netip.Addr) []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked[a])
}

// An address elsewhere cannot answer here.
func TestOnlyNeighboursAreAsked(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		outside := netip.MustParseAddr("192.0.2.7")
		outside6 := netip.MustParseAddr("2001:db8:2::7")
		inside6 := netip.MustParseAddr("2001:db8:1::7")
		w.change(func(w *world) {
			w.agreed.Peers = []Peer{{ID: other, Addrs: []netip.Addr{outside, outside6, peerAddr, inside6}, Live: true}}
			w.segment.mu.Lock()
			w.inside = append(w.inside, netip.MustParsePrefix("2001:db8:1::/64"))
			w.segment.mu.Unlock()
		})
		time.Sleep(10 * time.Second)
		for _, a := range []netip.Addr{outside, outside6} {
			if n := len(w.askedFor(a)); n != 0 {
				t.Errorf("%v, not on the segment, was asked for %d times", a, n)
			}
		}
		for _, a := range []netip.Addr{peerAddr, inside6} {
			if len(w.askedFor(a)) == 0 {
				t.Errorf("%v was not asked for", a)
			}
		}
	})
}

// A silent member is asked less and less often, one that answers every 30 s.
func TestSilentMembersAreLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		silent := netip.MustParseAddr("198.51.100.3")
		w.change(func(w *world) {
			w.agreed.Peers = append(w.agreed.Peers, Peer{ID: third, Addrs: []netip.Addr{silent}, Live: true})
		})
		time.Sleep(5 * time.Minute)
		got := w.askedFor(silent)
		want := []time.Duration{0, 2, 6, 14, 30, 60, 90}
		for i, after := range want {
			if d := got[i] - got[0] - after*time.Second; d < 0 || d > time.Second {
				t.Errorf("question %d after %v, want %v s", i, got[i]-got[0], int(after))
			}
		}
		if n := len(got); n > 14 {
			t.Errorf("%d questions in five minutes", n)
		}
		if n := len(w.askedFor(peerAddr)); n > 11 {
			t.Errorf("a member that answers was asked for %d times", n)
		}
	})
}

// A member that was silent for long comes up and answers for a gateway: it is
// asked at once, and known for a member.
func TestLateMemberIsNoStranger(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		late := netip.MustParseAddr("198.51.100.3")
		gw2 := netip.MustParseAddr("198.51.100.253")
		w.change(func(w *world) {
			w.agreed.Peers = append(w.agreed.Peers, Peer{ID: third, Addrs: []netip.Addr{late}, Live: true})
			w.agreed.Gateways = append(w.agreed.Gateways, state.Gateway{ID: 2, Addr: gw2, Owner: third})
		})
		time.Sleep(10*time.Minute + 5*time.Second) // just after a question
		mac := [6]byte{2, 3}
		w.set(late, mac)
		w.set(gw2, mac)
		for range 40 {
			time.Sleep(50 * time.Millisecond)
			synctest.Wait()
			if g := w.keeper.Status().Facts.Gateways[1]; g.Holder == HolderForeign {
				t.Fatalf("taken for a stranger: %+v", g)
			}
		}
		if g := w.keeper.Status().Facts.Gateways[1]; g.Holder != HolderMember {
			t.Errorf("not known after 2 s: %+v", g)
		}
	})
}

// The questions of a node do not become more with the cluster: those of all
// together grow with their number, and not with its square.
func TestQuestionsAreBounded(t *testing.T) {
	for _, members := range []int{4, 16, 64} {
		for _, leader := range []bool{true, false} {
			bubble(t, func(t *testing.T, ctx context.Context) {
				w := start(t, ctx, self)
				w.change(func(w *world) {
					w.leader = leader
					for i := range members {
						id := state.NodeID{9, byte(i)}
						w.agreed.Peers = append(w.agreed.Peers, Peer{ID: id, Live: true, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{198, 51, 100, byte(10 + i)})}})
						g := netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + i)})
						w.agreed.Gateways = append(w.agreed.Gateways, state.Gateway{ID: state.GatewayID(10 + i), Addr: g, Owner: id})
						w.set(g, [6]byte{2, 2})
					}
				})
				time.Sleep(time.Minute)
				before := w.questions()
				time.Sleep(time.Minute)
				perSecond, limit := float64(w.questions()-before)/60, questionRate
				if !leader {
					limit = questionRateUrgent
				}
				t.Logf("%d members, leader %v: %.1f questions per second", members, leader, perSecond)
				if perSecond > limit {
					t.Errorf("%d members, leader %v: %.1f questions per second, more than %v", members, leader, perSecond, limit)
				}
				for _, g := range w.keeper.Status().Facts.Gateways[1:] {
					if g.Holder != HolderMember {
						t.Errorf("%d members, leader %v: %v is not known: %+v", members, leader, g.Addr, g)
					}
				}
			})
		}
	}
}

func (s *segment) questions() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, at := range s.asked {
		n += len(at)
	}
	return n
}

// Questions that went out before the interface had another address prove
// nothing: no claim, before new ones were left open.
func TestOldQuestionsAreTakenBack(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, other)
		w.change(func(w *world) { w.leader = false })
		time.Sleep(800 * time.Millisecond)
		w.wants(t, false, NotFirst)
		w.segment.mu.Lock()
		w.inside = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/25")}
		w.segment.mu.Unlock()
		time.Sleep(400 * time.Millisecond)
		synctest.Wait()
		if g := w.keeper.Status().Facts.Gateways[0]; g.SilentFor > 500*time.Millisecond {
			t.Errorf("silence goes on after the change: %+v", g)
		}
		time.Sleep(5 * time.Second)
		w.wants(t, true, ClaimedNoLeader)
	})
}
