package lab

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
)

// TestMain lets the test binary be its own embedded peers, as vpnlb is.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "lab-peer" {
		if err := PeerMain(os.Args[2], os.Args[3:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == speakerArg {
		if err := speak(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	failures.print(os.Stdout)
	os.Exit(code)
}

// maxFailureLines bounds what the end of the run says of one failed drill.
const maxFailureLines = 12

// failures collects why drills failed, to be said once more at the end of the
// run: in the thousands of lines of a whole run nobody finds them.
var failures failureList

type failureList struct {
	mu    sync.Mutex
	lines []string
}

// add notes a failure of a test, with those of the drill's details that tell
// why. None of them does: the last ones are better than nothing.
func (f *failureList) add(test, what string, details []string) {
	var why []string
	for _, d := range details {
		if strings.HasPrefix(d, "FAILED") {
			why = append(why, d)
		}
	}
	if len(why) == 0 {
		why = details[max(0, len(details)-maxFailureLines):]
	}
	lines := []string{test + ": " + what}
	for i, d := range why {
		if i == maxFailureLines {
			lines = append(lines, fmt.Sprintf("    and %d more", len(why)-i))
			break
		}
		lines = append(lines, "    "+d)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lines = append(f.lines, lines...)
}

// print writes the list; nothing where nothing failed.
func (f *failureList) print(out io.Writer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(f.lines) == 0 {
		return
	}
	fmt.Fprintf(out, "=== what failed in the laboratory\n%s\n", strings.Join(f.lines, "\n"))
}

func TestFailureListIsShortAndSaysWhy(t *testing.T) {
	var f failureList
	var out strings.Builder
	if f.print(&out); out.Len() > 0 {
		t.Errorf("nothing failed, yet it says %q", out.String())
	}
	details := []string{"a fact", "FAILED: first"}
	for range 2 * maxFailureLines {
		details = append(details, "FAILED: again")
	}
	f.add("TestA/drain", "drill drain failed", details)
	f.add("TestB", "lab up: no clients", nil)
	f.print(&out)
	got := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(got) != 1+1+maxFailureLines+1+1 || got[2] != "    FAILED: first" || got[len(got)-1] != "TestB: lab up: no clients" {
		t.Errorf("%d lines:\n%s", len(got), out.String())
	}
	if strings.Contains(out.String(), "a fact") {
		t.Error("facts are told as reasons")
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("the laboratory needs root")
	}
	t.Skip("the laboratory needs root")
}
