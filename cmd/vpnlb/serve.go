package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"runtime"

	"github.com/spf13/cobra"

	"github.com/vpnlb/vpnlb/node"
	"github.com/vpnlb/vpnlb/node/config"
)

func (c *cli) serve() *cobra.Command {
	var file string
	var force bool
	cmd := &cobra.Command{
		Use: "serve --config FILE", Short: "Run a node", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := loadConfig(file)
			if err != nil {
				return err
			}
			spareProcessor()
			n, err := node.New(*cfg, node.Deps{Log: newLogger(cfg.Log), Version: version, ForceCold: force})
			if err != nil {
				return err
			}
			return n.Run(cmd.Context())
		},
	}
	configFlag(cmd, &file)
	cmd.Flags().BoolVar(&force, "force-cold-start", false, "where no leader is found, forward from the stored state however old it is: only where no other node can come back, and for one start")
	return cmd
}

// spareProcessor gives the runtime one processor more than the machine, or its
// control group, has: package sstp lets handshakes compute on all but one. An
// administrator's GOMAXPROCS stands.
func spareProcessor() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + 1)
	}
}

func configFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVar(file, "config", "/etc/vpnlb/vpnlb.yaml", "node file")
}

// loadConfig reads the node file; faults of it are a usage error.
func loadConfig(path string) (*config.Config, error) {
	cfg, err := config.Load(path)
	var invalid *config.InvalidError
	var file *fs.PathError // missing, a folder, not readable
	if errors.As(err, &invalid) || errors.As(err, &file) {
		return nil, &exitError{code: exitUsage, msg: err.Error(), cause: err}
	}
	return cfg, err
}

func newLogger(l config.Log) *slog.Logger {
	opts := &slog.HandlerOptions{Level: l.Level}
	if l.Format == config.FormatJSON {
		return slog.New(slog.NewJSONHandler(os.Stderr, opts))
	}
	return slog.New(slog.NewTextHandler(os.Stderr, opts))
}

func (c *cli) config() *cobra.Command {
	check := &cobra.Command{
		Use: "check FILE", Short: "Report every fault of a node file at once (exit 2 if there are any)", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			cfg, err := loadConfig(args[0])
			var invalid *config.InvalidError
			if errors.As(err, &invalid) && c.output == "json" {
				if err := c.print(cmd.OutOrStdout(), faults(invalid), nil); err != nil {
					return err
				}
				return &exitError{code: exitUsage}
			}
			if err != nil {
				return err
			}
			return c.print(cmd.OutOrStdout(), []fault{}, func(w io.Writer) { fmt.Fprintf(w, "%s is good: node %s\n", args[0], cfg.Name) })
		},
	}
	return group("config", "The node file", check)
}

// fault is config.Fault as JSON.
type fault struct {
	Line int    `json:"line"`
	Key  string `json:"key"`
	Text string `json:"text"`
}

func faults(e *config.InvalidError) []fault {
	out := make([]fault, 0, len(e.Faults))
	for _, f := range e.Faults {
		out = append(out, fault(f))
	}
	return out
}
