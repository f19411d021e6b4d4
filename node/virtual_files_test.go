package node

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

// identityFile is the path of a file of a node's identity.
func (v *vnode) identityFile(name string) string { return filepath.Join(v.identityDir(), name) }

func (v *vnode) writeIdentity(name, text string) {
	v.town.t.Helper()
	if err := os.WriteFile(v.identityFile(name), []byte(text), 0o600); err != nil {
		v.town.t.Fatal(err)
	}
}

func (v *vnode) readIdentity(name string) string {
	v.town.t.Helper()
	b, err := os.ReadFile(v.identityFile(name))
	if err != nil {
		v.town.t.Fatal(err)
	}
	return string(b)
}

// warned is what status of this node says is wrong.
func (v *vnode) warned() string {
	var out []string
	add := func(format string, args ...any) { out = append(out, format) }
	v.m.identityWarnings(add)
	return strings.Join(out, "\n")
}

// heardBy reports whether other nodes have a fresh word of v.
func (v *vnode) heardBy(nodes ...*vnode) bool {
	for _, o := range nodes {
		heard := false
		for _, h := range o.m.hints() {
			heard = heard || h.Node == v.m.self && h.Status.CaughtUp
		}
		if !heard {
			return false
		}
	}
	return true
}

// changes reports an error where an administrator's change of tables is refused.
func (tw *town) changes(v *vnode, admin state.AdminState) error {
	ctx, cancel := context.WithTimeout(tw.t.Context(), proposeTimeout)
	defer cancel()
	_, err := v.m.proposeChange(ctx, state.SetBackendAdmin{ID: 1, Admin: admin})
	return err
}

// wellFrom makes every node forget that its neighbours call themselves unwell: they
// have no XDP here.
func wellFrom(nodes ...*vnode) {
	for _, v := range nodes {
		v.m.unwell.mu.Lock()
		clear(v.m.unwell.since)
		v.m.unwell.mu.Unlock()
	}
}

// The boot file is gone, or its number lower than what the others remember, also
// where the clock is no help: the node is heard, and changes go on.
func TestVirtualBootWentBack(t *testing.T) {
	for _, how := range []string{"gone", "empty", "flipped", "lower", "lower than the clock"} {
		t.Run(how, func(t *testing.T) {
			inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
				leader := tw.leader(nodes...)
				v := others(nodes, leader)[0]
				v.halt()
				switch how {
				case "gone":
					os.Remove(v.identityFile("boot"))
				case "empty":
					v.writeIdentity("boot", "")
				case "flipped":
					v.writeIdentity("boot", "94:684801\n")
				case "lower":
					v.writeIdentity("boot", "1\n")
				default:
					v.writeIdentity("boot", "5000000000\n") // a start that the others hear of
					v.power()
					tw.eventually(20*time.Second, "be heard", func() bool { return v.m.caughtUp.Load() && v.heardBy(others(nodes, v)...) })
					v.halt()
					v.writeIdentity("boot", "1\n")
				}
				v.power()
				tw.eventually(30*time.Second, "be heard", func() bool { return v.m.caughtUp.Load() && v.heardBy(others(nodes, v)...) })
				tw.agree(nodes...)
				wellFrom(nodes...)
				if err := tw.changes(tw.leader(nodes...), state.AdminDrain); err != nil {
					t.Errorf("a change: %v", err)
				}
				if got := v.m.ids.Identity().Boot; got < uint64(time.Now().Add(-time.Hour).Unix()) {
					t.Errorf("boot %d", got)
				}
			})
		})
	}
}

// A member that answers calls and says nothing of itself holds changes up for a
// while only, and status names it.
func TestVirtualMuteMemberHoldsNobodyUp(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		mute := others(nodes, leader)[0]
		g := mute.m.gossip.Swap(nil) // as where its status goroutine hangs
		defer mute.m.gossip.Store(g)
		time.Sleep(5 * time.Second)
		wellFrom(nodes...)
		leader.propose(state.SetBackendAdmin{ID: 1, Admin: state.AdminOffline}) // does not wait
		tw.agree(others(nodes, mute)...)
		began := time.Now()
		tw.eventually(time.Minute, "change again", func() bool { return tw.changes(leader, state.AdminEnabled) == nil })
		t.Logf("changed after %v", time.Since(began))
		var said []string
		memberWarnings(leader.m.memberList(), 3, 3, func(format string, args ...any) { said = append(said, format) })
		if !strings.Contains(strings.Join(said, "\n"), "has said nothing of itself") {
			t.Errorf("status says %q", said)
		}
	})
}

