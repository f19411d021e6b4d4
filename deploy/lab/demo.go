package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"
)

// DemoOptions steer Demo.
type DemoOptions struct {
	Name     string    // of the lab; default "demo"
	Binary   string    // default: this executable
	Nodes    int       // default as of a lab
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

const (
	demoName      = "demo"
	demoClients   = 240
	demoBound     = 175 * time.Second // "under three minutes"
	demoLossAfter = 3 * time.Second   // a server dies in it, no node does: clients may be quick
	demoCalm      = 3 * time.Second   // of plain traffic first
	tablePeriod   = time.Second
)

// demoSteps are drills with the names that the verdict gives them.
func demoSteps() []drillKind {
	return []drillKind{
		{DrillInfo{Name: "quiet", Description: "nothing happens"}, (*drill).quiet, sumsExact},
		{DrillInfo{Name: "daemon-kill", Description: "kill -9 the leader's daemon and start it again"}, (*drill).leaderKill, sumsExact},
		{DrillInfo{Name: "server-failure", Description: "kill a server: its clients are served by others"}, (*drill).backendKill, sumsNone},
		{DrillInfo{Name: "leave-join", Description: "a node leaves the cluster, a new one joins"}, (*drill).leaveJoin, sumsNone},
	}
}

// quiet lets plain traffic run, of which nothing may be lost.
func (d *drill) quiet(ctx context.Context) error {
	if err := flow(ctx, demoCalm); err != nil {
		return err
	}
	return d.unharmed(ctx)
}

// Demo builds a lab, breaks things one after the other, removes the lab and prints the
// verdict: on an error, that of the steps so far, and when ctx is cancelled too (the
// caller ties ctx to SIGINT). err or !Verdict.Pass means exit status 1.
func Demo(ctx context.Context, o DemoOptions) (v Verdict, err error) {
	if o.Out == nil {
		o.Out = os.Stdout
	}
	if o.Progress == nil {
		o.Progress = o.Out
		if o.JSON {
			o.Progress = io.Discard
		}
	}
	if o.Clients == 0 {
		o.Clients = demoClients
	}
	if o.Name == "" {
		o.Name = demoName
	}
	ctx, cancel := context.WithTimeoutCause(ctx, demoBound, fmt.Errorf("the demo took longer than %s", demoBound))
	defer cancel()
	v, err = runDemo(ctx, o)
	return v.end(o, err)
}

// end prints the verdict, which an error makes a failure whatever came before it.
func (v Verdict) end(o DemoOptions, err error) (Verdict, error) {
	v.Pass = v.Pass && err == nil
	return v, errors.Join(v.print(o), err)
}

func runDemo(ctx context.Context, o DemoOptions) (v Verdict, err error) {
	start := time.Now()
	v.Steps = []Step{}
	if err := Down(ctx, o.Name); err != nil { // of a demo that was killed
		return v, err
	}
	screen := newScreen(o.Progress, o.Terminal)
	l, err := Up(ctx, Options{
		Name: o.Name, Binary: o.Binary, Nodes: o.Nodes, Clients: o.Clients, LossAfter: demoLossAfter, Out: screen,
		IPv6: DefaultIPv6, Passthrough: DefaultPassthrough, ICMP: DefaultICMP,
	})
	if err != nil {
		return v, early(ctx, err)
	}
	screen.say("everything stands after %s: %d clients through %d nodes to %d servers",
		time.Since(start).Round(time.Second), o.Clients, l.st.Options.Nodes, l.st.Options.Servers)
	v, err = l.demo(ctx, screen, demoSteps())
	if err = early(ctx, errors.Join(err, l.Down(ctx))); err == nil {
		screen.say("everything removed again; it took %s", time.Since(start).Round(time.Second))
	}
	return v, err
}

// early says why a demo ended before its time: what then failed is no news.
func early(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); err != nil && cause != nil {
		return fmt.Errorf("the demo was broken off and removed: %w", cause)
	}
	return err
}

