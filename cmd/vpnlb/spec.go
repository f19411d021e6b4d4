package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node/admin"
)

func (c *cli) vip() *cobra.Command {
	var sstp string
	var bits uint8
	var certs []string
	var transparent, readdress bool
	add := &cobra.Command{
		Use: "add NAME ADDR", Short: "Add a VIP, or change the one of this name", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := admin.VIPRequest{Name: args[0], Addr: args[1], SSTP: sstp, Readdress: readdress}
			if cmd.Flags().Changed("client-bits") {
				in.Bits = &bits
			}
			if cmd.Flags().Changed("sstp-cert") {
				in.Certificates = &certs
			}
			if cmd.Flags().Changed("sstp-transparent") {
				in.Transparent = &transparent
			}
			return c.change(cmd, admin.PathVIPAdd, in, "VIP "+args[0]+" set")
		},
	}
	add.Flags().StringVar(&sstp, "sstp", "", "what happens to TCP 443: off, passthrough (to the servers), offload (TLS ends on the nodes, HTTP to the servers) or reencrypt (TLS again to the servers)")
	add.Flags().StringSliceVar(&certs, "sstp-cert", nil, "certificates that the nodes show, by name, the default first")
	add.Flags().BoolVar(&transparent, "sstp-transparent", false, "servers see the clients' own addresses; for clusters of one node, which is their gateway")
	add.Flags().BoolVar(&readdress, "readdress", false, "give a VIP with servers another address: all its tunnels break")
	add.Flags().Uint8Var(&bits, "client-bits", 64, "IPv6 VIPs: clients are keyed by so many bits of their address, 32 to 128")
	return group("vip", "Virtual addresses that clients dial", add, c.vipList(), c.named("remove", "Remove a VIP that has no backends", admin.PathVIPRemove, "VIP %s removed"))
}

func (c *cli) named(use, short, path, done string) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd, path, admin.NameRequest{Name: args[0]}, fmt.Sprintf(done, args[0]))
		},
	}
}

func (c *cli) spec(cmd *cobra.Command) (admin.Spec, error) {
	var out admin.Spec
	err := c.client().Get(cmd.Context(), admin.PathSpec, &out)
	return out, err
}

func (c *cli) vipList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the VIPs", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := c.spec(cmd)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), spec.VIPs, func(w io.Writer) {
				fmt.Fprintln(w, "NAME\tADDRESS\tSSTP\tCLIENT BITS\tCERTIFICATES")
				for _, v := range spec.VIPs {
					bits := "-"
					if v.Bits != 0 {
						bits = fmt.Sprint(v.Bits)
					}
					mode := v.SSTP
					if v.Transparent {
						mode += " transparent"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", v.Name, v.Addr, mode, bits, orDash(strings.Join(v.Certificates, ",")))
				}
			})
		},
	}
}

func (c *cli) backend() *cobra.Command {
	return group("backend", "RRAS servers behind a VIP",
		c.backendAdd(), c.backendList(), c.backendRemove(),
		c.backendAdmin("drain", "drain", "Give it no new clients; known ones stay, their new logins too"),
		c.backendAdmin("offline", "offline", "Let its clients be served elsewhere at their next login"),
		c.backendAdmin("enable", "enabled", "Let it take new clients while it is healthy"))
}

func (c *cli) backendAdd() *cobra.Command {
	var vip, mode string
	var weight, port uint16
	var limit uint32
	cmd := &cobra.Command{
		Use: "add NAME ADDR", Short: "Add a server, or change mode, weight, limit and port of SSTP of the one of this name", Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			in := admin.BackendRequest{Name: args[0], Addr: args[1], VIP: vip, Mode: mode}
			if cmd.Flags().Changed("weight") {
				in.Weight = &weight
			}
			if cmd.Flags().Changed("limit") {
				in.Limit = &limit
			}
			if cmd.Flags().Changed("sstp-port") {
				in.SSTPPort = &port
			}
			return c.change(cmd, admin.PathBackendAdd, in, "backend "+args[0]+" set")
		},
	}
	cmd.Flags().StringVar(&vip, "vip", "", "the VIP it serves (not needed where there is one)")
	cmd.Flags().StringVar(&mode, "mode", "", "how packets get there: dnat (its address is written in) or dsr (only its MAC; replies bypass the nodes)")
	cmd.Flags().Uint16Var(&weight, "weight", 100, "share of new clients, 0 to 1000")
	cmd.Flags().Uint16Var(&port, "sstp-port", 0, "where the nodes dial SSTP; 0: 80 in mode offload, 443 in mode reencrypt")
	cmd.Flags().Uint32Var(&limit, "limit", 0, "most clients it may hold; 0 = no limit")
	return cmd
}

