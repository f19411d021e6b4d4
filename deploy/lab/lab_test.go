package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
	"github.com/vpnlb/vpnlb/node/admin"
)

// binary builds vpnlb once for a test, or takes the one that the environment
// names.
func binary(t *testing.T) string {
	t.Helper()
	if b := os.Getenv("VPNLB_BINARY"); b != "" {
		return b
	}
	return build(t)
}

// otherBinary builds a vpnlb that lays its maps out as another version would.
func otherBinary(t *testing.T) string {
	t.Helper()
	return build(t, "-tags", "vpnlb_other_schema")
}

func build(t *testing.T, flags ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "vpnlb")
	args := append([]string{"build", "-o", out}, flags...)
	cmd := exec.CommandContext(t.Context(), "go", append(args, "github.com/vpnlb/vpnlb/cmd/vpnlb")...)
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build vpnlb: %v\n%s", err, b)
	}
	return out
}

// up builds a lab for a test and takes it down afterwards; on failure the
// ends of its logs are shown.
func up(t *testing.T, o Options) *Lab {
	t.Helper()
	needRoot(t)
	o.Binary, o.Out = binary(t), t.Output()
	if err := Down(t.Context(), o.Name); err != nil {
		t.Fatal(err)
	}
	l, err := Up(t.Context(), o)
	if err != nil {
		failures.add(t.Name(), err.Error(), nil)
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			l.showLogs(t)
		}
		if line, err := l.Audit(context.Background()); err != nil {
			failures.add(t.Name(), err.Error(), nil)
			t.Error(err)
		} else {
			t.Log(line)
		}
		if err := l.Down(context.Background()); err != nil {
			t.Errorf("remove lab: %v", err)
		}
		nothingLeft(t, o.Name)
	})
	return l
}

const logTailBytes = 1500

// showLogs shows the ends of all logs but the results of errands, which the
// drills have read.
func (l *Lab) showLogs(t *testing.T) {
	for _, name := range slices.Sorted(maps.Keys(l.st.Processes)) {
		b, err := os.ReadFile(l.st.Processes[name].Log)
		if err != nil || len(b) == 0 || json.Valid(b) {
			continue
		}
		if cut := len(b) - logTailBytes; cut > 0 {
			b = b[cut:]
			_, b, _ = bytes.Cut(b, []byte("\n")) // whole lines
		}
		t.Logf("--- end of the log of %s\n%s", name, b)
	}
}

