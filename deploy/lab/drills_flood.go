package lab

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
	"github.com/vpnlb/vpnlb/node/admin"
)

// Sizes and pass criteria of the flood drill.
const (
	spoofPackets  = 24000
	spoofRate     = 8000 // a second
	entriesBudget = 0    // entries that forged traffic may make

	attackers     = 6 // of each family, who replay their own IKE_AUTH
	replayPackets = 12000
	replayRate    = 2000 // a second
	// The drill's settings with DSR: budgets that a replay reaches, lives that end soon.
	replayNodeBudget   = 200
	replayPrefixBudget = 10
	replayLife         = 30 * time.Second
	replayTouch        = 30 * time.Second // a new leader expires nothing for two of them
	goneBound          = 2*replayTouch + replayLife + 30*time.Second
	lostShare          = 1000 // one packet of so many may be lost
)

// targets are the VIPs with the addresses that a flood forges.
func (o Options) targets() (out []peer.Target) {
	for _, f := range o.families() {
		out = append(out, peer.Target{VIP: f.vip, Sources: f.spoofed})
	}
	return out
}

// flood sends forged packets from addresses where nobody is.
func (d *drill) flood(ctx context.Context, packets, rate int) error {
	return d.l.errand(ctx, "spoof", peer.SpoofConfig{Targets: d.l.st.Options.targets(), Packets: packets, Rate: rate}, nil)
}

// forgedEntries counts the records that name forged clients, in all and in the
// prefix (/24, /48) that has most.
func (d *drill) forgedEntries(ctx context.Context) (all, most, total int, err error) {
	m, err := d.l.anyMember()
	if err != nil {
		return 0, 0, 0, err
	}
	var list admin.Affinities
	if err := d.l.cli(ctx, cliBound, m, &list, "affinity", "list", "--limit", "0"); err != nil {
		return 0, 0, 0, err
	}
	by := map[netip.Prefix]int{}
	for _, r := range list.Records {
		for _, t := range d.l.st.Options.targets() {
			if t.Sources.Contains(r.Client) {
				bits := 24
				if r.Client.Is6() {
					bits = 48
				}
				p := netip.PrefixFrom(r.Client, bits).Masked()
				all++
				by[p]++
				most = max(most, by[p])
			}
		}
	}
	return all, most, list.Total, nil
}

func (d *drill) spoof(ctx context.Context) error {
	before, err := d.judged(ctx)
	if err != nil {
		return err
	}
	d.l.say("  sending %d forged packets", spoofPackets)
	start := time.Now()
	if err := d.flood(ctx, spoofPackets, spoofRate); err != nil {
		return err
	}
	d.converged(time.Since(start))
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	after, err := d.judged(ctx)
	if err != nil {
		return err
	}
	d.arrived(spoofPackets, before, after)
	forged, _, total, err := d.forgedEntries(ctx)
	if err != nil {
		return err
	}
	if forged > entriesBudget {
		d.failf("%d entries of forged clients", forged)
	} else {
		d.notef("%d entries, none of a forged client", total)
	}
	return d.nearlyUnharmed(ctx)
}

// judged is what all members together say of packets, by reason.
func (d *drill) judged(ctx context.Context) (map[string]int64, error) {
	out := map[string]int64{}
	for _, n := range d.l.members() {
		st, err := d.l.status(ctx, n)
		if err != nil {
			return nil, err
		}
		for _, c := range st.Packets {
			out[c.Reason] += int64(c.Packets)
		}
	}
	return out, nil
}

// floodReasons are what nodes may say of forged packets: those of a service go to
// a server of nobody's choice, the rest no further.
var floodReasons = []string{"forward_maglev", "drop_malformed", "drop_not_ikev2", "pass_local_vip"}

// arrived fails the drill where a flood did not come to the nodes: then it proves
// nothing. The raw socket may drop some of it.
func (d *drill) arrived(packets int64, before, after map[string]int64) {
	var all int64
	line := ""
	for _, r := range floodReasons {
		n := after[r] - before[r]
		all += n
		line += fmt.Sprintf(", %s %d", r, n)
	}
	d.notef("of %d forged packets the nodes saw %d%s", packets, all, line)
	if all < packets*9/10 || after["forward_maglev"]-before["forward_maglev"] < packets*3/4 {
		d.failf("most of the flood did not arrive")
	}
}

// nearlyUnharmed is what a flood is judged by: known clients lose less than one
// packet of lostShare.
func (d *drill) nearlyUnharmed(ctx context.Context) error {
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	s, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	sent := s.totals().Sent - d.before.totals().Sent
	lost := d.before.compare(s, d.permits).lost
	d.notef("known clients lost %d of %d packets", lost, sent)
	if lost*lostShare > sent {
		d.failf("that is more than one of %d", lostShare)
	}
	return nil
}

