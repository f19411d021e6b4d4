package cluster

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/memnet"
	"github.com/vpnlb/vpnlb/cluster/state"
)

// town is three and more real memberlists on one in-memory network.
type town struct {
	t       *testing.T
	net     *memnet.Network
	cluster state.ClusterID
	key     []byte

	mu      sync.Mutex
	members map[state.NodeID]ed25519.PublicKey
	addrs   []string
}

type citizen struct {
	*Membership
	speaker
	addr   string
	gossip *memnet.Gossip
	stop   context.CancelFunc
	done   chan error
}

func newTown(t *testing.T) *town {
	return &town{t: t, net: memnet.New(), cluster: state.NewClusterID(), key: NewKey(), members: make(map[state.NodeID]ed25519.PublicKey)}
}

func host(i int) string { return fmt.Sprintf("192.0.2.%d", i) }

// start runs a node; a member of the cluster or not.
func (tw *town) start(i int, member bool) *citizen {
	tw.t.Helper()
	sp := newSpeaker(tw.t, tw.cluster)
	c := &citizen{speaker: sp, addr: host(i) + ":7946"}
	tw.mu.Lock()
	if member {
		tw.members[sp.id] = sp.key.Public().(ed25519.PublicKey)
		tw.addrs = append(tw.addrs, c.addr)
	}
	tw.mu.Unlock()
	tw.run(c, 1)
	return c
}

func (tw *town) run(c *citizen, boot uint64) {
	tw.t.Helper()
	c.gossip = tw.net.Gossip(netip.MustParseAddrPort(c.addr))
	m, err := New(Config{Cluster: tw.cluster, Node: c.id, Boot: boot, Bind: c.addr, Keys: [][]byte{tw.key}}, Deps{
		Key:       c.speaker.key,
		Transport: c.gossip,
		Member: func(id state.NodeID) (ed25519.PublicKey, bool) {
			tw.mu.Lock()
			defer tw.mu.Unlock()
			pub, ok := tw.members[id]
			return pub, ok
		},
		Peers: func() []string {
			tw.mu.Lock()
			defer tw.mu.Unlock()
			return slices.Clone(tw.addrs)
		},
	})
	if err != nil {
		tw.t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	c.Membership, c.stop, c.done = m, stop, make(chan error, 1)
	go func() { c.done <- m.Run(ctx) }()
	tw.t.Cleanup(func() { tw.stop(c) })
	synctest.Wait()
}

func (tw *town) stop(cs ...*citizen) {
	tw.t.Helper()
	for _, c := range cs {
		if c.done == nil {
			continue // stopped before
		}
		c.stop()
		if err := <-c.done; err != nil {
			tw.t.Error(err)
		}
		c.done = nil
	}
	time.Sleep(time.Minute) // memberlist's Shutdown does not wait for its goroutines
}

// alive lists the nodes that c's gossip believes alive.
func (c *citizen) alive() []state.NodeID {
	var out []state.NodeID
	for _, p := range c.Peers() {
		if p.State == "alive" {
			out = append(out, p.Node)
		}
	}
	return out
}

func (c *citizen) hintOf(id state.NodeID) Hints {
	for _, h := range c.Hints() {
		if h.Node == id {
			return h
		}
	}
	return Hints{}
}

// eventually waits, in virtual time, until all see n nodes alive.
func (tw *town) eventually(limit time.Duration, what string, ok func() bool) time.Duration {
	tw.t.Helper()
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		if ok() {
			return time.Since(start)
		}
		if time.Since(start) > limit {
			tw.t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

func all(cs []*citizen, n int) func() bool {
	return func() bool {
		for _, c := range cs {
			if len(c.alive()) != n {
				return false
			}
		}
		return true
	}
}

func TestThreeNodes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t)
		cs := []*citizen{tw.start(1, true), tw.start(2, true), tw.start(3, true)}
		t.Logf("three nodes after %v", tw.eventually(15*time.Second, "converge", all(cs, 3)))

		changed, stop := cs[2].Watch()
		defer stop()
		select {
		case <-changed:
		default:
		}
		st := fullStatus()
		if err := cs[0].SetStatus(st); err != nil {
			t.Fatal(err)
		}
		obs := make([]byte, MaxPayload) // nine packets
		for i := range obs {
			obs[i] = byte(i * 7)
		}
		if err := cs[0].SetObservations(obs); err != nil {
			t.Fatal(err)
		}
		d := tw.eventually(3*time.Second, "hints everywhere", func() bool {
			for _, c := range cs {
				h := c.hintOf(cs[0].id)
				if h.Status == nil || h.Status.RaftLast != st.RaftLast || h.Status.Boot != 1 || !slices.Equal(h.Observations, obs) || !h.Alive {
					return false
				}
			}
			return true
		})
		t.Logf("hints after %v", d)
		select {
		case <-changed:
		default:
			t.Error("the watcher heard nothing")
		}
		if err := cs[0].SetObservations(make([]byte, MaxPayload+1)); err == nil {
			t.Error("an observation set beyond the limit was taken")
		}

		// A restart: the sequence begins again, the boot counter goes on.
		tw.stop(cs[0])
		tw.run(cs[0], 2)
		st.Applied = 4711
		if err := cs[0].SetStatus(st); err != nil {
			t.Fatal(err)
		}
		tw.eventually(20*time.Second, "hint of the second boot", func() bool {
			h := cs[1].hintOf(cs[0].id)
			return h.Status != nil && h.Status.Applied == 4711 && h.Status.Boot == 2
		})
		// Leaving is seen as such.
		if err := cs[2].Leave(5 * time.Second); err != nil {
			t.Fatal(err)
		}
		tw.eventually(5*time.Second, "leave", func() bool {
			return slices.ContainsFunc(cs[1].Peers(), func(p Peer) bool { return p.Node == cs[2].id && p.State == "gone" })
		})
		tw.stop(cs...)
		if err := cs[0].Leave(time.Second); err != ErrNotRunning {
			t.Errorf("leave after the end: %v", err)
		}
	})
}

