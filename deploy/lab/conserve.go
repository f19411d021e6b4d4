package lab

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

// ledger is how many packets were seen where since the lab was built, taken
// while nothing is under way.
type ledger struct {
	toVIP     int64            // that the router sent towards VIPs, its own included
	fromVIP   int64            // that the router got from VIPs by way of the nodes
	atServers int64            // of clients, as the servers' kernels got them; ICMP is not among them
	reasons   map[string]int64 // of all members together
	members   []string
}

// Reasons under which a node counts a packet, by what it means for the sums.
// Those of drops and answers can be of either direction; in a quiet lab they are
// of what clients sent.
var (
	reasonsIn = []string{"forward_affinity", "forward_maglev", "forward_reopened", "forward_other_class", "forward_icmp_error"}
	// reasonsEnd: to a VIP, and no further.
	reasonsEnd = []string{
		"pass_local_vip", "answer_expired", "answer_too_big", "drop_malformed", "drop_not_ikev2", "drop_no_backend",
		"drop_ttl", "drop_too_big", "drop_icmp_error", "drop_no_route", "drop_no_neighbour", "drop_source_limit",
	}
	// reasonsLocal: the node itself answers, or may.
	reasonsLocal = []string{"pass_local_vip", "answer_expired", "answer_too_big"}
	reasonsBack  = []string{"forward_return", "forward_return_fragment", "forward_return_unknown", "forward_return_icmp_error"}
	// reasonsEither: the end of a packet of either direction.
	reasonsEither = []string{"drop_partial_sum"}
	// reasonsKernel: rewritten and forwarded by the node's kernel, in either direction.
	reasonsKernel = []string{"pass_no_neighbour", "pass_cannot_transmit", "pass_must_fragment"}
)

// sum adds up what an account says about some reasons.
func sum(m map[string]int64, reasons []string) (n int64) {
	for _, r := range reasons {
		n += m[r]
	}
	return n
}

const (
	quietFor   = 300 * time.Millisecond // longer than a delayed TCP acknowledgement
	quietBound = 5 * time.Second
)

// takeLedger makes the peers silent for a moment and reads all counters.
func (l *Lab) takeLedger(ctx context.Context) (g ledger, err error) {
	if err := l.silence(ctx, true); err != nil {
		return g, err
	}
	defer l.silence(context.WithoutCancel(ctx), false)
	if err := l.quiet(ctx); err != nil {
		return g, err
	}
	g.reasons, g.members = map[string]int64{}, l.members()
	for _, n := range g.members {
		st, err := l.status(ctx, n)
		if err != nil {
			return g, err
		}
		for _, c := range st.Packets {
			g.reasons[c.Reason] += int64(c.Packets)
		}
	}
	if g.toVIP, g.fromVIP, err = l.routerCounts(); err != nil {
		return g, err
	}
	g.atServers, err = l.serverCounts()
	return g, err
}

// silence stops what clients and servers send of their own accord, or lets it go on.
func (l *Lab) silence(ctx context.Context, on bool) error {
	path := map[bool]string{true: "/pause", false: "/resume"}[on]
	names := []string{clientsName, tcpName}
	for i := range l.st.Options.Servers {
		names = append(names, serverName(i+1))
	}
	e := &embeddedPeers{l: l}
	for _, n := range names {
		if !l.st.Processes[n].alive() {
			continue
		}
		if err := peer.Ask(ctx, e.socket(n), path, bytes.NewReader(nil), nil); err != nil {
			return err
		}
	}
	return nil
}

// quiet waits until the router has nothing to forward.
func (l *Lab) quiet(ctx context.Context) error {
	var last [2]int64
	since := time.Now()
	return until(ctx, quietBound, "traffic to end", func() (bool, error) {
		to, from, err := l.routerCounts()
		if now := [2]int64{to, from}; now != last {
			last, since = now, time.Now()
		}
		return time.Since(since) > quietFor, err
	})
}

// minus is what happened between two ledgers.
func (g ledger) minus(o ledger) ledger {
	d := ledger{
		toVIP: g.toVIP - o.toVIP, fromVIP: g.fromVIP - o.fromVIP, atServers: g.atServers - o.atServers,
		reasons: map[string]int64{}, members: g.members,
	}
	for r, n := range g.reasons {
		if n != o.reasons[r] {
			d.reasons[r] = n - o.reasons[r]
		}
	}
	return d
}

// faults says where packets are missing, or came from nowhere. spare is how
// many may be missing because a node that was dead took them. What kernels
// forwarded for the program is not told by direction: it may be of either.
func (g ledger) faults(dsr bool, spare int64) (out []string) {
	kernel := sum(g.reasons, reasonsKernel)
	check := func(what string, n, least, most int64) {
		if n < least || n > most {
			out = append(out, fmt.Sprintf("%s: a difference of %d packets, want %d to %d", what, n, least, most))
		}
	}
	in, back := sum(g.reasons, reasonsIn), sum(g.reasons, reasonsBack)
	check("sent to the nodes, counted by them", g.toVIP-in-sum(g.reasons, reasonsEnd), 0, kernel+sum(g.reasons, reasonsEither)+spare)
	// What a node forwards into a dead link it has counted.
	check("got by the servers, forwarded by the nodes", g.atServers-(in-g.reasons["forward_icmp_error"]), -spare, kernel)
	if !dsr {
		local := sum(g.reasons, reasonsLocal)
		check("got back by the router, returned by the nodes", g.fromVIP-back, -spare, kernel+local)
	}
	return out
}

// String is a line for a drill's details.
func (g ledger) String() string {
	var words []string
	for _, r := range slices.Sorted(maps.Keys(g.reasons)) {
		if strings.HasPrefix(r, "forward_") || slices.Contains(reasonsEnd, r) || slices.Contains(reasonsEither, r) || slices.Contains(reasonsKernel, r) {
			words = append(words, fmt.Sprintf("%s %d", r, g.reasons[r]))
		}
	}
	return fmt.Sprintf("packets: %d to VIPs, %d at servers, %d back; nodes: %s", g.toVIP, g.atServers, g.fromVIP, strings.Join(words, ", "))
}

// conserved checks that every packet of the drill is accounted for.
func (d *drill) conserved(ctx context.Context, before ledger, spare int64) error {
	after, err := d.l.takeLedger(ctx)
	if err != nil {
		return fmt.Errorf("count packets: %w", err)
	}
	if !slices.Equal(before.members, after.members) {
		d.notef("packets are not accounted for: the members changed")
		return nil
	}
	g := after.minus(before)
	d.notef("%s", g)
	for _, f := range g.faults(d.l.st.Options.DSR, spare) {
		d.failf("%s", f)
	}
	return nil
}
