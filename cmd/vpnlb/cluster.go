package main

import (
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node/admin"
)

func (c *cli) cluster() *cobra.Command {
	return group("cluster", "The cluster's life: init, join, leave, members, settings",
		c.clusterInit(), c.clusterToken(), c.clusterJoin(), c.clusterLeave(), c.clusterRemove(),
		c.clusterMembers(), c.clusterStatus(), c.clusterSet())
}

func (c *cli) clusterInit() *cobra.Command {
	var in admin.InitRequest
	cmd := &cobra.Command{
		Use: "init", Short: "Make a new cluster whose first member is this node", Args: cobra.NoArgs,
		Long: "Creates the cluster ID, the certificate authority and the gossip key, and starts\nconsensus with this node as the only member. Run it once, on one node; the others join.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out admin.InitAnswer
			if err := c.client().Post(cmd.Context(), admin.PathInit, in, &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				fmt.Fprintf(w, "cluster %s made, first member %s\n", out.Cluster, out.Node)
				for _, warning := range out.Warnings {
					fmt.Fprintln(w, "warning:", warning)
				}
				fmt.Fprintln(w, "next: 'vpnlb cluster token' here, then 'vpnlb cluster join' on the other nodes")
			})
		},
	}
	cmd.Flags().BoolVar(&in.Force, "force", false, "although a neighbour offers a VIP already, or a cluster answers")
	return cmd
}

func (c *cli) clusterToken() *cobra.Command {
	in := admin.TokenRequest{TTL: 10 * time.Minute}
	cmd := &cobra.Command{
		Use: "token", Short: "Make a join token: good for one node, for a short time", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if in.TTL < time.Minute || in.TTL > 24*time.Hour {
				return usagef("--ttl is between 1m and 24h, not %s", in.TTL)
			}
			var out admin.TokenAnswer
			if err := c.client().Post(cmd.Context(), admin.PathToken, in, &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				for _, addr := range out.Addrs {
					fmt.Fprintf(w, "vpnlb cluster join %s --token %s --ca-hash %s\n", addr, out.Token, out.CAHash)
				}
				who := "one node"
				if out.Name != "" {
					who = "a node called " + out.Name
				}
				fmt.Fprintf(cmd.ErrOrStderr(), "good for %s, once, until %s\n", who, time.Now().Add(in.TTL).Format("15:04:05 on 2006-01-02"))
			})
		},
	}
	cmd.Flags().StringVar(&in.Name, "name", "", "the only node name it admits (default: any)")
	cmd.Flags().DurationVar(&in.TTL, "ttl", in.TTL, "how long it is good")
	return cmd
}

func (c *cli) clusterJoin() *cobra.Command {
	var in admin.JoinRequest
	cmd := &cobra.Command{
		Use: "join ADDR --token TOKEN --ca-hash HASH", Short: "Join this node to a cluster; run it again to resume", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if in.Token == "" || in.CAHash == "" {
				return usagef("--token and --ca-hash are needed: 'vpnlb cluster token' on a member prints both")
			}
			in.Addr = withPort(args[0])
			return c.stream(cmd, admin.PathJoin, in)
		},
	}
	cmd.Flags().StringVar(&in.Token, "token", "", "the token that 'vpnlb cluster token' printed on a member")
	cmd.Flags().StringVar(&in.CAHash, "ca-hash", "", "the CA hash printed beside it")
	return cmd
}

func (c *cli) clusterLeave() *cobra.Command {
	var in admin.LeaveRequest
	cmd := &cobra.Command{
		Use: "leave", Short: "Take this node out of the cluster without losing a packet; run it again to resume", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.stream(cmd, admin.PathLeave, in) },
	}
	cmd.Flags().BoolVar(&in.Force, "force", false, "although the remaining live voters are no quorum")
	return cmd
}

func (c *cli) stream(cmd *cobra.Command, path string, in any) error {
	w := cmd.OutOrStdout()
	steps := []string{}
	err := c.client().Stream(cmd.Context(), path, in, func(step string) {
		steps = append(steps, step)
		if c.output == "text" {
			fmt.Fprintln(w, step)
		}
	})
	if err != nil {
		return err
	}
	if c.output == "json" {
		return c.print(w, map[string]any{"done": true, "steps": steps}, nil)
	}
	return nil
}

func (c *cli) clusterRemove() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use: "remove NODE", Short: "Remove a dead member for good (name or ID); it can only come back as a new one", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd, admin.PathRemove, admin.RemoveRequest{Node: args[0], Force: force}, "member "+args[0]+" removed")
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "although it is alive, or the rest is no quorum")
	return cmd
}

func (c *cli) clusterMembers() *cobra.Command {
	return &cobra.Command{
		Use: "members", Short: "List the members and what is heard of them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out []admin.Member
			if err := c.client().Get(cmd.Context(), admin.PathMembers, &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tID\tROLE\tSUFFRAGE\tLIVE\tHEARD\tPLANE\tANNOUNCED\tADDRESS")
				for _, m := range out {
					suffrage := m.Suffrage
					if m.Leader {
						suffrage = "leader"
					}
					if m.Draining {
						suffrage += ", leaving"
					}
					name := m.Name
					if m.Self {
						name += " *"
					}
					announced := yes(m.Announced)
					if m.Stale {
						announced = "?"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\t%s\n", name, m.ID, m.Role, suffrage, yes(m.Live), orDash(m.HeardAgo), m.PlaneIndex, announced, m.Cluster)
				}
			})
		},
	}
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (c *cli) clusterStatus() *cobra.Command {
	return &cobra.Command{
		Use: "status", Short: "Leader, quorum and settings of the cluster", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var st admin.Status
			var spec admin.Spec
			if err := c.client().Get(cmd.Context(), admin.PathStatus, &st); err != nil {
				return err
			}
			if err := c.client().Get(cmd.Context(), admin.PathSpec, &spec); err != nil {
				return err
			}
			if st.Warnings == nil { // of a node of an older version
				st.Warnings = []string{}
			}
			out := map[string]any{"cluster": st.Cluster, "leader": st.Leader, "term": st.Term, "index": st.Index, "generation": st.Generation,
				"quorum": st.Quorum, "voters": st.Voters, "live_voters": st.LiveVoters, "affinities": st.Affinities,
				"settings": spec.Settings, "warnings": st.Warnings}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				fmt.Fprintf(w, "cluster\t%s\nleader\t%s (term %d)\nquorum\t%s: %d of %d voters live\nindex\t%d, generation %d\naffinities\t%d\n",
					st.Cluster, orNone(st.Leader), st.Term, yes(st.Quorum), st.LiveVoters, st.Voters, st.Index, st.Generation, st.Affinities)
				printSettings(w, spec.Settings)
				for _, warning := range st.Warnings {
					fmt.Fprintln(w, "warning:", warning)
				}
			})
		},
	}
}

func (c *cli) clusterSet() *cobra.Command {
	return &cobra.Command{
		Use: "set KEY VALUE", Short: "Change a setting of the cluster ('vpnlb cluster status' lists them)", Args: cobra.ExactArgs(2),
		Long: "Lists (inside_prefixes, forward_prefixes) are separated by commas; durations are like 40m or 5s.",
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd, admin.PathSet, admin.SetRequest{Key: args[0], Value: args[1]}, args[0]+" set")
		},
	}
}
