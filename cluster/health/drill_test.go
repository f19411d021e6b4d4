package health

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// cluster is three nodes with real probers, observations that travel encoded
// twice a second and at once on a change, and the first node as leader.
type cluster struct {
	t       *testing.T
	mu      sync.Mutex
	spec    *state.Spec
	start   time.Time
	changes int // verdicts taken after the first
	nodes   []*drillNode
	carries map[state.BackendID]bool // clients send, and the return path counts packets
	dead    map[state.BackendID]bool // of these, the ones that answer no more
	count   uint64
}

type drillNode struct {
	id  state.NodeID
	net *fabric
	*Prober
	*Collector
	*Returns
}

var drillServers = []netip.Addr{netip.MustParseAddr("198.51.100.21"), netip.MustParseAddr("198.51.100.22"), netip.MustParseAddr("198.51.100.23")}

func drill(t *testing.T, body func(c *cluster)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := &cluster{t: t, start: time.Now(), carries: map[state.BackendID]bool{}, dead: map[state.BackendID]bool{},
			spec: &state.Spec{Settings: state.DefaultSettings(), VIPs: []state.VIP{{ID: 1}}}}
		for i, a := range drillServers {
			c.spec.Backends = append(c.spec.Backends, state.Backend{ID: state.BackendID(i + 1), VIP: 1, Addr: a, Admin: state.AdminEnabled, Weight: 100})
		}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 3 {
			f := &fabric{servers: map[netip.Addr]behaviour{}, refuses: map[netip.Addr]bool{}, delay: time.Millisecond}
			for _, a := range drillServers {
				f.servers[a] = rejects
			}
			p, err := NewProber(Config{Boot: 1}, Deps{Listen: f.listen, Dial: f.dial})
			if err != nil {
				t.Fatal(err)
			}
			p.SetTargets(TargetsOf(c.spec), TimingOf(&c.spec.Settings))
			n := &drillNode{node(i), f, p, NewCollector(), NewReturns()}
			c.nodes = append(c.nodes, n)
			c.spec.Members = append(c.spec.Members, state.Member{ID: n.id, Role: state.RoleNode})
			wg.Go(func() { p.Run(ctx) })
		}
		for _, n := range c.nodes {
			wg.Go(func() { c.gossip(ctx, n) })
			wg.Go(func() { c.turns(ctx, n) })
		}
		wg.Go(func() { c.lead(ctx) })
		time.Sleep(20 * time.Second)
		for i := range c.spec.Backends {
			if c.verdict(i+1) != state.VerdictUp {
				t.Fatalf("server %d is not up at the start", i+1)
			}
		}
		c.mu.Lock()
		c.changes = 0
		c.mu.Unlock()
		body(c)
		cancel()
		wg.Wait()
		time.Sleep(time.Second)
	})
}

// gossipDelay is how long an observation travels.
const gossipDelay = 250 * time.Millisecond

// turns does what a node does ten times a second.
func (c *cluster) turns(ctx context.Context, n *drillNode) {
	for ctx.Err() == nil {
		c.mu.Lock()
		c.count++
		counts := map[state.BackendID]Counts{1: {}, 2: {}, 3: {}}
		for id := range c.carries {
			counts[id] = Counts{Proof: c.count, Protected: c.count, In: c.count, Out: c.count}
			if c.dead[id] {
				last := n.last[id].counts
				counts[id] = Counts{Proof: last.Proof, Protected: last.Protected, In: c.count, Out: last.Out}
			}
		}
		n.Sample(counts)
		unanswered := map[state.BackendID]bool{}
		for _, other := range c.nodes {
			for _, id := range other.Unanswered() {
				unanswered[id] = true
			}
		}
		n.SetTurns(Turns(TargetsOf(c.spec), TurnFacts{Spec: c.spec, Self: n.id, Now: state.Time(time.Since(c.start)),
			Observers: n.Observers(), Unanswered: unanswered, Returns: n.Returns}))
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *cluster) gossip(ctx context.Context, n *drillNode) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.Changed():
		case <-time.After(500 * time.Millisecond):
		}
		c.mu.Lock()
		n.SetCalls(Calls(TargetsOf(c.spec), CallFacts{Spec: c.spec, Self: n.id, Now: state.Time(time.Since(c.start)), Observers: n.Observers()}))
		c.mu.Unlock()
		o := n.Observe(n.Returns)
		n.Receive(n.id, o)
		got, err := DecodeObservation(o.Encode())
		if err != nil {
			c.t.Errorf("decode: %v", err)
		}
		time.AfterFunc(gossipDelay, func() {
			for _, to := range c.nodes {
				if to != n {
					to.Receive(n.id, got)
				}
			}
		})
	}
}