// replay proves that answers which a server repeats to forged addresses earn
// nothing: the nodes know to whom they went first. They see none of a DSR server. A
// gateway that moves meanwhile, as on a busy machine, takes the replies to a node that
// knows none of the logins: then each of them may earn one entry.
func (d *drill) replay(ctx context.Context) error {
	if d.l.st.Options.DSR {
		return d.replayUnseen(ctx)
	}
	start := time.Now()
	owners, err := d.l.gatewayOwners(ctx)
	if err != nil {
		return err
	}
	if err := d.sendAgain(ctx); err != nil {
		return err
	}
	all, _, total, err := d.forgedEntries(ctx)
	if err != nil {
		return err
	}
	after, err := d.l.gatewayOwners(ctx)
	if err != nil {
		return err
	}
	budget := entriesBudget
	if !maps.Equal(owners, after) {
		d.notef("gateways moved from %v to %v", owners, after)
		budget += attackers * len(d.l.st.Options.families())
	}
	if all > budget {
		d.failf("%d entries of forged clients", all)
	} else {
		d.notef("%d entries, none of a forged client", total)
	}
	d.converged(time.Since(start))
	return d.nearlyUnharmed(ctx)
}

// sendAgain lets strangers with an account log in and replay their own IKE_AUTH.
func (d *drill) sendAgain(ctx context.Context) error {
	who, err := d.l.strangers(attackers)
	if err != nil {
		return err
	}
	d.l.say("  %d attackers replay their own IKE_AUTH %d times from forged sources", len(who), replayPackets)
	replayed := d.replayed(ctx)
	var r peer.ReplayResult
	err = d.l.errand(ctx, "replay", peer.ReplayConfig{Targets: d.l.st.Options.targets(), Attackers: who, Packets: replayPackets, Rate: replayRate}, &r)
	if err != nil {
		return err
	}
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	d.notef("accounts on %d servers, which repeated their replies to %d of %d requests", r.Servers, d.replayed(ctx)-replayed, r.Sent)
	if d.replayed(ctx) == replayed {
		d.failf("no server repeated a reply: the attack did not take place")
	}
	return nil
}

// replayUnseen is replay with DSR: requests alone are seen, so budgets must hold.
func (d *drill) replayUnseen(ctx context.Context) error {
	restore, err := d.settings(ctx, map[string]string{
		"node_budget": fmt.Sprint(replayNodeBudget), "prefix_budget": fmt.Sprint(replayPrefixBudget),
		"earned_sk_timeout": replayLife.String(), "touch_interval": replayTouch.String(),
	})
	if err != nil {
		return err
	}
	defer restore(context.WithoutCancel(ctx))
	start := time.Now()
	if err := d.sendAgain(ctx); err != nil {
		return err
	}
	all, most, _, err := d.forgedEntries(ctx)
	if err != nil {
		return err
	}
	limit := replayNodeBudget * len(d.l.members())
	d.notef("%d entries of forged clients, %d of one prefix; budgets %d and %d", all, most, limit, replayPrefixBudget)
	if all == 0 {
		d.failf("no entry was earned: the attack did not take place")
	}
	if all > limit || most > replayPrefixBudget {
		d.failf("that is more than the budgets")
	}
	if err := d.nearlyUnharmed(ctx); err != nil {
		return err
	}
	err = until(ctx, goneBound, "the forged entries to go", func() (bool, error) {
		all, _, _, err := d.forgedEntries(ctx)
		return all == 0, err
	})
	if err != nil {
		return err
	}
	d.within("forged entries gone", time.Since(start), goneBound)
	d.converged(time.Since(start))
	return nil
}

// replayed counts the replies that servers repeated to strangers.
func (d *drill) replayed(ctx context.Context) (n int64) {
	for _, s := range (&embeddedPeers{l: d.l}).servers(ctx) {
		n += s.Replayed
	}
	return n
}

// settings changes settings of the cluster for the time of the drill.
func (d *drill) settings(ctx context.Context, values map[string]string) (restore func(context.Context), err error) {
	m, err := d.l.anyMember()
	if err != nil {
		return nil, err
	}
	var spec admin.Spec
	if err := admin.NewClient(d.l.socket(m)).Get(ctx, admin.PathSpec, &spec); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	set := func(ctx context.Context, key, value string) error {
		m, err := d.l.anyMember()
		if err != nil {
			return err
		}
		return d.l.cli(ctx, cliBound, m, nil, "cluster", "set", key, value)
	}
	restore = func(ctx context.Context) {
		for key := range values {
			if err := set(ctx, key, spec.Settings[key]); err != nil {
				d.failf("restore settings: %v", err)
			}
		}
	}
	for key, value := range values {
		if err := set(ctx, key, value); err != nil {
			restore(ctx)
			return nil, err
		}
	}
	if err := d.applied(ctx); err != nil {
		restore(ctx)
		return nil, err
	}
	return restore, nil
}
