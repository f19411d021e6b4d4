package lab

import (
	"context"
	"io"
)

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
type DrillInfo struct {
	Name        string `json:"name"`
	Description string `json:"description"`
}

// Drills lists the drills, in the order in which all of them should run.
func Drills() []DrillInfo { return nil }

// Run runs one drill on a running lab and prints what it does to out. err is
// for what kept the drill from running; a drill that ran and failed has
// Result.Pass false.
func Run(ctx context.Context, l *Lab, drill string, out io.Writer) (Result, error) {
	return Result{}, errReal
}
