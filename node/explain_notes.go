package node

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/admin"
)

// hairpin is the answer for an address that is a server's: the data plane drops
// what a server sends to a VIP, whatever it is.
func hairpin(spec *state.Spec, client netip.Addr) ([]admin.Case, bool) {
	b, ok := spec.BackendByAddr(client)
	if !ok {
		return nil, false
	}
	return []admin.Case{{Packet: "any", Reason: table.DropHairpin.String(), Why: fmt.Sprintf("%s is server %s itself: what a server sends to a VIP is dropped", client, b.Name)}}, true
}

// noReplies says why replies to an address are not rewritten into a VIP's: "" where they are.
func noReplies(spec *state.Spec, client netip.Addr) string {
	const means = ": what servers send there is taken for traffic of their own and keeps their address, so a client there gets no answer (with DSR servers it does)"
	if v, ok := spec.VIPByAddr(client); ok {
		return fmt.Sprintf("%s is VIP %s%s", client, v.Name, means)
	}
	if _, ok := spec.GatewayByAddr(client); ok {
		return fmt.Sprintf("%s is a gateway%s", client, means)
	}
	if owner := ownerOf(spec, client); owner != "" {
		return fmt.Sprintf("%s is %s%s", client, owner, means)
	}
	at := slices.IndexFunc(spec.Settings.InsidePrefixes, func(p netip.Prefix) bool { return p.Contains(client) })
	if at >= 0 {
		return fmt.Sprintf("%s is in %s of inside_prefixes%s", client, spec.Settings.InsidePrefixes[at], means)
	}
	return ""
}

// limitNotes are the known limits of affinity by address that bear on this client now.
func limitNotes(spec *state.Spec, x *model.Explanation) []string {
	if x.Record == nil {
		if x.Class == table.IKE {
			return []string{"without a record: a client that has a tunnel came from another address (it roamed, or its carrier uses different public addresses for UDP 500 and 4500, which no balancer by source address can serve); 'vpnlb plane trace' shows what comes from this one"}
		}
		return nil
	}
	if x.RecordStance == table.Leave {
		return []string{"users behind this address share the record: the first login among them moves the address"}
	}
	if b, ok := spec.BackendBySlot(state.Slot(x.Record.Slot)); ok && x.RecordStance == table.Keep {
		return []string{fmt.Sprintf("%s takes no new clients (%s), and keeps this one: where many users share the address it stays busy and never drains by itself", b.Name, stanceWhy(spec, b, state.Class(x.Class)))}
	}
	return nil
}