func (c *cli) backendAdmin(use, state, short string) *cobra.Command {
	return &cobra.Command{
		Use: use + " NAME", Short: short, Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd, admin.PathBackendAdmin, admin.BackendAdminRequest{Name: args[0], Admin: state}, "backend "+args[0]+" is "+state)
		},
	}
}

func (c *cli) backendRemove() *cobra.Command {
	var purge bool
	cmd := &cobra.Command{
		Use: "remove NAME", Short: "Take a server out for good; it stays listed until no client is recorded there", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.change(cmd, admin.PathBackendRemove, admin.NameRequest{Name: args[0], Purge: purge}, "backend "+args[0]+" removed")
		},
	}
	cmd.Flags().BoolVar(&purge, "purge", false, "forget its clients at once: their tunnels break")
	return cmd
}

func (c *cli) backendList() *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the servers with health, stance and clients", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := c.spec(cmd)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), spec.Backends, func(w io.Writer) { printBackends(w, spec.Backends) })
		},
	}
}

func printBackends(w io.Writer, list []admin.Backend) {
	fmt.Fprintln(w, "BACKEND\tADDRESS\tVIP\tMODE\tWEIGHT\tADMIN\tCLASS\tHEALTH\tSTANCE\tCLIENTS\tHERE")
	line := func(b *admin.Backend, class string, s admin.Service) {
		if s.Detail != "" {
			s.Local += ": " + s.Detail
		}
		if s.Sessions > 0 {
			s.Local += fmt.Sprintf(" (%d sessions)", s.Sessions)
		}
		if s.StanceWhy != "" && s.StanceWhy != b.Admin && s.StanceWhy != s.Health {
			s.Stance += " (" + s.StanceWhy + ")"
		}
		clients := fmt.Sprint(s.Clients)
		if class == "ike" && b.Limit > 0 {
			clients += fmt.Sprintf("/%d", b.Limit)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%d\t%s\t%s\t%s\t%s\t%s\t%s\n",
			b.Name, b.Addr, b.VIP, b.Mode, b.Weight, b.Admin, class, s.Health, s.Stance, clients, orDash(s.Local))
	}
	for i := range list {
		b := &list[i]
		line(b, "ike", admin.Service{Health: b.Health, Stance: b.Stance, StanceWhy: b.StanceWhy, Local: b.Local, Detail: b.Detail, Clients: b.Clients})
		if b.TCP != nil {
			line(b, "tcp", *b.TCP)
		}
	}
}

func (c *cli) gateway() *cobra.Command {
	verb := func(use, short, path, done string) *cobra.Command {
		return &cobra.Command{
			Use: use + " ADDR", Short: short, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				return c.change(cmd, path, admin.GatewayRequest{Addr: args[0]}, fmt.Sprintf(done, args[0]))
			},
		}
	}
	list := &cobra.Command{
		Use: "list", Short: "List the gateway addresses and their owners", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			spec, err := c.spec(cmd)
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), spec.Gateways, func(w io.Writer) { printGateways(w, spec.Gateways) })
		},
	}
	return group("gateway", "Floating addresses that servers use as default gateway",
		verb("add", "Add a floating gateway address", admin.PathGatewayAdd, "gateway %s added"), list,
		verb("remove", "Remove a floating gateway address", admin.PathGatewayRemove, "gateway %s removed"))
}

func printGateways(w io.Writer, list []admin.Gateway) {
	fmt.Fprintln(w, "GATEWAY\tOWNER\tHERE")
	for _, g := range list {
		here := yes(g.Here)
		if g.Alarm != "" {
			here += "  alarm: " + g.Alarm
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", g.Addr, g.Owner, here)
	}
}

func printSettings(w io.Writer, settings map[string]string) {
	for _, key := range slices.Sorted(maps.Keys(settings)) {
		fmt.Fprintf(w, "%s\t%s\n", key, settings[key])
	}
}
