package health

import (
	"context"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// offload makes the drill's VIP one whose TLS ends on the nodes (or passes it
// through), with real servers of SSTP behind, and waits until all are up.
func (c *cluster) offload(mode state.SSTPMode) []*rras {
	c.t.Helper()
	servers := make([]*rras, len(drillServers))
	for i, a := range drillServers {
		servers[i] = &rras{}
		w := servers[i].web
		if mode == state.SSTPPassthrough {
			w = overTLS(w)
		}
		for _, n := range c.nodes {
			n.net.setWeb(a, serve(w))
		}
	}
	c.mu.Lock()
	c.spec.VIPs[0].SSTP = mode
	for i := range c.spec.Members {
		c.spec.Members[i].Format = deepFormat
	}
	targets := TargetsOf(c.spec)
	c.mu.Unlock()
	for _, n := range c.nodes {
		n.SetTargets(targets, DefaultTiming())
	}
	if d := until(20*time.Second, func() bool { return c.tcp(1) == up && c.tcp(2) == up && c.tcp(3) == up }); d < 0 {
		c.t.Fatalf("SSTP is not up: %d %d %d", c.tcp(1), c.tcp(2), c.tcp(3))
	}
	time.Sleep(DeepInterval + time.Minute)
	c.mu.Lock()
	c.changes = 0
	c.mu.Unlock()
	return servers
}

func (c *cluster) down(id state.BackendID, limit time.Duration) time.Duration {
	return until(limit, func() bool { return c.tcp(int(id)) == down })
}

// A server gets one call an interval from the whole cluster, of each node in
// turn, and each is ended as a client would.
func TestDrillCallsAreRare(t *testing.T) {
	for mode, intervals := range map[state.SSTPMode]int{state.SSTPOffload: 12, state.SSTPPassthrough: 3} {
		drill(t, func(c *cluster) {
			servers := c.offload(mode)
			before := make([]int, len(servers))
			for i, s := range servers {
				before[i] = s.count()
			}
			time.Sleep(time.Duration(intervals) * DeepInterval)
			for i, s := range servers {
				if n := s.count() - before[i]; n < intervals-1 || n > intervals+1 {
					t.Errorf("server %d: %d calls in %d intervals", i+1, n, intervals)
				}
				if s.mostTaken != 1 || s.taken != 0 || s.farewells != s.count() {
					t.Errorf("server %d: %d ports at once, %d now, %d farewells of %d", i+1, s.mostTaken, s.taken, s.farewells, s.count())
				}
			}
			for i, n := range c.nodes {
				for _, r := range n.Reports() {
					if r.SSTP.Call.Note != NoteCall || r.SSTP.Hint() != "" {
						t.Errorf("node %d: %+v", i, r.SSTP)
					}
				}
			}
			if c.changes != 0 {
				t.Errorf("%d changes", c.changes)
			}
		})
	}
}

// A server runs out of ports, or hangs with calls alone: all nodes find out from
// the first that does, the verdict is down, and it comes back as it can again.
func TestDrillCallsFail(t *testing.T) {
	for name, c := range map[string]struct {
		ill     func(s *rras, yes bool)
		within  time.Duration // from the call that failed first to the verdict
		most    int           // calls until then
		hint    Note
		recover time.Duration
	}{
		"full":  {func(s *rras, yes bool) { s.full = yes }, 7 * time.Second, 9, NoteCallRefused, 35 * time.Second},
		"hangs": {func(s *rras, yes bool) { s.hangs = yes }, 45 * time.Second, 9, NoteCallSilent, 50 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			drill(t, func(d *cluster) {
				servers := d.offload(state.SSTPOffload)
				s := servers[0]
				before := s.count()
				s.set(func(s *rras) { c.ill(s, true) })
				asked := until(DeepInterval+time.Second, func() bool { return s.count() > before })
				if asked < 0 {
					t.Fatal("no call in an interval")
				}
				took := d.down(1, c.within)
				if took < 0 {
					t.Fatalf("not down within %v: %+v", c.within, d.nodes[0].Reports()[0].SSTP)
				}
				t.Logf("asked after %v, down %v later, %d calls", asked, took, s.count()-before)
				if n := s.count() - before; n > c.most {
					t.Errorf("%d calls", n)
				}
				time.Sleep(2 * callTimeout) // two of three decide; the third finds out as well
				o := d.nodes[0].Observe(nil)
				if seen, _ := o.Of(1, state.ClassTCP); seen.Note != c.hint || seen.Misses < 3 || seen.Answers != 0 || seen.Failing == 0 {
					t.Errorf("%+v", seen)
				}
				if r := d.nodes[0].Reports()[0].SSTP; r.Note != NoteSSTP || r.Call.Note != c.hint || r.Hint() == "" {
					t.Errorf("%+v", r)
				}
				count := s.count()
				time.Sleep(10 * time.Minute)
				if n := s.count() - count; n > 3*23 || n < 3*13 { // each node every callRetry, or as much later as a call hangs
					t.Errorf("%d calls in ten minutes", n)
				}
				if d.tcp(1) != down || d.verdict(1) != up || d.tcp(2) != up || d.changes != 1 {
					t.Errorf("%d changes: %v, ike %v, another %v", d.changes, d.tcp(1), d.verdict(1), d.tcp(2))
				}
				s.set(func(s *rras) { c.ill(s, false) })
				back := until(c.recover, func() bool { return d.tcp(1) == up })
				if back < 0 {
					t.Fatalf("not up again: %+v", d.nodes[0].Reports()[0].SSTP)
				}
				time.Sleep(time.Minute)
				count = s.count()
				time.Sleep(time.Hour / 2)
				if n := s.count() - count; n < 5 || n > 7 || d.changes != 2 {
					t.Errorf("afterwards: %d calls in half an hour, %d changes", n, d.changes)
				}
			})
		})
	}
}