// nothingLeft checks that a lab is gone: namespaces, folder, mounts, processes.
func nothingLeft(t *testing.T, name string) {
	t.Helper()
	if left, err := namespacesOf(name); err != nil || len(left) > 0 {
		t.Errorf("namespaces left: %v, %v", left, err)
	}
	if _, err := os.Stat(labDir(name)); err == nil {
		t.Errorf("%s is left", labDir(name))
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil || strings.Contains(string(mounts), labDir(name)+"/") || strings.Contains(string(mounts), nsPrefix+name+"-") {
		t.Errorf("mounts left: %v", err)
	}
	if left := strays(name); len(left) > 0 {
		t.Errorf("processes left: %v", left)
	}
}

// run runs a drill and wants it to pass.
func run(t *testing.T, l *Lab, drill string) Result {
	t.Helper()
	r, err := Run(t.Context(), l, drill, t.Output())
	if err != nil {
		failures.add(t.Name(), err.Error(), r.Details)
		t.Fatal(err)
	}
	if !r.Pass {
		failures.add(t.Name(), "drill "+drill+" failed", r.Details)
		t.Errorf("drill %s failed:\n%s", drill, strings.Join(r.Details, "\n"))
	}
	return r
}

// TestLabEmbeddedDrills runs every drill with embedded peers, but leader-kill:
// daemon-kill does that to each node in turn, and the demo to the leader.
func TestLabEmbeddedDrills(t *testing.T) {
	l := up(t, Options{Name: "tdrills", Clients: 120, IPv6: DefaultIPv6, Passthrough: DefaultPassthrough, ICMP: DefaultICMP, Other: otherBinary(t)})
	wantFragments(t, l)
	for _, d := range l.Drills() {
		if d.Name == "leader-kill" {
			continue
		}
		t.Run(d.Name, func(t *testing.T) {
			r := run(t, l, d.Name)
			if d.Name == "upgrade" {
				wantOtherLayout(t, r)
			}
		})
	}
}

// wantOtherLayout checks that an upgrade led to maps of another layout, and back.
func wantOtherLayout(t *testing.T, r Result) {
	t.Helper()
	i := slices.IndexFunc(r.Details, func(s string) bool { return strings.HasPrefix(s, "layouts of the maps: ") })
	if i < 0 {
		t.Fatalf("no layouts in %q", r.Details)
	}
	_, list, _ := strings.Cut(r.Details[i], ": ")
	if l := strings.Split(list, ", "); len(l) != 3 || l[0] == l[1] || l[0] != l[2] {
		t.Errorf("layouts %q, want another one in the middle alone", l)
	}
}

// TestLabDSR runs what is special about servers that answer directly.
func TestLabDSR(t *testing.T) {
	l := up(t, Options{Name: "tdsr", Clients: 120, DSR: true, IPv6: DefaultIPv6, ICMP: DefaultICMP})
	for _, name := range []string{"dsr", "drain"} {
		t.Run(name, func(t *testing.T) { run(t, l, name) })
	}
}

// TestLabNewClientsOnAllNodes sends several openings of thousands of unknown
// clients at once through all nodes: every client has one server while no
// table change is in flight, and the cost of one that is, is counted.
func TestLabNewClientsOnAllNodes(t *testing.T) {
	const clients, ports, rate, changes = 4000, 6, 1500, 4
	l := up(t, Options{Name: "tnew", Clients: 30})
	look := func(during func()) peer.ScatterResult {
		t.Helper()
		if err := l.startScatter(clients, ports, rate); err != nil {
			t.Fatal(err)
		}
		during()
		r, err := l.endScatter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	if why := lookFaults(look(func() {}), ports, 0); len(why) > 0 {
		t.Errorf("no change in flight: %v", why)
	}
	verb := "drain"
	var first, last time.Time // from the order to change to a change agreed
	r := look(func() {
		for i := range changes { // spread over the time of the look
			pause(t, 300*time.Millisecond)
			if i == 0 {
				first = time.Now()
			}
			if err := l.cli(t.Context(), cliBound, nodeName(1), nil, "backend", verb, serverName(1)); err != nil {
				t.Error(err)
			}
			verb = map[string]string{"drain": "enable", "enable": "drain"}[verb]
		}
		last = time.Now()
	})
	t.Logf("%d table changes among %d new clients: %d got answers of two servers, %d of %d openings got none", changes, clients, r.Split, clients*ports-r.Answers, clients*ports)
	if why := lookFaults(r, ports, clients/20); len(why) > 0 {
		t.Errorf("changes in flight: %v", why)
	}
	if first.Before(r.Began) || last.After(r.Ended) {
		t.Errorf("changes from %s to %s were not all within the look, from %s to %s: it says nothing of their cost", first, last, r.Began, r.Ended)
	}
}

// lookFaults says what is wrong with a look: clients on two servers, and openings that
// nobody answered, which a table change may not cost either.
func lookFaults(r peer.ScatterResult, ports, split int) (why []string) {
	if r.Split > split {
		why = append(why, fmt.Sprintf("%d clients on two servers, want at most %d", r.Split, split))
	}
	if r.Servers != 3 {
		why = append(why, fmt.Sprintf("%d servers answered, want 3", r.Servers))
	}
	if all := r.Clients * ports; r.Answers < all*99/100 {
		why = append(why, fmt.Sprintf("%d of %d openings got no answer", all-r.Answers, all))
	}
	return why
}

func TestLookWantsAnswers(t *testing.T) {
	if why := lookFaults(peer.ScatterResult{Clients: 100, Answers: 596, Split: 3, Servers: 3}, 6, 5); len(why) != 0 {
		t.Error(why)
	}
	// Half of the openings were dropped while tables changed; nobody was split.
	if why := lookFaults(peer.ScatterResult{Clients: 100, Answers: 300, Servers: 3}, 6, 5); len(why) != 1 {
		t.Error(why)
	}
}

// The verdict has the fields that its readers know. The demo itself is run by CI before
// anything is installed, as its users do.
func TestVerdictAsJSON(t *testing.T) {
	var out strings.Builder
	v := Verdict{Clients: 240, PacketsSent: 9000, Steps: []Step{{Name: "quiet"}}, Pass: true}
	if err := v.print(DemoOptions{JSON: true, Out: &out}); err != nil {
		t.Fatal(err)
	}
	var got map[string]json.RawMessage
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatalf("%v in %s", err, out.String())
	}
	for _, k := range []string{"clients", "packets_sent", "packets_lost", "rehomed", "moved", "steps"} {
		if _, ok := got[k]; !ok {
			t.Errorf("no field %s in %s", k, out.String())
		}
	}
	if len(got) != 6 {
		t.Errorf("%d fields in %s", len(got), out.String())
	}
	var steps []map[string]json.RawMessage
	if err := json.Unmarshal(got["steps"], &steps); err != nil || len(steps) != 1 {
		t.Fatalf("%d steps, %v in %s", len(steps), err, out.String())
	}
	want := []string{"converge_ms", "lost", "moved", "name", "rehomed"}
	if fields := slices.Sorted(maps.Keys(steps[0])); !slices.Equal(fields, want) {
		t.Errorf("a step has the fields %q, want %q", fields, want)
	}
}

// A demo that cannot go on says what it has, that it failed, and why.
func TestDemoThatBreaksOffHasAVerdict(t *testing.T) {
	broken := errors.New("cannot begin")
	steps := []drillKind{{DrillInfo: DrillInfo{Name: "first"}, run: func(*drill, context.Context) error { return broken }}}
	for _, asJSON := range []bool{false, true} {
		l := &Lab{dir: t.TempDir(), out: io.Discard, st: labState{Options: Options{Peers: Embedded}}} // nothing of it runs
		l.peers = newPeers(l)
		v, err := l.demo(t.Context(), newScreen(io.Discard, false), steps)
		if err == nil || len(v.Steps) != 1 || v.Steps[0].Name != "first" {
			t.Fatalf("%+v, %v", v, err)
		}
		var out strings.Builder
		v, err = v.end(DemoOptions{JSON: asJSON, Out: &out}, err)
		if err == nil || v.Pass {
			t.Errorf("pass %t, %v", v.Pass, err)
		}
		if asJSON != json.Valid([]byte(out.String())) || !strings.Contains(out.String(), "first") {
			t.Errorf("JSON %t: %s", asJSON, out.String())
		}
		if !asJSON && (!strings.Contains(out.String(), "FAILED") || strings.Contains(out.String(), "PASSED")) {
			t.Errorf("no word of failure: %s", out.String())
		}
	}
}

// TestLabDemoInterrupted ends a demo while it is built and in a step of it: nothing
// may be left.
func TestLabDemoInterrupted(t *testing.T) {
	needRoot(t)
	vpnlb := binary(t)
	for _, at := range []string{"starting node " + nodeName(2) + " and joining it", "drill " + demoSteps()[0].Name + ": "} {
		t.Run(strings.Fields(at)[0], func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			o := DemoOptions{Name: "tint", Binary: vpnlb, JSON: true, Out: t.Output(), Clients: 20}
			if strings.HasPrefix(at, "drill") {
				o.Nodes = 1 // joins take their time
			}
			interrupted := errors.New("interrupted")
			said := &listener{word: at, heard: func() { cancel(interrupted) }, out: t.Output()}
			o.Progress = said
			if _, err := Demo(ctx, o); !errors.Is(err, interrupted) {
				t.Errorf("interrupted at %q, the demo says: %v", at, err)
			}
			if n := strings.Count(said.all.String(), "drill "); (n == 1) != strings.HasPrefix(at, "drill") || n > 1 {
				t.Errorf("%d drills ran", n)
			}
			nothingLeft(t, o.Name)
		})
	}
}

