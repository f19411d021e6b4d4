package rras

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(want) != got {
		t.Errorf("%s differs; got:\n%s", path, got)
	}
}

func facts(change func(*Facts)) Facts {
	f := Facts{
		Server: "rras1", Addr: netip.MustParseAddr("198.51.100.101"), VIP: "vpn", Mode: state.SSTPOffload,
		HasCertificate: true, Certificate: "public2026", NotAfter: time.Date(2027, 3, 14, 12, 0, 0, 0, time.UTC),
	}
	for i := range f.Hash {
		f.Hash[i] = byte(0x5a + 7*i)
	}
	if change != nil {
		change(&f)
	}
	return f
}

var cases = map[string]Facts{
	"offload": facts(nil),
	"offload-port": facts(func(f *Facts) {
		f.Port = 8080
		f.Nodes = []netip.Addr{netip.MustParseAddr("198.51.100.2"), netip.MustParseAddr("198.51.100.1")}
	}),
	"offload-transparent": facts(func(f *Facts) { f.Transparent = true }),
	"reencrypt":           facts(func(f *Facts) { f.Mode, f.Addr = state.SSTPReencrypt, netip.MustParseAddr("2001:db8:5::101") }),
	"passthrough": facts(func(f *Facts) {
		f.Mode, f.HasCertificate, f.Certificate, f.Hash = state.SSTPPassthrough, false, "", [32]byte{}
	}),
}

func TestGolden(t *testing.T) {
	for name, f := range cases {
		golden(t, name+".ps1", Script(f))
		golden(t, name+".checklist", strings.Join(Checklist(f), "\n")+"\n")
	}
}

// Nodes do not see the calls of pass-through, so nothing on a node proves one.
func TestPassthroughEndsOnTheServer(t *testing.T) {
	list := Checklist(cases["passthrough"])
	last := list[len(list)-1]
	if strings.Contains(last, "vpnlb sstp") || !strings.Contains(last, "Get-RemoteAccessConnectionStatistics") {
		t.Errorf("the last check is %q", last)
	}
}

// What holds of every script, whatever its golden file says.
func TestScript(t *testing.T) {
	for name, f := range cases {
		s := Script(f)
		_, body, ok := strings.Cut(s, "\n& {\n")
		if !ok || !strings.HasSuffix(body, "\n}\n") {
			t.Errorf("%s: the script is not one statement", name)
		}
		if strings.Contains(body, "\n\n") {
			t.Errorf("%s: an empty line ends a statement that is pasted into an old console", name)
		}
		for _, pair := range []string{"{}", "()", "[]"} {
			if strings.Count("{"+body, pair[:1]) != strings.Count("{"+body, pair[1:]) {
				t.Errorf("%s: %s do not balance", name, pair)
			}
		}
		if strings.Count(body, "'")%2 != 0 || strings.Count(body, `"`)%2 != 0 {
			t.Errorf("%s: quotes do not balance", name)
		}
		// Order: what can be refused comes before what is changed, the copy of
		// the old values too; the restart after the values, the look after it.
		at := -1
		for _, word := range []string{"Find-Difference {", "reg.exe export", "New-ItemProperty -Path $path -Name 'UseHttps'", "Restart-Service -Name RemoteAccess -Force }", "$left = @(Find-Difference)"} {
			next := strings.Index(s, word)
			if next <= at {
				t.Errorf("%s: %q is missing or comes too early", name, word)
			}
			at = next
		}
		for _, warning := range []string{"vpnlb backend drain rras1", "vpnlb affinity list --backend rras1", "vpnlb backend enable rras1", "ALL tunnels", "IKEv2 too"} {
			if !strings.Contains(s, warning) {
				t.Errorf("%s: no word of %q", name, warning)
			}
		}
		if f.HasCertificate != strings.Contains(s, f.hex()) {
			t.Errorf("%s: hash and facts do not agree", name)
		}
	}
}

