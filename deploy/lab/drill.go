package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
	"github.com/vpnlb/vpnlb/node/admin"
)

// Result is what a drill found out.
type Result struct {
	Name       string   `json:"name"`
	Lost       int64    `json:"lost"`        // data packets without an echo
	Rehomed    int      `json:"rehomed"`     // clients served by another server without a permit
	Moved      int      `json:"moved"`       // clients whose own server died or went offline
	ConvergeMS int64    `json:"converge_ms"` // event to the wanted state, as the router or the clients see it
	Pass       bool     `json:"pass"`
	Details    []string `json:"details"` // facts, and the reason of each failure
}

// DrillInfo names a drill.
type DrillInfo struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

type drillKind struct {
	DrillInfo
	run func(*drill, context.Context) error
}

// drillKinds in the order in which all of them should run.
func drillKinds() []drillKind {
	return []drillKind{
		{DrillInfo{"daemon-kill", "kill -9 the daemon of each node in turn and start it again"}, (*drill).daemonKill},
		{DrillInfo{"leader-kill", "kill -9 the leader's daemon and start it again"}, (*drill).leaderKill},
		{DrillInfo{"all-daemons-kill", "kill -9 all daemons at once, let traffic run without them, start them again"}, (*drill).allDaemonsKill},
		{DrillInfo{"node-death", "cut both links of a node that owns a gateway, heal them later"}, (*drill).nodeDeath},
		{DrillInfo{"outside-death", "cut the outside link alone of a node that owns a gateway"}, (*drill).outsideDeath},
		{DrillInfo{"inside-death", "cut the inside link alone of a node that owns a gateway"}, (*drill).insideDeath},
		{DrillInfo{"drain", "drain a server: known clients stay, new ones go elsewhere"}, (*drill).drain},
		{DrillInfo{"offline", "take a server offline: tunnels stay, clients move at their next login"}, (*drill).offline},
		{DrillInfo{"backend-kill", "kill a server: its clients are served by others, nobody else notices"}, (*drill).backendKill},
		{DrillInfo{"false-verdict", "block the probes of a server that is fine: no tunnel is lost"}, (*drill).falseVerdict},
		{DrillInfo{"spoof", "flood of forged SA_INITs on both ports and garbage: no entries"}, (*drill).spoof},
		{DrillInfo{"leave-join", "the leader leaves the cluster, a new node joins it"}, (*drill).leaveJoin},
	}
}

// Drills lists the drills, in the order in which all of them should run.
func Drills() []DrillInfo {
	var out []DrillInfo
	for _, k := range drillKinds() {
		out = append(out, k.DrillInfo)
	}
	return out
}

// Bounds of drills.
const (
	calmBound   = 30 * time.Second // until the lab is fit for a drill
	settleTime  = 1500 * time.Millisecond
	hashBound   = 10 * time.Second
	healBound   = 45 * time.Second // until all is as before
	servedBound = 30 * time.Second
)

// drill is one drill under way.
type drill struct {
	l       *Lab
	res     Result
	before  snapshot
	permits map[int]time.Time // servers whose clients may move, since when
}

// Run runs one drill on a running lab and prints what it does to out. err is
// for what kept the drill from running; a drill that ran and failed has
// Result.Pass false.
func Run(ctx context.Context, l *Lab, name string, out io.Writer) (Result, error) {
	kinds := drillKinds()
	i := slices.IndexFunc(kinds, func(k drillKind) bool { return k.Name == name })
	if i < 0 {
		return Result{}, fmt.Errorf("no drill is called %q", name)
	}
	l.out = out
	return l.runDrill(ctx, kinds[i])
}

func (l *Lab) runDrill(ctx context.Context, kind drillKind) (Result, error) {
	d := &drill{l: l, res: Result{Name: kind.Name, Pass: true, Details: []string{}}, permits: map[int]time.Time{}}
	if err := d.calm(ctx, calmBound); err != nil {
		return d.res, fmt.Errorf("drill %s cannot begin: %w", kind.Name, err)
	}
	var err error
	if d.before, err = l.peers.snapshot(ctx); err != nil {
		return d.res, fmt.Errorf("drill %s: %w", kind.Name, err)
	}
	l.say("drill %s: %s", kind.Name, kind.Description)
	if err := kind.run(d, ctx); err != nil {
		if ctx.Err() != nil {
			return d.res, err
		}
		d.failf("%v", err)
	}
	if err := d.calm(ctx, healBound); err != nil {
		d.failf("afterwards: %v", err)
	}
	if err := d.judge(ctx); err != nil {
		return d.res, fmt.Errorf("drill %s: %w", kind.Name, err)
	}
	verdict := "passed"
	if !d.res.Pass {
		verdict = "FAILED"
	}
	l.say("drill %s %s: lost %d, re-homed %d, moved %d, converged in %d ms",
		kind.Name, verdict, d.res.Lost, d.res.Rehomed, d.res.Moved, d.res.ConvergeMS)
	return d.res, nil
}

// failf notes why the drill failed.
func (d *drill) failf(format string, args ...any) {
	d.res.Pass = false
	d.notef("FAILED: "+format, args...)
}

// notef notes a fact.
func (d *drill) notef(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	d.res.Details = append(d.res.Details, line)
	d.l.say("  %s", line)
}

