package lab

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/sstppeer"
	"github.com/vpnlb/vpnlb/node/admin"
)

// Pass criteria of drills on SSTP, and their sizes.
const (
	callLimit  = 5 * time.Second // from the dial to IP: sstpc may need a second try, see DESIGN.md
	awayLimit  = verdictLimit + callLimit
	nodeLimit  = 8 * time.Second // from a node's stop until its calls stand elsewhere: the spread, and a dial
	iperfTime  = time.Second
	slowest    = 5e6 // bit/s through a tunnel: less is a fault even on a slow machine
	alarmBound = 20 * time.Second
)

// sstpPlan is where clients are put before a drill: two on the first server, so
// that one may come anew beside a call that stands. IKE of a client goes to the
// same server: servers ask after clients that are gone for a while, and their
// requests are evidence, so that a record is soon there again.
var sstpPlan = map[int]int{1: 1, 2: 2, 3: 3, 4: 1}

// sstpCall is one client's call as both ends see it.
type sstpCall struct {
	server int
	call   sstppeer.CallStats
	client sstppeer.DialStats
}

// sstpCallOf looks for client i's call; false: it does not stand on both ends.
func (l *Lab) sstpCallOf(ctx context.Context, i int) (c sstpCall, ok bool, err error) {
	if c.client, err = l.sstpClient(ctx, i); err != nil || !c.client.Up {
		return c, false, err
	}
	c.server = int(c.client.Link.Peer.As4()[3])
	if !l.st.Processes[sstpName(c.server)].alive() {
		return c, false, nil
	}
	st, err := l.sstpServer(ctx, c.server)
	if err != nil {
		return c, false, nil // killed just now
	}
	at := slices.IndexFunc(st.Calls, func(x sstppeer.CallStats) bool {
		return x.Inner == c.client.Link.Local && x.User == sstpRole(i) && x.Up
	})
	if at < 0 {
		return c, false, nil
	}
	c.call = st.Calls[at]
	return c, true, nil
}

// waitCall waits until client i's call stands and ok takes it.
func (l *Lab) waitCall(ctx context.Context, bound time.Duration, i int, what string, ok func(sstpCall) bool) (c sstpCall, err error) {
	err = until(ctx, bound, fmt.Sprintf("the call of %s %s", sstpRole(i), what), func() (bool, error) {
		var up bool
		var err error
		c, up, err = l.sstpCallOf(ctx, i)
		return up && ok(c), err
	})
	if err != nil {
		err = fmt.Errorf("%w: %s", err, c.client.Said())
	}
	return c, err
}

func anyCall(sstpCall) bool { return true }

// sstpPlace makes the clients unknown and dials, while only the server that is
// meant takes new clients: from there on affinity must keep them.
func (d *drill) sstpPlace(ctx context.Context, clients ...int) (map[int]sstpCall, error) {
	l := d.l
	if err := d.forget(ctx, clients...); err != nil {
		return nil, err
	}
	calls := map[int]sstpCall{}
	for server := range l.st.Options.Servers {
		mine := slices.DeleteFunc(slices.Clone(clients), func(i int) bool { return sstpPlan[i] != server+1 })
		if len(mine) == 0 {
			continue
		}
		if err := d.only(ctx, server+1); err != nil {
			return nil, err
		}
		for _, i := range mine {
			if err := l.dialSSTP(ctx, i); err != nil {
				return nil, err
			}
		}
		for _, i := range mine {
			c, err := l.waitCall(ctx, sstpBound, i, "on "+serverName(server+1), func(c sstpCall) bool { return c.server == server+1 })
			if err != nil {
				return nil, err
			}
			calls[i] = c
		}
	}
	return calls, d.only(ctx, 0)
}

// forget makes clients unknown.
func (d *drill) forget(ctx context.Context, clients ...int) error {
	m, err := d.l.anyMember()
	if err != nil {
		return err
	}
	for _, i := range clients {
		err := d.l.cli(ctx, cliBound, m, nil, "affinity", "forget", sstpLink(i).Addr().String())
		if err != nil && !strings.Contains(err.Error(), "no record") {
			return err
		}
	}
	return nil
}

