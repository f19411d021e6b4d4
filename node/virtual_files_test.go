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

// damage does to a file of a halted node's identity what happens to files; other is
// the node whose file a foreign one is.
func (v *vnode) damage(name, how string, other *vnode) {
	v.town.t.Helper()
	text := v.readIdentity(name)
	switch how {
	case "missing":
		if err := os.Remove(v.identityFile(name)); err != nil {
			v.town.t.Fatal(err)
		}
	case "empty":
		v.writeIdentity(name, "")
	case "torn":
		v.writeIdentity(name, text[:len(text)/2])
	case "flipped":
		b := []byte(text)
		b[len(b)/2] ^= 0x80
		v.writeIdentity(name, string(b))
	case "foreign":
		v.writeIdentity(name, other.readIdentity(name))
	}
}

// Each file of the identity, and what happens to files. No damage ends the process:
// the node comes back as it was, or waits with a sentence, and goes on when the
// file is put back. Changes of the others go on meanwhile.
func TestVirtualDamagedFiles(t *testing.T) {
	const heals, waits = true, false
	want := map[string]bool{
		"node-id": heals, "ca.crt": heals, "cluster.secret": heals, "boot": heals, "peers.json": heals, "members.json": heals, "last-good": heals,
		"node.key": waits, "node.crt": waits,
	}
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		v := others(nodes, leader)[0]
		rest := others(nodes, v)
		drain := map[bool]state.AdminState{true: state.AdminDrain, false: state.AdminEnabled}
		round := 0
		for name, heals := range want {
			for _, how := range []string{"missing", "empty", "torn", "flipped", "foreign"} {
				if v.m != nil {
					v.halt()
				}
				round++
				if name == "members.json" { // nothing writes it again
					v.writeIdentity(name, `{"node":"`+v.m.self.String()+`","index":1,"members":[]}`)
					rest[0].writeIdentity(name, `{"node":"`+rest[0].m.self.String()+`","index":1,"members":[]}`)
				}
				good := v.readIdentity(name)
				v.damage(name, how, rest[0])
				v.fresh()
				if !heals {
					err := v.tryIdentity()
					if err == nil || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "cluster leave --force") {
						t.Fatalf("%s %s: %v", name, how, err)
					}
					wellFrom(rest...)
					if err := tw.changes(tw.leader(rest...), drain[round%2 == 0]); err != nil {
						t.Fatalf("%s %s: a change of the others: %v", name, how, err)
					}
					v.writeIdentity(name, good)
				}
				if err := v.tryIdentity(); err != nil {
					t.Fatalf("%s %s: %v", name, how, err)
				}
				v.start(admission{})
				tw.eventually(40*time.Second, name+" "+how+": be heard", func() bool { return v.m.caughtUp.Load() && v.heardBy(rest...) && v.gossips() })
				tw.eventually(10*time.Second, name+" "+how+": heal", func() bool {
					id := v.m.ids.Identity()
					return len(id.Roots()) == 1 && bytes.Equal(secretOf(v), secretOf(leader))
				})
				if v.m.self != v.m.ids.Identity().Node || v.warned() != "" {
					t.Fatalf("%s %s: status %q", name, how, v.warned())
				}
				wellFrom(rest...)
				if err := tw.changes(tw.leader(nodes...), drain[round%2 == 1]); err != nil {
					t.Fatalf("%s %s: a change: %v", name, how, err)
				}
				time.Sleep(6 * time.Second) // what it knows of its peers is written again
			}
		}
		tw.agree(nodes...)
	})
}

// An identity folder comes back from a backup: of before the node was replaced, and
// of another node. The first is replaced again; the second does not start.
func TestVirtualRestoredIdentity(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		v := others(nodes, tw.leader(nodes...))[0]
		rest := others(nodes, v)
		time.Sleep(6 * time.Second) // what it knows of its peers is written
		v.halt()
		backup := v.disk("identity")
		v.power()
		tw.eventually(20*time.Second, "run", func() bool { return v.m.caughtUp.Load() })
		time.Sleep(time.Minute)
		v.halt()
		v.put(backup, "identity") // the same node, some starts ago
		v.power()
		tw.eventually(20*time.Second, "be heard", func() bool { return v.m.caughtUp.Load() && v.heardBy(rest...) })
		v.halt()
		v.put("", "raft") // it loses its store, and gets a new ID
		v.power()
		v.ends(20*time.Second, errRejoin)
		v.again()
		tw.eventually(40*time.Second, "vote under the new ID", func() bool { return v.m.caughtUp.Load() && v.m.replica.Status().Voter })
		time.Sleep(6 * time.Second)
		old := v.m.self
		v.halt()
		v.put(backup, "identity") // of before the replacement, beside the new store
		v.power()
		v.ends(20*time.Second, errRejoin)
		v.again()
		tw.replacedNode(v, old, nodes...)
		v.halt()
		rest[0].halt()
		foreign := rest[0].disk("identity")
		rest[0].power()
		v.put(foreign, "identity")
		v.fresh()
		if err := v.tryIdentity(); err == nil || !strings.Contains(err.Error(), "put this node's own folder back") {
			t.Fatalf("the identity of another node: %v", err)
		}
		tw.leader(rest...)
		wellFrom(rest...)
		if err := tw.changes(rest[0], state.AdminDrain); err != nil {
			t.Errorf("a change of the others: %v", err)
		}
		v.put(backup, "identity")
	})
}
