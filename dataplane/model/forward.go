package model

import (
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// way is where a packet whose fate is decided goes, and as what.
type way struct {
	reason table.Reason
	hop    Hop
	vip    netip.Addr // whose answers come from it
	addr   netip.Addr // to write into the packet
	source bool       // into its source, else its destination
	quote  *quote     // of an ICMP error, which is rewritten too; else nil
	dsr    bool       // nothing is rewritten, and the kernel cannot help
}

// forward takes the packet to its next hop.
func forward(d Decision, p *packet, w *way, t *Tables) Decision {
	exit := t.interfaces[w.hop.Interface]
	d.Reason = w.reason
	switch {
	case !w.dsr && p.ttl() <= 1:
		return expired(d, p, w, t)
	case w.hop.State == NotForwarded && w.source:
		d.Verdict, d.Reason = Pass, table.PassNotForwarded
		return d
	case w.hop.State == NoRoute, w.hop.State == NotForwarded, w.dsr && !w.hop.Direct:
		return d.end(table.DropNoRoute)
	case w.dsr && w.hop.State == NoNeighbour:
		return d.end(table.DropNoNeighbour)
	case w.hop.MTU != 0 && p.total > int(w.hop.MTU):
		if w.dsr || !p.mayFragment() {
			return tooBig(d, p, w, t)
		}
		d.Reason = table.PassMustFragment
	case w.hop.State == NoNeighbour:
		d.Reason = table.PassNoNeighbour
	case !w.dsr && !exit.CanTransmit:
		d.Reason = table.PassCannotTransmit
	}
	passed := d.Reason != w.reason
	out := append([]byte(nil), p.frame...)
	ip := out[p.link.header:]
	if !p.rewrite(ip, w, passed) {
		return d.end(table.DropPartialSum)
	}
	switch {
	case w.dsr && !exit.CanTransmit:
		return d.end(table.DropNoRoute)
	case passed:
		d.Verdict, d.Out = Pass, out
		return d
	case !w.dsr:
		p.takeTTL(ip)
	}
	d.Verdict = Forward
	d.Out, d.Interface = leave(ip, p.link, w.hop, exit)
	return d
}
