package raft

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

type hraftLog = hraft.Log

func TestReplicate(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		for range 5 {
			for _, n := range c.nodes {
				c.until("own view", time.Second, func() bool { return budget(n) == budget(c.leader()) })
				c.bump(n)
			}
		}
		c.until("replication", time.Second, func() bool {
			for _, n := range c.nodes {
				if budget(n) != 15 {
					return false
				}
			}
			return true
		})
		c.equal()
		if err := c.nodes["a"].Bootstrap(context.Background(), initOf(c.nodes["a"])); !errors.Is(err, ErrBootstrapped) {
			t.Errorf("second bootstrap: %v", err)
		}
	})
}

func TestForwardAppliesOnce(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		f := c.others(c.leader())[0]
		c.until("own view", time.Second, func() bool { return !f.View().Spec().ClusterID.IsZero() })
		c.dropAnswers = 3
		c.bump(f) // OK, although it was applied with the first answer, which was lost
		if c.dropAnswers != 0 || c.forwarded < 4 {
			t.Fatalf("%d answers left to drop, %d forwarded", c.dropAnswers, c.forwarded)
		}
		c.until("replication", time.Second, func() bool { return budget(f) == 1 })
		c.equal()
	})
}

// What no leader will ever read is refused at once, on every node.
func TestInvalidIsNotRepeated(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		for _, n := range c.nodes {
			ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
			began := time.Now()
			_, err := n.Propose(ctx, state.Tick{}, state.PutVIP{VIP: state.VIP{Certificates: make([]string, 1000)}})
			cancel()
			if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), "PutVIP: 1000 certificates") || time.Since(began) > time.Second {
				t.Errorf("after %v: %v", time.Since(began), err)
			}
			n.seq.mu.Lock()
			open := len(n.seq.open)
			n.seq.mu.Unlock()
			if open != 0 && n != c.leader() { // a leader may have a Tick on its way
				t.Error("it holds its sequences")
			}
		}
	})
}

func TestManyProposalsShareEntries(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		l := c.leader()
		before := l.Status().LastIndex
		var wg sync.WaitGroup
		const each = 400 // of each node; more than the window allows at once in all
		for _, n := range c.nodes {
			for i := range each {
				wg.Go(func() {
					out, err := n.Propose(context.Background(), state.Forget{}, state.Tick{})
					if err != nil || len(out) != 2 || out[1].Code != state.OK {
						t.Errorf("%s %d: %+v, %v", n.name, i, out, err)
					}
				})
			}
		}
		wg.Wait()
		if entries := l.Status().LastIndex - before; entries > 3*each/2 {
			t.Errorf("%d proposals took %d entries", 3*each, entries)
		}
		c.equal()
	})
}

func TestLeaderLost(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		old := c.leader()
		c.bump(old)
		rest := c.others(old)
		c.until("replication", time.Second, func() bool { return budget(rest[0]) == 1 })
		c.net.Isolate(old.addr)
		start := time.Now()
		c.bump(rest[0]) // repeats until there is a new leader
		took := time.Since(start)
		t.Logf("next commit after %v", took)
		if took > 2*time.Second {
			t.Errorf("next commit after %v", took)
		}
		if l := c.leader(rest...); l == old {
			t.Error("the old leader")
		}
		if _, err := old.LeaderAnswer(context.Background()); !errors.Is(err, ErrNotLeader) {
			t.Errorf("isolated leader answers: %v", err)
		}
		c.net.Rejoin(old.addr)
		c.equal()
		if budget(old) != 2 {
			t.Errorf("budget %d", budget(old))
		}
	})
}

func TestMinorityCannotCommit(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		old := c.leader()
		c.net.Isolate(old.addr)
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if o, err := bump(ctx, old); !errors.Is(err, ErrUnanswered) {
			t.Fatalf("minority committed: %+v, %v", o, err)
		}
		if s := old.Status(); s.Role == RoleLeader || s.Parked != "" {
			t.Errorf("minority: %+v", s)
		}
		rest := c.others(old)
		c.bump(c.leader(rest...))
		c.bump(c.leader(rest...))
		c.net.Rejoin(old.addr)
		c.equal()
		if got := budget(old); got != 2 {
			t.Errorf("budget %d: the minority's command or not all of the majority's", got)
		}
	})
}