// listener calls heard when a line with a word is written.
type listener struct {
	word  string
	heard func()
	out   io.Writer
	all   strings.Builder
}

func (l *listener) Write(p []byte) (int, error) {
	l.all.Write(p)
	if bytes.Contains(p, []byte(l.word)) {
		l.heard()
	}
	return l.out.Write(p)
}

// TestStandInDownAfterCrash takes away what a process left that had no time to.
func TestStandInDownAfterCrash(t *testing.T) {
	l := standInLab(t, Options{Name: "tcrash", Nodes: 1, Spares: 1, Servers: 2, Clients: 4})
	delete(l.st.Processes, serverName(1)) // started, but the crash came before the note
	if err := l.save(); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil { // the lock of a dead process is gone
		t.Fatal(err)
	}
	if err := Down(t.Context(), "tcrash"); err != nil {
		t.Fatal(err)
	}
	nothingLeft(t, "tcrash")
}

// TestLabRealPeers is the lab with FRR and strongSwan: certificate tunnels whose
// IKE_AUTH is fragmented by IP and EAP-MSCHAPv2 tunnels of both families carry
// pings, and 300 clients keep their servers, through node death, drain and leave
// and join.
func TestLabRealPeers(t *testing.T) {
	needRealPeers(t)
	l := up(t, Options{Name: "tpeers", Servers: 2, Clients: 300, Peers: Real, IPv6: DefaultIPv6})
	wantFragments(t, l)
	wantRecords(t, l)
	before, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// What a drill may cost: a dead node takes what goes through it until the
	// router and the servers know, nothing else takes anything.
	pings := int64(len(l.st.Options.pinged()))
	lost := int64(0)
	for _, c := range []struct {
		drill string
		most  int64 // pings lost
	}{
		{"daemon-kill", 0}, {"node-death", pings * int64(lossLimit/pingInterval)}, {"drain", 0}, {"leave-join", 0},
	} {
		t.Run(c.drill, func(t *testing.T) {
			r := run(t, l, c.drill)
			if r.Rehomed != 0 || r.Moved != 0 {
				t.Errorf("%d clients re-homed, %d moved", r.Rehomed, r.Moved)
			}
			if r.Lost > c.most {
				t.Errorf("%d pings lost, want at most %d", r.Lost, c.most)
			}
			lost += r.Lost
		})
	}
	// A client on a wrong server would notice by dead peer detection: three
	// seconds without traffic, then six of repetitions.
	pause(t, 11*time.Second)
	if err := l.allServed(t.Context(), servedBound); err != nil {
		t.Fatal(err)
	}
	after, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := before.compare(after, nil)
	t.Logf("%d clients: %d re-homed, %d logged in again (%d were told to), %d pings lost", len(after.Clients), len(v.rehomed), v.relogins, relogins, v.lost)
	if len(v.rehomed) != 0 || v.relogins != relogins {
		t.Errorf("%d clients re-homed, %d logged in again, want 0 and %d", len(v.rehomed), v.relogins, relogins)
	}
	wantPings(t, l, before, after)
	if v.lost != lost {
		t.Errorf("%d pings lost, %d of them in drills", v.lost, lost)
	}
}

