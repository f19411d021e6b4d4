package main

import (
	"context"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/deploy/lab"
)

func (c *cli) lab() *cobra.Command {
	return group("lab", "A whole cluster with router, servers and clients in network namespaces (root)",
		c.labUp(), c.labDown(), c.labStatus(), c.labRun(), c.labDemo())
}

func (c *cli) labUp() *cobra.Command {
	var o lab.Options
	var peers string
	cmd := &cobra.Command{
		Use: "up", Short: "Build the laboratory and leave it running", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			o.Peers, o.Out = lab.PeerKind(peers), cmd.OutOrStdout()
			followPeers(&o, cmd.Flags().Changed("passthrough"))
			l, err := lab.Up(cmd.Context(), o)
			if err != nil {
				return err
			}
			return l.Close()
		},
	}
	f := cmd.Flags()
	labName(cmd, &o.Name)
	f.StringVar(&peers, "peers", string(lab.Embedded), "embedded, or real (FRR and strongSwan)")
	f.IntVar(&o.Nodes, "nodes", 3, "nodes that form the cluster")
	f.IntVar(&o.Servers, "servers", 3, "servers")
	f.IntVar(&o.Clients, "clients", 200, "clients")
	f.IntVar(&o.Rate, "rate", 10, "data packets of each embedded client a second")
	f.BoolVar(&o.IPv6, "ipv6", lab.DefaultIPv6, "dual stack: a VIP, servers, gateways and every fourth client of IPv6 too")
	f.BoolVar(&o.Passthrough, "passthrough", lab.DefaultPassthrough, "forward TCP 443; some clients hold a connection (not with --peers real)")
	f.StringVar((*string)(&o.SSTP), "sstp", "off", "SSTP servers, and what happens to TCP 443: off, passthrough, offload or reencrypt; for drills with sstpc, not together with --passthrough's clients")
	f.BoolVar(&o.ICMP, "icmp", lab.DefaultICMP, "allow drills that need ICMP to be relayed and answered")
	f.BoolVar(&o.DSR, "dsr", false, "servers answer clients directly (layer 2 DSR)")
	return cmd
}

// followPeers turns off what real peers cannot do, unless it was asked for: then
// the laboratory says why not.
func followPeers(o *lab.Options, asked bool) {
	if o.Peers == lab.Real && !asked {
		o.Passthrough = false
	}
}

func labName(cmd *cobra.Command, name *string) {
	cmd.Flags().StringVar(name, "name", "lab", "name of the laboratory")
}

func needRoot() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("the laboratory makes network namespaces: run it as root")
	}
	return nil
}

func (c *cli) labDown() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "down", Short: "Remove the laboratory, also after a crash", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			return lab.Down(cmd.Context(), name)
		},
	}
	labName(cmd, &name)
	return cmd
}

func (c *cli) labStatus() *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use: "status", Short: "What stands in the laboratory", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := lab.StatusOf(cmd.Context(), name)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), st, func(w io.Writer) {
				fmt.Fprintf(w, "lab\t%s (%s peers)\necmp\t%v\nclients\t%d of %d up, %d packets sent, %d lost\n", st.Name, st.Peers, st.ECMP, st.Clients.Up, st.Clients.Clients, st.Clients.Sent, st.Clients.Lost)
				for _, n := range st.Nodes {
					fmt.Fprintf(w, "node\t%s member %s pid %d --socket %s\n", n.Name, yes(n.Member), n.PID, n.Socket)
				}
				for _, s := range st.Servers {
					fmt.Fprintf(w, "server\t%s running %s clients %d\n", s.Name, yes(s.Running), s.Clients)
				}
			})
		},
	}
	labName(cmd, &name)
	return cmd
}

func (c *cli) labRun() *cobra.Command {
	var name, other string
	cmd := &cobra.Command{
		Use: "run DRILL", Short: "Run one failover drill in the laboratory ('list' names them, 'all' runs them)", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if args[0] == "list" {
				return c.print(cmd.OutOrStdout(), lab.Drills(), func(w io.Writer) {
					for _, d := range lab.Drills() {
						needs := ""
						if d.Needs != "" {
							needs = " (needs --" + d.Needs + ")"
						}
						fmt.Fprintf(w, "%s\t%s%s\n", d.Name, d.Description, needs)
					}
				})
			}
			return c.runDrills(cmd.Context(), cmd.OutOrStdout(), name, other, args[0])
		},
	}
	labName(cmd, &name)
	cmd.Flags().StringVar(&other, "other", "", "another version of this binary, for the drill 'upgrade'")
	return cmd
}

func (c *cli) runDrills(ctx context.Context, out io.Writer, name, other, drill string) error {
	known := drill == "all"
	for _, d := range lab.Drills() {
		known = known || d.Name == drill
	}
	if !known {
		return usagef("no drill is called %q; 'vpnlb lab run list' names them", drill)
	}
	if err := needRoot(); err != nil {
		return err
	}
	l, err := lab.Open(ctx, name)
	if err != nil {
		return err
	}
	defer l.Close()
	if err := l.SetOther(other); err != nil {
		return err
	}
	names := []string{drill}
	if drill == "all" { // that this laboratory can run
		names = nil
		for _, d := range l.Drills() {
			names = append(names, d.Name)
		}
	}
	failed := false
	progress := out
	if c.output == "json" {
		progress = io.Discard
	}
	results := []lab.Result{}
	for _, n := range names {
		r, err := lab.Run(ctx, l, n, progress)
		if err != nil {
			return err
		}
		results = append(results, r)
		failed = failed || !r.Pass
	}
	if err := c.print(out, results, func(w io.Writer) {
		fmt.Fprintln(w, "DRILL\tPASS\tLOST\tRE-HOMED\tMOVED\tCONVERGED")
		for _, r := range results {
			fmt.Fprintf(w, "%s\t%s\t%d\t%d\t%d\t%d ms\n", r.Name, yes(r.Pass), r.Lost, r.Rehomed, r.Moved, r.ConvergeMS)
			for _, d := range r.Details {
				fmt.Fprintf(w, "  %s\n", d)
			}
		}
	}); err != nil {
		return err
	}
	if failed {
		return &exitError{code: exitFailed}
	}
	return nil
}

func (c *cli) labDemo() *cobra.Command {
	var o lab.DemoOptions
	cmd := &cobra.Command{
		Use: "demo", Short: "Build a laboratory, break things in it, print the verdict, remove it", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := needRoot(); err != nil {
				return err
			}
			o.JSON, o.Out = c.output == "json", cmd.OutOrStdout()
			if info, err := os.Stdout.Stat(); err == nil {
				o.Terminal = info.Mode()&os.ModeCharDevice != 0
			}
			v, err := lab.Demo(cmd.Context(), o)
			if err != nil {
				return err
			}
			if !v.Pass {
				return &exitError{code: exitFailed}
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&o.Clients, "clients", 240, "clients")
	return cmd
}

// labPeer runs one embedded peer; the laboratory starts this binary so.
func (c *cli) labPeer() *cobra.Command {
	return &cobra.Command{
		Use: "lab-peer NAME", Hidden: true, DisableFlagParsing: true, Args: cobra.MinimumNArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return lab.PeerMain(args[0], args[1:]) },
	}
}
