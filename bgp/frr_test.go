package bgp

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	playEnv  = "VPNLB_BGP_TEST_NODE" // JSON of a Config: the test binary plays a node
	frrSpace = "vpnlb-tbgp-r"        // namespace and FRR path space
	nodeNS   = "vpnlb-tbgp-n"
	frrDir   = "/usr/lib/frr"
	frrAddr  = "198.51.100.1"
)

// TestMain lets the test binary play a node inside a namespace: a Go process
// cannot change the namespace of all its threads.
func TestMain(m *testing.M) {
	if raw := os.Getenv(playEnv); raw != "" {
		if err := playNode(raw); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// playNode advertises what the lines on its input say ("203.0.113.10 demote,
// ..."), and answers each. It stops gracefully at their end.
func playNode(raw string) error {
	var cfg Config
	if err := json.Unmarshal([]byte(raw), &cfg); err != nil {
		return err
	}
	for i := range cfg.Neighbours {
		if cfg.Neighbours[i].PasswordFile != "" {
			cfg.Neighbours[i].Password = cfg.Neighbours[i].PasswordFile // the test's own key, no secret
		}
	}
	s, err := NewGoBGP(cfg, Deps{})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		var ads []Advertisement
		for field := range strings.FieldsSeq(in.Text()) {
			vip, name, _ := strings.Cut(field, "=")
			action := Action(slices.Index(actionNames[:], name))
			ads = append(ads, Advertisement{netip.MustParseAddr(vip), action})
		}
		if err := s.Set(ctx, ads); err != nil {
			return err
		}
	}
	cancel()
	return <-done
}

func needFRR(t *testing.T) {
	t.Helper()
	missing := ""
	if os.Geteuid() != 0 {
		missing = "needs root"
	} else if _, err := os.Stat(filepath.Join(frrDir, "bgpd")); err != nil {
		missing = "needs FRR (package frr)"
	} else if _, err := exec.LookPath("vtysh"); err != nil {
		missing = "needs vtysh (package frr)"
	}
	if missing == "" {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal(missing)
	}
	t.Skip("SKIPPED: the real router is not tested: " + missing)
}

func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
	return string(out)
}

func ip(t *testing.T, args string) { t.Helper(); command(t, "ip", strings.Fields(args)...) }

const frrConfig = `frr defaults datacenter
hostname router
router bgp 64999
 bgp router-id ` + frrAddr + `
 no bgp ebgp-requires-policy
 bgp bestpath as-path multipath-relax
 neighbor NODE peer-group
 neighbor NODE timers 1 3
 neighbor NODE timers connect 1
 neighbor NODE advertisement-interval 0
 neighbor 198.51.100.11 remote-as 65011
 neighbor 198.51.100.11 peer-group NODE
 neighbor 198.51.100.11 password s3cret
 neighbor 198.51.100.11 ttl-security hops 1
 neighbor 198.51.100.12 remote-as 65012
 neighbor 198.51.100.12 peer-group NODE
 neighbor 198.51.100.13 remote-as 64999
 neighbor 198.51.100.13 peer-group NODE
 neighbor 198.51.100.14 remote-as 65014
 neighbor 198.51.100.14 peer-group NODE
 neighbor 198.51.100.14 password s3cret
 address-family ipv4 unicast
  network 192.0.2.0/24
  neighbor NODE activate
  maximum-paths 8
 exit-address-family
`

// startFRR runs zebra and bgpd in their own path space and namespace.
func startFRR(t *testing.T, config string) {
	t.Helper()
	owner, err := user.Lookup("frr")
	if err != nil {
		t.Fatal(err)
	}
	uid, _ := strconv.Atoi(owner.Uid)
	gid, _ := strconv.Atoi(owner.Gid)
	conf := filepath.Join("/etc/frr", frrSpace, "frr.conf")
	for _, dir := range []string{filepath.Dir(conf), filepath.Join("/var/run/frr", frrSpace)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = os.RemoveAll(dir) })
		if err := os.Chown(dir, uid, gid); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{conf: config, filepath.Join(filepath.Dir(conf), "vtysh.conf"): ""} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, d := range []string{"zebra", "bgpd"} {
		cmd := exec.Command("ip", "netns", "exec", frrSpace, filepath.Join(frrDir, d), "-N", frrSpace, "-f", conf, "-A", "127.0.0.1")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		socket := filepath.Join("/var/run/frr", frrSpace, d+".vty")
		until(t, sessionBound, d, func() bool { _, err := os.Stat(socket); return err == nil })
	}
}

