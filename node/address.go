package node

import (
	"net"
	"net/netip"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// ownOn is the node's own address on an interface, one of each family. On the
// servers' segment probes leave from it, so that their answers come straight
// back; towards routers it is the next hop of IPv6 routes. Zero where there is
// none. Host routes (VIPs, gateways) and link-local addresses are nobody's own.
func ownOn(name string) (v4, v6 netip.Addr) {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return v4, v6
	}
	addrs, err := i.Addrs()
	if err != nil {
		return v4, v6
	}
	for _, a := range addrs {
		p, err := netip.ParsePrefix(a.String())
		if err != nil || p.IsSingleIP() || !p.Addr().IsGlobalUnicast() {
			continue
		}
		switch at := p.Addr().Unmap(); {
		case at.Is4() && !v4.IsValid():
			v4 = at
		case at.Is6() && !v6.IsValid():
			v6 = at
		}
	}
	return v4, v6
}

// unicast reads the address of something. what and examples go into the
// sentence that refuses it.
func unicast(what, examples, text string) (netip.Addr, error) {
	a, err := netip.ParseAddr(text)
	why := ""
	switch {
	case err != nil:
		why = "is no address"
	case a.Zone() != "":
		why = "has a zone"
	case a.Is4In6():
		why = "is an IPv4-mapped one: write " + a.Unmap().String()
	case a.IsUnspecified():
		why = "is the unspecified one"
	case a.IsLoopback():
		why = "is a loopback one"
	case a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		why = "is for many"
	case a.IsLinkLocalUnicast():
		why = "is a link-local one"
	case a.Is4() && (a.As4()[0] == 0 || a.As4()[0] >= 240): // RFC 791 3.2, RFC 1112 4
		why = "is in a reserved range"
	default:
		return a, nil
	}
	return netip.Addr{}, refuse("%s is a unicast address such as %s; %q %s", what, examples, text, why)
}

// hasIPv6 reports whether the cluster serves IPv6 at all: only then the kernel's
// settings for it are this node's business.
func hasIPv6(spec *state.Spec) bool {
	for i := range spec.VIPs {
		if spec.VIPs[i].Addr.Is6() {
			return true
		}
	}
	for i := range spec.Gateways {
		if spec.Gateways[i].Addr.Is6() {
			return true
		}
	}
	return false
}