// within notes how long something took and fails the drill if that was too long.
func (d *drill) within(what string, took, limit time.Duration) {
	ms := took.Round(time.Millisecond)
	if took > limit {
		d.failf("%s took %s, more than %s", what, ms, limit)
		return
	}
	d.notef("%s: %s", what, ms)
}

func (d *drill) converged(took time.Duration) {
	d.res.ConvergeMS = max(d.res.ConvergeMS, took.Milliseconds())
}

// permit allows the clients of server i to move from now on.
func (d *drill) permit(i int) { d.permits[i] = time.Now() }

// calm waits until everything is up and agreed.
func (d *drill) calm(ctx context.Context, bound time.Duration) error {
	if err := d.l.backendsUp(ctx, bound); err != nil {
		return err
	}
	if err := d.l.waitECMP(ctx, bound); err != nil {
		return err
	}
	return d.l.allServed(ctx, servedBound)
}

// flow lets traffic run for a while.
func flow(ctx context.Context, t time.Duration) error {
	timer := time.NewTimer(t)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// judge compares the accounts before and after, and the nodes' states.
func (d *drill) judge(ctx context.Context) error {
	if err := flow(ctx, settleTime); err != nil { // packets under way count as lost only after a while
		return err
	}
	after, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	v := d.before.compare(after, d.permits)
	d.res.Lost, d.res.Rehomed, d.res.Moved = v.lost, len(v.rehomed), len(v.moved)
	d.res.Details = append(d.res.Details, v.details...)
	if len(v.rehomed) > 0 {
		d.failf("clients re-homed without a permit: %v", head(v.rehomed))
	}
	if v.relogins > 0 {
		d.notef("%d clients had to log in again on the server they had", v.relogins)
	}
	return d.sameState(ctx)
}

// sameState checks that all members hold the same state at the same index.
func (d *drill) sameState(ctx context.Context) error {
	var last string
	err := until(ctx, hashBound, "equal state on all members", func() (bool, error) {
		seen := map[string]bool{}
		last = ""
		for _, n := range d.l.members() {
			var st admin.Status
			if err := admin.NewClient(d.l.socket(n)).Get(ctx, admin.PathStatus+"?hash=1", &st); err != nil {
				return false, nil
			}
			key := fmt.Sprintf("%d:%s", st.Index, st.StateHash)
			last += fmt.Sprintf(" %s=%.24s", n, key)
			seen[key] = true
		}
		return len(seen) == 1, nil
	})
	if err != nil && ctx.Err() == nil {
		d.failf("%v:%s", err, last)
		return nil
	}
	return err
}

// comparison is what happened to the clients between two snapshots.
type comparison struct {
	lost       int64
	lostOthers int64         // of clients that did not move
	losers     int           // clients that did not move and lost something
	longest    time.Duration // without an echo, of a client that did not move
	rehomed    []netip.Addr
	moved      []netip.Addr
	relogins   int
	longestGap time.Duration // without service, of those that moved
	details    []string
}

// compare judges each client: a change of server that no permit covers is a
// re-homing, and so is a packet that reached a server without its SA.
func (s snapshot) compare(after snapshot, permits map[int]time.Time) (c comparison) {
	for _, a := range after.sorted() {
		was, now := s.Clients[a], after.Clients[a]
		lost := now.Lost - was.Lost
		c.lost += lost
		moved, rehomed := false, false
		server := was.Server
		for _, x := range now.Sessions {
			if !x.From.After(s.At) {
				continue
			}
			if server == x.Server && x.Cause == peer.CauseLoss {
				c.longest = max(c.longest, x.Gap)
			}
			if server != 0 && x.Server != server {
				since, permitted := permits[server]
				if permitted && x.From.After(since) {
					moved = true
					c.longestGap = max(c.longestGap, x.Gap)
				} else {
					rehomed = true
					c.details = append(c.details, fmt.Sprintf("%s: from server %d to %d", a, server, x.Server))
				}
			}
			server = x.Server
		}
		if n := after.Strays[a] - s.Strays[a]; n > 0 && !moved && was.Server != 0 {
			if _, permitted := permits[was.Server]; !permitted {
				rehomed = true
				c.details = append(c.details, fmt.Sprintf("%s: %d packets reached a server that does not know it", a, n))
			}
		}
		switch {
		case rehomed:
			c.rehomed = append(c.rehomed, a)
		case moved:
			c.moved = append(c.moved, a)
		case now.Logins > was.Logins && was.Logins > 0:
			c.relogins++
		}
		if !moved && lost > 0 {
			c.lostOthers += lost
			c.losers++
		}
		for _, w := range now.Windows {
			if w.From.After(s.At) && !moved {
				c.longest = max(c.longest, w.To.Sub(w.From))
			}
		}
	}
	if len(c.details) > maxDetails {
		c.details = append(c.details[:maxDetails], fmt.Sprintf("and %d more", len(c.details)-maxDetails))
	}
	return c
}

const maxDetails = 10

func head(a []netip.Addr) []netip.Addr { return a[:min(len(a), maxDetails)] }

func (s snapshot) sorted() []netip.Addr {
	out := make([]netip.Addr, 0, len(s.Clients))
	for a := range s.Clients {
		out = append(out, a)
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return out
}

var errNoClients = errors.New("no client is where the drill needs one")
