// MD5 keys cannot be set on MPTCP sockets, which listeners are by default.

//go:debug multipathtcp=0

package router

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
)

const (
	roleEnv    = "VPNLB_ROUTER_TEST_ROLE"
	routerNS   = "vpnlb-trouter-r"
	nodesNS    = "vpnlb-trouter-n"
	routerAddr = "198.51.100.1"
	password   = "s3cret"
	bound      = 20 * time.Second
)

// TestMain lets the test binary play the router and the nodes inside the
// namespaces: a Go process cannot change the namespace of all its threads.
func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "router":
		err = playRouter(testConfig())
	case "router6":
		err = playRouter(testConfig6())
	case "node":
		err = playNode(os.Getenv("VPNLB_ROUTER_TEST_ADDR"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func testConfig() Config {
	return Config{
		RouterID: netip.MustParseAddr(routerAddr),
		Nodes:    []Node{{Address: node1, ASN: 65011, Password: password}, {Address: node2, ASN: 65012, Password: password}},
		VIPs:     []netip.Addr{vip},
	}
}

func playRouter(cfg Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return Run(ctx, cfg, os.Stdout, nil)
}

// playNode announces as the lines on its input say, until their end.
func playNode(addr string) error {
	local := netip.MustParseAddr(addr)
	number := local.AsSlice()[len(local.AsSlice())-1]
	id, router, own := local, netip.MustParseAddr(routerAddr), vip
	if local.Is6() {
		id, router, own = netip.AddrFrom4([4]byte{198, 51, 100, number}), router6, vip6
	}
	s, err := bgp.NewGoBGP(bgp.Config{ASN: 65000 + uint32(number), RouterID: id, Neighbours: []bgp.Neighbour{{
		Address: router, ASN: DefaultASN, LocalAddress: local, Password: password,
	}}}, bgp.Deps{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	actions := map[string]bgp.Action{"announce": bgp.Announce, "demote": bgp.Demote, "drain": bgp.Drain}
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var ads []bgp.Advertisement
		if a, ok := actions[in.Text()]; ok {
			ads = append(ads, bgp.Advertisement{VIP: own, Action: a})
		}
		if err := s.Set(ctx, ads); err != nil {
			return err
		}
	}
	cancel()
	return <-done
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("needs root")
	}
	t.Skip("SKIPPED: network namespaces need root")
}

func ip(t *testing.T, args string) string {
	t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	if err != nil {
		t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
	return string(out)
}

func namespaces(t *testing.T) {
	t.Helper()
	for _, ns := range []string{routerNS, nodesNS} {
		_ = exec.Command("ip", "netns", "del", ns).Run() // of an earlier run that was killed
		ip(t, "netns add "+ns)
		t.Cleanup(func() { ip(t, "netns del "+ns) })
		ip(t, "-n "+ns+" link set lo up")
	}
	ip(t, "link add eth0 netns "+routerNS+" type veth peer name eth0 netns "+nodesNS)
	ip(t, "-n "+routerNS+" addr add "+routerAddr+"/24 dev eth0")
	ip(t, "-n "+nodesNS+" addr add "+node1.String()+"/24 dev eth0")
	ip(t, "-n "+nodesNS+" addr add "+node2.String()+"/24 dev eth0")
	ip(t, "-n "+routerNS+" link set eth0 up")
	ip(t, "-n "+nodesNS+" link set eth0 up")
	// Somebody else's route of the same protocol must survive.
	ip(t, "-n "+routerNS+" route add 203.0.113.99/32 via "+node1.String()+" proto static metric 7")
}

// player is the test binary in a role, inside a namespace.
type player struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	mu     sync.Mutex
	events []Event
	ended  chan struct{}
}

func play(t *testing.T, ns, role, addr string) *player {
	t.Helper()
	p := &player{cmd: exec.Command("ip", "netns", "exec", ns, os.Args[0]), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), roleEnv+"="+role, "VPNLB_ROUTER_TEST_ADDR="+addr)
	p.cmd.Stderr = os.Stderr
	var err error
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.ended)
		for d := json.NewDecoder(out); ; {
			var e Event
			if d.Decode(&e) != nil {
				return
			}
			p.mu.Lock()
			p.events = append(p.events, e)
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() { p.kill() })
	return p
}

