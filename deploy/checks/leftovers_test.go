package checks

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// A process that carries a laboratory's name is found, and only that.
func TestLabLeftovers(t *testing.T) {
	lab := fmt.Sprintf("tleftovers%d", os.Getpid()) // another run of this test may be under way
	look := func() (string, error) {
		out, err := exec.CommandContext(t.Context(), "./lab-leftovers", lab).CombinedOutput()
		return string(out), err
	}
	start := func(mark string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "sleep", "60")
		cmd.Env = append(os.Environ(), mark)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	start("VPNLB_LAB=" + lab + "x")
	if out, err := look(); err != nil {
		t.Errorf("nothing is there: %v\n%s", err, out)
	}
	left := start("VPNLB_LAB=" + lab)
	if out, err := look(); err == nil || strings.Count(out, "sleep 60") != 1 {
		t.Errorf("a process is left: %v\n%s", err, out)
	}
	if err := left.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	left.Wait()
	if out, err := look(); err != nil {
		t.Errorf("it is gone: %v\n%s", err, out)
	}
}
