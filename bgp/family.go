package bgp

import (
	"fmt"
	"net/netip"

	api "github.com/osrg/gobgp/v3/api"
)

// Families of routes, and what a session may carry: the family of its own
// address, and IPv6 over a session of IPv4 when there is a next hop for it
// (RFC 4760; the router must activate it too). IPv4 over a session of IPv6
// would need a next hop of another family (RFC 8950), which few routers take
// without being told: there, IPv4 VIPs stay unannounced.

var (
	family4 = &api.Family{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_UNICAST}
	family6 = &api.Family{Afi: api.Family_AFI_IP6, Safi: api.Family_SAFI_UNICAST}
)

func familyOf(a netip.Addr) *api.Family {
	if a.Is4() {
		return family4
	}
	return family6
}

func familyName(f *api.Family) string {
	switch {
	case sameFamily(f, family4):
		return "ipv4"
	case sameFamily(f, family6):
		return "ipv6"
	}
	return fmt.Sprintf("%d/%d", f.GetAfi(), f.GetSafi())
}

func sameFamily(a, b *api.Family) bool {
	return a.GetAfi() == b.GetAfi() && a.GetSafi() == b.GetSafi()
}

// nextHop6 is the next hop of IPv6 routes over a session of IPv4; zero: that
// session carries none.
func (c *Config) nextHop6(n *Neighbour) netip.Addr {
	switch {
	case !n.Address.Is4():
		return netip.Addr{}
	case n.NextHop6.IsValid():
		return n.NextHop6
	}
	return c.NextHop6
}

// families lists what is offered to a neighbour.
func (c *Config) families(n *Neighbour) []*api.Family {
	out := []*api.Family{familyOf(n.Address)}
	if c.nextHop6(n).IsValid() {
		out = append(out, family6)
	}
	return out
}

// hopFault says why an address cannot be the next hop of IPv6 routes.
func hopFault(a netip.Addr) string {
	if !a.IsValid() || a.Is6() && !a.Is4In6() && a.Zone() == "" && a.IsGlobalUnicast() {
		return ""
	}
	return fmt.Sprintf("next_hop6: %s is not a global unicast IPv6 address of this node", a)
}

// nextHopStatement gives IPv6 routes a next hop of their family: the library's
// sessions are IPv4 on loopback. The screen writes the real one over it.
func nextHopStatement() *api.Statement {
	return &api.Statement{
		Name: "next-hop-6",
		Conditions: &api.Conditions{
			AfiSafiIn: []*api.Family{family6},
			RouteType: api.Conditions_ROUTE_TYPE_LOCAL,
		},
		Actions: &api.Actions{Nexthop: &api.NexthopAction{Address: "2001:db8::1"}}, // RFC 3849; and on to the next statement
	}
}