// A partition that outlasts memberlist's own patience heals by rejoining.
func TestPartitionHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t)
		cs := []*citizen{tw.start(1, true), tw.start(2, true), tw.start(3, true)}
		tw.eventually(15*time.Second, "converge", all(cs, 3))
		for _, other := range []int{1, 2} {
			tw.net.Cut(host(3), host(other))
		}
		tw.eventually(time.Minute, "partition seen", func() bool {
			return len(cs[0].alive()) == 2 && len(cs[1].alive()) == 2 && len(cs[2].alive()) == 1
		})
		time.Sleep(5 * time.Minute) // long after GossipToTheDeadTime
		for _, other := range []int{1, 2} {
			tw.net.Heal(host(3), host(other))
		}
		// One Rejoin interval, and the dial time-out of a round under way.
		t.Logf("healed after %v", tw.eventually(20*time.Second, "heal", all(cs, 3)))
		tw.stop(cs...)
	})
}

func TestLossyNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t)
		n := 0
		tw.net.DropPackets(func(string, string) bool { n++; return n%3 == 0 })
		cs := []*citizen{tw.start(1, true), tw.start(2, true), tw.start(3, true)}
		tw.eventually(30*time.Second, "converge", all(cs, 3))
		obs := make([]byte, 3*maxPart)
		for round := range 20 {
			obs[0] = byte(round)
			if err := cs[1].SetObservations(obs); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		for _, c := range cs {
			if h := c.hintOf(cs[1].id); h.Observations == nil || h.ObservationsAge > 5*time.Second {
				t.Errorf("a third of the packets lost, and hints are %v old", h.ObservationsAge)
			}
		}
		tw.stop(cs...)
	})
}

