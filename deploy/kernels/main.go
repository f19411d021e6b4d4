// Command kernels boots Linux kernels in qemu under software emulation and runs test
// binaries of this repository in them. Without arguments it takes Debian's own kernels
// (see debian.go). Run it as root, from the top of the repository.
//
// Exit status: 0 every test passed on every kernel that could be had, 1 otherwise.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"time"
)

// A suite is a test binary and the tests of it that run.
type suite struct {
	pkg string // path below the top of the repository
	run string // as go test -run takes it
}

// loading runs first: nothing else works where the program does not load.
var suites = []suite{
	{"dataplane/bpf", "^TestProgramsLoad$"},
	{"dataplane", "^(TestFixtures|TestForwardingSurvivesTheDaemon|TestRestartTakesOver|TestAnotherSchemaTakesOverAndBack|TestSelfCheckCoversInterfacesAndDirections|TestBond.*)$"},
}

type options struct {
	kernel, modules, only string
	suites                []suite
	timeout               time.Duration
}

func main() {
	var o options
	var pkg, run string
	flag.StringVar(&o.kernel, "kernel", "", "kernel image to boot instead of Debian's")
	flag.StringVar(&o.modules, "modules", "", "its folder of modules, the one that holds modules.dep")
	flag.StringVar(&o.only, "only", "", "of Debian's kernels, those whose version begins so")
	flag.StringVar(&pkg, "pkg", "", "run tests of this package alone, as dataplane/bpf")
	flag.StringVar(&run, "run", ".", "with -pkg: which of its tests")
	flag.DurationVar(&o.timeout, "timeout", 15*time.Minute, "longest run of one kernel")
	flag.Parse()
	o.suites = suites
	if pkg != "" {
		o.suites = []suite{{strings.TrimPrefix(filepath.Clean(pkg), "./"), run}}
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := runAll(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "kernels:", err)
		os.Exit(1)
	}
}

func runAll(ctx context.Context, o options) error {
	work, err := os.MkdirTemp("", "vpnlb-kernels-")
	if err != nil {
		return fmt.Errorf("make working folder: %w", err)
	}
	defer os.RemoveAll(work)
	list, err := chosen(ctx, o)
	if err != nil {
		return err
	}
	fmt.Printf("kernels: %d to boot, each about 4 minutes on two idle cores\n", len(list))
	binaries, err := compile(ctx, work, o.suites)
	if err != nil {
		return err
	}
	var lines []string
	failed := 0
	for _, k := range list {
		start := time.Now()
		if k.absent != nil {
			lines = append(lines, fmt.Sprintf("%-24s not run: %v", k.name, k.absent))
			continue
		}
		said, err := boot(ctx, k, work, binaries, o.suites, o.timeout)
		verdict := "ok"
		if err != nil {
			verdict = err.Error()
			failed++
		}
		lines = append(lines, fmt.Sprintf("%-24s %s (%s; %s)", k.name, verdict, said, time.Since(start).Round(time.Second)))
	}
	fmt.Println(strings.Join(lines, "\n"))
	if failed > 0 {
		return fmt.Errorf("%d of %d kernels failed", failed, len(list))
	}
	return nil
}

// chosen gives the kernels to boot.
func chosen(ctx context.Context, o options) ([]kernel, error) {
	if o.kernel == "" {
		return debian(ctx, o.only)
	}
	if o.modules == "" {
		return nil, errors.New("-kernel needs -modules, the folder that holds modules.dep")
	}
	if _, err := os.Stat(filepath.Join(o.modules, "modules.dep")); err != nil {
		return nil, fmt.Errorf("find modules (run depmod?): %w", err)
	}
	return []kernel{{name: filepath.Base(o.kernel), image: o.kernel, modules: o.modules}}, nil
}

// compile builds the test binary of every suite; without cgo, so that it needs nothing
// in the machine.
func compile(ctx context.Context, work string, list []suite) ([]string, error) {
	var out []string
	for i, s := range list {
		file := filepath.Join(work, fmt.Sprintf("suite%d.test", i))
		cmd := exec.CommandContext(ctx, "go", "test", "-c", "-o", file, "./"+s.pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if b, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("compile tests of %s: %w\n%s", s.pkg, err, b)
		}
		out = append(out, file)
	}
	return out, nil
}
