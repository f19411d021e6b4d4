package raft

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/raft/memnet"
)

// cluster is a set of real replicas, with real stores, over a network in memory;
// it lives inside a synctest bubble.
type cluster struct {
	t     *testing.T
	dir   string
	net   *memnet.Network
	mu    sync.Mutex
	nodes map[string]*node
	// dropAnswers of Forward to lose after the leader gave them
	dropAnswers int
	forwarded   int
	tune        func(*Config)
}

type node struct {
	*Replica
	c      *cluster
	name   string
	addr   string
	id     state.NodeID
	cancel context.CancelFunc
	ended  chan error
	disk   *disk
	vet    func(context.Context, Mark) bool
}

// disk is the real store with faults.
type disk struct {
	store
	mu    sync.Mutex
	hang  chan struct{} // not nil: writes wait for it
	fault error         // not nil: writes fail
	noop  chan struct{} // not nil: the first entry of a leader waits for it
}

func (d *disk) write() error {
	d.mu.Lock()
	hang, fault := d.hang, d.fault
	d.mu.Unlock()
	if hang != nil {
		<-hang
	}
	return fault
}

func (d *disk) set(hang chan struct{}, fault error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.hang, d.fault = hang, fault
}

func newCluster(t *testing.T, dir string) *cluster {
	return &cluster{t: t, dir: dir, net: memnet.New(), nodes: map[string]*node{}}
}

