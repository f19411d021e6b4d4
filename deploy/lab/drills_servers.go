package lab

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/node/admin"
)

// Pass criteria of drills on servers, and their sizes.
const (
	verdictLimit = 5 * time.Second // from a server's death to its verdict
	serviceLimit = time.Second     // without service, beyond the later of verdict and dead peer detection
	newClients   = 24              // that come while a server drains
	relogins     = 12              // known clients that are told to log in again
	changeBound  = 10 * time.Second
	falseFor     = 8 * time.Second // how long probes stay blocked after the verdict
)

// victim is the server that a drill works on: the one with most clients.
func (d *drill) victim() (int, []netip.Addr, error) {
	best, on := 0, []netip.Addr(nil)
	for i := range d.l.st.Options.Servers {
		if a := d.before.on(i + 1); len(a) > len(on) {
			best, on = i+1, a
		}
	}
	if best == 0 {
		return 0, nil, errNoClients
	}
	slices.SortFunc(on, netip.Addr.Compare)
	return best, on, nil
}

// admin sets the admin state of a server and waits until every member's data
// plane has it.
func (d *drill) admin(ctx context.Context, verb string, i int) error {
	m, err := d.l.anyMember()
	if err != nil {
		return err
	}
	for _, f := range d.l.st.Options.families() {
		if err := d.l.cli(ctx, cliBound, m, nil, "backend", verb, f.serverName(i)); err != nil {
			return err
		}
	}
	return d.applied(ctx)
}

// applied waits until every member's data plane has what is agreed now.
func (d *drill) applied(ctx context.Context) error {
	m, err := d.l.anyMember()
	if err != nil {
		return err
	}
	st, err := d.l.status(ctx, m)
	if err != nil {
		return err
	}
	return until(ctx, changeBound, "every data plane to follow", func() (bool, error) {
		for _, n := range d.l.members() {
			var s admin.Status
			if admin.NewClient(d.l.socket(n)).Get(ctx, admin.PathStatus, &s) != nil || s.PlaneIndex < st.Index {
				return false, nil
			}
		}
		return true, nil
	})
}

// again makes clients log in again and waits until they have.
func (d *drill) again(ctx context.Context, who []netip.Addr) (snapshot, error) {
	old, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return old, err
	}
	if err := d.l.peers.relogin(ctx, who); err != nil {
		return old, err
	}
	var s snapshot
	err = until(ctx, servedBound, "ordered logins", func() (bool, error) {
		var err error
		s, err = d.l.peers.snapshot(ctx)
		for _, a := range who {
			if c := s.Clients[a]; !c.Up || c.Login == old.Clients[a].Login {
				return false, err
			}
		}
		return true, err
	})
	return s, err
}

// arrive adds clients that nobody has seen before.
func (d *drill) arrive(ctx context.Context, n int) ([]netip.Addr, snapshot, error) {
	who := d.l.st.Options.clients(d.l.st.NextClient, n)
	d.l.st.NextClient += n
	if err := d.l.save(); err != nil {
		return nil, snapshot{}, err
	}
	if err := d.l.peers.addClients(ctx, who); err != nil {
		return nil, snapshot{}, err
	}
	if err := d.l.allServed(ctx, servedBound); err != nil {
		return nil, snapshot{}, err
	}
	s, err := d.l.peers.snapshot(ctx)
	return who, s, err
}

func (d *drill) drain(ctx context.Context) error {
	i, on, err := d.victim()
	if err != nil {
		return err
	}
	if d.l.st.Options.DSR {
		if err := d.known(ctx, d.before.sorted()); err != nil {
			return err
		}
	}
	d.l.say("  draining %s with %d clients", serverName(i), len(on))
	start := time.Now()
	if err := d.admin(ctx, "drain", i); err != nil {
		return err
	}
	d.converged(time.Since(start))
	who, s, err := d.arrive(ctx, newClients)
	if err != nil {
		return err
	}
	for _, a := range who {
		if s.Clients[a].Server == i {
			d.failf("new client %s went to the draining server", a)
		}
	}
	on = on[max(0, len(on)-relogins):] // the first ones may carry pings
	if s, err = d.again(ctx, on); err != nil {
		return err
	}
	for _, a := range on {
		if s.Clients[a].Server != i {
			d.failf("known client %s logged in again and left the draining server", a)
		}
	}
	d.notef("%d new clients went elsewhere, %d known ones logged in again and stayed", len(who), len(on))
	if d.l.st.Options.DSR {
		// The new ones are known when two of their packets were seen, a tick apart:
		// before that a change of the tables moves them, which is the price of DSR.
		if err := d.known(ctx, who); err != nil {
			return err
		}
	}
	if err := d.admin(ctx, "enable", i); err != nil {
		return err
	}
	return d.unharmed(ctx)
}