// wantRecords checks that the cluster knows for good which server each client has.
func wantRecords(t *testing.T, l *Lab) {
	t.Helper()
	s, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var unknown []string
	err = until(t.Context(), changeBound, "a confirmed record of every client", func() (bool, error) {
		var list admin.Affinities
		if err := l.cli(t.Context(), cliBound, nodeName(1), &list, "affinity", "list", "--limit", "0"); err != nil {
			return false, err
		}
		known := map[netip.Addr]string{}
		for _, r := range list.Records {
			if r.Class == "ike" && r.State == "confirmed" {
				known[r.Client] = strings.TrimSuffix(r.Backend, "-6")
			}
		}
		unknown = nil
		for a, c := range s.Clients {
			key := a
			if a.Is6() {
				key = netip.PrefixFrom(a, keyBits6).Masked().Addr()
			}
			if known[key] != serverName(c.Server) {
				unknown = append(unknown, fmt.Sprintf("%s on server %d: %q", a, c.Server, known[key]))
			}
		}
		return len(unknown) == 0, nil
	})
	if err != nil {
		t.Fatalf("%v: %d clients, %v", err, len(unknown), unknown[:min(len(unknown), maxDetails)])
	}
}

// A drill is run only by a laboratory that has what it needs.
func TestDrillsNeedWhatTheyName(t *testing.T) {
	listed := func(o Options) bool {
		l := &Lab{st: labState{Options: o}}
		return slices.ContainsFunc(l.Drills(), func(d DrillInfo) bool { return d.Name == "upgrade" })
	}
	if listed(Options{}) || !listed(Options{Other: "/bin/other"}) {
		t.Error("the upgrade is for those who have another binary")
	}
	_, err := Run(t.Context(), &Lab{}, "upgrade", t.Output())
	if err == nil || !strings.Contains(err.Error(), "it needs another version of the binary: --other PATH") {
		t.Errorf("got %v", err)
	}
	l := &Lab{}
	if err := l.SetOther(t.TempDir()); err == nil || l.st.Options.Other != "" {
		t.Errorf("a folder is no binary: %v", err)
	}
}
