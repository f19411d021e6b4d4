package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"text/template"
	"time"

	"github.com/vpnlb/vpnlb/node/admin"
)

// Bounds of what a node is waited for.
const (
	cliBound      = 30 * time.Second // one command
	joinBound     = 60 * time.Second // a nonvoter is watched for ten seconds first
	leaveBound    = 60 * time.Second
	socketBound   = 10 * time.Second
	announceBound = 30 * time.Second // from the last join to the router's ECMP set
	verdictBound  = 20 * time.Second // from the first probes to "up"
)

// nodeFile is the node file of a node of the lab.
var nodeFile = template.Must(template.New("node").Parse(`# made by the laboratory
name: {{.Name}}
data_dir: {{.Dir}}/data
admin_socket: {{.Dir}}/admin.sock
cluster:
  address: {{.Inside}}:{{.ClusterPort}}
  gossip: {{.Inside}}:{{.GossipPort}}
  heartbeat: 300ms
dataplane:
  pin_dir: {{.PinDir}}
  outside: {{.OutsideName}}
  inside: {{.InsideName}}
  attach: native
  max_clients: 100000
bgp:
  asn: {{.ASN}}
  router_id: {{.Outside}}
  neighbours:
{{range .Routers}}    - {address: {{.}}, asn: {{$.RouterASN}}, hold_time: 3s}
{{end}}# At a stop: shorter than an administrator's, so that drills need not wait.
sstp: {drain: 3s, spread: 2s}
log: {level: info, format: text}
`))

// index gives the number of a node from its name.
func index(node string) int {
	i, _ := strconv.Atoi(strings.TrimPrefix(node, "n"))
	return i
}

func (l *Lab) socket(node string) string { return l.path(node, "admin.sock") }

// startNode starts a blank node: it waits for init or join.
func (l *Lab) startNode(ctx context.Context, node string) error {
	i := index(node)
	if err := os.RemoveAll(l.path(node)); err != nil { // of an earlier life
		return fmt.Errorf("clear node folder: %w", err)
	}
	if err := os.MkdirAll(l.path(node), 0o755); err != nil {
		return fmt.Errorf("make node folder: %w", err)
	}
	pins := l.path(bpfDir, node)
	if err := os.MkdirAll(pins, 0o700); err != nil {
		return fmt.Errorf("make pin folder: %w", err)
	}
	var b bytes.Buffer
	err := nodeFile.Execute(&b, map[string]any{
		"Name": node, "Dir": l.path(node), "Inside": nodeInside(i), "Outside": nodeOutside(i),
		"ClusterPort": clusterPort, "GossipPort": gossipPort, "PinDir": pins,
		"OutsideName": outsideName, "InsideName": insideName,
		"ASN": nodeASNBase + i, "Routers": l.st.Options.routers(), "RouterASN": routerASN,
	})
	if err != nil {
		return fmt.Errorf("render node file: %w", err)
	}
	file := l.path(node, "node.yaml")
	if err := os.WriteFile(file, b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write node file: %w", err)
	}
	if err := l.start(node, node, nil, l.st.Options.Binary, "serve", "--config", file); err != nil {
		return err
	}
	return l.socketUp(ctx, node)
}

// socketUp waits until the daemon answers.
func (l *Lab) socketUp(ctx context.Context, node string) error {
	c := admin.NewClient(l.socket(node))
	return until(ctx, socketBound, node+"'s admin socket", func() (bool, error) {
		if !l.st.Processes[node].alive() {
			return false, fmt.Errorf("daemon of %s has died: see %s", node, l.st.Processes[node].Log)
		}
		var st admin.Status
		return c.Get(ctx, admin.PathStatus, &st) == nil, nil
	})
}

// cli runs the binary's command line against a node, as a user would, and
// decodes its JSON into out (nil: no JSON asked for).
func (l *Lab) cli(ctx context.Context, bound time.Duration, node string, out any, args ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("it took longer than %s", bound))
	defer cancel()
	full := append([]string{"--socket", l.socket(node)}, args...)
	if out != nil {
		full = append(full, "-o", "json")
	}
	cmd := exec.CommandContext(ctx, l.st.Options.Binary, full...)
	cmd.WaitDelay = time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		if c := context.Cause(ctx); c != nil {
			err = c
		}
		return fmt.Errorf("vpnlb %s on %s: %w: %s", strings.Join(args, " "), node, err, bytes.TrimSpace(stderr.Bytes()))
	}
	if out == nil {
		return nil
	}
	if err := json.Unmarshal(stdout.Bytes(), out); err != nil {
		return fmt.Errorf("vpnlb %s on %s: decode answer: %w", strings.Join(args, " "), node, err)
	}
	return nil
}