// kill is safe to call again: Wait's second result is not looked at.
func (p *player) kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
	_ = p.cmd.Wait()
}

func (p *player) say(t *testing.T, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		t.Fatal(err)
	}
}

func (p *player) seen() []Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.events)
}

func until(t *testing.T, what string, describe func() any, cond func() bool) time.Duration {
	t.Helper()
	begin := time.Now()
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %s: %v", what, bound, describe())
		case <-tick.C:
		}
	}
	return time.Since(begin)
}

func kernelRoutes(t *testing.T) string {
	t.Helper()
	return ip(t, "-n "+routerNS+" route show "+vip.String())
}

func TestRouterFollowsNodes(t *testing.T) {
	needRoot(t)
	namespaces(t)
	r := play(t, routerNS, "router", "")
	awaitEvent := func(what string, ok func(Event) bool) {
		t.Helper()
		until(t, what, func() any { return r.seen() }, func() bool { return slices.ContainsFunc(r.seen(), ok) })
	}
	awaitHops := func(what string, want ...netip.Addr) time.Duration {
		t.Helper()
		return until(t, what, func() any { return fmt.Sprint(r.seen(), kernelRoutes(t)) }, func() bool {
			ev := r.seen()
			i := len(ev) - 1
			for i >= 0 && ev[i].Kind != KindRoute {
				i--
			}
			return i >= 0 && ev[i].VIP == vip && slices.Equal(ev[i].NextHops, want)
		})
	}
	awaitEvent("ready", func(e Event) bool { return e.Kind == KindReady })
	if got := kernelRoutes(t); !strings.Contains(got, "metric 250") || strings.Contains(got, "metric 20 ") {
		t.Errorf("floating route only expected:\n%s", got)
	}

	n1, n2 := play(t, nodesNS, "node", node1.String()), play(t, nodesNS, "node", node2.String())
	n1.say(t, "announce")
	n2.say(t, "announce")
	awaitHops("both announce", node1, node2)
	got := kernelRoutes(t)
	for _, want := range []string{"proto bgp metric 20", "via " + node1.String(), "via " + node2.String(), "metric 250"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	n1.say(t, "demote")
	t.Logf("demotion: %s", awaitHops("one demoted", node2))
	n2.say(t, "demote")
	t.Logf("all demoted: %s", awaitHops("both demoted", node1, node2))
	n2.say(t, "drain")
	awaitHops("drained is worse than demoted", node1)
	n1.say(t, "announce")
	n2.say(t, "announce")
	awaitHops("both again", node1, node2)

	begin := time.Now()
	n1.kill()
	awaitHops("one killed", node2)
	t.Logf("a killed node stayed for %s", time.Since(begin).Round(time.Millisecond))
	n2.say(t, "withdraw")
	t.Logf("withdrawal: %s", awaitHops("last withdrawn"))
	if got := kernelRoutes(t); !strings.Contains(got, "metric 250") || strings.Contains(got, "proto bgp") {
		t.Errorf("floating route only expected:\n%s", got)
	}
	n2.say(t, "announce")
	awaitHops("one is back", node2)
	if err := n2.in.Close(); err != nil { // an orderly end
		t.Fatal(err)
	}
	awaitHops("orderly end")

	if err := r.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-r.ended
	if err := r.cmd.Wait(); err != nil {
		t.Errorf("router: %v", err)
	}
	if got := kernelRoutes(t); strings.TrimSpace(got) != "" {
		t.Errorf("routes left behind:\n%s", got)
	}
	if got := ip(t, "-n "+routerNS+" route show 203.0.113.99"); !strings.Contains(got, "metric 7") {
		t.Error("a route that is not ours was removed")
	}
	for _, e := range r.seen() {
		if e.Kind == KindError {
			t.Errorf("error event: %s", e.Error)
		}
	}
}
