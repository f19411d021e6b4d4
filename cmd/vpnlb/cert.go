package main

import (
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/node/certs"
)

func (c *cli) cert() *cobra.Command {
	return group("cert", "TLS certificates of SSTP that the nodes show", c.certAdd(), c.certList(), c.certUse(), c.certRotate(),
		c.named("remove", "Remove a certificate that nobody uses, and its key", admin.PathCertRemove, "certificate %s removed"))
}

func (c *cli) certAdd() *cobra.Command {
	var chain, key string
	var in admin.CertRequest
	cmd := &cobra.Command{
		Use: "add NAME (--chain FILE --key FILE | --path FILE)", Short: "Add a certificate, or put the chain or key of this one anew", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			in.Name = args[0]
			if (chain == "") == (in.Path == "") {
				return usagef("give --chain and --key (files here; the cluster keeps them, encrypted), or --path (a file on every node)")
			}
			if chain != "" {
				if in.Chain, err = pemFile(chain); err != nil {
					return err
				}
			}
			if key != "" && key != chain {
				if in.Key, err = pemFile(key); err != nil {
					return err
				}
			}
			return c.change(cmd, admin.PathCertAdd, in, "certificate "+in.Name+" set")
		},
	}
	cmd.Flags().StringVar(&chain, "chain", "", "PEM file here: the server's own certificate, then each issuer; the key may be in it, too")
	cmd.Flags().StringVar(&key, "key", "", "PEM file here with its key, without a passphrase")
	cmd.Flags().StringVar(&in.Path, "path", "", "PEM file on every node, mode 0600, with chain and key")
	cmd.Flags().BoolVar(&in.Replace, "replace", false, "let another certificate take the place of one in use, although servers pin the old one's hash")
	return cmd
}

// maxPEM bounds what is read of a file: a chain with its key has a few KiB.
const maxPEM = 64 << 10

func pemFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxPEM+1))
	if err != nil {
		return "", err
	}
	if len(text) > maxPEM {
		return "", fmt.Errorf("%s is larger than %d bytes: a chain with its key has a few KiB", path, maxPEM)
	}
	if err := certs.OtherForm(text); err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(text), nil
}

func (c *cli) certList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the certificates as this node has them, and who uses them", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out []admin.Certificate
			if err := c.client().Get(cmd.Context(), admin.PathCertList, &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) { printCertificates(w, out) })
		},
	}
}

func printCertificates(w io.Writer, list []admin.Certificate) {
	fmt.Fprintln(w, "CERTIFICATE\tNAMES\tKEY\tNOT AFTER\tOCSP\tPLACE\tUSED BY\tSHA-256")
	for _, a := range list {
		until := "-"
		if !a.NotAfter.IsZero() {
			until = a.NotAfter.Format("2006-01-02")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", a.Name, orDash(strings.Join(a.Names, ",")), orDash(a.KeyType), until, orDash(a.OCSP), a.Place, orDash(strings.Join(a.UsedBy, ", ")), a.SHA256)
	}
	for _, a := range list {
		if a.Fault != "" {
			fmt.Fprintf(w, "fault of %s: %s\n", a.Name, a.Fault)
		}
		for _, warning := range a.Warnings {
			fmt.Fprintf(w, "note on %s: %s\n", a.Name, warning)
		}
	}
}

func (c *cli) certUse() *cobra.Command {
	var in admin.CertUseRequest
	cmd := &cobra.Command{
		Use: "use NAME (--server SERVER | --vip VIP)", Short: "Let the nodes show a certificate to a server's clients, or make it a VIP's first", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Name = args[0]
			who := "server " + in.Server
			if in.VIP != "" {
				who = "VIP " + in.VIP
			}
			if (in.Server == "") == (in.VIP == "") {
				return usagef("say who is to use it: --server NAME or --vip NAME")
			}
			return c.change(cmd, admin.PathCertUse, in, who+" uses certificate "+in.Name)
		},
	}
	cmd.Flags().StringVar(&in.Server, "server", "", "the server whose hash is this certificate's")
	cmd.Flags().StringVar(&in.VIP, "vip", "", "the VIP; its first certificate is that of servers without one of their own")
	return cmd
}

func (c *cli) certRotate() *cobra.Command {
	var in admin.RotateRequest
	cmd := &cobra.Command{
		Use: "rotate NEW [--server SERVER ...]", Short: "Change to a new certificate, one server at a time: shows where it stands and what is next; with --server, switches it",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			in.Name = args[0]
			var out admin.Rotation
			if err := c.client().Post(cmd.Context(), admin.PathCertRotate, in, &out); err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), out, func(w io.Writer) { printRotation(w, &out) })
		},
	}
	cmd.Flags().StringSliceVar(&in.Servers, "server", nil, "switch what the nodes show for this server; when the script has run there")
	cmd.Flags().StringVar(&in.VIP, "vip", "", "the VIP that is meant (not needed where TLS of one ends on the nodes)")
	return cmd
}

func printRotation(w io.Writer, r *admin.Rotation) {
	fmt.Fprintf(w, "SERVER\tCERTIFICATE\tADMIN\tSTATE\tCALLS HERE\n")
	for _, s := range r.Servers {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\n", s.Name, orDash(s.Certificate), s.Admin, s.State, s.Calls)
	}
	flush(w)
	for _, s := range r.Servers {
		if s.Alarm != "" {
			fmt.Fprintf(w, "alarm: %s\n", s.Alarm)
		}
	}
	for _, note := range r.Notes {
		fmt.Fprintln(w, "note:", note)
	}
	if r.Done {
		fmt.Fprintf(w, "\ndone: all servers of VIP %s have %s\n", r.VIP, r.Name)
		return
	}
	if r.Next == nil {
		return
	}
	fmt.Fprintf(w, "\nnext: %s\n", r.Next.Title)
	for _, line := range r.Next.Before {
		fmt.Fprintf(w, "  %s\n", line)
	}
	if r.Next.Script != "" {
		fmt.Fprintf(w, "  on %s, in a PowerShell of an administrator:\n\n", r.Next.Server)
		flush(w)
		printScript(w, r.Next.Script)
		fmt.Fprintln(w)
	}
	for _, line := range r.Next.After {
		fmt.Fprintf(w, "  %s\n", line)
	}
	fmt.Fprintf(w, "  until %s\n", r.Next.Until)
	fmt.Fprintf(w, "then: vpnlb cert rotate %s --vip %s\n", r.Name, r.VIP)
}
