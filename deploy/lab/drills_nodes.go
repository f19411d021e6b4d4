package lab

import (
	"context"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/vpnlb/vpnlb/node/admin"
)

// Pass criteria of drills on nodes.
const (
	routeGoneLimit = 200 * time.Millisecond // after a kill; the kernel closes the BGP session at once
	backLimit      = 10 * time.Second       // from the daemon's start to the ECMP set
	lossLimit      = 3200 * time.Millisecond
	gatewayLimit   = 2 * time.Second
	newLeaderLimit = 1500 * time.Millisecond
	coldLeadLimit  = 5 * time.Second // first leader after all daemons were killed
	leaveLimit     = 10 * time.Second
	deadTime       = 3 * time.Second // how long a killed daemon stays away
	withoutAnyTime = 6 * time.Second // how long all daemons stay away
)

// nothing lost, nobody disturbed: the pass criterion of most drills on nodes.
func (d *drill) unharmed(ctx context.Context) error {
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	s, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	if v := d.before.compare(s, d.permits); v.lost > 0 {
		d.failf("%d packets of %d clients lost, for up to %s", v.lost, len(v.losers), v.longest.Round(time.Millisecond))
	}
	return nil
}

// killDaemon kills a daemon and times the router.
func (d *drill) killDaemon(ctx context.Context, node string) error {
	rest := without(d.l.members(), node)
	start := time.Now()
	if err := d.l.st.Processes[node].signal(syscall.SIGKILL); err != nil {
		return err
	}
	if len(rest) > 0 {
		if err := d.l.waitHops(ctx, healBound, rest...); err != nil {
			return err
		}
		took := time.Since(start)
		d.within("route via "+node+" gone", took, routeGoneLimit)
		d.converged(took)
	}
	return d.l.kill(ctx, node) // until it is gone
}

// reviveDaemon starts it again, as a supervisor would, and times its return.
func (d *drill) reviveDaemon(ctx context.Context, node string) error {
	start := time.Now()
	if err := d.l.restart(node); err != nil {
		return err
	}
	if err := d.l.waitECMP(ctx, healBound); err != nil {
		return fmt.Errorf("daemon of %s started again: %w", node, err)
	}
	d.within(node+" back in the ECMP set", time.Since(start), backLimit)
	return nil
}

func without(all []string, node string) (out []string) {
	for _, n := range all {
		if n != node {
			out = append(out, n)
		}
	}
	return out
}

func (d *drill) daemonKill(ctx context.Context) error {
	for _, n := range d.l.members() {
		if err := d.killAndRevive(ctx, n); err != nil {
			return err
		}
	}
	return d.unharmed(ctx)
}

func (d *drill) killAndRevive(ctx context.Context, node string) error {
	d.l.say("  kill -9 of the daemon of %s", node)
	if err := d.killDaemon(ctx, node); err != nil {
		return err
	}
	if err := flow(ctx, deadTime); err != nil {
		return err
	}
	return d.reviveDaemon(ctx, node)
}

func (d *drill) leaderKill(ctx context.Context) error {
	old, err := d.l.leader(ctx, calmBound)
	if err != nil {
		return err
	}
	d.l.say("  kill -9 of the leader %s", old)
	start := time.Now()
	if err := d.killDaemon(ctx, old); err != nil {
		return err
	}
	next, err := d.l.leader(ctx, healBound, old)
	if err != nil {
		return err
	}
	d.within("new leader "+next, time.Since(start), newLeaderLimit)
	if err := flow(ctx, deadTime); err != nil {
		return err
	}
	if err := d.reviveDaemon(ctx, old); err != nil {
		return err
	}
	return d.unharmed(ctx)
}

func (d *drill) allDaemonsKill(ctx context.Context) error {
	pinned, err := d.allPins()
	if err != nil {
		return err
	}
	start := time.Now()
	for _, n := range d.l.members() {
		if err := d.l.st.Processes[n].signal(syscall.SIGKILL); err != nil {
			return err
		}
	}
	if err := d.l.waitHops(ctx, healBound); err != nil {
		return err
	}
	d.notef("no route by BGP left after %s, the floating static route carries on", time.Since(start).Round(time.Millisecond))
	if err := flow(ctx, withoutAnyTime); err != nil {
		return err
	}
	if err := d.untouched("without daemons", pinned, false); err != nil {
		return err
	}
	start = time.Now()
	for _, n := range d.l.members() {
		if err := d.l.kill(ctx, n); err != nil {
			return err
		}
		if err := d.l.restart(n); err != nil {
			return err
		}
	}
	lead, err := d.leaderless(ctx, pinned)
	if err != nil {
		return err
	}
	d.within("leader "+lead+" after the start", time.Since(start), coldLeadLimit)
	if err := d.l.waitECMP(ctx, healBound); err != nil {
		return err
	}
	took := time.Since(start)
	d.within("all nodes back in the ECMP set", took, backLimit)
	d.converged(took)
	if err := d.untouched("with daemons again", pinned, true); err != nil {
		return err
	}
	return d.unharmed(ctx)
}

func (d *drill) nodeDeath(ctx context.Context) error {
	return d.cut(ctx, "both links", true, true)
}

func (d *drill) outsideDeath(ctx context.Context) error {
	return d.cut(ctx, "the outside link", true, false)
}

func (d *drill) insideDeath(ctx context.Context) error {
	return d.cut(ctx, "the inside link", false, true)
}

// announceTime is longer than the interval in which owners announce their gateways. A
// node that was cut off has claimed gateways and announces them when it is back; servers
// believe that until the owner announces again, and a second cut within that time would
// cost more than the first.
const announceTime = 11 * time.Second

