package raft

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func TestHungDiskOnLeader(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		old := c.leader()
		c.bump(old)
		rest := c.others(old)
		c.until("replication", time.Second, func() bool { return budget(rest[0]) == 1 })
		hang := make(chan struct{})
		old.disk.set(hang, nil)
		start := time.Now()
		c.bump(rest[0])
		t.Logf("next commit %v after the disk hung", time.Since(start))
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("next commit after %v", d)
		}
		s := old.Status()
		if s.Role != RoleParked || !s.StoreFailed || !s.Fenced || !strings.Contains(s.Parked, "hung") {
			t.Errorf("status %+v", s)
		}
		if v := old.View(); v.Index() == 0 || budget(old) != 1 {
			t.Error("the view is gone")
		}
		if _, err := old.Propose(context.Background(), state.Tick{}); !errors.Is(err, ErrParked) {
			t.Errorf("propose: %v", err)
		}
		<-old.Parked()
		close(hang)
		old.disk.set(nil, nil)
		time.Sleep(time.Minute) // the disk is back: the fence stays
		if s := old.Status(); s.Role != RoleParked {
			t.Errorf("status %+v", s)
		}
		old.stop()
		c.start(old.name) // a restart brings it back
		c.equal()
	})
}

// The disk of a new leader hangs when it writes its first entry: it never gets as
// far as taking proposals, and its heartbeats keep the others calm.
func TestHungDiskOnNewLeader(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		old := c.leader()
		c.bump(old)
		hang := make(chan struct{})
		release := sync.OnceFunc(func() { close(hang) })
		defer release()
		rest := c.others(old)
		for _, n := range rest {
			n.disk.mu.Lock()
			n.disk.noop = hang
			n.disk.mu.Unlock()
		}
		c.net.Isolate(old.addr)
		var stuck *node
		c.until("a leader without office", 5*time.Second, func() bool {
			for _, n := range rest {
				if n.Status().Role == RoleLeader {
					stuck = n
				}
			}
			return stuck != nil
		})
		start := time.Now()
		for _, n := range rest { // the other one's disk is sound
			if n != stuck {
				n.disk.mu.Lock()
				n.disk.noop = nil
				n.disk.mu.Unlock()
			}
		}
		c.net.Rejoin(old.addr)
		c.bump(old)
		t.Logf("next commit %v after the disk hung", time.Since(start))
		if d := time.Since(start); d > 5*time.Second {
			t.Errorf("next commit after %v", d)
		}
		if s := stuck.Status(); s.Role != RoleParked || !s.StoreFailed || !s.Fenced || !strings.Contains(s.Parked, "hung") {
			t.Errorf("status %+v", s)
		}
		release()
		time.Sleep(time.Minute) // what hung comes to its end
		stuck.stop()
		c.start(stuck.name)
		c.equal()
	})
}

// Followers that hang are no reason for a sound leader to go.
func TestHungDiskOnFollowers(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		l := c.leader()
		hang := make(chan struct{})
		for _, f := range c.others(l) {
			f.disk.set(hang, nil)
		}
		time.Sleep(20 * time.Second)
		if s := l.Status(); s.Parked != "" || s.CommitStall == 0 {
			t.Errorf("leader %+v", s)
		}
		for _, f := range c.others(l) {
			if s := f.Status(); s.StoreStall < 10*time.Second {
				t.Errorf("follower %+v", s)
			}
			f.disk.set(nil, nil)
		}
		close(hang)
		c.bump(c.leader())
		c.equal()
	})
}

func TestWriteErrorParks(t *testing.T) {
	for _, who := range []string{"leader", "follower"} {
		t.Run(who, func(t *testing.T) {
			bubble(t, func(t *testing.T, c *cluster) {
				c.boot("a", "b", "c")
				n := c.leader()
				if who == "follower" {
					n = c.others(n)[0]
				}
				n.disk.set(nil, errors.New("no space left on device"))
				rest := c.others(n)
				c.until("own view", time.Second, func() bool { return !rest[0].View().Spec().ClusterID.IsZero() })
				c.bump(rest[0])
				c.until("parked", 5*time.Second, func() bool { return n.Status().Role == RoleParked })
				if s := n.Status(); !s.Fenced || !s.StoreFailed || !strings.Contains(s.Parked, "no space left") {
					t.Errorf("%+v", s)
				}
				n.stop()
				c.start(n.name)
				c.equal()
			})
		})
	}
}

// An election writes to the stable store: hraft panics when that fails.
func TestStableErrorDuringElection(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		l := c.leader()
		for _, f := range c.others(l) {
			f.disk.set(nil, errors.New("input/output error"))
		}
		c.net.Isolate(l.addr)
		// Then the other finds no majority to stand for election with.
		c.until("one parked", time.Minute, func() bool { return c.parked() == 1 })
	})
}