func (c *cluster) lead(ctx context.Context) {
	for ctx.Err() == nil {
		c.mu.Lock()
		now := state.Time(time.Since(c.start))
		for _, d := range Decide(Facts{Spec: c.spec, Now: now, Office: time.Since(c.start), Listening: time.Since(c.start), Observers: c.nodes[0].Observers()}) {
			set, ok := d.Command.(state.SetHealth)
			if !ok {
				continue
			}
			h := &c.spec.Backends[set.Backend-1].Health[set.Class-1]
			c.changes++
			h.Verdict, h.Since = set.Verdict, now
			if set.Verdict == state.VerdictUp {
				h.UpSince = now
			}
			h.Index++
		}
		c.mu.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c *cluster) verdict(id int) state.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spec.Backends[id-1].Health[state.ClassIKE-1].Verdict
}

func (c *cluster) reach(i int) Reached {
	c.mu.Lock()
	defer c.mu.Unlock()
	return Reach(ReachFacts{Spec: c.spec, Self: c.nodes[i].id, Observers: c.nodes[i].Observers()})
}

// kill silences a server as seen from some nodes.
func (c *cluster) kill(id int, nodes ...int) {
	for _, n := range nodes {
		c.nodes[n].net.set(drillServers[id-1], nil)
	}
}

func (c *cluster) load(ids ...state.BackendID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.carries = map[state.BackendID]bool{}
	for _, id := range ids {
		c.carries[id] = true
	}
}