// demo runs the steps until one of them cannot be run. The verdict has that one too,
// as far as it came.
func (l *Lab) demo(ctx context.Context, screen *screen, steps []drillKind) (v Verdict, err error) {
	v = Verdict{Pass: true, Steps: []Step{}}
	stop := l.liveTable(ctx, screen)
	defer stop()
	for _, kind := range steps {
		r, rerr := l.runDrill(ctx, kind)
		v.Steps = append(v.Steps, Step{r.Name, r.Lost, r.Rehomed, r.Moved, r.ConvergeMS})
		v.Rehomed += r.Rehomed
		v.Moved += r.Moved
		v.Pass = v.Pass && r.Pass
		if err = rerr; err != nil {
			break
		}
	}
	s, serr := l.peers.snapshot(context.WithoutCancel(ctx)) // a question with a bound of its own
	t := s.totals()
	v.Clients, v.PacketsSent, v.PacketsLost = t.Clients, t.Sent, t.Lost
	if err = errors.Join(err, serr); err != nil {
		return v, err
	}
	line, err := l.Audit(ctx)
	if err == nil {
		screen.say("%s", line)
	}
	return v, err
}

// print writes the verdict as JSON or as a table.
func (v Verdict) print(o DemoOptions) error {
	if o.JSON {
		enc := json.NewEncoder(o.Out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	w := tabwriter.NewWriter(o.Out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nSTEP\tLOST\tRE-HOMED\tMOVED\tCONVERGED")
	for _, s := range v.Steps {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d ms\n", s.Name, s.Lost, s.Rehomed, s.Moved, s.ConvergeMS)
	}
	verdict := "PASSED"
	if !v.Pass {
		verdict = "FAILED"
	}
	fmt.Fprintf(w, "\n%s: %d clients, %d packets sent, %d lost, %d re-homed, %d moved because their own server died\n",
		verdict, v.Clients, v.PacketsSent, v.PacketsLost, v.Rehomed, v.Moved)
	return w.Flush()
}

// screen writes plain lines and, on a terminal, keeps one table below them.
type screen struct {
	mu       sync.Mutex
	out      io.Writer
	terminal bool
	table    []string // as drawn last
}

func newScreen(out io.Writer, terminal bool) *screen { return &screen{out: out, terminal: terminal} }

// Write prints lines above the table.
func (s *screen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	n, err := s.out.Write(p)
	s.draw()
	return n, err
}

func (s *screen) say(format string, args ...any) { fmt.Fprintf(s, format+"\n", args...) }

func (s *screen) erase() {
	if n := len(s.table); n > 0 {
		fmt.Fprintf(s.out, "\x1b[%dA\x1b[J", n) // up n lines, clear the rest
	}
}

func (s *screen) draw() {
	for _, line := range s.table {
		fmt.Fprintln(s.out, line)
	}
}

func (s *screen) show(table []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.erase()
	s.table = table
	s.draw()
}

// liveTable redraws the state of the lab until stop is called. It only reads.
func (l *Lab) liveTable(ctx context.Context, s *screen) (stop func()) {
	if !s.terminal {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		t := time.NewTicker(tablePeriod)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				s.show(nil)
				return
			case <-t.C:
				if st, err := StatusOf(ctx, l.st.Options.Name); err == nil {
					s.show(st.table())
				}
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (st Status) table() []string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "  ECMP\t%s\n", strings.Join(st.ECMP, " "))
	for _, n := range st.Nodes {
		state := "down"
		switch {
		case !n.Member:
			state = "not in the cluster"
		case n.PID != 0:
			state = "running"
		}
		fmt.Fprintf(w, "  node %s\t%s\n", n.Name, state)
	}
	for _, s := range st.Servers {
		state := "dead"
		if s.Running {
			state = fmt.Sprintf("%d clients", s.Clients)
		}
		fmt.Fprintf(w, "  server %s\t%s\n", s.Name, state)
	}
	fmt.Fprintf(w, "  clients\t%d of %d served, %d packets sent, %d lost\n", st.Clients.Up, st.Clients.Clients, st.Clients.Sent, st.Clients.Lost)
	w.Flush()
	return strings.Split(strings.TrimRight(b.String(), "\n"), "\n")
}
