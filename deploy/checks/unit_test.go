package checks

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const unitFile = "../vpnlb.service"

// unitSettings reads a unit file: "Section.Key" to the last value.
func unitSettings(text string) map[string]string {
	out := make(map[string]string)
	section := ""
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			section = strings.Trim(line, "[]")
		default:
			key, value, _ := strings.Cut(line, "=")
			out[section+"."+key] = value
		}
	}
	return out
}

// A daemon that ends is started again, however often: systemd's default gives a unit
// up after five starts within ten seconds, and then a node stays dead although its
// disk has space again.
func TestUnitNeverGivesUp(t *testing.T) {
	b, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	got := unitSettings(string(b))
	for key, want := range map[string]string{
		"Unit.StartLimitIntervalSec": "0",        // no limit of starts
		"Service.Restart":            "always",   // whatever it ended with
		"Service.TimeoutStartSec":    "infinity", // waiting for a leader is no failure
		"Service.StateDirectory":     "vpnlb",    // with it comes the wait for the mount below /var/lib
	} {
		if got[key] != want {
			t.Errorf("%s is %q, not %q", key, got[key], want)
		}
	}
}

// systemd itself reads the unit without a complaint. The binary is not installed
// here, so another one stands in its place.
func TestUnitIsValid(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("systemd-analyze is missing: deploy/checks/install-test-deps installs it")
		}
		t.Skip("systemd-analyze is not installed")
	}
	b, err := os.ReadFile(unitFile)
	if err != nil {
		t.Fatal(err)
	}
	unit := filepath.Join(t.TempDir(), "vpnlb.service")
	text := strings.ReplaceAll(string(b), "/usr/local/bin/vpnlb", "/bin/true")
	if err := os.WriteFile(unit, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", unit).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}