func TestUnknownEntryParks(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		l := c.leader()
		c.bump(l)
		index := l.View().Index()
		l.mu.Lock()
		rt := l.raft
		l.mu.Unlock()
		rt.Apply([]byte{0xff, 0xff, 0xff}, 0) // as from a much newer binary
		// The last one need not hear that it is committed.
		c.until("two parked", 5*time.Second, func() bool { return c.parked() >= 2 })
		for _, n := range c.nodes {
			if n.Status().StoreFailed {
				t.Errorf("%s: the disk is blamed: %s", n.name, n.Status().Parked)
			}
			if n.View().Spec().Settings.NodeBudget == state.DefaultSettings().NodeBudget || n.View().Index() < index {
				t.Errorf("%s lost its view", n.name)
			}
		}
		l.stop()
		n := c.start(l.name) // the replay may meet it again
		if n.View().Index() < index {
			t.Errorf("index %d after restart", n.View().Index())
		}
	})
}

func TestCorruptStoreIsQuarantined(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a")
		for range 50 {
			c.bump(c.leader())
		}
		c.nodes["a"].stop()
		path := filepath.Join(c.dir, "a", "raft.db")
		b, _ := os.ReadFile(path)
		for i := range b[8192:] { // most of it
			b[8192+i] ^= 0x5a
		}
		os.WriteFile(path, b, 0o600)
		n := c.node("a")
		n.run()
		err := <-n.ended
		n.ended <- nil
		var q *QuarantineError
		if !errors.As(err, &q) || !strings.Contains(q.Path, ".corrupt-") {
			t.Fatalf("Run: %v", err)
		}
		if _, err := os.Stat(q.Path); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
			t.Error("the corrupt store is still in place")
		}
		delete(c.nodes, "a")
	})
}

func TestStoreThatWentBack(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		n := c.others(c.leader())[0]
		path := filepath.Join(c.dir, n.name, "raft.db")
		n.stop()
		old, _ := os.ReadFile(path)
		n = c.start(n.name)
		for range 5 {
			c.bump(c.leader())
		}
		c.equal()
		keeper := c.others(n)[0]
		keeper.RememberPeer(n.id, n.Status().Mark)
		time.Sleep(time.Second)
		keeper.stop() // it is remembered on the disk
		keeper = c.start(keeper.name)
		memory := keeper.PeerMemory()[n.id]
		if memory.Index == 0 || memory.Term == 0 || memory.LogTerm == 0 {
			t.Fatalf("memory %+v", memory)
		}
		n.stop()
		n = c.node(n.name)
		n.vet = func(_ context.Context, own Mark) bool { return !own.Before(memory) }
		n.run() // its own disk: fine
		<-n.Started()
		n.stop()

		os.WriteFile(path, old, 0o600)
		n = c.node(n.name)
		n.run()
		err := <-n.ended
		n.ended <- nil
		var q *QuarantineError
		if !errors.As(err, &q) {
			t.Fatalf("Run: %v", err)
		}
		delete(c.nodes, n.name)
	})
}

// Links break, nodes restart, answers get lost; meanwhile every node raises one
// number by compare-and-set. Each success must have been applied exactly once.
func TestTurmoil(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.tune = func(cfg *Config) { cfg.SnapshotBytes, cfg.TrailingBytes = 30_000, 1 }
		names := []string{"a", "b", "c"}
		c.boot(names...)
		var ok, unknown, conflicts atomic.Int64
		var wg sync.WaitGroup
		end := make(chan struct{})
		for i, name := range names {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 7))
				for {
					select {
					case <-end:
						return
					case <-time.After(time.Duration(rng.IntN(50)) * time.Millisecond):
					}
					c.mu.Lock()
					n := c.nodes[name]
					c.mu.Unlock()
					ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
					o, err := bump(ctx, n)
					cancel()
					switch {
					case err == nil && o.Code == state.OK:
						ok.Add(1)
					case err == nil && o.Code == state.Conflict:
						conflicts.Add(1)
					case err == nil:
						t.Errorf("outcome %+v", o)
					case errors.Is(err, ErrNotStarted):
						unknown.Add(1) // it may have been on its way when the node stopped
						time.Sleep(50 * time.Millisecond)
					default:
						unknown.Add(1)
					}
				}
			})
		}
		rng := rand.New(rand.NewPCG(uint64(time.Now().UnixNano()), 8))
		for range 40 {
			name := names[rng.IntN(3)]
			n := c.nodes[name]
			switch rng.IntN(4) {
			case 0:
				c.net.Isolate(n.addr)
				time.Sleep(time.Duration(rng.IntN(3000)) * time.Millisecond)
				c.net.Rejoin(n.addr)
			case 1:
				n.stop()
				time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
				c.start(name)
			case 2:
				c.mu.Lock()
				c.dropAnswers += 3
				c.mu.Unlock()
			case 3:
				time.Sleep(time.Duration(rng.IntN(2000)) * time.Millisecond)
			}
		}
		close(end)
		wg.Wait()
		c.equal()
		got := int64(budget(c.leader()))
		t.Logf("%d applied: %d answered, %d not; %d conflicts", got, ok.Load(), unknown.Load(), conflicts.Load())
		if got < ok.Load() || got > ok.Load()+unknown.Load() {
			t.Errorf("%d applied: %d answered, %d not", got, ok.Load(), unknown.Load())
		}
		if ok.Load() < 200 {
			t.Errorf("only %d successes", ok.Load())
		}
	})
}