// frrPath is one path of `show bgp ipv4 unicast PREFIX json`.
type frrPath struct {
	ASPath    struct{ String string }
	LocPrf    *int
	Origin    string
	Valid     bool
	Multipath bool
	Community struct{ String string }
	Peer      struct{ PeerID string }
	Nexthops  []struct{ IP string }
}

func showBGP(prefix string) map[string]frrPath {
	family := "ipv4"
	if strings.Contains(prefix, ":") {
		family = "ipv6"
	}
	out, err := exec.Command("vtysh", "-N", frrSpace, "-c", "show bgp "+family+" unicast "+prefix+" json").Output()
	var table struct{ Paths []frrPath }
	if err != nil || json.Unmarshal(out, &table) != nil {
		return nil
	}
	paths := map[string]frrPath{}
	for _, p := range table.Paths {
		paths[p.Peer.PeerID] = p
	}
	return paths
}

type playedNode struct {
	in   io.WriteCloser
	cmd  *exec.Cmd
	addr string
}

func startNode(t *testing.T, addr string, asn uint32, change func(*Neighbour)) *playedNode {
	t.Helper()
	n := Neighbour{Address: netip.MustParseAddr(frrAddr), ASN: 64999, LocalAddress: netip.MustParseAddr(addr)}
	if change != nil {
		change(&n)
	}
	return startSpeaker(t, addr, Config{ASN: asn, RouterID: n.LocalAddress, Neighbours: []Neighbour{n}})
}

// startSpeaker plays a node; addr is how the router knows it.
func startSpeaker(t *testing.T, addr string, cfg Config) *playedNode {
	t.Helper()
	raw, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &playedNode{cmd: exec.Command("ip", "netns", "exec", nodeNS, os.Args[0]), addr: addr}
	p.cmd.Env = append(os.Environ(), playEnv+"="+string(raw))
	p.cmd.Stderr = os.Stderr
	if p.in, err = p.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		_ = p.cmd.Wait()
	})
	return p
}

func (p *playedNode) advertise(t *testing.T, line string) {
	t.Helper()
	if _, err := fmt.Fprintln(p.in, line); err != nil {
		t.Fatal(err)
	}
}

// frrNetwork connects the router's namespace to one that holds all nodes.
func frrNetwork(t *testing.T) {
	t.Helper()
	for _, ns := range []string{frrSpace, nodeNS} {
		_ = exec.Command("ip", "netns", "del", ns).Run() // of an earlier run that was killed
		ip(t, "netns add "+ns)
		t.Cleanup(func() { ip(t, "netns del "+ns) })
		ip(t, "-n "+ns+" link set lo up")
	}
	ip(t, "link add eth0 netns "+frrSpace+" type veth peer name eth0 netns "+nodeNS)
	ip(t, "-n "+frrSpace+" addr add "+frrAddr+"/24 dev eth0")
	for _, a := range []string{"11", "12", "13", "14"} {
		ip(t, "-n "+nodeNS+" addr add 198.51.100."+a+"/24 dev eth0")
	}
	ip(t, "-n "+frrSpace+" link set eth0 up")
	ip(t, "-n "+nodeNS+" link set eth0 up")
}

const frrVIP, frrVIPInternal = "203.0.113.10", "203.0.113.11"

func kernelRoute() string {
	out, _ := exec.Command("ip", "-n", frrSpace, "route", "show", frrVIP).CombinedOutput()
	return string(out)
}

// via tells whether exactly these nodes carry the VIP in the router's kernel.
func via(want ...*playedNode) func() bool {
	return func() bool {
		got, n := kernelRoute(), 0
		for _, p := range want {
			if !strings.Contains(got, "via "+p.addr+" ") {
				return false
			}
			n++
		}
		return strings.Count(got, "via ") == n
	}
}

