package windows

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/rras"
)

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

const (
	set = "Set-VpnlbSstp.ps1"
	get = "Get-VpnlbSstp.ps1"
)

var quoted = regexp.MustCompile(`'([^']+)'`)

// The scripts here and the ones that `vpnlb sstp rras` prints speak of the same
// key, values, service, ports and modes.
func TestNoDrift(t *testing.T) {
	values := []string{rras.ValueHTTPS, rras.ValueByAdmin, rras.ValueHash, rras.ValueOldHash, rras.ValuePort}
	path := fmt.Sprintf("\n$path = '%s'\n", rras.Key)
	for _, name := range []string{set, get} {
		code := strip(t, name, read(t, name), false)
		if !strings.Contains(code, path) {
			t.Errorf("%s: its $path is not %s", name, rras.Key)
		}
		if !strings.Contains(code, "[ValidateSet('offload', 'reencrypt', 'passthrough')]") {
			t.Errorf("%s takes other modes than a VIP", name)
		}
		for mode, line := range map[state.SSTPMode]string{
			state.SSTPOffload:   "if ($Mode -eq 'offload') { $default = %d }",
			state.SSTPReencrypt: "$default = %d\n",
		} {
			if want := fmt.Sprintf(line, rras.DefaultPort(mode)); !strings.Contains(code, want) {
				t.Errorf("%s: no line %q", name, want)
			}
		}
	}

	code := strip(t, set, read(t, set), false)
	_, list, _ := strings.Cut(code, "\n$names = ")
	list, _, _ = strings.Cut(list, "\n")
	var names []string
	for _, m := range quoted.FindAllStringSubmatch(list, -1) {
		names = append(names, m[1])
	}
	if strings.Join(names, " ") != strings.Join(values, " ") {
		t.Errorf("%s saves and restores %q, not %q", set, names, values)
	}
	for _, v := range values {
		if !strings.Contains(code, "$want['"+v+"'] = ") {
			t.Errorf("%s never sets %s", set, v)
		}
	}
	if !strings.Contains(code, fmt.Sprintf("\n$service = '%s'\n", rras.Service)) {
		t.Errorf("%s restarts something else than %s", set, rras.Service)
	}

	code = strip(t, get, read(t, get), false)
	for _, v := range values {
		if !strings.Contains(code, "Read-Value '"+v+"'") {
			t.Errorf("%s does not read %s", get, v)
		}
	}
	for _, want := range []string{"'" + rras.Service + "'", strings.Trim(strings.NewReplacer("{", `\{`, "}", `\}`).Replace(rras.URL), "/")} {
		if !strings.Contains(code, want) {
			t.Errorf("%s has no word of %s", get, want)
		}
	}
}

// What makes the script safe to run: it asks before it changes, saves before it
// writes, and takes no SHA-1 thumbprint for a hash.
func TestSafety(t *testing.T) {
	code := strip(t, set, read(t, set), false)
	at := -1
	for _, word := range []string{
		"SupportsShouldProcess = $true, ConfirmImpact = 'High'", "[ValidatePattern('^[0-9A-Fa-f]{64}$')]", "'Stop'", "Find-Difference $want)",
		"ShouldProcess($env:COMPUTERNAME, $what)", "Set-Content -LiteralPath $file", "Write-Value $name $want[$name]",
		"Restart-Service -Name $service -Force -Confirm:$false", "throw \"read back",
	} {
		next := strings.Index(code, word)
		if next <= at {
			t.Errorf("%q is missing or comes too early", word)
		}
		at = next
	}
	if help := read(t, set); !strings.Contains(help, "ENDS ALL TUNNELS") || !strings.Contains(help, "vpnlb backend drain SERVER") {
		t.Error("the help does not warn of the restart")
	}
	if code := strip(t, get, read(t, get), true); regexp.MustCompile(`\b(Set|New-Item|Remove|Restart|Stop|Start)-`).MatchString(code) {
		t.Errorf("%s changes something", get)
	}
}

// TestSyntax is what can be said without a PowerShell: brackets, strings and
// comments close, here and in what the cluster prints.
func TestSyntax(t *testing.T) {
	sources := map[string]string{set: read(t, set), get: read(t, get)}
	for _, mode := range []state.SSTPMode{state.SSTPPassthrough, state.SSTPOffload, state.SSTPReencrypt} {
		sources[fmt.Sprint("printed script, mode ", mode)] = rras.Script(rras.Facts{
			Server: "rras1", VIP: "vpn", Mode: mode, HasCertificate: mode != state.SSTPPassthrough, Certificate: "c", Hash: [32]byte{1}})
	}
	for name, source := range sources {
		code := strip(t, name, source, true)
		var open []rune
		line := 1
		for _, r := range code {
			switch r {
			case '\n':
				line++
			case '(', '[', '{':
				open = append(open, r)
			case ')', ']', '}':
				want := map[rune]rune{')': '(', ']': '[', '}': '{'}[r]
				if len(open) == 0 || open[len(open)-1] != want {
					t.Fatalf("%s:%d: %c closes nothing", name, line, r)
				}
				open = open[:len(open)-1]
			}
		}
		if len(open) != 0 {
			t.Errorf("%s: %q stay open", name, string(open))
		}
		for n, l := range strings.Split(source, "\n") {
			if strings.ContainsFunc(l, func(r rune) bool { return r > 126 || r < ' ' }) {
				t.Errorf("%s:%d is not plain ASCII without tabs: PowerShell 5.1 reads files in the machine's code page", name, n+1)
			}
		}
	}
}

// strip takes comments out, and with bare the insides of strings; lines stay.
func strip(t *testing.T, name, source string, bare bool) string {
	t.Helper()
	var out strings.Builder
	rest := source
	for rest != "" {
		skip := func(end string) string { // up to and with end
			i := strings.Index(rest[1:], end)
			if i < 0 {
				t.Fatalf("%s: %q never ends", name, rest[:min(20, len(rest))])
			}
			piece := rest[:1+i+len(end)]
			rest = rest[len(piece):]
			return piece
		}
		switch {
		case strings.HasPrefix(rest, "<#"):
			out.WriteString(strings.Repeat("\n", strings.Count(skip("#>"), "\n")))
		case rest[0] == '#':
			skip("\n")
			out.WriteByte('\n')
		case rest[0] == '\'' || rest[0] == '"':
			// No quote of either kind is escaped in these scripts, so that this
			// is enough: a doubled or escaped one would show as an odd string.
			piece := skip(rest[:1])
			if strings.Contains(piece, "\n") {
				t.Fatalf("%s: the string %.40q goes over a line's end", name, piece)
			}
			if bare {
				piece = `''`
			}
			out.WriteString(piece)
		default:
			out.WriteByte(rest[0])
			rest = rest[1:]
		}
	}
	return out.String()
}
