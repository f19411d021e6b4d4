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

// negotiated lists the offered families that the router takes as well.
func (c *Config) negotiated(n *Neighbour, p *api.Peer) []*api.Family {
	remote := []*api.Family{}
	for _, packed := range p.GetState().GetRemoteCap() {
		if m, err := packed.UnmarshalNew(); err == nil {
			if mp, ok := m.(*api.MultiProtocolCapability); ok {
				remote = append(remote, mp.GetFamily())
			}
		}
	}
	if len(remote) == 0 {
		remote = append(remote, family4) // RFC 4760, section 8: without the capability it is IPv4
	}
	var out []*api.Family
	for _, f := range c.families(n) {
		for _, r := range remote {
			if sameFamily(f, r) {
				out = append(out, f)
				break
			}
		}
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

// nextHopStatements give IPv6 routes their next hop on sessions of IPv4, where
// the session's own address cannot be one. A neighbour set for each next hop.
func nextHopStatements(c *Config) (sets []*api.DefinedSet, statements []*api.Statement) {
	at := map[netip.Addr]*api.DefinedSet{}
	for i := range c.Neighbours {
		n := &c.Neighbours[i]
		hop := c.nextHop6(n)
		if !hop.IsValid() {
			continue
		}
		set := at[hop]
		if set == nil {
			set = &api.DefinedSet{DefinedType: api.DefinedType_NEIGHBOR, Name: fmt.Sprintf("over-ipv4-%d", len(sets))}
			at[hop] = set
			sets = append(sets, set)
			statements = append(statements, &api.Statement{
				Name: "next-hop-" + set.Name,
				Conditions: &api.Conditions{
					NeighborSet: &api.MatchSet{Type: api.MatchSet_ANY, Name: set.Name},
					AfiSafiIn:   []*api.Family{family6},
					RouteType:   api.Conditions_ROUTE_TYPE_LOCAL,
				},
				Actions: &api.Actions{Nexthop: &api.NexthopAction{Address: hop.String()}}, // and on to the next statement
			})
		}
		set.List = append(set.List, netip.PrefixFrom(n.Address, n.Address.BitLen()).String())
	}
	return sets, statements
}
