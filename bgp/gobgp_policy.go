package bgp

import (
	"context"
	"fmt"
	"net/netip"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/vpnlb/vpnlb/bgp/screen"
)

// Attribute values. Between neighbours of one AS local preference decides,
// between ASes the length of the AS path.
const (
	localPrefNormal  = 100        // RFC 4271 names no default; routers use 100
	localPrefDemoted = 50         //
	localPrefDrained = 0          // RFC 8326 4.1 asks for the lowest
	communityGSHUT   = 0xFFFF0000 // GRACEFUL_SHUTDOWN 65535:0, RFC 8326 3
	drainedPrependBy = 2          // a drained path is longer than a demoted one
)

// ORIGIN (RFC 4271 5.1.1) says which action a route has, and is what our own
// export policy recognises it by: the prepend must go to eBGP neighbours only,
// an iBGP one would see its own AS in the path and reject the route. ORIGIN is
// also compared right after the AS path length, lowest first, so it demotes in
// the same direction on routers that ignore the length.
func originOf(a Action) uint32 {
	switch a {
	case Announce:
		return 0 // IGP
	case Demote:
		return 1 // EGP
	default:
		return 2 // INCOMPLETE
	}
}

const (
	globalTable  = "global"
	setExternal  = "external"
	policyExport = "export-vips"
	policyImport = "import-nothing"
)

// installPolicies makes the speaker deaf (nothing received is used) and lets
// out only routes of its own.
func installPolicies(ctx context.Context, srv *server.BgpServer, cfg *Config, scr *screen.Screen) error {
	own := func(name string, c *api.Conditions, a *api.Actions) *api.Statement {
		c.RouteType = api.Conditions_ROUTE_TYPE_LOCAL
		a.RouteAction = api.RouteAction_ACCEPT
		return &api.Statement{Name: name, Conditions: c, Actions: a}
	}
	// The library applies the import policy to local routes too.
	imports := &api.Policy{Name: policyImport, Statements: []*api.Statement{
		own("own-in", &api.Conditions{}, &api.Actions{}),
	}}
	exports := &api.Policy{Name: policyExport}
	req := &api.SetPoliciesRequest{Policies: []*api.Policy{imports, exports}}
	exports.Statements = []*api.Statement{nextHopStatement()}
	var external []string
	for i, n := range cfg.Neighbours {
		if n.ASN != cfg.ASN {
			external = append(external, netip.PrefixFrom(scr.Inner(i).Router.Addr(), 32).String())
		}
	}
	if len(external) > 0 {
		req.DefinedSets = append(req.DefinedSets, &api.DefinedSet{
			DefinedType: api.DefinedType_NEIGHBOR, Name: setExternal, List: external,
		})
		prepend := func(name string, origin api.RouteOriginType, times int) *api.Statement {
			return own(name, &api.Conditions{
				NeighborSet: &api.MatchSet{Type: api.MatchSet_ANY, Name: setExternal},
				Origin:      origin,
			}, &api.Actions{AsPrepend: &api.AsPrependAction{Asn: cfg.ASN, Repeat: uint32(times)}})
		}
		exports.Statements = append(exports.Statements,
			prepend("demoted-out", api.RouteOriginType_ORIGIN_EGP, cfg.Prepend),
			prepend("drained-out", api.RouteOriginType_ORIGIN_INCOMPLETE, cfg.Prepend*drainedPrependBy))
	}
	exports.Statements = append(exports.Statements, own("own-out", &api.Conditions{}, &api.Actions{}))

	if err := srv.SetPolicies(ctx, req); err != nil {
		return fmt.Errorf("set routing policies: %w", err)
	}
	for dir, p := range map[api.PolicyDirection]*api.Policy{
		api.PolicyDirection_IMPORT: imports,
		api.PolicyDirection_EXPORT: exports,
	} {
		if err := srv.SetPolicyAssignment(ctx, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
			Name: globalTable, Direction: dir,
			Policies:      []*api.Policy{{Name: p.Name}},
			DefaultAction: api.RouteAction_REJECT,
		}}); err != nil {
			return fmt.Errorf("assign policy %s: %w", p.Name, err)
		}
	}
	return nil
}

// pathOf builds the route of one advertisement. The next hop is left
// unspecified: the library fills in the address of its side of the session, and
// the screen writes the real one over it.
func pathOf(ad Advertisement) (*api.Path, error) {
	next, pref := "0.0.0.0", uint32(localPrefNormal)
	if ad.VIP.Is6() {
		next = "::"
	}
	switch ad.Action {
	case Demote:
		pref = localPrefDemoted
	case Drain:
		pref = localPrefDrained
	}
	nlri, err := anypb.New(&api.IPAddressPrefix{Prefix: ad.VIP.String(), PrefixLen: uint32(ad.VIP.BitLen())})
	if err != nil {
		return nil, fmt.Errorf("encode prefix %s: %w", ad.VIP, err)
	}
	path := &api.Path{Family: familyOf(ad.VIP), Nlri: nlri}
	add := func(a *anypb.Any, e error) {
		path.Pattrs = append(path.Pattrs, a)
		if e != nil && err == nil {
			err = fmt.Errorf("encode attributes of %s: %w", ad.VIP, e)
		}
	}
	add(anypb.New(&api.OriginAttribute{Origin: originOf(ad.Action)}))
	add(anypb.New(&api.NextHopAttribute{NextHop: next}))
	add(anypb.New(&api.LocalPrefAttribute{LocalPref: pref}))
	if ad.Action == Drain {
		add(anypb.New(&api.CommunitiesAttribute{Communities: []uint32{communityGSHUT}}))
	}
	return path, err
}
