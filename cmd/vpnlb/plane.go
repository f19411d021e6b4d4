package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/forward"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/dataplane/transparent"
	"github.com/vpnlb/vpnlb/node"
	"github.com/vpnlb/vpnlb/node/admin"
)

func (c *cli) plane() *cobra.Command {
	var file string
	detach := &cobra.Command{
		Use: "detach --config FILE", Short: "Remove the XDP programs and everything pinned; forwarding ends here", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			if err := mayDetach(cmd.Context(), cfg.AdminSocket); err != nil {
				return err
			}
			// Addresses first: nobody may be asked to send here what nobody rewrites any more.
			dropped := gateway.DropAddresses(cfg.Dataplane.Inside)
			if err := errors.Join(dropped, dataplane.Detach(node.PlaneConfig(cfg))); err != nil {
				return err
			}
			if err := errors.Join(forward.Remove(), transparent.Remove()); err != nil {
				return err
			}
			if err := node.KernelSettings(cfg).Restore(); err != nil {
				return err
			}
			fmt.Fprintln(cmd.OutOrStdout(), "detached: nothing is forwarded by this node until 'vpnlb serve' attaches again")
			return nil
		},
	}
	configFlag(detach, &file)
	dump := &cobra.Command{
		Use: "dump --config FILE", Short: "Write what the pinned maps hold, a fact a line; needs no running node", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			if c.output == "json" {
				list := factWriter{w: cmd.OutOrStdout()}
				if err := dataplane.Dump(node.PlaneConfig(cfg), &list); err != nil {
					return err
				}
				return list.end()
			}
			return dataplane.Dump(node.PlaneConfig(cfg), cmd.OutOrStdout())
		},
	}
	configFlag(dump, &file)
	return group("plane", "The XDP data plane of this node", detach, dump, c.planeTrace())
}

// planeTrace follows one client. Its lines come as the packets do.
func (c *cli) planeTrace() *cobra.Command {
	var count int
	cmd := &cobra.Command{
		Use: "trace CLIENT", Short: "Show each packet of a client (address or prefix), with what became of it, as they pass this node", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			q := url.Values{"client": {args[0]}, "count": {strconv.Itoa(count)}}
			return c.client().Trace(cmd.Context(), admin.PathTrace+"?"+q.Encode(), func(t admin.Traced) error {
				if c.output == "json" {
					return json.NewEncoder(cmd.OutOrStdout()).Encode(t)
				}
				out, server := t.Out, t.Backend
				if out == "" {
					out = "-"
				}
				if server == "" {
					server = "-"
				}
				_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s > %s %d bytes %s server %s\n", t.At.Format("15:04:05.000"), t.In, out, t.Bytes, t.Reason, server)
				return err
			})
		},
	}
	cmd.Flags().IntVar(&count, "count", 100, "packets until it ends; it ends by itself after ten minutes")
	return cmd
}

// mayDetach refuses while a member runs: its own link would keep the program
// where it is until the process dies, and then nothing would. One that waits
// for init or join holds nothing.
func mayDetach(ctx context.Context, socket string) error {
	conn, err := net.Dial("unix", socket)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("ask whether a node is running, so nothing was detached: %w", err)
	}
	conn.Close()
	var st admin.Status
	if err := admin.NewClient(socket).Get(ctx, admin.PathStatus, &st); err != nil {
		return fmt.Errorf("a node may be running, so nothing was detached: stop the service first: %w", err)
	}
	if st.Stage != string(node.StageWaiting) {
		return fmt.Errorf("a node is running (%s answers): stop the service first, or run 'vpnlb cluster leave', which detaches without losing a packet", socket)
	}
	return nil
}