func (c *cluster) Forward(ctx context.Context, from, to string, b []byte) ([]byte, error) {
	c.mu.Lock()
	var target *node
	for _, n := range c.nodes {
		if n.addr == to {
			target = n
		}
	}
	c.forwarded++
	c.mu.Unlock()
	if target == nil || !c.net.Reachable(from, to) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	out, err := target.Accept(ctx, b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.dropAnswers > 0 {
		c.dropAnswers--
		return nil, errors.New("the answer was lost")
	}
	return out, err
}

type forwarder struct {
	c    *cluster
	from string
}

func (f forwarder) Forward(ctx context.Context, to string, b []byte) ([]byte, error) {
	return f.c.Forward(ctx, f.from, to, b)
}

// node makes a node that is not running; the same name has the same store.
func (c *cluster) node(name string) *node {
	c.t.Helper()
	id := state.NodeID{0: 1, 6: 0x40, 8: 0x80}
	copy(id[10:], name)
	n := &node{c: c, name: name, addr: name + ":7950", id: id, ended: make(chan error, 1)}
	if old := c.nodes[name]; old != nil {
		n.vet = old.vet
	}
	return n
}

func (c *cluster) start(name string) *node {
	c.t.Helper()
	n := c.node(name)
	n.run()
	<-n.Started()
	return n
}

func (n *node) run() {
	c := n.c
	cfg := Config{ID: n.id, Addr: n.addr, Dir: filepath.Join(c.dir, n.name)}
	if c.tune != nil {
		c.tune(&cfg)
	}
	r, err := New(cfg, Deps{Stream: c.net.Layer(n.addr), Forward: forwarder{c, n.addr}, Vet: n.vet})
	if err != nil {
		c.t.Fatal(err)
	}
	n.disk = &disk{}
	r.openStore = func(path string) (store, error) {
		s, err := openBolt(path)
		n.disk.store = s
		return faulty{n.disk}, err
	}
	n.Replica = r
	c.mu.Lock()
	c.nodes[n.name] = n
	c.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	go func() { n.ended <- r.Run(ctx) }()
}

func (n *node) stop() {
	n.c.t.Helper()
	n.cancel()
	if err := <-n.ended; err != nil {
		n.c.t.Errorf("%s: Run: %v", n.name, err)
	}
	n.ended <- nil
}

func (c *cluster) stopAll() {
	for _, n := range c.nodes {
		n.stop()
	}
	time.Sleep(time.Minute) // raft's last timers and dials
}

// boot makes a cluster of voters: the first bootstraps, the others join.
func (c *cluster) boot(names ...string) {
	c.t.Helper()
	first := c.start(names[0])
	ctx := context.Background()
	if err := first.Bootstrap(ctx, initOf(first)); err != nil {
		c.t.Fatal(err)
	}
	for _, name := range names[1:] {
		n := c.start(name)
		if err := first.AddNonvoter(ctx, n.id, n.addr); err != nil {
			c.t.Fatal(err)
		}
		c.promote(n)
	}
	// A follower that has not heard of the last promotion would count the votes of
	// fewer: with the leader gone it could never win, and no test is about that.
	c.until("everybody knows the voters", 10*time.Second, func() bool {
		for _, n := range c.nodes {
			voters := 0
			for _, s := range n.Status().Servers {
				if s.Voter {
					voters++
				}
			}
			if voters != len(names) {
				return false
			}
		}
		return true
	})
}

func (c *cluster) promote(n *node) {
	c.t.Helper()
	start := time.Now()
	for {
		err := c.leader().Promote(context.Background(), n.id, func(context.Context) (uint64, error) { return n.View().Index(), nil })
		if err == nil {
			return
		}
		if !errors.Is(err, ErrNotReady) || time.Since(start) > 30*time.Second {
			c.t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func initOf(n *node) state.Init {
	return state.Init{
		ClusterID: state.ClusterID{0: 7}, TableSize: 251, Settings: state.DefaultSettings(),
		First: state.Member{ID: n.id, Name: n.name, Role: state.RoleNode, Cluster: n.addr, PublicKey: make([]byte, 32)},
	}
}

// until waits, in virtual time, for a condition.
func (c *cluster) until(what string, most time.Duration, ok func() bool) time.Duration {
	c.t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > most {
			for _, n := range c.nodes {
				c.t.Logf("%s: %+v", n.name, n.Status())
			}
			c.t.Fatalf("not within %v: %s", most, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
	return time.Since(start)
}

// leader is the node in office among those given, or among all.
func (c *cluster) leader(among ...*node) *node {
	c.t.Helper()
	if among == nil {
		for _, n := range c.nodes {
			among = append(among, n)
		}
	}
	var l *node
	c.until("a leader", 10*time.Second, func() bool {
		for _, n := range among {
			if o, _ := n.current(); o != nil && o.isReady() {
				l = n
				return true
			}
		}
		return false
	})
	return l
}

func (c *cluster) others(n *node) (out []*node) {
	for _, o := range c.nodes {
		if o != n {
			out = append(out, o)
		}
	}
	return out
}

func (c *cluster) parked() (n int) {
	for _, o := range c.nodes {
		if o.Status().Parked != "" {
			n++
		}
	}
	return n
}

// bump raises a number in the settings from the version that n sees: applied
// twice, the second is a conflict.
func bump(ctx context.Context, n *node) (state.Outcome, error) {
	s := n.View().Spec().Settings
	expect := s.Version
	s.NodeBudget++
	out, err := n.Propose(ctx, state.SetSettings{Settings: s, Expect: expect})
	if err != nil {
		return state.Outcome{}, err
	}
	return out[0], nil
}

func (c *cluster) bump(n *node) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	if o, err := bump(ctx, n); err != nil || o.Code != state.OK {
		c.t.Fatalf("%s: bump: %+v, %v", n.name, o, err)
	}
}

func budget(n *node) int {
	return int(n.View().Spec().Settings.NodeBudget - state.DefaultSettings().NodeBudget)
}

// equal waits until all nodes have applied the same and compares their hashes.
func (c *cluster) equal() {
	c.t.Helper()
	c.until("equal states", 20*time.Second, func() bool {
		seen := map[[32]byte]bool{}
		for _, n := range c.nodes {
			seen[n.View().Hash()] = true
		}
		return len(seen) == 1
	})
}

func bubble(t *testing.T, f func(t *testing.T, c *cluster)) {
	dir, err := os.MkdirTemp(t.TempDir(), "raft")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir)
		defer c.stopAll()
		f(t, c)
	})
}

// faulty is what the replica sees of the disk.
type faulty struct{ *disk }

func (f faulty) StoreLogs(ls []*hraftLog) error {
	f.mu.Lock()
	noop := f.noop
	f.mu.Unlock()
	if noop != nil && len(ls) == 1 && ls[0].Type == hraft.LogNoop {
		<-noop
	}
	if err := f.write(); err != nil {
		return fmt.Errorf("store: %w", err)
	}
	return f.store.StoreLogs(ls)
}

func (f faulty) Set(k, v []byte) error {
	if err := f.write(); err != nil {
		return err
	}
	return f.store.Set(k, v)
}

func (f faulty) SetUint64(k []byte, v uint64) error {
	if err := f.write(); err != nil {
		return err
	}
	return f.store.SetUint64(k, v)
}