func (d *drill) offline(ctx context.Context) error {
	i, on, err := d.victim()
	if err != nil {
		return err
	}
	d.l.say("  taking %s offline with %d clients", serverName(i), len(on))
	d.permit(i)
	start := time.Now()
	if err := d.admin(ctx, "offline", i); err != nil {
		return err
	}
	d.converged(time.Since(start))
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	s, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	if left := len(on) - len(s.on(i)); left > 0 {
		d.failf("%d clients left the offline server without a new login", left)
	}
	on = on[max(0, len(on)-relogins):] // the first ones may carry pings
	if s, err = d.again(ctx, on); err != nil {
		return err
	}
	for _, a := range on {
		if s.Clients[a].Server == i {
			d.failf("client %s logged in again on the offline server", a)
		}
	}
	if err := d.admin(ctx, "enable", i); err != nil {
		return err
	}
	return d.unharmed(ctx)
}

func (d *drill) backendKill(ctx context.Context) error {
	i, on, err := d.victim()
	if err != nil {
		return err
	}
	d.l.say("  killing %s with %d clients", serverName(i), len(on))
	d.permit(i)
	start := time.Now()
	if err := d.l.peers.killServer(ctx, i); err != nil {
		return err
	}
	if err := d.l.verdict(ctx, healBound, i, "down"); err != nil {
		return err
	}
	d.within("verdict down", time.Since(start), verdictLimit)
	s := d.before
	err = until(ctx, healBound, "the dead server's clients to be served", func() (bool, error) {
		var err error
		if s, err = d.l.peers.snapshot(ctx); err != nil {
			return false, err
		}
		for _, a := range on {
			if c := s.Clients[a]; !c.Up || c.Server == i {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return err
	}
	d.converged(time.Since(start))
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	if s, err = d.l.peers.snapshot(ctx); err != nil {
		return err
	}
	v := d.before.compare(s, d.permits)
	d.notef("%d clients are served by others", len(v.moved))
	d.within("longest time without service", v.longestGap, max(verdictLimit, d.l.st.Options.LossAfter)+serviceLimit)
	if v.lostOthers > 0 {
		d.failf("%d packets of %d clients of other servers lost", v.lostOthers, len(v.losers))
	}
	d.l.say("  starting %s again", serverName(i))
	if err := d.l.peers.startServer(ctx, i); err != nil {
		return err
	}
	if err := d.l.verdict(ctx, healBound, i, "up"); err != nil {
		return err
	}
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	later, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	if w := s.compare(later, nil); w.lost > 0 || len(w.rehomed) > 0 {
		d.failf("when the server came back: %d packets lost, %d clients re-homed", w.lost, len(w.rehomed))
	}
	return nil
}

func (d *drill) falseVerdict(ctx context.Context) error {
	i, on, err := d.victim()
	if err != nil {
		return err
	}
	d.l.say("  blocking the probes of %s, which serves %d clients", serverName(i), len(on))
	d.permit(i)
	start := time.Now()
	if err := d.l.blockProbes(i, true); err != nil {
		return err
	}
	defer d.l.blockProbes(i, false) // again below; here for the ways out
	if err := d.l.verdict(ctx, calmBound, i, "down"); err != nil {
		return err
	}
	took := time.Since(start)
	d.notef("verdict down after %s", took.Round(time.Millisecond))
	d.converged(took)
	if err := flow(ctx, falseFor); err != nil {
		return err
	}
	if err := d.l.blockProbes(i, false); err != nil {
		return err
	}
	if err := d.l.verdict(ctx, calmBound, i, "up"); err != nil {
		return err
	}
	if err := d.unharmed(ctx); err != nil {
		return err
	}
	s, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	if v := d.before.compare(s, d.permits); len(v.moved) > 0 || v.relogins > 0 {
		d.failf("%d tunnels lost to a false verdict", len(v.moved)+v.relogins)
	}
	return nil
}
