package lab

import (
	"context"
	"fmt"
	"io"
	"slices"
)

// DrillInfo names a drill.
type DrillInfo struct {
	Name        string `json:"name"`
	Description string `json:"description"`
	Needs       string `json:"needs,omitempty"` // the option of "lab up" or "lab run" without which it cannot run
	NotDSR      bool   `json:"not_dsr,omitempty"`
}

// refuses says why a lab of these options cannot run the drill; "": it can.
func (d DrillInfo) refuses(o Options) string {
	switch {
	case d.Needs == needsOther && o.Other == "":
		return "it needs another version of the binary: --" + needsOther + " PATH"
	case !o.has(d.Needs):
		return "it needs a laboratory built with --" + d.Needs
	case d.NotDSR && o.DSR:
		// No reply of such a server is seen: a record there cannot outlive a
		// verdict "offline" or "down", true or false.
		return "it makes no sense with --dsr, where such a verdict ends tunnels"
	}
	return ""
}

type drillKind struct {
	DrillInfo
	run  func(*drill, context.Context) error
	sums sums
}

// sums says how far the packets of a drill can be accounted for.
type sums uint8

const (
	sumsNone  sums = iota // members change, or routers speak on their own
	sumsSpare             // but for what a dead node took
	sumsExact             // every one
)

// Options that drills need, as the command line calls them.
const (
	needsIPv6        = "ipv6"
	needsPassthrough = "passthrough"
	needsICMP        = "icmp"
	needsDSR         = "dsr"
	needsOther       = "other"        // of "lab run"
	needsSSTP        = "sstp"         // any mode
	needsSSTPEnds    = "sstp offload" // TLS ends on the nodes: re-encryption does as well
)

// has reports whether a lab of these options has what a drill needs.
func (o Options) has(need string) bool {
	switch need {
	case needsIPv6:
		return o.IPv6
	case needsPassthrough:
		return o.Passthrough
	case needsICMP:
		return o.ICMP
	case needsDSR:
		return o.DSR
	case needsOther:
		return o.Other != ""
	case needsSSTP:
		return o.SSTP != SSTPOff
	case needsSSTPEnds:
		return o.SSTP.ends()
	}
	return need == ""
}

