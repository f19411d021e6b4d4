package main

import (
	"fmt"
	"io"
	"net/url"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node/admin"
)

func (c *cli) sstp() *cobra.Command {
	sessions := &cobra.Command{
		Use: "sessions", Short: "List the SSTP connections through this node", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out []admin.SSTPSession
			if err := c.client().Get(cmd.Context(), admin.PathSSTPSessions, &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) {
				fmt.Fprintln(w, "CLIENT\tVIP\tSERVER\tSTATE\tSINCE\tIDLE\tIN\tOUT\tECHOES\tLOST\tCERTIFICATE\tTLS")
				for _, s := range out {
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%d\t%d\t%d\t%s\t%s\n", s.Client, s.VIP, orDash(s.Server), s.State, s.Since, s.Idle,
						s.In, s.Out, s.Echoes, s.EchoLost, orDash(s.Certificate), orDash(s.TLS))
				}
			})
		},
	}
	status := &cobra.Command{
		Use: "status", Short: "The TLS of SSTP on this node: services, alarms", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out admin.SSTPStatus
			if err := c.client().Get(cmd.Context(), admin.PathSSTPStatus, &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) { printSSTP(w, &out) })
		},
	}
	return group("sstp", "SSTP where TLS ends on the nodes", sessions, status, c.rras())
}

func printSSTP(w io.Writer, s *admin.SSTPStatus) {
	fmt.Fprintln(w, "VIP\tADDRESS\tMODE\tLISTENS\tCONNECTIONS\tCERTIFICATES")
	for _, v := range s.Services {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\n", v.VIP, v.Addr, v.Mode, yes(v.Listening), v.Connections, orDash(strings.Join(v.Certificates, ",")))
	}
	flush(w)
	for _, v := range s.Services {
		if v.Fault != "" {
			fmt.Fprintf(w, "fault of %s: %s\n", v.VIP, v.Fault)
		}
	}
	if s.Fault != "" {
		fmt.Fprintf(w, "fault: %s\n", s.Fault)
	}
	for _, a := range s.Alarms {
		fmt.Fprintf(w, "alarm, for %s: %s\n", a.Since, a.Text)
	}
	if len(s.Alarms) == 0 {
		fmt.Fprintln(w, "no alarms")
	}
}

func (c *cli) rras() *cobra.Command {
	var certificate string
	cmd := &cobra.Command{
		Use: "rras SERVER", Short: "Print the PowerShell that a server needs for its VIP's mode and its certificate, and a checklist", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"server": {args[0]}, "certificate": {certificate}}
			var out admin.RRAS
			if err := c.client().Get(cmd.Context(), admin.PathSSTPRRAS+"?"+q.Encode(), &out); err != nil {
				return err
			}
			if c.output == "json" {
				return c.print(cmd.OutOrStdout(), out, nil)
			}
			// As it is: what is printed is meant to be pasted.
			w := cmd.OutOrStdout()
			printScript(w, out.Script)
			fmt.Fprintln(w)
			for _, line := range out.Checklist {
				fmt.Fprintf(w, "# [ ] %s\n", line)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&certificate, "cert", "", "as if the server used this certificate")
	return cmd
}

func printScript(w io.Writer, script string) {
	fmt.Fprint(w, strings.TrimSuffix(script, "\n")+"\n")
}

// flush ends the columns of a table: what follows has its own.
func flush(w io.Writer) {
	if t, ok := w.(*tabwriter.Writer); ok {
		t.Flush()
	}
}
