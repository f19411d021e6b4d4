package node

import (
	"net/netip"
	"slices"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Render says in the data plane's words what the cluster agreed. It is pure,
// and equal on all nodes for equal specs.
func Render(spec *state.Spec) *table.Set {
	set := &table.Set{
		ClusterID:  spec.ClusterID,
		Index:      spec.Index,
		Generation: spec.Generation,
		HashKey:    spec.HashKey,
		TableSize:  spec.TableSize,

		SourceLimit: spec.Settings.SourceLimit,
	}
	place := make(map[state.VIPID]uint8, len(spec.VIPs))
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		place[v.ID] = v.Place
		set.VIPs = append(set.VIPs, table.VIP{
			Index:       v.Place,
			Addr:        v.Addr,
			ClientBits:  v.ClientBits,
			Passthrough: v.SSTP == state.SSTPPassthrough,
		})
	}
	for i := range spec.Backends {
		b := &spec.Backends[i]
		out := table.Backend{
			Slot:   table.Slot(b.Slot),
			ID:     uint32(b.ID),
			VIP:    place[b.VIP],
			Addr:   b.Addr,
			Weight: b.Weight,
			DSR:    b.Mode == state.ModeDSR,
		}
		for _, c := range state.Classes {
			out.Stance[c-1] = table.Stance(spec.Stance(b, c)) // same numbers: TestStanceNumbers
		}
		set.Backends = append(set.Backends, out)
	}
	set.NotReturn = notReturn(spec)
	return set
}

// notReturn lists the destinations whose packets from a server are no replies
// to clients: every address of every member (probe replies, also those to
// another node that cross this one as gateway), gateways, inside prefixes.
func notReturn(spec *state.Spec) []netip.Prefix {
	var out []netip.Prefix
	host := func(a netip.Addr) { out = append(out, netip.PrefixFrom(a, a.BitLen())) }
	for i := range spec.Members {
		member := &spec.Members[i]
		for _, a := range member.Addrs {
			host(a)
		}
		for _, at := range []string{member.Cluster, member.Gossip} {
			if p, err := netip.ParseAddrPort(at); err == nil && !slices.Contains(member.Addrs, p.Addr()) && !slices.Contains(out, netip.PrefixFrom(p.Addr(), p.Addr().BitLen())) {
				host(p.Addr())
			}
		}
	}
	for i := range spec.Gateways {
		host(spec.Gateways[i].Addr)
	}
	return append(out, spec.Settings.InsidePrefixes...)
}

// renderEntry says one record in the data plane's words. ok is false where
// the record's backend has no slot any more: the record is dead.
func renderEntry(spec *state.Spec, a state.Affinity) (table.Entry, bool) {
	b, ok := spec.BackendByID(a.Backend)
	if !ok {
		return table.Entry{}, false
	}
	return table.Entry{Key: tableKey(a.Key), Slot: table.Slot(b.Slot), State: table.Confirmation(a.State)}, true
}

func tableKey(k state.Key) table.Key {
	return table.Key{Client: k.Client, Class: table.Class(k.Class)}
}

func stateKey(k table.Key) state.Key {
	return state.Key{Client: k.Client, Class: state.Class(k.Class)}
}