func TestClusterTimeGoesOn(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		l := c.leader()
		from, real := l.Now(), time.Now()
		time.Sleep(30 * time.Second)
		if d := l.Now().Sub(from) - time.Since(real); d < -time.Second || d > time.Second {
			t.Errorf("cluster time is off by %v", d)
		}
		f := c.others(l)[0]
		if lag := l.Now().Sub(f.View().Spec().Now); lag > 2*time.Second {
			t.Errorf("a quiet cluster's view lags by %v", lag)
		}
		at := l.Now()
		c.net.Isolate(l.addr)
		l2 := c.leader(c.others(l)...)
		if back := at.Sub(l2.Now()); back > 1500*time.Millisecond {
			t.Errorf("cluster time went back by %v", back)
		}
	})
}

func TestRestartReplaysAlone(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		for range 20 {
			c.bump(c.leader())
		}
		c.equal()
		n := c.others(c.leader())[0]
		hash, index := n.View().Hash(), n.View().Index()
		n.stop()
		c.net.Isolate(n.addr)
		n = c.start(n.name)
		s := n.Status()
		if s.Restored.Index < index || s.Restored.ClusterID != (state.ClusterID{0: 7}) {
			t.Fatalf("restored %+v, was at %d", s.Restored, index)
		}
		if s.Restored.Index == index && n.View().Hash() != hash {
			t.Error("another state")
		}
		if len(s.Servers) != 3 {
			t.Errorf("servers %+v", s.Servers)
		}
		if got := budget(n); got != 20 {
			t.Errorf("budget %d", got)
		}
		c.net.Rejoin(n.addr)
		c.bump(c.leader())
		c.equal()
	})
}

// A crash leaves the store as it was at the last write: what is known to be
// committed lags by a tick at most.
func TestCrashReplaysToTheLastTick(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		for range 20 {
			c.bump(c.leader())
		}
		time.Sleep(3 * time.Second)
		n := c.others(c.leader())[0]
		b, err := os.ReadFile(filepath.Join(c.dir, n.name, storeName)) // idle: a whole file
		if err != nil {
			t.Fatal(err)
		}
		index := n.View().Index()
		n.stop()
		os.WriteFile(filepath.Join(c.dir, n.name, storeName), b, 0o600)
		c.net.Isolate(n.addr)
		n = c.start(n.name)
		if s := n.Status(); s.Restored.Index+2 < index || budget(n) != 20 || len(s.Servers) != 3 {
			t.Errorf("restored %+v, was at %d, budget %d", s.Restored, index, budget(n))
		}
		c.net.Rejoin(n.addr)
		c.bump(c.leader())
		c.equal()
	})
}

// A power cut takes all nodes at once: they must elect from what is on the disk.
func TestWholeClusterRestarts(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		for range 3 {
			c.bump(c.leader())
		}
		for _, name := range []string{"a", "b", "c"} {
			c.nodes[name].stop()
		}
		for _, name := range []string{"a", "b", "c"} {
			c.start(name)
		}
		c.until("all at 3", 5*time.Second, func() bool { return budget(c.leader()) == 3 })
		c.bump(c.leader())
		c.equal()
	})
}

func TestSnapshotToBlankJoiner(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.tune = func(cfg *Config) { cfg.SnapshotBytes, cfg.TrailingBytes = 100_000, 1 }
		c.boot("a", "b")
		l := c.leader()
		for range 2000 {
			if _, err := l.Propose(context.Background(), state.Tick{}); err != nil {
				t.Fatal(err)
			}
		}
		c.until("a snapshot", 30*time.Second, func() bool {
			first, _ := l.guard.Load().FirstIndex()
			return first > 500
		})
		n := c.start("c")
		w := n.Watch()
		defer w.Close()
		if _, resync, err := w.Next(context.Background()); !resync || err != nil {
			t.Fatal("first Next is no resync", err)
		}
		if err := c.leader().AddNonvoter(context.Background(), n.id, n.addr); err != nil {
			t.Fatal(err)
		}
		if _, resync, err := w.Next(context.Background()); !resync || err != nil {
			t.Fatal("a restored snapshot is no resync", err)
		}
		c.equal()
		c.promote(n)
		c.bump(n)
		c.equal()

		n.stop() // and back from the installed snapshot
		n = c.start("c")
		c.equal()
		if s := n.Status(); len(s.Servers) != 3 || !s.Voter {
			t.Errorf("%+v", s)
		}
	})
}

