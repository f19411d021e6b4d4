package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/node/config"
)

// Becoming a member cannot be taken back by a process that does not come up: its
// every start would fail, and without an admin socket there is no leave. So what
// can be known before is looked at before.

// hostFacts are what a membership needs of its host.
type hostFacts struct {
	own    []netip.Addr                         // addresses of its interfaces
	listen func(network, address string) error  // tries a port, and gives it back; nil: not asked
	plane  []error                              // why the data plane could not be attached
	pins   func() (owner [16]byte, known error) // of the cluster that is pinned; zero: none
}

// preflight says what stands in the way of a membership, each as a sentence.
// cluster is the one to be joined; zero: not known yet, so pins are left alone.
func preflight(cfg *config.Config, facts hostFacts, cluster state.ClusterID) []string {
	var faults []string
	add := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	places := []struct {
		key string
		at  netip.AddrPort
		on  []string // networks
	}{{"cluster.address", cfg.Cluster.Address, []string{"tcp"}}, {"cluster.gossip", cfg.Cluster.Gossip, []string{"tcp", "udp"}}}
	for _, p := range places {
		if !slices.Contains(facts.own, p.at.Addr()) {
			add("%s %s is on none of this host's interfaces: put it on one, or correct the node file and restart the service", p.key, p.at.Addr())
			continue
		}
		for _, network := range p.on {
			if facts.listen == nil {
				break
			}
			if err := facts.listen(network, p.at.String()); err != nil {
				add("%s: nothing can listen there: %v", p.key, err)
			}
		}
	}
	for _, err := range facts.plane {
		add("%v", err)
	}
	if fault := foreignPins(cfg, facts, cluster); fault != "" {
		add("%s", fault)
	}
	return faults
}

// foreignPins says whose pins must go before this node serves a cluster.
func foreignPins(cfg *config.Config, facts hostFacts, cluster state.ClusterID) string {
	owner, err := facts.pins()
	switch {
	case err != nil:
		return err.Error()
	case cluster.IsZero() || owner == [16]byte{} || owner == [16]byte(cluster):
		return ""
	}
	return fmt.Sprintf("what is pinned in %s belongs to cluster %s, and forwards for it: where that is over, 'vpnlb plane detach --config FILE' removes it", cfg.Dataplane.PinDir, state.ClusterID(owner))
}

// facts gathers them. Ports are tried only where the node is about to become a
// member: in between, a try could be in the way of the real thing.
func (n *Node) facts(ports bool) (hostFacts, error) {
	own, err := ownAddresses(func(netip.Addr) bool { return false })
	if err != nil {
		return hostFacts{}, err
	}
	cfg := PlaneConfig(&n.cfg)
	out := hostFacts{own: own, plane: dataplane.Preflight(cfg), pins: func() ([16]byte, error) { return dataplane.PinnedBy(cfg) }}
	if ports {
		out.listen = tryListen
	}
	return out, nil
}

func tryListen(network, address string) error {
	if network == "udp" {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return err
		}
		return c.Close()
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	return ln.Close()
}

// mayBecomeMember refuses a membership that this host could not serve.
func (n *Node) mayBecomeMember(cluster state.ClusterID) error {
	facts, err := n.host(true)
	if err != nil {
		return err
	}
	if faults := preflight(&n.cfg, facts, cluster); len(faults) > 0 {
		return &admin.Error{Status: http.StatusConflict, Message: "this node could not serve a cluster, and nothing was changed: " + strings.Join(faults, "; ")}
	}
	return nil
}

// vetCluster refuses a cluster whose data plane could not be attached, before a
// token is spent there.
func (n *Node) vetCluster(server transport.Name) error {
	facts, err := n.host(false)
	if err != nil {
		return err
	}
	if fault := foreignPins(&n.cfg, facts, server.Cluster); fault != "" {
		return &admin.Error{Status: http.StatusConflict, Message: "this node cannot join cluster " + server.Cluster.String() + ", and no token was used: " + fault}
	}
	return nil
}

// waitingWarnings are what would keep this node from a membership.
func (n *Node) waitingWarnings() []string {
	facts, err := n.host(false)
	if err != nil {
		return []string{err.Error()}
	}
	return preflight(&n.cfg, facts, state.ClusterID{})
}

// warnWaiting tells the log at a start without a membership.
func (n *Node) warnWaiting(ctx context.Context) {
	for _, fault := range n.waitingWarnings() {
		n.log.WarnContext(ctx, "this node could not serve a cluster", "reason", fault)
	}
}
