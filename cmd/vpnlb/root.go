package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node/admin"
)

const defaultSocket = "/run/vpnlb/admin.sock"

// cli is what all commands share: the global flags.
type cli struct {
	socket string
	output string
}

func newRoot() *cobra.Command {
	c := &cli{}
	root := &cobra.Command{
		Use:           "vpnlb",
		Short:         "Load balancer for Microsoft Always On VPN (IKEv2 and SSTP on RRAS)",
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	socket := os.Getenv("VPNLB_SOCKET")
	if socket == "" {
		socket = defaultSocket
	}
	root.PersistentFlags().StringVar(&c.socket, "socket", socket, "admin socket of the node to talk to (or VPNLB_SOCKET)")
	root.PersistentFlags().StringVarP(&c.output, "output", "o", "text", "text or json")
	root.SetFlagErrorFunc(flagError)
	root.PersistentPreRunE = func(*cobra.Command, []string) error {
		if c.output != "text" && c.output != "json" {
			return usagef("--output is text or json, not %q", c.output)
		}
		return nil
	}
	root.AddCommand(c.serve(), c.config(), c.cluster(), c.vip(), c.backend(), c.gateway(), c.affinity(),
		c.explain(), c.status(), c.cert(), c.sstp(), c.plane(), c.lab(), c.labPeer(), c.version())
	asUsage(root)
	return root
}

// asUsage gives every wrong argument count the exit code of a usage error and
// unknown subcommands a sentence.
func asUsage(cmd *cobra.Command) {
	args := cmd.Args
	cmd.Args = func(cmd *cobra.Command, given []string) error {
		if args == nil {
			return nil
		}
		if err := args(cmd, given); err != nil {
			return argsError(cmd, given, err)
		}
		return nil
	}
	for _, sub := range cmd.Commands() {
		asUsage(sub)
	}
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(subs...)
	return cmd
}

func (c *cli) client() *admin.Client { return admin.NewClient(c.socket) }

// print writes v as JSON, or as text does.
func (c *cli) print(w io.Writer, v any, text func(io.Writer)) error {
	if c.output == "json" {
		enc := json.NewEncoder(w)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	tw := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	text(tw)
	return tw.Flush()
}

// change posts in and says what was applied.
func (c *cli) change(cmd *cobra.Command, path string, in any, done string) error {
	var out admin.Changed
	if err := c.client().Post(cmd.Context(), path, in, &out); err != nil {
		return err
	}
	return c.print(cmd.OutOrStdout(), out, func(w io.Writer) {
		fmt.Fprintf(w, "%s (log index %d)\n", done, out.Index)
		for _, note := range out.Notes {
			fmt.Fprintln(w, "note:", note)
		}
	})
}

// version is set at link time by releases.
var version = "dev"

func (c *cli) version() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.print(cmd.OutOrStdout(), map[string]string{"version": version}, func(w io.Writer) { fmt.Fprintln(w, "vpnlb", version) })
		},
	}
}
