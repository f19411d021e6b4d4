package rras

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Step is one step of a plan. The next one begins when Until is true.
type Step struct {
	Title  string
	Node   []string // commands on any node, in order
	Server string   // where the script runs; "" = nowhere
	Script string   // PowerShell for that server, after the commands
	After  []string // commands on any node after the script
	Until  string   // what is true then
}

// Plan is the change from the certificate named old ("" = keep it, whatever it
// is) to the one in the servers' facts, one server at a time, so that all others
// serve while one restarts. Every server must name the same new certificate. A
// server in pass-through has no part: its certificate is its own affair.
//
// The order within a server matters: the certificate that nodes show for it and
// the hash in its registry change while no client is sent to it, so nobody
// meets the one with the other.
func Plan(old string, servers []Facts) ([]Step, error) {
	var faults []error
	var mine []Facts
	for _, f := range servers {
		if f.Mode == state.SSTPPassthrough {
			continue
		}
		faults = append(faults, f.Check())
		if len(mine) > 0 && (f.Certificate != mine[0].Certificate || f.Hash != mine[0].Hash) {
			faults = append(faults, fmt.Errorf("servers %s and %s are to get different certificates: plan them one after the other", mine[0].Server, f.Server))
		}
		mine = append(mine, f)
	}
	if len(mine) == 0 {
		faults = append(faults, errors.New("no server whose TLS ends on a node: in pass-through, renew the certificate on the server itself"))
	}
	if old != "" && !plain(old) {
		faults = append(faults, fmt.Errorf("certificate name %q cannot stand in a command", old))
	}
	if len(mine) > 0 && old == mine[0].Certificate {
		faults = append(faults, fmt.Errorf("certificate %s is the old and the new one: add the renewed one under a name of its own", old))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, fmt.Errorf("plan a change of certificate: %w", err)
	}
	name := mine[0].Certificate
	steps := []Step{{
		Title: fmt.Sprintf("every node has %s (valid until %s, SHA-256 %s)", name, mine[0].until(), mine[0].hex()),
		Node:  []string{"vpnlb cert list"},
		Until: name + " is listed, without a fault",
	}}
	for i, f := range mine {
		steps = append(steps, f.change(fmt.Sprintf("server %d of %d, %s", i+1, len(mine), f.Server))...)
	}
	return append(steps, finish(old, name, mine)...), nil
}

// change is one server's part.
func (f Facts) change(title string) []Step {
	verify := fmt.Sprintf("`vpnlb backend list` shows tcp up for %s", f.Server)
	return []Step{{
		Title: title + ": no new clients",
		Node:  []string{"vpnlb backend drain " + f.Server, "vpnlb affinity list --backend " + f.Server},
		Until: "the list is empty, or your maintenance window begins: whoever is listed then loses his tunnel, IKEv2 too, and dials again",
	}, {
		Title:  title + ": certificate and hash change together",
		Node:   []string{"vpnlb backend offline " + f.Server},
		Server: f.Server, Script: Script(f),
		After: []string{fmt.Sprintf("vpnlb cert use %s --server %s", f.Certificate, f.Server)},
		Until: "the script ends with Done, and " + verify,
	}, {
		Title: title + ": back in service",
		Node:  []string{"vpnlb backend enable " + f.Server, "vpnlb sstp status"},
		Until: fmt.Sprintf("a call on %s has carried data (`vpnlb sstp sessions`) and no alarm names it", f.Server),
	}}
}

// finish makes the new certificate the VIPs' own and takes the old one away.
func finish(old, name string, servers []Facts) []Step {
	var vips []string
	for _, f := range servers {
		if !slices.Contains(vips, f.VIP) {
			vips = append(vips, f.VIP)
		}
	}
	last := Step{Title: "the new certificate becomes the VIP's own", Until: "`vpnlb cert list` shows " + name + " in use everywhere"}
	for _, v := range vips {
		last.Node = append(last.Node, fmt.Sprintf("vpnlb cert use %s --vip %s", name, v))
	}
	last.Node = append(last.Node, "vpnlb cert list")
	steps := []Step{last}
	if old != "" {
		steps = append(steps, Step{
			Title: "the old certificate goes",
			Node:  []string{"vpnlb cert remove " + old},
			Until: "done",
		})
	}
	return steps
}