// until waits for a condition and returns how long it took, or -1.
func until(limit time.Duration, ok func() bool) time.Duration {
	start := time.Now()
	for time.Since(start) <= limit {
		if ok() {
			return time.Since(start)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return -1
}

// A server dies while its clients send, and while it has none.
func TestDrillServerDies(t *testing.T) {
	for _, busy := range []bool{true, false} {
		worst := time.Duration(0)
		for i := range 12 { // phases of the turns
			drill(t, func(c *cluster) {
				if busy {
					c.load(1, 2, 3)
				}
				time.Sleep(10*time.Second + time.Duration(i)*270*time.Millisecond)
				c.mu.Lock()
				c.dead[1] = true
				c.mu.Unlock()
				c.kill(1, 0, 1, 2)
				d := until(6*time.Second, func() bool { return c.verdict(1) == state.VerdictDown })
				if d < 0 || d > 4800*time.Millisecond {
					t.Errorf("busy %v: verdict after %v; a drill allows 5 s with the log's time", busy, d)
				}
				worst = max(worst, d)
				for i := range c.nodes {
					if r := c.reach(i); r.Doubts || r.None {
						t.Errorf("node %d doubts itself: %+v", i, r)
					}
				}
			})
		}
		t.Logf("busy %v: verdict after %v at worst", busy, worst)
	}
}

// TestDrillPace: the cluster asks each port once a second, where there is no doubt, and
// less where a node sees the server's protected answers.
func TestDrillPace(t *testing.T) {
	count := func(busy bool) (perDay int) {
		drill(t, func(c *cluster) {
			if busy {
				c.load(1, 2, 3)
			}
			time.Sleep(time.Minute)
			probes := func() (n int) {
				for _, n2 := range c.nodes {
					n2.net.mu.Lock()
					n += n2.net.probes
					n2.net.mu.Unlock()
				}
				return n
			}
			before := probes()
			time.Sleep(10 * time.Minute)
			perDay = (probes() - before) * 144 / len(drillServers)
			if c.changes != 0 {
				t.Errorf("%d verdict changes", c.changes)
			}
		})
		return perDay
	}
	quiet, busy := count(false), count(true)
	t.Logf("refused negotiations of one server in a day: %d without clients, %d with, of three nodes", quiet, busy)
	if limit := 2 * 86400 * 102 / 100; quiet > limit || quiet < 2*86400*95/100 {
		t.Errorf("%d a day without clients, want one a second and port", quiet)
	}
	if limit := 3 * 2 * 86400 / 10 * 105 / 100; busy > limit {
		t.Errorf("%d a day with clients whose answers all nodes see, want at most one in 10 s of each node and port", busy)
	}
}

func TestDrillUnreachableFromOne(t *testing.T) {
	for i := range 12 { // phases of the turns
		drill(t, func(c *cluster) {
			time.Sleep(time.Duration(i) * 270 * time.Millisecond)
			drillUnreachable(t, c)
		})
	}
}

func drillUnreachable(t *testing.T, c *cluster) {
	t.Helper()
	c.kill(1, 1)
	d := until(8*time.Second, func() bool { return c.reach(1).Reason == ReachSome })
	if d < 0 || d > 5500*time.Millisecond {
		t.Errorf("doubts after %v; a drill allows 6 s for it and a demotion", d)
	}
	t.Logf("doubts after %v", d)
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		if r := c.reach(1); r.Reason != ReachSome {
			t.Errorf("the doubt ended: %+v", r)
			break
		}
	}
	if c.verdict(1) != state.VerdictUp || c.changes != 0 {
		t.Errorf("verdict %d, %d changes", c.verdict(1), c.changes)
	}
	c.kill(2, 1)
	c.kill(3, 1)
	if d := until(8*time.Second, func() bool { return c.reach(1).None }); d < 0 {
		t.Errorf("reaches none, yet %+v", c.reach(1))
	}
	if r := c.reach(0); r.Reason != ReachAll {
		t.Errorf("the others: %+v", r)
	}
}

func TestDrillProbeNetworkCut(t *testing.T) {
	for range 5 { // jitter
		drillCut(t, 1, 2, 3)
	}
}

func TestDrillProbeNetworkCutAtNight(t *testing.T) {
	for range 5 { // jitter
		drillCut(t)
	}
}

func drillCut(t *testing.T, carried ...state.BackendID) {
	t.Helper()
	drill(t, func(c *cluster) {
		c.load(carried...)
		time.Sleep(10 * time.Second)
		for id := range drillServers {
			c.kill(id+1, 0, 1, 2)
		}
		time.Sleep(2 * time.Minute)
		if c.changes != 0 {
			t.Errorf("%d verdict changes: %d %d %d", c.changes, c.verdict(1), c.verdict(2), c.verdict(3))
		}
		if r := c.reach(0); r.Doubts || r.None {
			t.Errorf("%+v", r)
		}
	})
}

func TestDrillTwoOfThreeDie(t *testing.T) {
	drill(t, func(c *cluster) {
		c.load(1, 2, 3)
		time.Sleep(10 * time.Second)
		c.load(3)
		c.kill(1, 0, 1, 2)
		c.kill(2, 0, 1, 2)
		d := until(time.Minute, func() bool { return c.verdict(1) == state.VerdictDown && c.verdict(2) == state.VerdictDown })
		if d < 0 || d > 12*time.Second || c.verdict(3) != state.VerdictUp {
			t.Errorf("after %v: %d %d %d", d, c.verdict(1), c.verdict(2), c.verdict(3))
		}
		t.Logf("both down after %v", d)
	})
}

func TestDrillFlapping(t *testing.T) {
	drill(t, func(c *cluster) {
		for range 30 {
			c.kill(1, 0, 1, 2)
			time.Sleep(2 * time.Second)
			for _, n := range c.nodes {
				n.net.set(drillServers[0], rejects)
			}
			time.Sleep(2 * time.Second)
		}
		if c.changes > 2 {
			t.Errorf("%d verdict changes", c.changes)
		}
	})
}
