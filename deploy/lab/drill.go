package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
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

// Bounds of drills.
const (
	calmBound   = 30 * time.Second // until the lab is fit for a drill
	settleTime  = 1500 * time.Millisecond
	healBound   = 45 * time.Second // until all is as before
	servedBound = 30 * time.Second
)

// drill is one drill under way.
type drill struct {
	l       *Lab
	res     Result
	before  snapshot
	permits permits

	tcpBefore peer.TCPClientsStats
	bare      int64   // packets of servers that reached the router under their own addresses
	ledger    *ledger // nil: this drill's packets cannot be accounted for
}

// permits are the servers whose clients may move, and since when.
type permits map[int]time.Time

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
	if err := d.l.allServed(ctx, servedBound); err != nil {
		return err
	}
	return d.l.tcpServed(ctx, servedBound)
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
func (d *drill) judge(ctx context.Context, kind drillKind) error {
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
	if err := d.judgeSources(v); err != nil {
		return err
	}
	if err := d.judgeTCP(ctx); err != nil {
		return err
	}
	if d.ledger != nil {
		spare := int64(0)
		if kind.sums == sumsSpare { // data or echo, and what else a client says meanwhile
			spare = 2*v.lost + 4*int64(len(after.Clients))
		}
		if err := d.conserved(ctx, *d.ledger, spare); err != nil {
			return err
		}
	}
	if err := d.sameState(ctx); err != nil {
		return err
	}
	return d.sameRecords(ctx)
}

// judgeSources checks that whatever came back from servers came in the VIP's name.
func (d *drill) judgeSources(v comparison) error {
	if v.foreign > 0 {
		d.failf("clients got %d replies from another address than the VIP's", v.foreign)
	}
	bare, err := d.l.bareCount()
	if err != nil {
		return err
	}
	if n := bare - d.bare; n > 0 {
		d.failf("the router got %d packets to clients from servers' own addresses", n)
	}
	return nil
}

// comparison is what happened to the clients between two snapshots.
type comparison struct {
	lost       int64
	foreign    int64         // replies that came from another address than the VIP's
	lostOthers int64         // of clients that did not move
	losers     []loss        // clients that did not move and lost something
	longest    time.Duration // of those
	rehomed    []netip.Addr
	moved      []netip.Addr
	relogins   int
	longestGap time.Duration // without service, of those that moved
	details    []string
}

// compare judges each client: a change of server that no permit covers is a
// re-homing, and so is a packet that reached a server without its SA.
func (s snapshot) compare(after snapshot, permits permits) (c comparison) {
	for _, a := range after.sorted() {
		was, now := s.Clients[a], after.Clients[a]
		lost := now.Lost - was.Lost
		c.lost += lost
		c.foreign += now.Foreign - was.Foreign
		moved, rehomed := false, false
		out := span(now.Windows, s.At)
		server := was.Server
		for _, x := range now.Sessions {
			if !x.From.After(s.At) {
				continue
			}
			if server == x.Server && x.Cause == peer.CauseLoss {
				out = max(out, x.Gap)
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
		}
		if !moved && (lost > 0 || out > 0) {
			c.losers = append(c.losers, loss{client: a, span: out})
			c.longest = max(c.longest, out)
		}
	}
	if len(c.details) > maxDetails {
		c.details = append(c.details[:maxDetails], fmt.Sprintf("and %d more", len(c.details)-maxDetails))
	}
	return c
}

// loss is what an event cost one client.
type loss struct {
	client netip.Addr
	span   time.Duration // from the first packet that was lost to the last one, or without any echo
}

// span is the time from the first packet that was lost after a moment to the last
// one, whatever came through in between: an event that costs a client two times three
// seconds has not cost it three. 0: none, or one.
func span(windows []window, after time.Time) time.Duration {
	var first, last time.Time
	for _, w := range windows {
		if !w.From.After(after) {
			continue
		}
		if first.IsZero() {
			first = w.From
		}
		last = w.To
	}
	return last.Sub(first)
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