// startCluster makes the cluster, its spec, and joins the other nodes.
func (l *Lab) startCluster(ctx context.Context) error {
	o := l.st.Options
	first := nodeName(1)
	l.say("starting node %s and making the cluster", first)
	if err := l.startNode(ctx, first); err != nil {
		return err
	}
	if err := l.cli(ctx, cliBound, first, nil, "cluster", "init"); err != nil {
		return err
	}
	if err := l.setMember(first, true); err != nil {
		return err
	}
	for _, c := range o.specCommands() {
		if err := l.cli(ctx, cliBound, first, nil, c...); err != nil {
			return err
		}
	}
	for i := 1; i < o.Nodes; i++ {
		if err := l.joinNode(ctx, nodeName(i+1)); err != nil {
			return err
		}
	}
	l.say("waiting for verdicts and for all nodes in the router's ECMP set")
	if err := l.backendsUp(ctx, verdictBound); err != nil {
		return err
	}
	return l.waitECMP(ctx, announceBound)
}

// joinNode starts a blank node and joins it by a token.
func (l *Lab) joinNode(ctx context.Context, node string) error {
	l.say("starting node %s and joining it", node)
	if err := l.startNode(ctx, node); err != nil {
		return err
	}
	member, err := l.anyMember()
	if err != nil {
		return err
	}
	var token admin.TokenAnswer
	if err := l.cli(ctx, cliBound, member, &token, "cluster", "token", "--name", node); err != nil {
		return err
	}
	at := netip.AddrPortFrom(nodeInside(index(member)), clusterPort)
	err = l.cli(ctx, joinBound, node, nil, "cluster", "join", at.String(), "--token", token.Token, "--ca-hash", token.CAHash)
	if err != nil {
		return err
	}
	return l.setMember(node, true)
}

func (l *Lab) setMember(node string, in bool) error {
	if in {
		l.st.Members[node] = true
	} else {
		delete(l.st.Members, node)
	}
	if l.st.Options.Peers == Embedded { // FRR has its own, made from its configuration
		if err := l.inside(roleRouter, func() error { return setFloat(l.st.Options, l.members()) }); err != nil {
			return err
		}
	}
	return l.save()
}

// members lists the nodes that are in the cluster, in order.
func (l *Lab) members() []string {
	var out []string
	for i := range l.st.Options.Nodes + l.st.Options.Spares {
		if l.st.Members[nodeName(i+1)] {
			out = append(out, nodeName(i+1))
		}
	}
	return out
}

// spare names a node that is not in the cluster.
func (l *Lab) spare() (string, error) {
	for i := range l.st.Options.Nodes + l.st.Options.Spares {
		if n := nodeName(i + 1); !l.st.Members[n] {
			return n, nil
		}
	}
	return "", errors.New("no spare node left")
}

// anyMember names a member whose daemon runs.
func (l *Lab) anyMember(but ...string) (string, error) {
	for _, n := range l.members() {
		if l.st.Processes[n].alive() && !slices.Contains(but, n) {
			return n, nil
		}
	}
	return "", errors.New("no member's daemon is running")
}

// status asks a node how it is.
func (l *Lab) status(ctx context.Context, node string) (admin.Status, error) {
	var st admin.Status
	err := l.cli(ctx, cliBound, node, &st, "status")
	return st, err
}

// leader asks the members who leads, until one that runs knows one that is
// among them and not excluded.
func (l *Lab) leader(ctx context.Context, bound time.Duration, but ...string) (string, error) {
	var found string
	err := until(ctx, bound, "a leader", func() (bool, error) {
		for _, n := range l.members() {
			if !l.st.Processes[n].alive() || slices.Contains(but, n) {
				continue
			}
			var st admin.Status
			if admin.NewClient(l.socket(n)).Get(ctx, admin.PathStatus, &st) != nil || st.Role != "leader" {
				continue
			}
			found = n
			return true, nil
		}
		return false, nil
	})
	return found, err
}

// waitGatewaysSpread waits until every member has its share of the gateways. A node that
// is just back gets its own again within seconds: a gateway that moves while a link is
// cut would be silent for longer than the cut costs.
func (l *Lab) waitGatewaysSpread(ctx context.Context, bound time.Duration) error {
	return until(ctx, bound, "the gateways to be spread over all nodes", func() (bool, error) {
		owners, err := l.gatewayOwners(ctx)
		if err != nil {
			return false, err
		}
		load := make(map[string]int)
		for _, node := range owners {
			load[node]++
		}
		members := len(l.members())
		for _, n := range load {
			if n > (len(owners)+members-1)/members {
				return false, nil
			}
		}
		return true, nil
	})
}