// cut cuts links of a node that owns a gateway, judges, and heals them.
func (d *drill) cut(ctx context.Context, what string, outside, inside bool) error {
	if err := d.l.waitGatewaysSpread(ctx, healBound); err != nil {
		return err
	}
	if err := flow(ctx, announceTime); err != nil {
		return err
	}
	node, owned, err := d.l.gatewayOwner(ctx)
	if err != nil {
		return err
	}
	if err := d.startWatch(ctx); err != nil {
		return err
	}
	defer d.l.kill(context.WithoutCancel(ctx), watchName) // again below; here for the ways out
	d.l.say("  cutting %s of %s", what, node)
	start := time.Now()
	if err := d.l.setPorts(node, outside, inside, false); err != nil {
		return err
	}
	moved, err := d.gatewaysLeave(ctx, node, start)
	if err != nil {
		return err
	}
	d.within("gateways of "+node+" elsewhere", moved, gatewayLimit)
	if err := d.l.waitHops(ctx, healBound, without(d.l.members(), node)...); err != nil {
		return err
	}
	d.within("route via "+node+" gone", time.Since(start), lossLimit)
	if err := flow(ctx, deadTime); err != nil {
		return err
	}
	s, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	v := d.before.compare(s, d.permits)
	d.within("longest time from a client's first lost packet to its last", v.longest, lossLimit)
	d.converged(v.longest)
	d.shareOnly(s, v, owned)
	if err := d.endWatch(ctx, owned); err != nil {
		return err
	}
	return d.heal(ctx, node, s)
}

// heal sets all links of a node up again: that may cost nothing.
func (d *drill) heal(ctx context.Context, node string, s snapshot) error {
	d.l.say("  healing the links of %s", node)
	start := time.Now()
	if err := d.l.setPorts(node, true, true, true); err != nil {
		return err
	}
	if err := d.l.waitECMP(ctx, healBound); err != nil {
		return err
	}
	d.notef("%s back in the ECMP set after %s", node, time.Since(start).Round(time.Millisecond))
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	healed, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	if w := s.compare(healed, d.permits); w.lost > 0 {
		d.failf("%d packets of %d clients lost while the node came back", w.lost, len(w.losers))
	}
	return nil
}

// gatewaysLeave waits until a dead node owns no gateway any more.
func (d *drill) gatewaysLeave(ctx context.Context, node string, start time.Time) (time.Duration, error) {
	err := until(ctx, healBound, "the gateways of "+node+" to move", func() (bool, error) {
		owns, err := d.l.ownsGateway(ctx, node, node)
		return err == nil && !owns, nil
	})
	return time.Since(start), err
}

// leaveJoin lets the leader leave and a new node join.
func (d *drill) leaveJoin(ctx context.Context) error {
	lead, err := d.l.leader(ctx, calmBound)
	if err != nil {
		return err
	}
	if err := d.replace(ctx, lead); err != nil {
		return err
	}
	return d.unharmed(ctx)
}

// followerLeave lets a node leave that does not lead and owns a gateway which
// servers use, and a new one join.
func (d *drill) followerLeave(ctx context.Context) error {
	lead, err := d.l.leader(ctx, calmBound)
	if err != nil {
		return err
	}
	node, err := d.l.usedGatewayOwner(ctx, lead)
	if err != nil {
		return err
	}
	if err := d.replace(ctx, node); err != nil {
		return err
	}
	return d.unharmed(ctx)
}

// usedGatewayOwner names a member, not one of but, whose gateway is some server's.
func (l *Lab) usedGatewayOwner(ctx context.Context, but ...string) (string, error) {
	m, err := l.anyMember()
	if err != nil {
		return "", err
	}
	var list []admin.Gateway
	if err := l.cli(ctx, cliBound, m, &list, "gateway", "list"); err != nil {
		return "", err
	}
	o := l.st.Options
	for _, g := range list {
		if !l.st.Members[g.Owner] || slices.Contains(but, g.Owner) {
			continue
		}
		for _, f := range o.families() {
			for i := range o.Servers {
				if f.gatewayOf(i+1, o.Nodes) == g.Addr {
					return g.Owner, nil
				}
			}
		}
	}
	return "", fmt.Errorf("nobody but %v owns a gateway that a server uses", but)
}

// replace lets a node leave and a new one join.
func (d *drill) replace(ctx context.Context, old string) error {
	spare, err := d.l.spare()
	if err != nil {
		return err
	}
	if err := d.leave(ctx, old); err != nil {
		return err
	}
	start := time.Now()
	if err := d.l.joinNode(ctx, spare); err != nil {
		return err
	}
	if err := d.l.waitECMP(ctx, healBound); err != nil {
		return err
	}
	d.notef("%s joined and in the ECMP set after %s", spare, time.Since(start).Round(time.Millisecond))
	return nil
}

func (d *drill) leave(ctx context.Context, node string) error {
	d.l.say("  %s leaves the cluster", node)
	start := time.Now()
	if err := d.l.cli(ctx, leaveBound, node, nil, "cluster", "leave"); err != nil {
		return err
	}
	took := time.Since(start)
	d.within(node+" left", took, leaveLimit)
	d.converged(took)
	if err := d.l.setMember(node, false); err != nil {
		return err
	}
	if err := d.l.waitECMP(ctx, settleTime); err != nil {
		return err
	}
	owns, err := d.l.ownsGateway(ctx, node)
	if err != nil {
		return err
	}
	if owns {
		d.failf("%s has left and still owns a gateway", node)
	}
	if err := d.l.stop(ctx, node); err != nil {
		return err
	}
	left, err := d.l.leftovers(node)
	if err != nil {
		return err
	}
	if len(left) > 0 {
		d.failf("%s has left, and of it are left: %v", node, left)
	}
	return d.l.clearPins(node)
}
