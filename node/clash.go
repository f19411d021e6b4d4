package node

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Every node puts VIPs on its loopback, and one of them holds each gateway, so
// an address that is somebody's own cannot be either: the nodes would take it
// from its owner, and with it the cluster's own connections. Nobody could undo
// that with a command, because commands need a leader.

// ownerOf says whose own address a is, "" where nobody's.
func ownerOf(spec *state.Spec, a netip.Addr) string {
	for i := range spec.Members {
		c := &spec.Members[i]
		if slices.Contains(c.Addrs, a) || hostOf(c.Cluster) == a || hostOf(c.Gossip) == a {
			return "node " + c.Name
		}
	}
	return ""
}

// hostOf is the address in "ADDR:PORT"; zero where there is none.
func hostOf(text string) netip.Addr {
	ap, err := netip.ParseAddrPort(text)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap()
}

// refuseOwned refuses an address for what is to be the cluster's where it is a
// member's or a router's. Routers are known from this node's file alone.
func (m *member) refuseOwned(spec *state.Spec, what string, a netip.Addr) error {
	owner := ownerOf(spec, a)
	for _, nb := range m.cfg.BGP.Neighbours {
		if owner == "" && nb.Address == a {
			owner = "a router (BGP neighbour in this node's file)"
		}
	}
	if owner == "" {
		return nil
	}
	return refuse("address %s belongs to %s: %s needs one that nobody has", a, owner, what)
}

// joinClash says why a node cannot be a member with the addresses it names: ""
// where it can. A VIP or gateway among the rest of them is no reason, it may be
// left from a membership before.
func joinClash(spec *state.Spec, in *joinRequest) string {
	for _, text := range []string{in.Cluster, in.Gossip} {
		a := hostOf(text)
		if v, ok := spec.VIPByAddr(a); ok {
			return fmt.Sprintf("its address %s is VIP %s: give the node another, or remove that VIP first", a, v.Name)
		}
		if _, ok := spec.GatewayByAddr(a); ok {
			return fmt.Sprintf("its address %s is a floating gateway: give the node another, or remove that gateway first", a)
		}
		if b, ok := spec.BackendByAddr(a); ok {
			return fmt.Sprintf("its address %s is server %s: give the node another, or remove that server first", a, b.Name)
		}
	}
	for _, a := range in.Addrs {
		if b, ok := spec.BackendByAddr(a); ok {
			return fmt.Sprintf("it has address %s, which is server %s: take it off the node, or remove that server first", a, b.Name)
		}
	}
	return ""
}