// gatewayOwners gives the owner of each floating gateway, by address.
func (l *Lab) gatewayOwners(ctx context.Context) (map[netip.Addr]string, error) {
	m, err := l.anyMember()
	if err != nil {
		return nil, err
	}
	var gws []admin.Gateway
	if err := l.cli(ctx, cliBound, m, &gws, "gateway", "list"); err != nil {
		return nil, err
	}
	out := make(map[netip.Addr]string)
	for _, g := range gws {
		out[g.Addr] = g.Owner
	}
	return out, nil
}

// gatewayOwner names a member that owns gateways, one with some of both families if
// there is one, and lists them.
func (l *Lab) gatewayOwner(ctx context.Context) (node string, owned []netip.Addr, err error) {
	m, err := l.anyMember()
	if err != nil {
		return "", nil, err
	}
	var gws []admin.Gateway
	if err := l.cli(ctx, cliBound, m, &gws, "gateway", "list"); err != nil {
		return "", nil, err
	}
	by := map[string][]netip.Addr{}
	for _, g := range gws {
		if l.st.Members[g.Owner] {
			by[g.Owner] = append(by[g.Owner], g.Addr)
		}
	}
	both := func(all []netip.Addr) bool {
		return slices.ContainsFunc(all, netip.Addr.Is4) && slices.ContainsFunc(all, netip.Addr.Is6)
	}
	for _, g := range gws {
		if all := by[g.Owner]; len(all) > 0 && (node == "" || both(all) && !both(owned)) {
			node, owned = g.Owner, all
		}
	}
	if node == "" {
		return "", nil, errors.New("no gateway has an owner")
	}
	return node, owned, nil
}

// backends asks a member for the list of servers.
func (l *Lab) backends(ctx context.Context) ([]admin.Backend, error) {
	m, err := l.anyMember()
	if err != nil {
		return nil, err
	}
	var list []admin.Backend
	err = l.cli(ctx, cliBound, m, &list, "backend", "list")
	return list, err
}

// backendsUp waits until every server may take new clients.
func (l *Lab) backendsUp(ctx context.Context, bound time.Duration) error {
	var last string
	err := until(ctx, bound, "all servers' verdicts to be up", func() (bool, error) {
		list, err := l.backends(ctx)
		up := 0
		last = ""
		for _, b := range list {
			last += fmt.Sprintf(" %s=%s/%s", b.Name, b.Health, b.Stance)
			if b.TCP != nil {
				last += fmt.Sprintf("/tcp:%s %s", b.TCP.Health, b.TCP.Detail)
			}
			if b.Health == "up" && b.Stance == "take" && l.tcpUp(b) {
				up++
			}
		}
		return up == l.st.Options.Servers*len(l.st.Options.families()), err
	})
	if err != nil {
		return fmt.Errorf("%w:%s", err, last)
	}
	return nil
}

// tcpUp reports whether the second service of a server is up, where there is one.
func (l *Lab) tcpUp(b admin.Backend) bool {
	return l.st.Options.SSTP == SSTPOff || b.TCP != nil && b.TCP.Health == "up"
}

// verdict waits until server i has that verdict, on every address of it.
func (l *Lab) verdict(ctx context.Context, bound time.Duration, i int, want string) error {
	return until(ctx, bound, fmt.Sprintf("verdict %q on %s", want, serverName(i)), func() (bool, error) {
		list, err := l.backends(ctx)
		n := 0
		for _, f := range l.st.Options.families() {
			if slices.ContainsFunc(list, func(b admin.Backend) bool { return b.Name == f.serverName(i) && b.Health == want }) {
				n++
			}
		}
		return n == len(l.st.Options.families()), err
	})
}

// ownsGateway asks a member (not one of but) whether a node owns a gateway.
func (l *Lab) ownsGateway(ctx context.Context, node string, but ...string) (bool, error) {
	m, err := l.anyMember(but...)
	if err != nil {
		return false, err
	}
	var gws []admin.Gateway
	if err := l.cli(ctx, cliBound, m, &gws, "gateway", "list"); err != nil {
		return false, err
	}
	return slices.ContainsFunc(gws, func(g admin.Gateway) bool { return g.Owner == node }), nil
}

// clearPins removes what a node that left may have pinned.
func (l *Lab) clearPins(node string) error {
	if err := os.RemoveAll(l.path(bpfDir, node)); err != nil {
		return fmt.Errorf("remove pins of %s: %w", node, err)
	}
	return nil
}
