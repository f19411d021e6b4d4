// Command vpnlb is the load balancer for Microsoft Always On VPN: one binary
// that runs a node, steers the cluster and holds the laboratory.
//
// Go's listeners are MPTCP sockets where the kernel has MPTCP, and on those
// TCP MD5 and TTL options fail; BGP needs both.
//
//go:debug multipathtcp=0
package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/signal"
	"syscall"

	"github.com/vpnlb/vpnlb/node/admin"
)

// Exit codes of the command.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2 // wrong words, or a config with faults
	exitForced = 3 // a second signal cut a stop short
)

// exitError carries an exit code; the message was printed already where it is
// empty.
type exitError struct {
	code  int
	msg   string
	cause error
}

func (e *exitError) Error() string { return e.msg }

// Unwrap gives the cause, for errors.As.
func (e *exitError) Unwrap() error { return e.cause }

func usagef(format string, args ...any) error {
	return &exitError{code: exitUsage, msg: fmt.Sprintf(format, args...)}
}

func main() { os.Exit(run(os.Args[1:])) }

func run(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// A second signal must end even a stop that hangs.
	context.AfterFunc(ctx, func() {
		second := make(chan os.Signal, 1)
		signal.Notify(second, os.Interrupt, syscall.SIGTERM)
		<-second
		os.Exit(exitForced)
	})
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitOK
	}
	var coded *exitError
	if !errors.As(err, &coded) {
		coded = &exitError{code: exitFailed, msg: err.Error()}
		var refused *admin.Error
		if errors.As(err, &refused) && refused.Status == http.StatusBadRequest {
			coded.code = exitUsage // whether the command line or the node found it
		}
	}
	if coded.msg != "" {
		fmt.Fprintln(os.Stderr, "vpnlb:", coded.msg)
	}
	return coded.code
}
