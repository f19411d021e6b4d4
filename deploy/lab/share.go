package lab

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

// What a node's death may cost. Two kinds of clients lose something: those whose
// requests the router's hash led to the node, until the route is gone (lossLimit); and
// those of servers whose gateway the node was, until it is elsewhere (gatewayLimit).
// The second kind is known by name. The first is a matter of chance: the hash takes
// the source port, which only the client knows.
//
// So of the clients that are not of the second kind no more may lose anything, and of
// all clients no more may lose for longer than gatewayLimit, than a hash leads to one
// node of n. That number has a binomial distribution; the bound lies shareSigmas
// standard deviations above its mean, which chance exceeds less than once in a million.
const shareSigmas = 5

// shareBound is the most clients that a hash may lead to one of n nodes, given for each
// how many flows it had: one that changed its address was hashed twice.
func shareBound(flows []int, nodes int) int {
	mean, variance := 0.0, 0.0
	for _, f := range flows {
		p := 1 - math.Pow(1-1/float64(nodes), float64(f))
		mean += p
		variance += p * (1 - p)
	}
	return int(mean + shareSigmas*math.Sqrt(variance))
}

// shareOnly checks that a node's death cost its share and no more. owned are the
// gateways that it had; s and v are of the time after it.
func (d *drill) shareOnly(s snapshot, v comparison, owned []netip.Addr) {
	o := d.l.st.Options
	var all, others []int // flows of clients
	direct := map[netip.Addr]bool{}
	for a, c := range s.Clients {
		was := d.before.Clients[a]
		flows := 1
		if c.Moves > was.Moves {
			flows = 2
		}
		all = append(all, flows)
		if o.DSR || !slices.Contains(owned, o.gatewayFor(a, was.Server)) {
			others = append(others, flows)
			direct[a] = true
		}
	}
	lost, long := 0, 0
	for _, x := range v.losers {
		if direct[x.client] {
			lost++
		}
		if x.span > gatewayLimit {
			long++
		}
	}
	nodes := len(d.l.members())
	lostBound, longBound := shareBound(others, nodes), shareBound(all, nodes)
	d.notef("%d of %d clients lost %d packets; of the %d with another node's gateway %d (its share: at most %d); for more than %s %d (at most %d)",
		len(v.losers), len(all), v.lost, len(others), lost, lostBound, gatewayLimit, long, longBound)
	if lost > lostBound {
		d.failf("%d clients lost something that the dead node had no part in", lost-lostBound)
	}
	if long > longBound {
		d.failf("%d clients more than the router sends to one node lost packets for more than %s", long-longBound, gatewayLimit)
	}
}

// gatewayFor is the gateway of server i for replies to that client.
func (o Options) gatewayFor(client netip.Addr, i int) netip.Addr {
	if client.Is6() {
		return family6.gatewayOf(i, o.Nodes)
	}
	return family4.gatewayOf(i, o.Nodes)
}

const (
	watchName  = "watch"
	watchBound = 5 * time.Second // until all gateways have answered once
)

// startWatch lets a server ask all gateways again and again, and waits until all have
// answered.
func (d *drill) startWatch(ctx context.Context) error {
	e := &embeddedPeers{l: d.l}
	cfg := peer.WatchConfig{Control: e.socket(watchName)}
	for _, f := range d.l.st.Options.families() {
		for i := range d.l.st.Options.Nodes {
			cfg.Addrs = append(cfg.Addrs, f.gateway(i+1))
		}
	}
	if err := e.startPeer(watchName, watchName, serverName(1), cfg); err != nil {
		return err
	}
	if err := e.answers(ctx, watchName); err != nil {
		return err
	}
	return until(ctx, watchBound, "all gateways to answer a server", func() (bool, error) {
		all, err := d.watched(ctx)
		return !slices.ContainsFunc(all, func(w peer.Watched) bool { return w.Since.IsZero() }), err
	})
}

func (d *drill) watched(ctx context.Context) (all []peer.Watched, err error) {
	e := &embeddedPeers{l: d.l}
	return all, peer.Ask(ctx, e.socket(watchName), "/stats", nil, &all)
}

// endWatch judges for how long a gateway was silent: those that the dead node had may
// be so until another has them and the server knows it.
func (d *drill) endWatch(ctx context.Context, owned []netip.Addr) error {
	all, err := d.watched(ctx)
	if err != nil {
		return err
	}
	for _, w := range all {
		var windows []window
		for _, x := range w.Windows {
			windows = append(windows, window(x))
		}
		silent := span(windows, w.Since)
		what := fmt.Sprintf("gateway %s silent to a server (%d of %d questions)", w.Addr, w.Lost, w.Asked)
		switch {
		case slices.Contains(owned, w.Addr):
			d.within(what, silent, gatewayLimit)
		case w.Lost > 0:
			d.failf("%s for %s, and the dead node had no part in it", what, silent.Round(time.Millisecond))
		}
	}
	return d.l.kill(ctx, watchName)
}