// drillKinds in the order in which all of them should run.
func drillKinds() []drillKind {
	info := func(name, description string) DrillInfo { return DrillInfo{Name: name, Description: description} }
	needs := func(need, name, description string) DrillInfo {
		return DrillInfo{Name: name, Description: description, Needs: need}
	}
	dnat := func(name, description string) DrillInfo {
		return DrillInfo{Name: name, Description: description, NotDSR: true}
	}
	return []drillKind{
		{info("daemon-kill", "kill -9 the daemon of each node in turn and start it again"), (*drill).daemonKill, sumsExact},
		{info("leader-kill", "kill -9 the leader's daemon and start it again"), (*drill).leaderKill, sumsExact},
		{info("all-daemons-kill", "kill -9 all daemons at once, let traffic run without them, start them again"), (*drill).allDaemonsKill, sumsExact},
		{needs(needsOther, "upgrade", "another version of the binary on one node after the other, then the first one back"), (*drill).upgrade, sumsNone},
		{info("node-death", "cut both links of a node that owns a gateway, heal them later"), (*drill).nodeDeath, sumsSpare},
		{info("outside-death", "cut the outside link alone of a node that owns a gateway"), (*drill).outsideDeath, sumsSpare},
		{info("inside-death", "cut the inside link alone of a node that owns a gateway"), (*drill).insideDeath, sumsSpare},
		{info("inside-path", "break the way between the servers and a node that owns a gateway, links up"), (*drill).insidePath, sumsSpare},
		{info("foreign-rules", "a firewall on a node drops what is forwarded: status names its chain, and packets go on"), (*drill).foreignRules, sumsExact},
		{info("drain", "drain a server: known clients stay, new ones go elsewhere"), (*drill).drain, sumsExact},
		{dnat("offline", "take a server offline: tunnels stay, clients move at their next login"), (*drill).offline, sumsExact},
		{info("backend-kill", "kill a server: its clients are served by others, nobody else notices"), (*drill).backendKill, sumsNone},
		{dnat("false-verdict", "block the probes of a server that is fine: no tunnel is lost"), (*drill).falseVerdict, sumsExact},
		{info("spoof", "flood of forged SA_INITs on both ports, ESP, fragments, SYNs and garbage: no entries"), (*drill).spoof, sumsNone},
		{info("replay", "a real IKE_AUTH replayed from forged sources: no entries (DSR: within budget, gone in minutes)"), (*drill).replay, sumsNone},
		{needs(needsICMP, "ping", "ping the VIPs, small, large and in fragments"), (*drill).ping, sumsExact},
		{needs(needsICMP, "fragment-order", "fragments in odd orders are answered, malformed ones counted"), (*drill).fragmentOrder, sumsExact},
		{needs(needsICMP, "pmtu", "small MTUs outside and inside: who must know is told"), (*drill).pathMTU, sumsNone},
		{needs(needsPassthrough, "tcp", "TCP connections through a node's death and a drain; then their server dies"), (*drill).tcp, sumsNone},
		{needs(needsDSR, "dsr", "replies bypass the nodes; a node's death costs its share alone"), (*drill).dsr, sumsNone},
		{needs(needsSSTP, "sstp-call", "calls of sstpc: crypto binding, pings and TCP through the tunnels, IKE of the same client beside it"), (*drill).sstpCall, sumsNone},
		{needs(needsSSTPEnds, "sstp-storm", "hellos of hundreds of strangers at once: consensus, BGP, status and calls do not notice"), (*drill).sstpStorm, sumsNone},
		{needs(needsSSTPEnds, "sstp-rotate", "another certificate, one server after the other, with calls open"), (*drill).sstpRotate, sumsNone},
		{needs(needsSSTP, "sstp-node-stop", "stop the daemon of a node that carries calls: they end gently and come again on the same servers"), (*drill).sstpNodeStop, sumsNone},
		{needs(needsSSTP, "sstp-server-kill", "kill a server: its calls come again elsewhere, no others end"), (*drill).sstpServerKill, sumsNone},
		{needs(needsSSTPEnds, "sstp-wrong-hash", "a server expects another certificate: an alarm names it, its standing call stays"), (*drill).sstpWrongHash, sumsNone},
		{info("follower-leave", "a node that owns a gateway and does not lead leaves the cluster, a new node joins it"), (*drill).followerLeave, sumsNone},
		{info("leave-join", "the leader leaves the cluster, a new node joins it"), (*drill).leaveJoin, sumsNone},
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

// Drills lists those that this lab can run.
func (l *Lab) Drills() []DrillInfo {
	return slices.DeleteFunc(Drills(), func(d DrillInfo) bool { return d.refuses(l.st.Options) != "" })
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
	if why := kinds[i].refuses(l.st.Options); why != "" {
		return Result{}, fmt.Errorf("run drill %s: %s", name, why)
	}
	l.out = out
	return l.runDrill(ctx, kinds[i])
}

func (l *Lab) runDrill(ctx context.Context, kind drillKind) (Result, error) {
	d := &drill{l: l, res: Result{Name: kind.Name, Pass: true, Details: []string{}}, permits: permits{}}
	if err := d.begin(ctx, kind); err != nil {
		return d.res, fmt.Errorf("drill %s cannot begin: %w", kind.Name, err)
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
	if err := d.judge(ctx, kind); err != nil {
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

// begin waits until the lab is calm and takes the accounts.
func (d *drill) begin(ctx context.Context, kind drillKind) (err error) {
	if err := d.calm(ctx, calmBound); err != nil {
		return err
	}
	if kind.sums != sumsNone && d.l.st.Options.Peers == Embedded {
		g, err := d.l.takeLedger(ctx)
		if err != nil {
			return fmt.Errorf("count packets: %w", err)
		}
		d.ledger = &g
	}
	if d.bare, err = d.l.bareCount(); err != nil {
		return err
	}
	if d.tcpBefore, err = d.l.tcpSnapshot(ctx); err != nil {
		return err
	}
	d.before, err = d.l.peers.snapshot(ctx)
	return err
}