func TestCheck(t *testing.T) {
	for want, f := range map[string]Facts{
		"has no certificate for rras1": facts(func(f *Facts) { f.HasCertificate = false }),
		"has no hash":                  facts(func(f *Facts) { f.Hash = [32]byte{} }),
		"carries no SSTP":              facts(func(f *Facts) { f.Mode = state.SSTPOff }),
		"does not change ports":        facts(func(f *Facts) { f.Mode, f.Port = state.SSTPPassthrough, 8443 }),
		`server name "a'; b"`:          facts(func(f *Facts) { f.Server = "a'; b" }),
		`vip name "a\nb"`:              facts(func(f *Facts) { f.VIP = "a\nb" }),
		`certificate name "$(x)"`:      facts(func(f *Facts) { f.Certificate = "$(x)" }),
	} {
		err := f.Check()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want a fault with %q, got %v", want, err)
		}
		// A fault must not leave half a script that somebody might run.
		for line := range strings.Lines(Script(f)) {
			if !strings.HasPrefix(line, "#") {
				t.Errorf("%s: the script runs %q", want, line)
			}
		}
		if list := Checklist(f); len(list) != 1 || !strings.Contains(list[0], want) {
			t.Errorf("%s: checklist %q", want, list)
		}
	}
	for name, f := range cases {
		if err := f.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPlan(t *testing.T) {
	two := []Facts{cases["offload"], facts(func(f *Facts) { f.Server = "rras2" }), cases["passthrough"]}
	steps, err := Plan("public2025", two)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	for i, s := range steps {
		fmt.Fprintf(&b, "%d. %s\n", i+1, s.Title)
		for _, c := range s.Node {
			fmt.Fprintf(&b, "   node: %s\n", c)
		}
		if s.Server != "" {
			fmt.Fprintf(&b, "   on %s: script of %d lines\n", s.Server, strings.Count(s.Script, "\n"))
		}
		for _, c := range s.After {
			fmt.Fprintf(&b, "   node: %s\n", c)
		}
		fmt.Fprintf(&b, "   until: %s\n", s.Until)
	}
	golden(t, "plan", b.String())

	// One server at a time: each is enabled before the next is touched.
	out := ""
	for _, s := range steps {
		for _, c := range slices.Concat(s.Node, s.After) {
			words := strings.Fields(c)
			switch {
			case strings.HasPrefix(c, "vpnlb backend drain"):
				if out != "" {
					t.Errorf("%s is drained while %s is out", words[3], out)
				}
				out = words[3]
			case strings.HasPrefix(c, "vpnlb backend enable"):
				if out != words[3] {
					t.Errorf("%s is enabled while %s is out", words[3], out)
				}
				out = ""
			case strings.HasPrefix(c, "vpnlb cert use") && words[4] == "--server":
				if out != words[5] {
					t.Errorf("%s changes certificate while %q is out", words[5], out)
				}
			case strings.HasPrefix(c, "vpnlb cert") && out != "":
				t.Errorf("%q while %s is out", c, out)
			}
		}
		if s.Server != "" && (s.Server != out || !strings.Contains(s.Script, "SSTP of "+out+" ")) {
			t.Errorf("a script for %q while %q is out", s.Server, out)
		}
	}
	if out != "" {
		t.Errorf("%s is never enabled", out)
	}
}

func TestPlanRefuses(t *testing.T) {
	for want, c := range map[string]struct {
		old     string
		servers []Facts
	}{
		"different certificates":   {"", []Facts{cases["offload"], facts(func(f *Facts) { f.Certificate = "other" })}},
		"no server whose TLS ends": {"", []Facts{cases["passthrough"]}},
		"the old and the new one":  {"public2026", []Facts{cases["offload"]}},
		"cannot stand in":          {"a;b", []Facts{cases["offload"]}},
		"has no hash":              {"", []Facts{facts(func(f *Facts) { f.Hash = [32]byte{} })}},
	} {
		steps, err := Plan(c.old, c.servers)
		if err == nil || !strings.Contains(err.Error(), want) || steps != nil {
			t.Errorf("want %q, got %v and %d steps", want, err, len(steps))
		}
	}
}
