package lab

import (
	"context"
	"io"
)

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
func Demo(ctx context.Context, o DemoOptions) (Verdict, error) { return Verdict{}, errReal }