// path tells whether the router holds this path from the node; pref < 0 = any.
func (p *playedNode) path(vip, asPath, origin, community string, pref int) func() bool {
	return func() bool {
		got, ok := showBGP(vip + "/32")[p.addr]
		return ok && got.ASPath.String == asPath && got.Origin == origin && strings.EqualFold(got.Community.String, community) &&
			(pref < 0 || got.LocPrf != nil && *got.LocPrf == pref) && len(got.Nexthops) == 1 && got.Nexthops[0].IP == p.addr
	}
}

func awaitFRR(t *testing.T, what string, cond func() bool) {
	t.Helper()
	begin := time.Now()
	defer func() {
		if t.Failed() {
			t.Logf("%s: kernel %q, bgp %+v", what, kernelRoute(), showBGP(frrVIP+"/32"))
		}
	}()
	until(t, sessionBound, what, cond)
	t.Logf("%s: %s", what, time.Since(begin).Round(time.Millisecond))
}

// TestWithFRR speaks to the router that the documentation describes: MD5 and
// GTSM, eBGP and iBGP, and what FRR makes of demotion, drain and a stop.
func TestWithFRR(t *testing.T) {
	needFRR(t)
	frrNetwork(t)
	startFRR(t, frrConfig)
	n1 := startNode(t, "198.51.100.11", 65011, func(n *Neighbour) { n.PasswordFile, n.TTLSecurity = "s3cret", true })
	n2 := startNode(t, "198.51.100.12", 65012, nil)
	n3 := startNode(t, "198.51.100.13", 64999, nil) // iBGP, a VIP of its own
	wrong := startNode(t, "198.51.100.14", 65014, func(n *Neighbour) { n.PasswordFile = "guess" })

	wrong.advertise(t, frrVIP+"=announce")
	n1.advertise(t, frrVIP+"=announce")
	n2.advertise(t, frrVIP+"=announce")
	n3.advertise(t, frrVIPInternal+"=announce")
	awaitFRR(t, "both announce", via(n1, n2))
	awaitFRR(t, "ibgp announce", n3.path(frrVIPInternal, "Local", "IGP", "", 100))

	n1.advertise(t, frrVIP+"=demote")
	n3.advertise(t, frrVIPInternal+"=demote")
	awaitFRR(t, "one demoted gets no traffic", via(n2))
	awaitFRR(t, "demoted attributes", n1.path(frrVIP, "65011 65011 65011 65011", "EGP", "", -1))
	awaitFRR(t, "ibgp demoted", n3.path(frrVIPInternal, "Local", "EGP", "", 50))

	n2.advertise(t, frrVIP+"=demote")
	awaitFRR(t, "all demoted share", via(n1, n2))

	n2.advertise(t, frrVIP+"=drain")
	n3.advertise(t, frrVIPInternal+"=drain")
	awaitFRR(t, "drained is worse than demoted", via(n1))
	awaitFRR(t, "drained attributes", n2.path(frrVIP, strings.TrimSpace(strings.Repeat("65012 ", 7)), "incomplete", "graceful-shutdown", -1))
	awaitFRR(t, "ibgp drained", n3.path(frrVIPInternal, "Local", "incomplete", "graceful-shutdown", 0))

	n1.advertise(t, frrVIP+"=announce")
	n2.advertise(t, frrVIP+"=announce")
	awaitFRR(t, "both again", via(n1, n2))
	n2.advertise(t, "")
	awaitFRR(t, "withdrawn", via(n1))
	if err := n1.in.Close(); err != nil {
		t.Fatal(err)
	}
	awaitFRR(t, "graceful stop", via())
	if err := n1.cmd.Wait(); err != nil {
		t.Errorf("node: %v", err)
	}
	out := command(t, "vtysh", "-N", frrSpace, "-c", "show bgp neighbors "+wrong.addr+" json")
	if !strings.Contains(out, `"connectionsEstablished":0`) {
		t.Errorf("a session came up with the wrong password:\n%s", out)
	}
}