// only lets one server alone take new clients; 0: all of them. Each command waits
// for its change: they go at once.
func (d *drill) only(ctx context.Context, server int) error {
	list, err := d.l.backends(ctx)
	if err != nil {
		return err
	}
	m, err := d.l.anyMember()
	if err != nil {
		return err
	}
	var wg sync.WaitGroup
	errs := make([]error, len(list))
	for i, b := range list {
		verb, want := "drain", "drain"
		if server == 0 || b.Name == serverName(server) {
			verb, want = "enable", "enabled"
		}
		if b.VIP != vipName || b.Admin == want {
			continue
		}
		wg.Go(func() { errs[i] = d.l.cli(ctx, cliBound, m, nil, "backend", verb, b.Name) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	return d.applied(ctx)
}

// sstpEnd ends all calls and lets all servers take clients, also where a drill
// stopped half-way.
func (d *drill) sstpEnd(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), healBound)
	defer cancel()
	for i := range sstpClients {
		if d.l.st.Processes[sstpClientName(i+1)].alive() {
			if err := d.l.hangUpSSTP(ctx, i+1); err != nil {
				d.failf("%v", err)
			}
		}
	}
	if d.l.st.Processes[ikeName].alive() {
		if err := d.l.stop(ctx, ikeName); err != nil {
			d.failf("%v", err)
		}
	}
	if err := d.only(ctx, 0); err != nil {
		d.failf("%v", err)
	}
}

// stands checks that a call is the very one of before.
func (d *drill) stands(ctx context.Context, i int, was sstpCall, when string) {
	now, up, err := d.l.sstpCallOf(ctx, i)
	switch {
	case err != nil:
		d.failf("%s: %v", when, err)
	case !up || now.call.ID != was.call.ID || now.server != was.server || now.client.Dials != was.client.Dials:
		d.failf("%s: the call of %s has ended: %s", when, sstpRole(i), now.client.Said())
	default:
		if err := d.l.pingTunnel(ctx, i, now.client.Link); err != nil {
			d.failf("%s: %v", when, err)
		}
	}
}

// sstpCall: four clients call, and everything works.
func (d *drill) sstpCall(ctx context.Context) error {
	defer d.sstpEnd(ctx)
	hash, err := d.l.certHash(d.l.currentCert())
	if err != nil {
		return err
	}
	start := time.Now()
	calls, err := d.sstpPlace(ctx, 1, 2, 3, 4)
	if err != nil {
		return err
	}
	d.notef("four calls on three servers after %s", time.Since(start).Round(time.Millisecond))
	sessions, err := d.l.sessions(ctx)
	if err != nil {
		return err
	}
	for i, c := range calls {
		took := c.call.Connected.Sub(c.call.Since)
		d.converged(took)
		if c.call.Hash != hash { // the server has verified that it is signed, and with its nonce
			d.failf("%s is bound to %s, want %s", sstpRole(i), c.call.Hash, hash)
		}
		if err := d.l.pingTunnel(ctx, i, c.client.Link); err != nil {
			d.failf("%v", err)
		}
		if d.l.st.Options.SSTP.ends() {
			d.listed(sessions, i, c)
		} else if c.call.From.Addr() != sstpLink(i).Addr() {
			d.failf("the server sees %s as %s", sstpRole(i), c.call.From)
		}
	}
	rate, err := d.l.iperfTunnel(ctx, 1, calls[1].client.Link, iperfTime)
	if err != nil {
		return err
	}
	d.notef("%.0f Mbit/s through a tunnel", rate/1e6)
	if rate < slowest {
		d.failf("%.0f bit/s through a tunnel, want %.0f", rate, slowest)
	}
	if err := d.meet(ctx, 3, calls[3].server); err != nil { // SSTP first
		return err
	}
	return d.meetAgain(ctx, 2, 4)
}

// listed checks what the nodes say of a call.
func (d *drill) listed(sessions []admin.SSTPSession, i int, c sstpCall) {
	n := 0
	for _, s := range sessions {
		if s.Client.Addr() != sstpLink(i).Addr() || s.State == "closing" {
			continue
		}
		n++
		if s.Server != serverName(c.server) || s.Certificate != d.l.currentCert() || s.State != "connected" || s.In == 0 || s.Out == 0 {
			d.failf("the nodes list %s as %+v", sstpRole(i), s)
		}
	}
	if n != 1 {
		d.failf("the nodes list %d sessions of %s", n, sstpRole(i))
	}
}

// sessions are those of all members.
func (l *Lab) sessions(ctx context.Context) (all []admin.SSTPSession, err error) {
	for _, n := range l.members() {
		list, err := l.sessionsOf(ctx, n)
		if err != nil {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

func (l *Lab) sessionsOf(ctx context.Context, node string) (list []admin.SSTPSession, err error) {
	return list, l.cli(ctx, cliBound, node, &list, "sstp", "sessions")
}

// sstpNodeStop stops the daemon that carries most calls, as an update of its
// package does. Where TLS ends there the calls end, gently; else nothing does.
func (d *drill) sstpNodeStop(ctx context.Context) error {
	defer d.sstpEnd(ctx)
	before, err := d.sstpPlace(ctx, 1, 2, 3, 4)
	if err != nil {
		return err
	}
	node, carried, err := d.busiest(ctx)
	if err != nil {
		return err
	}
	d.l.say("  stopping the daemon of %s, which carries the calls of %v", node, carried)
	start := time.Now()
	if err := d.l.st.Processes[node].signal(syscall.SIGTERM); err != nil {
		return err
	}
	for i, was := range before {
		again := slices.Contains(carried, sstpRole(i))
		_, err := d.l.waitCall(ctx, healBound, i, "after the stop of "+node, func(c sstpCall) bool {
			return !again || c.call.ID != was.call.ID || c.server != was.server
		})
		if err != nil {
			return err
		}
	}
	took := time.Since(start)
	if len(carried) > 0 {
		d.within("calls elsewhere", took, nodeLimit)
	}
	d.converged(took)
	err = until(ctx, stopBound, node+" to end", func() (bool, error) { return !d.l.st.Processes[node].alive(), nil })
	if err != nil {
		return err
	}
	d.sameServers(ctx, before, "after the stop of "+node)
	d.l.say("  starting %s again", node)
	if err := d.reviveDaemon(ctx, node); err != nil {
		return err
	}
	if err := d.unharmed(ctx); err != nil { // it waits: what the router sends elsewhere now is reset there
		return err
	}
	d.sameServers(ctx, before, "after the start of "+node)
	return nil
}

// sameServers checks that every client has a call on the server it had. Where
// the nodes only pass calls on it is the call of before.
func (d *drill) sameServers(ctx context.Context, before map[int]sstpCall, when string) {
	for i, was := range before {
		if !d.l.st.Options.SSTP.ends() {
			d.stands(ctx, i, was, when)
			continue
		}
		c, err := d.l.waitCall(ctx, healBound, i, when, anyCall)
		switch {
		case err != nil:
			d.failf("%v", err)
		case c.server != was.server:
			d.failf("%s: %s went from %s to %s", when, sstpRole(i), serverName(was.server), serverName(c.server))
		}
	}
}

// busiest names the member that carries most calls, and whose. Nodes that only
// pass calls on carry none.
func (d *drill) busiest(ctx context.Context) (node string, users []string, err error) {
	node = d.l.members()[0]
	if !d.l.st.Options.SSTP.ends() {
		return node, nil, nil
	}
	for _, n := range d.l.members() {
		list, err := d.l.sessionsOf(ctx, n)
		if err != nil {
			return "", nil, err
		}
		var mine []string
		for i := range sstpClients {
			if slices.ContainsFunc(list, func(s admin.SSTPSession) bool {
				return s.Client.Addr() == sstpLink(i+1).Addr() && s.State == "connected"
			}) {
				mine = append(mine, sstpRole(i+1))
			}
		}
		if len(mine) > len(users) {
			node, users = n, mine
		}
	}
	if len(users) == 0 {
		return "", nil, errors.New("no node carries a call")
	}
	return node, users, nil
}

// sstpServerKill kills a server with two calls.
func (d *drill) sstpServerKill(ctx context.Context) error {
	defer d.sstpEnd(ctx)
	before, err := d.sstpPlace(ctx, 1, 2, 3, 4)
	if err != nil {
		return err
	}
	const dead = 1
	d.l.say("  killing %s", serverName(dead))
	d.permit(dead)
	start := time.Now()
	if err := d.l.peers.killServer(ctx, dead); err != nil {
		return err
	}
	for i, was := range before {
		if was.server != dead {
			continue
		}
		c, err := d.l.waitCall(ctx, healBound, i, "elsewhere", func(c sstpCall) bool { return c.server != dead })
		if err != nil {
			return err
		}
		d.notef("%s called %s after %d dials", sstpRole(i), serverName(c.server), c.client.Dials-was.client.Dials)
	}
	took := time.Since(start)
	d.within("calls elsewhere", took, awayLimit)
	d.converged(took)
	for i, was := range before {
		if was.server != dead {
			d.stands(ctx, i, was, "after the death of "+serverName(dead))
		}
	}
	d.l.say("  starting %s again", serverName(dead))
	if err := d.l.peers.startServer(ctx, dead); err != nil {
		return err
	}
	return d.l.verdict(ctx, healBound, dead, "up")
}
