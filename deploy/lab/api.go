package lab

import (
	"context"
	"errors"
	"io"
)

// Lab is one laboratory, attached to this process. One process at a time
// holds it (a file lock); Close lets go of it and leaves it running.
type Lab struct{}

var errNotYet = errors.New("not built yet")

// Up builds the lab of these options and starts everything in it: it returns
// when all nodes are in the router's ECMP set and all clients are served. A
// lab of that name that exists already is an error (Down removes it). On error
// everything made so far is removed again.
func Up(ctx context.Context, o Options) (*Lab, error) { return nil, errNotYet }

// Open attaches to the running lab of that name.
func Open(ctx context.Context, name string) (*Lab, error) { return nil, errNotYet }

// Down removes whatever the lab of that name left: processes, namespaces,
// mounts, files. Idempotent.
func Down(ctx context.Context, name string) error { return errNotYet }

// Close detaches from the lab.
func (l *Lab) Close() error { return nil }

// Down removes the lab.
func (l *Lab) Down(ctx context.Context) error { return errNotYet }

// Status is the lab at a glance.
type Status struct {
	Name    string       `json:"name"`
	Peers   PeerKind     `json:"peers"`
	ECMP    []string     `json:"ecmp"` // next hops of the VIP on the router
	Nodes   []NodeStatus `json:"nodes"`
	Servers []PeerStatus `json:"servers"`
	Clients ClientTotals `json:"clients"`
}

// NodeStatus is one node of the lab.
type NodeStatus struct {
	Name   string `json:"name"`
	Member bool   `json:"member"` // false: a spare, or it has left
	PID    int    `json:"pid"`    // 0: its daemon does not run
	Socket string `json:"socket"`
}

// PeerStatus is one server of the lab.
type PeerStatus struct {
	Name    string `json:"name"`
	Running bool   `json:"running"`
	Clients int    `json:"clients"`
}

// ClientTotals sums up the clients.
type ClientTotals struct {
	Clients int   `json:"clients"`
	Up      int   `json:"up"`
	Sent    int64 `json:"sent"`
	Lost    int64 `json:"lost"`
}

// Status reads the state of a lab without attaching to it.
func StatusOf(ctx context.Context, name string) (Status, error) { return Status{}, errNotYet }

// Result is what a drill found out.
type Result struct {
	Name       string   `json:"name"`
	Lost       int64    `json:"lost"`        // data packets without an echo
	Rehomed    int      `json:"rehomed"`     // clients served by another server without a permit
	Moved      int      `json:"moved"`       // clients whose own server died or went offline
	ConvergeMS int64    `json:"converge_ms"` // event to the wanted state, as the router or the clients see it
	Pass       bool     `json:"pass"`
	Details    []string `json:"details"` // facts, and the reason of each failure
}

// DrillInfo names a drill.
type DrillInfo struct{ Name, Description string }

// Drills lists the drills, in the order in which "all" should run them.
func Drills() []DrillInfo { return nil }

// Run runs one drill on a running lab and prints what it does to out. err is
// for what kept the drill from running; a drill that ran and failed has
// Result.Pass false.
func Run(ctx context.Context, l *Lab, drill string, out io.Writer) (Result, error) {
	return Result{}, errNotYet
}

// DemoOptions steer Demo.
type DemoOptions struct {
	Binary   string    // default: this executable
	Clients  int       // default 240
	JSON     bool      // Out gets the verdict as JSON and nothing else; progress goes to Progress
	Out      io.Writer // default os.Stdout
	Progress io.Writer // default: Out, or nothing with JSON
	Terminal bool      // draw a live table
}

// Verdict is the end of a demo.
type Verdict struct {
	Clients     int    `json:"clients"`
	PacketsSent int64  `json:"packets_sent"`
	PacketsLost int64  `json:"packets_lost"`
	Rehomed     int    `json:"rehomed"`
	Moved       int    `json:"moved"`
	Steps       []Step `json:"steps"`
	Pass        bool   `json:"-"`
}

// Step is one step of the demo.
type Step struct {
	Name       string `json:"name"`
	Lost       int64  `json:"lost"`
	Rehomed    int    `json:"rehomed"`
	Moved      int    `json:"moved"`
	ConvergeMS int64  `json:"converge_ms"`
}

// Demo builds a lab, breaks things one after the other, prints the verdict and
// removes the lab, also when ctx is cancelled (the caller ties ctx to SIGINT).
// err or !Verdict.Pass means exit status 1.
func Demo(ctx context.Context, o DemoOptions) (Verdict, error) { return Verdict{}, errNotYet }

// PeerMain is the hidden subcommand "lab-peer NAME ARG...": one embedded peer,
// running until SIGTERM.
func PeerMain(name string, args []string) error { return errNotYet }