func TestJoinConditions(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a")
		l, ctx := c.leader(), context.Background()
		applied := func(i uint64) Applied { return func(context.Context) (uint64, error) { return i, nil } }
		notReady := func(id state.NodeID, a Applied, why string) {
			t.Helper()
			if err := l.Promote(ctx, id, a); !errors.Is(err, ErrNotReady) || !strings.Contains(err.Error(), why) {
				t.Errorf("promote: %v, want %q", err, why)
			}
		}
		n := c.node("b")
		notReady(n.id, applied(1<<40), "not in raft's configuration")
		if err := l.AddNonvoter(ctx, n.id, n.addr); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute) // it does not run: never in contact
		notReady(n.id, applied(1<<40), "in contact for")
		c.bump(l) // and the lone voter kept its quorum

		n.run()
		time.Sleep(5 * time.Second)
		notReady(n.id, applied(1<<40), "in contact for")
		c.net.Cut(l.addr, n.addr)
		time.Sleep(8 * time.Second)
		c.net.Heal(l.addr, n.addr)
		time.Sleep(5 * time.Second)
		notReady(n.id, applied(1<<40), "in contact for") // counted anew
		time.Sleep(11 * time.Second)
		notReady(n.id, applied(1), "it has applied 1 of")
		c.net.Cut(l.addr, n.addr)
		notReady(n.id, applied(1<<40), "dial back")
		c.net.Heal(l.addr, n.addr)
		c.promote(n)
		if err := l.Promote(ctx, n.id, applied(0)); err != nil {
			t.Errorf("a voter already: %v", err)
		}
		if err := n.RemoveServer(ctx, l.id); !errors.Is(err, ErrNotLeader) {
			t.Errorf("a follower changes the configuration: %v", err)
		}
		if err := l.AddNonvoter(ctx, state.NodeID{0: 9}, n.addr); err == nil {
			t.Error("a second ID at the same address")
		}
	})
}

func TestLeave(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		ctx := context.Background()
		l := c.leader()
		if err := l.TransferLeadership(ctx); err != nil {
			t.Fatal(err)
		}
		l2 := c.leader(c.others(l)...)
		if err := l2.RemoveServer(ctx, l.id); err != nil {
			t.Fatal(err)
		}
		if err := l2.RemoveServer(ctx, l.id); err != nil {
			t.Errorf("again: %v", err)
		}
		time.Sleep(10 * time.Second)
		if s := l.Status(); s.Role == RoleLeader {
			t.Errorf("removed node leads: %+v", s)
		}
		c.bump(l2)
		if s := l2.Status(); len(s.Servers) != 2 {
			t.Errorf("servers %+v", s.Servers)
		}
		// The leader may remove itself; the last one left goes on.
		if err := l2.RemoveServer(ctx, l2.id); err != nil {
			t.Fatal(err)
		}
		var last *node
		for _, n := range c.nodes {
			if n != l && n != l2 {
				last = n
			}
		}
		c.bump(c.leader(last))
	})
}

func TestLeaderAnswerAndLeading(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		l := c.leader()
		c.bump(l)
		if i, err := l.LeaderAnswer(ctx); err != nil || i != l.View().Index() {
			t.Errorf("answer %d, %v", i, err)
		}
		f := c.others(l)[0]
		var nl *NotLeaderError
		if _, err := f.LeaderAnswer(ctx); !errors.As(err, &nl) || nl.Addr != l.addr || nl.ID != l.id {
			t.Errorf("follower: %v", err)
		}
		leading := l.Leading(ctx)
		if !<-leading {
			t.Error("not leading")
		}
		duty := make(chan string, 10)
		go l.Lead(ctx, func(ctx context.Context) {
			duty <- "on"
			<-ctx.Done()
			duty <- "off"
		})
		if <-duty != "on" {
			t.Error("no duty")
		}
		if err := l.TransferLeadership(ctx); err != nil {
			t.Fatal(err)
		}
		if <-duty != "off" {
			t.Error("the duty goes on")
		}
		c.until("not leading", time.Second, func() bool {
			select {
			case v := <-leading:
				return !v
			default:
				return false
			}
		})
	})
}