// Who holds the gossip key but is no member gets nowhere; nor do forged, old
// and replayed hints of members.
func TestStrangersAndForgeries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t)
		cs := []*citizen{tw.start(1, true), tw.start(2, true)}
		tw.eventually(15*time.Second, "converge", all(cs, 2))
		thief := tw.start(9, false)
		tw.mu.Lock()
		tw.addrs = append(tw.addrs, thief.addr) // even if it is joined
		tw.mu.Unlock()
		cs[0].Rejoin()
		if err := thief.SetStatus(fullStatus()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(30 * time.Second)
		if len(cs[0].alive()) != 2 || len(cs[0].Hints()) != 0 {
			t.Errorf("a stranger is in: %v, %+v", cs[0].alive(), cs[0].Hints())
		}

		if err := cs[1].SetObservations([]byte("old")); err != nil {
			t.Fatal(err)
		}
		recorded := cs[1].Bundle()
		if err := cs[0].Deliver(recorded); err != nil {
			t.Error(err)
		}
		if err := cs[1].SetObservations([]byte("new")); err != nil {
			t.Fatal(err)
		}
		if err := cs[0].Deliver(cs[1].Bundle()); err != nil {
			t.Error(err)
		}
		time.Sleep(10 * time.Second)
		if err := cs[0].Deliver(recorded); err != nil {
			t.Error(err) // late gossip is ordinary, not an error
		}
		if h := cs[0].hintOf(cs[1].id); string(h.Observations) != "new" || h.ObservationsAge < 10*time.Second {
			t.Errorf("after a replay: %q, %v old", h.Observations, h.ObservationsAge)
		}
		forger := thief.speaker
		forger.id = cs[1].id
		forged := appendBundle([]byte{bundleVersion}, forger.says(99, 1, []byte("forged"))[0], 0)
		if err := cs[0].Deliver(forged); err == nil || !strings.Contains(err.Error(), "bad_signature") {
			t.Errorf("forged: %v", err)
		}
		if h := cs[0].hintOf(cs[1].id); string(h.Observations) != "new" {
			t.Errorf("a forged hint got in: %q", h.Observations)
		}
		for _, bad := range [][]byte{{9}, {bundleVersion, 0}, {bundleVersion, 0, 200, 1}, make([]byte, MaxBundle+1)} {
			if err := cs[0].Deliver(bad); err == nil {
				t.Errorf("took a bundle of %d bytes", len(bad))
			}
		}
		// Packets without the key.
		for range 100 {
			cs[0].gossip.Inject([]byte("\x08garbage of a stranger"), "203.0.113.1:7946")
		}
		time.Sleep(time.Second)
		if len(cs[0].alive()) != 2 {
			t.Error("garbage changed something")
		}
		tw.stop(cs[0], cs[1], thief)
	})
}

func TestKeyRotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t)
		cs := []*citizen{tw.start(1, true), tw.start(2, true), tw.start(3, true)}
		tw.eventually(15*time.Second, "converge", all(cs, 3))
		next := NewKey()
		steps := []func(*citizen) error{
			func(c *citizen) error { return c.AddKey(next) },
			func(c *citizen) error { return c.UseKey(next) },
			func(c *citizen) error { return c.RemoveKey(tw.key) },
		}
		seq := byte(0)
		for _, step := range steps {
			for _, c := range cs {
				if err := step(c); err != nil {
					t.Fatal(err)
				}
				// Between any two steps everybody still hears everybody.
				for _, from := range cs {
					seq++
					if err := from.SetObservations([]byte{seq}); err != nil {
						t.Fatal(err)
					}
					tw.eventually(3*time.Second, "hint during rotation", func() bool {
						for _, c := range cs {
							if !slices.Equal(c.hintOf(from.id).Observations, []byte{seq}) {
								return false
							}
						}
						return true
					})
				}
			}
		}
		for _, c := range cs {
			if ids := c.KeyIDs(); len(ids) != 1 || ids[0] != KeyID(next) {
				t.Errorf("keys: %v", ids)
			}
			if err := c.RemoveKey(next); err == nil {
				t.Error("removed the key in use")
			}
			if err := c.UseKey(NewKey()); err == nil {
				t.Error("used a key that is not known")
			}
			if err := c.AddKey([]byte("short")); err == nil {
				t.Error("took a short key")
			}
		}
		// Who missed the rotation is out.
		late := tw.start(4, true)
		time.Sleep(30 * time.Second)
		if len(late.alive()) != 1 || len(cs[0].alive()) != 3 {
			t.Errorf("a node with the old key: it sees %d, the others %d", len(late.alive()), len(cs[0].alive()))
		}
		tw.stop(append(cs, late)...)
	})
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Cluster: state.NewClusterID(), Node: state.NewNodeID(), Bind: "192.0.2.1:7946", Keys: [][]byte{NewKey()}}
	sp := newSpeaker(t, good.Cluster)
	deps := Deps{Key: sp.key, Member: func(state.NodeID) (ed25519.PublicKey, bool) { return nil, false }, Peers: func() []string { return nil }}
	if _, err := New(good, deps); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Config, *Deps){
		"no cluster":  func(c *Config, _ *Deps) { c.Cluster = state.ClusterID{} },
		"no node":     func(c *Config, _ *Deps) { c.Node = state.NodeID{} },
		"unspecified": func(c *Config, _ *Deps) { c.Bind = "0.0.0.0:7946" },
		"no port":     func(c *Config, _ *Deps) { c.Bind = "192.0.2.1" },
		"no keys":     func(c *Config, _ *Deps) { c.Keys = nil },
		"short key":   func(c *Config, _ *Deps) { c.Keys = [][]byte{{1}} },
		"no signer":   func(_ *Config, d *Deps) { d.Key = nil },
	} {
		c, d := good, deps
		change(&c, &d)
		if _, err := New(c, d); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
