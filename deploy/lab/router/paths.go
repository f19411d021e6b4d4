package router

import (
	"context"
	"net/netip"
	"slices"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"google.golang.org/protobuf/types/known/anypb"
)

// candidate is what the choice of a path depends on (RFC 4271 9.1.2.2, as far
// as the nodes use it).
type candidate struct {
	next   netip.Addr
	pref   uint32
	length int
	origin uint32
}

// better compares local preference, AS path length and origin. Equal ones
// share the traffic.
func (c candidate) better(o candidate) bool {
	switch {
	case c.pref != o.pref:
		return c.pref > o.pref
	case c.length != o.length:
		return c.length < o.length
	}
	return c.origin < o.origin
}

// bestGroup gives the next hops of the best candidates, sorted, each once.
func bestGroup(cs []candidate) []netip.Addr {
	var hops []netip.Addr
	var best candidate
	for _, c := range cs {
		switch {
		case len(hops) == 0 || c.better(best):
			best, hops = c, []netip.Addr{c.next}
		case !best.better(c):
			hops = append(hops, c.next)
		}
	}
	slices.SortFunc(hops, netip.Addr.Compare)
	return slices.Compact(hops)
}

// learned reads the whole table: next hops by VIP. Only host routes count.
func learned(ctx context.Context, srv *server.BgpServer) (map[netip.Addr][]netip.Addr, error) {
	out := make(map[netip.Addr][]netip.Addr)
	for _, afi := range [...]api.Family_Afi{api.Family_AFI_IP, api.Family_AFI_IP6} {
		family := &api.Family{Afi: afi, Safi: api.Family_SAFI_UNICAST}
		err := srv.ListPath(ctx, &api.ListPathRequest{TableType: api.TableType_GLOBAL, Family: family}, func(d *api.Destination) {
			p, err := netip.ParsePrefix(d.Prefix)
			if err != nil || !p.IsSingleIP() {
				return
			}
			var cs []candidate
			for _, path := range d.Paths {
				if c := decode(path.Pattrs); !path.IsWithdraw && !path.Stale && c.next.IsValid() {
					cs = append(cs, c)
				}
			}
			if hops := bestGroup(cs); len(hops) > 0 {
				out[p.Addr()] = hops
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func decode(attrs []*anypb.Any) candidate {
	c := candidate{pref: 100} // the usual default for paths without one
	for _, raw := range attrs {
		m, err := raw.UnmarshalNew()
		if err != nil {
			continue
		}
		switch a := m.(type) {
		case *api.NextHopAttribute:
			c.next, _ = netip.ParseAddr(a.NextHop)
		case *api.MpReachNLRIAttribute:
			if len(a.NextHops) > 0 {
				c.next, _ = netip.ParseAddr(a.NextHops[0])
			}
		case *api.LocalPrefAttribute:
			c.pref = a.LocalPref
		case *api.OriginAttribute:
			c.origin = a.Origin
		case *api.AsPathAttribute:
			for _, s := range a.Segments {
				if s.Type == api.AsSegment_AS_SET {
					c.length++ // RFC 4271 9.1.2.2 a: a set counts as one
					continue
				}
				c.length += len(s.Numbers)
			}
		}
	}
	return c
}
