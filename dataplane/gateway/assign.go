package gateway

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Misses counts, for a member, the servers of a gateway that it alone does not reach.
type Misses func(member state.NodeID, gateway netip.Addr) int

// Assign says which gateways should change their owner: what the leader proposes.
// fit are the members that may own one: the caller judges that. Of these a gateway may
// be with the ones that miss fewest of its servers; misses nil: none misses any. A
// gateway stays where it is while its owner may have it and has no more than its even
// share; the others go to the members with the fewest, by rendezvous hash among
// equals. Without a fit member nothing changes: a gateway of a dead owner is no
// worse than one of nobody. Deterministic; the order of its inputs is ignored.
func Assign(fit []state.NodeID, gateways []state.Gateway, misses Misses) []state.OwnGateway {
	fit = slices.Clone(fit)
	slices.SortFunc(fit, func(a, b state.NodeID) int { return slices.Compare(a[:], b[:]) })
	fit = slices.Compact(fit)
	if len(fit) == 0 {
		return nil
	}
	gateways = slices.Clone(gateways)
	slices.SortFunc(gateways, func(a, b state.Gateway) int { return cmp.Compare(a.ID, b.ID) })
	load := make(map[state.NodeID]int, len(fit))
	var homeless []state.Gateway
	for _, g := range gateways {
		may := best(fit, g.Addr, misses)
		share := (len(gateways) + len(may) - 1) / len(may)
		if slices.Contains(may, g.Owner) && load[g.Owner] < share {
			load[g.Owner]++
			continue
		}
		homeless = append(homeless, g)
	}
	var out []state.OwnGateway
	for _, g := range homeless {
		owner := slices.MinFunc(best(fit, g.Addr, misses), func(a, b state.NodeID) int {
			if c := cmp.Compare(load[a], load[b]); c != 0 {
				return c
			}
			return cmp.Compare(rendezvous(g.Addr, b), rendezvous(g.Addr, a))
		})
		load[owner]++
		if owner != g.Owner {
			out = append(out, state.OwnGateway{ID: g.ID, Owner: owner, Previous: g.Index})
		}
	}
	return out
}

// best are the members that miss fewest of a gateway's servers.
func best(fit []state.NodeID, gateway netip.Addr, misses Misses) []state.NodeID {
	if misses == nil {
		return fit
	}
	fewest := math.MaxInt
	for _, id := range fit {
		fewest = min(fewest, misses(id, gateway))
	}
	var may []state.NodeID
	for _, id := range fit {
		if misses(id, gateway) == fewest {
			may = append(may, id)
		}
	}
	return may
}

// rendezvous is a member's score for an address; the highest wins. All nodes
// must agree on it without talking, so it depends on nothing else.
func rendezvous(addr netip.Addr, id state.NodeID) uint64 {
	in := addr.As16()
	sum := sha256.Sum256(append(in[:], id[:]...))
	return binary.BigEndian.Uint64(sum[:8])
}