// What one node alone meets is no verdict, and costs the others a call each.
func TestDrillCallsFailForOne(t *testing.T) {
	drill(t, func(c *cluster) {
		servers := c.offload(state.SSTPOffload)
		ill := &rras{full: true}
		c.nodes[1].net.setWeb(drillServers[0], serve(ill.web))
		if d := until(3*DeepInterval+time.Second, func() bool { return ill.count() > 3 }); d < 0 {
			t.Fatal("the node has not asked")
		}
		time.Sleep(10 * time.Second)
		o := c.nodes[1].Observe(nil)
		if s, _ := o.Of(1, state.ClassTCP); s.Opinion != OpinionDown {
			t.Errorf("its own opinion: %+v", s)
		}
		before := servers[0].count()
		time.Sleep(time.Hour / 2)
		if c.changes != 0 {
			t.Errorf("%d changes", c.changes)
		}
		if n := servers[0].count() - before; n < 3 || n > 5 { // two thirds of the turns
			t.Errorf("%d calls of the others in half an hour", n)
		}
		c.nodes[1].net.setWeb(drillServers[0], serve(servers[0].web))
		time.Sleep(time.Minute)
		o = c.nodes[1].Observe(nil)
		if s, _ := o.Of(1, state.ClassTCP); s.Opinion != OpinionUp || s.Failing != 0 {
			t.Errorf("it works again: %+v", s)
		}
	})
}

// All servers are full: somebody stays in the table.
func TestDrillAllFull(t *testing.T) {
	drill(t, func(c *cluster) {
		for _, s := range c.offload(state.SSTPOffload) {
			s.set(func(s *rras) { s.full = true })
		}
		time.Sleep(2 * DeepInterval)
		if c.tcp(1) == down && c.tcp(2) == down && c.tcp(3) == down {
			t.Errorf("%d changes: the table is empty", c.changes)
		}
	})
}

// Where connections pass through, a verdict down would cut those that stand:
// calls that fail are told to people alone.
func TestDrillCallsFailInPassThrough(t *testing.T) {
	drill(t, func(c *cluster) {
		s := c.offload(state.SSTPPassthrough)[0]
		s.set(func(s *rras) { s.full = true })
		time.Sleep(4 * DeepInterval)
		if c.changes != 0 || c.tcp(1) != up {
			t.Errorf("%d changes", c.changes)
		}
		for i, n := range c.nodes {
			o := n.Observe(nil)
			seen, _ := o.Of(1, state.ClassTCP)
			if r := n.Reports()[0].SSTP; r.Hint() == "" || r.Opinion != OpinionUp || seen.Opinion != OpinionUp || seen.Failing != 0 || seen.Note != NoteSSTP {
				t.Errorf("node %d: %+v, %+v", i, r, seen)
			}
		}
	})
}

// No calls while the check itself is missed, and none in a loop when this node
// cannot make them.
func TestProberCalls(t *testing.T) {
	hall(t, func(b *bench, set func(Dial)) {
		s := &rras{}
		check := SSTPCheck{Port: 80, Deep: DeepInterval, DeepVotes: true}
		target := []Target{{Backend: 1, Addr: server1, SSTP: &check}}
		set(serve(s.web))
		b.SetTargets(target, DefaultTiming())
		turn := func(slot uint64) { b.SetCalls(map[state.BackendID]Call{1: {Slot: slot, Turn: true}}) }
		time.Sleep(time.Minute)
		if s.count() != 0 {
			t.Errorf("%d calls out of turn", s.count())
		}
		for range 100 {
			turn(7)
			time.Sleep(100 * time.Millisecond)
		}
		if s.count() != 1 {
			t.Errorf("%d calls in one slot", s.count())
		}
		s.set(func(s *rras) { s.stopped = true })
		if d := b.sstp(OpinionDown, 15*time.Second); d < 0 {
			t.Fatal("not down")
		}
		turn(8)
		time.Sleep(time.Minute)
		if s.count() != 1 {
			t.Errorf("%d calls though the check is missed", s.count())
		}
		s.set(func(s *rras) { s.stopped = false })
		time.Sleep(7 * time.Second)
		if s.count() != 2 {
			t.Errorf("%d calls after it came back", s.count())
		}
		// Doubt of another, though this node cannot ask: not in a loop.
		tries := 0
		set(func(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
			s.set(func(*rras) { tries++ })
			return fails(syscall.EMFILE)(ctx, local, to)
		})
		b.SetCalls(map[state.BackendID]Call{1: {Slot: 8, Failing: true, Since: time.Second}})
		time.Sleep(time.Minute)
		s.set(func(*rras) {
			if tries > 65 { // the check is tried every second
				t.Errorf("%d tries in a minute", tries)
			}
		})
		set(serve(s.web))
		time.Sleep(time.Minute)
		if s.count() != 3 {
			t.Errorf("%d calls once it can", s.count())
		}
		b.SetTargets([]Target{{Backend: 1, Addr: server1, SSTP: &offloaded}}, DefaultTiming())
		turn(9)
		time.Sleep(time.Minute)
		if s.count() != 3 {
			t.Errorf("%d calls though none are wanted", s.count())
		}
	})
}
