package docs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/rras"
)

// What a guide tells people to run exists: each command and each of its flags.
func TestCommandsExist(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "vpnlb")
	if out, err := exec.Command("go", "build", "-o", binary, "../cmd/vpnlb").CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	guides, err := filepath.Glob("*.md")
	if err != nil || len(guides) == 0 {
		t.Fatalf("no guides: %v", err)
	}
	help := make(map[string]string) // of the words before the first flag
	for _, guide := range guides {
		text, err := os.ReadFile(guide)
		if err != nil {
			t.Fatal(err)
		}
		found := commands(string(text))
		if len(found) < 10 {
			t.Errorf("%s: only %d commands found: does the test still read it?", guide, len(found))
		}
		for _, c := range found {
			words, flags := split(c)
			key := strings.Join(words, " ")
			if _, asked := help[key]; !asked {
				out, err := exec.Command(binary, append(words, "--help")...).CombinedOutput()
				if err != nil {
					t.Errorf("%s: `vpnlb %s`: %v\n%s", guide, c, err, out)
				}
				help[key] = string(out)
			}
			for _, fault := range faults(help[key], flags) {
				t.Errorf("%s: `vpnlb %s`: %s", guide, c, fault)
			}
		}
	}
}

var (
	line   = regexp.MustCompile(`(?m)^ {4,}(?:n[0-9]# )?vpnlb (.+)$`)
	inline = regexp.MustCompile("`vpnlb ([^`]+)`")
	usage  = regexp.MustCompile(`(?m)^Usage:\n((?:  .*\n)+)`)
)

// commands are the vpnlb commands of a text, in code blocks and in code spans,
// without the name of the program.
func commands(text string) []string {
	var out []string
	for _, pattern := range []*regexp.Regexp{line, inline} {
		for _, m := range pattern.FindAllStringSubmatch(text, -1) {
			out = append(out, m[1])
		}
	}
	return out
}

// split gives the words before the first flag, and the flags.
func split(command string) (words, flags []string) {
	for _, w := range strings.Fields(command) {
		switch {
		case strings.HasPrefix(w, "-"):
			flags = append(flags, strings.TrimRight(w, ",.;"))
		case len(flags) == 0:
			words = append(words, w)
		}
	}
	return words, flags
}

// faults says what a command's help does not know. The help of a group in place
// of a command's means that the group has no such command.
func faults(help string, flags []string) []string {
	m := usage.FindStringSubmatch(help)
	if m == nil {
		return []string{"no such command"}
	}
	if strings.Contains(m[1], "[command]") {
		return []string{"no such command of its group"}
	}
	var out []string
	for _, f := range flags {
		if !regexp.MustCompile(`(?m)^ +(-\w, )?` + regexp.QuoteMeta(f) + `\b`).MatchString(help) {
			out = append(out, "no flag "+f)
		}
	}
	return out
}

// The reading itself is tested, so that a slip in it cannot pass all.
func TestFaults(t *testing.T) {
	const leaf = "Lists\n\nUsage:\n  vpnlb x list [flags]\n\nFlags:\n      --limit int   most\n  -o, --output string   how\n"
	const parent = "Things\n\nUsage:\n  vpnlb x [command]\n\nAvailable Commands:\n  list\n"
	for _, c := range []struct {
		help, command string
		want          []string
	}{
		{leaf, "x list --limit 5 -o json", nil},
		{leaf, "x list --limits 5", []string{"no flag --limits"}},
		{leaf, "x list --lim 5", []string{"no flag --lim"}},
		{parent, "x lost", []string{"no such command of its group"}},
		{"Error", "y", []string{"no such command"}},
	} {
		_, flags := split(c.command)
		if got := faults(c.help, slices.DeleteFunc(flags, func(f string) bool { return f == "-o" })); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", c.command, got, c.want)
		}
	}
	if got := commands("text `vpnlb a b`, `vpn c`\n\n    n1# vpnlb d --e\n       vpnlb f g     # h\nvpnlb i\n"); !slices.Equal(got, []string{"d --e", "f g     # h", "a b"}) {
		t.Errorf("commands %q", got)
	}
}

// The guide speaks of the values that the scripts write.
func TestValuesNamed(t *testing.T) {
	text, err := os.ReadFile("sstp.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{rras.Key, rras.ValueHTTPS, rras.ValueByAdmin, rras.ValueHash, rras.ValueOldHash, rras.ValuePort, rras.Service} {
		if !strings.Contains(string(text), v) {
			t.Errorf("sstp.md has no word of %s", v)
		}
	}
}

// Every word that status can show is explained.
func TestReasonsExplained(t *testing.T) {
	text, err := os.ReadFile("operations.md")
	if err != nil {
		t.Fatal(err)
	}
	words := []string{"no_bgp_neighbours"}
	for _, r := range bgp.Reasons() {
		words = append(words, r.String())
	}
	for r := table.ReasonNone + 1; r < table.ReasonCount; r++ {
		words = append(words, r.String())
	}
	for _, s := range []state.Stance{state.StanceTake, state.StanceKeep, state.StanceLeave, state.StanceVoid} {
		words = append(words, s.String())
	}
	for _, w := range words {
		if !regexp.MustCompile("(?m)^\\|.*`" + regexp.QuoteMeta(w) + "`").Match(text) {
			t.Errorf("no table of operations.md explains %s", w)
		}
	}
}