// One digit of the cluster secret is wrong, on a follower and on the leader: the
// node is heard, says what is wrong, leads nothing, and takes the secret from a
// member.
func TestVirtualWrongSecret(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		for _, leads := range []bool{false, true} {
			leader := tw.leader(nodes...)
			v := leader
			if !leads {
				v = others(nodes, leader)[0]
			}
			rest := others(nodes, v)
			good := v.readIdentity("cluster.secret")
			v.halt()
			bad := []byte(good)
			if bad[7]++; bad[7] == 'g' || bad[7] == '9'+1 {
				bad[7] = '0'
			}
			v.writeIdentity("cluster.secret", string(bad))
			for _, o := range rest { // older members, which give none
				o.m.secretProved.Store(false)
			}
			v.power()
			tw.eventually(20*time.Second, "say what is wrong", func() bool {
				return strings.Contains(v.m.secretFault.get(), "does not open what the cluster has sealed")
			})
			tw.eventually(20*time.Second, "be heard all the same", func() bool { return v.m.caughtUp.Load() && v.heardBy(rest...) })
			if !v.m.unfit() || v.warned() == "" {
				t.Errorf("unfit %v, status %q", v.m.unfit(), v.warned())
			}
			if _, err := v.m.seal("x", nil); err == nil {
				t.Error("it sealed with a secret that nobody has")
			}
			tw.leader(nodes...)
			if !leads { // it is the one that can win now
				for _, o := range rest {
					tw.isolate(o)
				}
				tw.eventually(20*time.Second, "no leader", func() bool { return v.m.quorumLost() > 0 })
				for _, o := range rest {
					tw.rejoin(o)
				}
				tw.leader(nodes...)
			}
			tw.eventually(20*time.Second, "lead nothing", func() bool { return tw.leader(nodes...) != v })
			wellFrom(nodes...)
			if err := tw.changes(rest[0], state.AdminDrain); err != nil {
				t.Errorf("a change: %v", err)
			}
			for _, o := range rest {
				o.m.secretProved.Store(true)
			}
			tw.eventually(20*time.Second, "take the secret", func() bool { return v.m.secretFault.get() == "" && v.gossips() })
			if got := v.readIdentity("cluster.secret"); got != good || v.m.unfit() {
				t.Errorf("secret %q, unfit %v", got, v.m.unfit())
			}
			if err := tw.changes(rest[0], state.AdminEnabled); err != nil {
				t.Errorf("a change: %v", err)
			}
		}
	})
}

func (v *vnode) gossips() bool {
	g := v.m.gossip.Load()
	return g != nil && g.Running()
}

// The secret is given to a member only, and only by a node that has proved it.
func TestVirtualSecretIsForMembers(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		a, b := nodes[0], nodes[1]
		got, err := a.m.askSecret(t.Context(), a.m.spec(), memberNamed(a, b.cfg.Name))
		if err != nil || !bytes.Equal(got[:], secretOf(a)) {
			t.Errorf("a member was refused: %v", err)
		}
		b.m.secretProved.Store(false)
		if _, err := a.m.askSecret(t.Context(), a.m.spec(), memberNamed(a, b.cfg.Name)); err == nil || !strings.Contains(err.Error(), "not proved") {
			t.Errorf("a secret that is not proved: %v", err)
		}
		b.m.secretProved.Store(true)
		if _, err := nodes[2].m.removeMember(t.Context(), admin.RemoveRequest{Node: a.cfg.Name, Force: true}); err != nil {
			t.Fatal(err)
		}
		tw.eventually(10*time.Second, "the removal", func() bool { return len(b.m.spec().Members) == 2 })
		if _, err := a.m.askSecret(t.Context(), a.m.spec(), memberNamed(a, b.cfg.Name)); err == nil {
			t.Error("a removed node was given the secret")
		}
	})
}

func memberNamed(v *vnode, name string) *state.Member {
	o, _ := v.m.spec().MemberByName(name)
	return o
}

func secretOf(v *vnode) []byte {
	s := v.m.ids.Identity().Secret
	return s[:]
}
