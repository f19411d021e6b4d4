package health

import (
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// direct makes all servers of a drill DSR ones.
func (c *cluster) direct() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i := range c.spec.Backends {
		c.spec.Backends[i].Mode = state.ModeDSR
	}
}

// pass makes the drill's VIP pass TCP 443 through, and waits until all are up.
func (c *cluster) pass() {
	c.t.Helper()
	c.mu.Lock()
	c.spec.VIPs[0].SSTP = state.SSTPPassthrough
	targets := TargetsOf(c.spec)
	c.mu.Unlock()
	for _, n := range c.nodes {
		n.SetTargets(targets, DefaultTiming())
	}
	if d := until(20*time.Second, func() bool { return c.tcp(1) == up && c.tcp(2) == up && c.tcp(3) == up }); d < 0 {
		c.t.Fatalf("SSTP is not up: %d %d %d", c.tcp(1), c.tcp(2), c.tcp(3))
	}
	time.Sleep(time.Minute)
	c.mu.Lock()
	c.changes = 0
	c.mu.Unlock()
}

func (c *cluster) tcp(id int) state.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.spec.Backends[id-1].Health[state.ClassTCP-1].Verdict
}

// stop ends SSTP of a server: another service answers on its port.
func (c *cluster) stop(id int, nodes ...int) {
	for _, n := range nodes {
		c.nodes[n].net.setWeb(drillServers[id-1], serve(stopped))
	}
}

// No packet of a DSR server is ever seen: a dead one goes down as fast as any
// other, two of three as well, and a probe path that breaks takes none away.
func TestDrillDSR(t *testing.T) {
	for range 5 { // jitter
		drill(t, func(c *cluster) {
			c.direct()
			time.Sleep(10 * time.Second)
			c.kill(1, 0, 1, 2)
			if d := until(6*time.Second, func() bool { return c.verdict(1) == down }); d < 0 || d > 4500*time.Millisecond {
				t.Errorf("one dead: verdict after %v", d)
			}
			c.kill(2, 0, 1, 2)
			if d := until(10*time.Second, func() bool { return c.verdict(2) == down }); d < 0 || c.verdict(3) != up {
				t.Errorf("two dead: after %v %d %d %d", d, c.verdict(1), c.verdict(2), c.verdict(3))
			}
		})
		drill(t, func(c *cluster) {
			c.direct()
			time.Sleep(10 * time.Second)
			for id := range drillServers {
				c.kill(id+1, 0, 1, 2)
			}
			time.Sleep(5 * time.Minute)
			if c.changes != 0 {
				t.Errorf("probes cut: %d changes: %d %d %d", c.changes, c.verdict(1), c.verdict(2), c.verdict(3))
			}
		})
		drill(t, func(c *cluster) { // two nodes miss two servers, the third reaches all
			c.direct()
			time.Sleep(10 * time.Second)
			c.kill(1, 0, 1)
			c.kill(2, 0, 1)
			time.Sleep(5 * time.Minute)
			if c.verdict(2) != up && c.verdict(1) != up {
				t.Errorf("probes of two nodes cut: %d %d %d", c.verdict(1), c.verdict(2), c.verdict(3))
			}
		})
	}
}

// SSTP of a server dies: its verdict of TCP within 15 s, IKE does not feel it.
func TestDrillSSTP(t *testing.T) {
	for range 5 { // jitter
		drill(t, func(c *cluster) {
			c.pass()
			c.stop(1, 0, 1, 2)
			d := until(15*time.Second, func() bool { return c.tcp(1) == down })
			if d < 0 {
				t.Errorf("SSTP is not down within 15 s")
			}
			t.Logf("SSTP down after %v", d)
			time.Sleep(time.Minute)
			if c.changes != 1 || c.verdict(1) != up || c.tcp(2) != up {
				t.Errorf("%d changes; ike %d, the other's tcp %d", c.changes, c.verdict(1), c.tcp(2))
			}
			for _, n := range c.nodes {
				n.net.setWeb(drillServers[0], nil)
			}
			if d := until(20*time.Second, func() bool { return c.tcp(1) == up }); d < 0 {
				t.Error("SSTP is not up again")
			}
		})
		drill(t, func(c *cluster) { // it cannot be reached anywhere: nobody is better off elsewhere
			c.pass()
			for id := range drillServers {
				c.stop(id+1, 0, 1, 2)
			}
			time.Sleep(5 * time.Minute)
			if c.changes > 2 || c.tcp(1) == down && c.tcp(2) == down && c.tcp(3) == down {
				t.Errorf("%d changes: %d %d %d", c.changes, c.tcp(1), c.tcp(2), c.tcp(3))
			}
		})
	}
}
