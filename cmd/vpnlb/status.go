package main

import (
	"fmt"
	"io"
	"net/netip"
	"net/url"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node/admin"
)

func (c *cli) status() *cobra.Command {
	var hash bool
	cmd := &cobra.Command{
		Use: "status", Short: "This node at a glance", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			path := admin.PathStatus
			if hash {
				path += "?hash=1"
			}
			var st admin.Status
			if err := c.client().Get(cmd.Context(), path, &st); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), st, func(w io.Writer) { printStatus(w, &st) })
		},
	}
	cmd.Flags().BoolVar(&hash, "hash", false, "also the hash of the agreed state: equal on all nodes at the same index")
	return cmd
}

func printStatus(w io.Writer, st *admin.Status) {
	fmt.Fprintf(w, "node\t%s (%s)\n", st.Node, st.ID)
	stage := st.Stage
	if st.StageReason != "" {
		stage += ": " + st.StageReason
	}
	fmt.Fprintf(w, "stage\t%s, up %s, version %s\n", stage, st.Uptime, st.Version)
	if st.Cluster != "" {
		fmt.Fprintf(w, "cluster\t%s\n", st.Cluster)
		fmt.Fprintf(w, "raft\t%s, leader %s, term %d, quorum %s (%d of %d voters live)\n", st.Role, orNone(st.Leader), st.Term, yes(st.Quorum), st.LiveVoters, st.Voters)
		fmt.Fprintf(w, "index\t%d agreed, %d in the data plane, caught up %s\n", st.Index, st.PlaneIndex, yes(st.CaughtUp))
		fmt.Fprintf(w, "affinities\t%d agreed, %d in the data plane of %d\n", st.Affinities, st.PlaneEntries, st.MaxClients)
	}
	if st.StateHash != "" {
		fmt.Fprintf(w, "state\t%s\n", st.StateHash)
	}
	for _, i := range st.Plane {
		mode := i.Mode
		if i.Alarm != "" {
			mode += "  alarm: " + i.Alarm
		}
		fmt.Fprintf(w, "xdp\t%s %s\n", i.Name, mode)
	}
	for _, v := range st.VIPs {
		fmt.Fprintf(w, "vip\t%s %s %s: %s\n", v.Name, v.Addr, v.Announce, v.Reason)
	}
	for _, n := range st.Neighbours {
		line := fmt.Sprintf("bgp\t%s AS%d %s %s", n.Addr, n.ASN, n.State, strings.Join(n.Families, " "))
		if n.HoldSeconds > 0 {
			line += fmt.Sprintf(" hold %gs", n.HoldSeconds)
		}
		if n.RouterHoldSeconds > n.HoldSeconds && n.HoldSeconds > 0 {
			line += fmt.Sprintf(" (router offers %gs; the shorter one counts)", n.RouterHoldSeconds)
		}
		if n.Error != "" {
			line += "  " + n.Error
		}
		fmt.Fprintln(w, strings.TrimRight(line, " "))
	}
	for _, warning := range st.Warnings {
		fmt.Fprintf(w, "warning\t%s\n", warning)
	}
	if len(st.Backends) > 0 {
		fmt.Fprintln(w)
		printBackends(w, st.Backends)
	}
	if len(st.Gateways) > 0 {
		fmt.Fprintln(w)
		printGateways(w, st.Gateways)
	}
	printTraffic(w, st)
	if len(st.Packets) > 0 {
		fmt.Fprintln(w, "\nPACKETS\tCOUNT\tBYTES")
		for _, p := range st.Packets {
			fmt.Fprintf(w, "%s\t%d\t%d\n", p.Reason, p.Packets, p.Bytes)
		}
	}
}

// printTraffic shows what this node forwarded to and from each server, and for
// each VIP, which is the sum of its servers'.
func printTraffic(w io.Writer, st *admin.Status) {
	if len(st.Backends) == 0 {
		return
	}
	fmt.Fprintln(w, "\nFORWARDED\tIN\tBYTES\tOUT\tBYTES")
	line := func(name string, in, out admin.Traffic) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\n", name, in.Packets, in.Bytes, out.Packets, out.Bytes)
	}
	for _, v := range st.VIPs {
		var in, out admin.Traffic
		for i := range st.Backends {
			if b := &st.Backends[i]; b.VIP == v.Name {
				in.Add(b.In)
				out.Add(b.Out)
			}
		}
		line("vip "+v.Name, in, out)
	}
	for i := range st.Backends {
		line(st.Backends[i].Name, st.Backends[i].In, st.Backends[i].Out)
	}
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}

// clientArg is an address, or a prefix as lists show it for IPv6 clients.
func clientArg(s string) (string, error) {
	if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is6() && p.Masked() == p {
		return p.String(), nil
	}
	a, err := netip.ParseAddr(s)
	if err != nil || a.Zone() != "" {
		return "", usagef("CLIENT is an IP address such as 198.51.100.7 or 2001:db8:7::1, not %q", s)
	}
	return a.Unmap().String(), nil
}

func (c *cli) explain() *cobra.Command {
	var vip, class string
	cmd := &cobra.Command{
		Use: "explain CLIENT", Short: "Which server this client gets now, and why", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := clientArg(args[0])
			if err != nil {
				return err
			}
			q := url.Values{"client": {client}, "vip": {vip}, "class": {class}}
			var out admin.Explanation
			if err := c.client().Get(cmd.Context(), admin.PathExplain+"?"+q.Encode(), &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) { printExplanation(w, &out) })
		},
	}
	cmd.Flags().StringVar(&vip, "vip", "", "the VIP it dials (not needed where there is one of the client's family)")
	cmd.Flags().StringVar(&class, "class", "ike", "the service it uses: ike, or tcp where the VIP has SSTP")
	return cmd
}

func printExplanation(w io.Writer, e *admin.Explanation) {
	if e.Record == nil {
		fmt.Fprintf(w, "client %s, VIP %s, %s: no record\n", e.Client, e.VIP, e.Class)
	} else {
		fmt.Fprintf(w, "client %s, VIP %s, %s: recorded on %s (%s), since %s ago, seen %s ago\n", e.Client, e.VIP, e.Class, e.Record.Backend, e.Record.State, e.Record.Since, e.Record.Seen)
	}
	fmt.Fprintln(w, "PACKET\tGOES TO\tREASON\tWHY")
	for _, cs := range e.Cases {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", cs.Packet, orNone(cs.Backend), cs.Reason, cs.Why)
	}
	for _, note := range e.Notes {
		fmt.Fprintln(w, "note:", note)
	}
}
