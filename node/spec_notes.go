package node

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// What a change means for people is said with it, and with how many it concerns.

// clientsOf counts a server's clients in words: a client that uses both services
// has a record for each.
func clientsOf(b *state.Backend) string {
	ike, tcp := b.Entries[state.ClassIKE-1], b.Entries[state.ClassTCP-1]
	if tcp == 0 {
		return fmt.Sprintf("%d clients", ike)
	}
	return fmt.Sprintf("%d clients (IKE) and %d (SSTP)", ike, tcp)
}

func hasClients(b *state.Backend) bool { return b.Entries[0]+b.Entries[1] > 0 }

// adminNotes speaks of a server that is about to get another state.
func adminNotes(spec *state.Spec, b *state.Backend, to state.AdminState) []string {
	var notes []string
	switch {
	case to == state.AdminDrain:
		notes = append(notes, fmt.Sprintf("its %s stay, their new logins too, until they are idle for affinity_timeout; a busy address shared by many users never drains by itself", clientsOf(b)))
	case to == state.AdminOffline && b.Mode == state.ModeDSR:
		notes = append(notes, fmt.Sprintf("it is in mode dsr: its %s are forgotten now, and their tunnels break", clientsOf(b)))
	case to == state.AdminOffline && hasClients(b):
		notes = append(notes, fmt.Sprintf("its %s go elsewhere at their next login; users behind one shared address move together at the first login among them. 'backend drain %s' moves nobody", clientsOf(b), b.Name))
	}
	return append(notes, lastNotes(spec, b, to)...)
}

// removeNotes speaks of a server that is about to be removed.
func removeNotes(spec *state.Spec, b *state.Backend, purge bool) []string {
	var notes []string
	switch {
	case b.Purged:
		notes = append(notes, "it was removed with --purge before: its clients are forgotten, and it goes when their records have faded")
	case !hasClients(b):
	case purge:
		notes = append(notes, fmt.Sprintf("its %s are forgotten now, and their tunnels break", clientsOf(b)))
	case b.Mode == state.ModeDSR:
		notes = append(notes, fmt.Sprintf("it is in mode dsr: its %s are forgotten now, and their tunnels break", clientsOf(b)))
	default:
		notes = append(notes, fmt.Sprintf("%s are recorded on it: it stays listed, and their tunnels work, until they are gone", clientsOf(b)))
	}
	return append(notes, lastNotes(spec, b, state.AdminRemoved)...)
}

// lastNotes warns where nobody is left to take new clients.
func lastNotes(spec *state.Spec, b *state.Backend, to state.AdminState) []string {
	after := *spec
	after.Backends = slices.Clone(spec.Backends)
	for i := range after.Backends {
		if after.Backends[i].ID == b.ID {
			after.Backends[i].Admin = to
		}
	}
	v, ok := spec.VIPByID(b.VIP)
	if !ok {
		return nil
	}
	var notes []string
	for _, c := range state.Classes {
		if takers(spec, b.VIP, c) > 0 && takers(&after, b.VIP, c) == 0 {
			notes = append(notes, fmt.Sprintf("no server of VIP %s takes new clients for %s now: they are dropped until one is enabled or added", v.Name, serviceWords[c]))
		}
	}
	return notes
}

var serviceWords = map[state.Class]string{state.ClassIKE: "IKE", state.ClassTCP: "SSTP"}

func takers(spec *state.Spec, vip state.VIPID, c state.Class) (n int) {
	for i := range spec.Backends {
		if b := &spec.Backends[i]; b.VIP == vip && spec.Stance(b, c) == state.StanceTake {
			n++
		}
	}
	return n
}

// subnetsOn lists the subnets of an interface; host routes are none.
func subnetsOn(name string) []netip.Prefix {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return nil
	}
	addrs, err := i.Addrs()
	if err != nil {
		return nil
	}
	var out []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil && !p.IsSingleIP() && !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Masked())
		}
	}
	return out
}

// gatewayNotes doubts a gateway that no server could reach: it must be on their
// link, and the nodes' inside interfaces are.
func gatewayNotes(inside string, subnets []netip.Prefix, addr netip.Addr) []string {
	if slices.ContainsFunc(subnets, func(p netip.Prefix) bool { return p.Contains(addr) }) {
		return nil
	}
	shown := make([]string, len(subnets))
	for i, p := range subnets {
		shown[i] = p.String()
	}
	return []string{fmt.Sprintf("%s is in none of the subnets on %s of this node (%s): servers reach a gateway only in a subnet of their own; is that meant?", addr, inside, strings.Join(shown, ", "))}
}
