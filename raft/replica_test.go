package raft

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/raft/memnet"
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
		if took > 3*time.Second {
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

func TestHungDiskOnLeader(t *testing.T) {
	bubble(t, func(t *testing.T, c *cluster) {
		c.boot("a", "b", "c")
		old := c.leader()
		c.bump(old)
		rest := c.others(old)
		c.until("replication", time.Second, func() bool { return budget(rest[0]) == 1 })
		hash := old.View().Hash()
		hang := make(chan struct{})
		old.disk.set(hang, nil)
		start := time.Now()
		c.bump(rest[0])
		t.Logf("next commit %v after the disk hung", time.Since(start))
		if d := time.Since(start); d > 8*time.Second {
			t.Errorf("next commit after %v", d)
		}
		s := old.Status()
		if s.Role != RoleParked || !s.Fenced || !strings.Contains(s.Parked, "hung") {
			t.Errorf("status %+v", s)
		}
		if v := old.View(); v.Index() == 0 || budget(old) != 1 {
			t.Error("the view is gone")
		}
		_ = hash
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
				if s := n.Status(); !s.Fenced || !strings.Contains(s.Parked, "no space left") {
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
		at := bytes.LastIndex(b[:len(b)/2], []byte("vpnlb.boot"))
		if at < 0 {
			at = bytes.Index(b, []byte("vpnlb.boot"))
		}
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

func TestWatchOverflow(t *testing.T) {
	h := newHub(func() {})
	w := h.watch()
	next := func() (uint64, bool) {
		t.Helper()
		d, resync, err := w.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		return d.Index, resync
	}
	if _, resync := next(); !resync {
		t.Error("first is no resync")
	}
	for i := range uint64(3) {
		h.publish(state.Delta{Index: i + 1})
	}
	for i := range uint64(3) {
		if got, resync := next(); got != i+1 || resync {
			t.Errorf("delta %d %v", got, resync)
		}
	}
	for i := range uint64(maxDeltas + 1) {
		h.publish(state.Delta{Index: i + 10})
	}
	h.publish(state.Delta{Index: 5000}) // in the View that a resync takes
	if _, resync := next(); !resync {
		t.Error("overflow is no resync")
	}
	h.publish(state.Delta{Index: 5001})
	if got, resync := next(); got != 5001 || resync {
		t.Error("after the resync:", got, resync)
	}
	w.Close()
	if _, _, err := w.Next(context.Background()); !errors.Is(err, ErrNotStarted) {
		t.Error(err)
	}
}

func TestSequencerKeepsTheSpan(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSequencer()
		ctx := context.Background()
		oldest, _ := s.acquire(ctx, 1)
		for { // answered at once, but the oldest is not
			f, ok := s.try(1)
			if !ok {
				break
			}
			s.release(f)
		}
		if s.next-oldest > maxOutstanding {
			t.Errorf("span %d", s.next-oldest)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		if _, err := s.acquire(short, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("acquire: %v", err)
		}
		go func() { time.Sleep(time.Second); s.release(oldest) }()
		if f, err := s.acquire(ctx, MaxCommands); err != nil || f <= oldest {
			t.Errorf("%d, %v", f, err)
		}
	})
}

func TestConfigFaultsTogether(t *testing.T) {
	_, err := New(Config{Heartbeat: time.Millisecond}, Deps{})
	for _, want := range []string{"node ID", "address", "directory", "heartbeat", "stream layer", "forwarder"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	_, err = New(Config{ID: state.NodeID{1}, Addr: "a", Dir: "d"}, Deps{Stream: memnet.New().Layer("a"), Forward: forwarder{}})
	if err != nil {
		t.Error(err)
	}
}

func TestRestoreNeverGoesBack(t *testing.T) {
	shot := func(ticks int) []byte {
		f := newFSM(newHub(func() {}), func(error) {})
		id := state.NodeID{1}
		for i := range ticks + 1 {
			var cmd state.Command = state.Tick{}
			if i == 0 {
				cmd = state.Init{ClusterID: state.ClusterID{1}, TableSize: 251, Settings: state.DefaultSettings(),
					First: state.Member{ID: id, Name: "a", Role: state.RoleNode}}
			}
			f.Apply(&hraft.Log{Index: uint64(i + 1), Type: hraft.LogCommand, Data: state.EncodeBatch(state.Batch{
				Stamp: state.Time(i), Envelopes: []state.Envelope{{Origin: id, Boot: 1, Sequence: uint64(i + 1), Command: cmd}}})})
		}
		var b bytes.Buffer
		if _, err := f.view().WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		return b.Bytes()
	}
	f := newFSM(newHub(func() {}), func(err error) { t.Error(err) })
	restore := func(b []byte) error { return f.Restore(io.NopCloser(bytes.NewReader(b))) }
	if err := restore(shot(9)); err != nil || f.view().Index() != 10 {
		t.Fatal(err, f.view().Index())
	}
	if err := restore(shot(4)); err != nil || f.view().Index() != 10 {
		t.Error("went back:", err, f.view().Index())
	}
	if err := restore([]byte("nothing")); err == nil || f.view().Index() != 10 {
		t.Error("restored nonsense", err)
	}
	if got := fmt.Sprint(f.Apply(&hraft.Log{Index: 7, Type: hraft.LogCommand})); got != errReplayed.Error() {
		t.Error("an old entry:", got)
	}
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
