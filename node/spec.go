package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"regexp"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

// proposeTimeout bounds how long a change waits for a leader and a quorum.
const proposeTimeout = 15 * time.Second

var namePattern = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func refuse(format string, args ...any) error {
	return &admin.Error{Status: http.StatusBadRequest, Message: fmt.Sprintf(format, args...)}
}

func missing(format string, args ...any) error {
	return &admin.Error{Status: http.StatusNotFound, Message: fmt.Sprintf(format, args...)}
}

func checkName(what, name string) error {
	if len(name) > state.MaxName || !namePattern.MatchString(name) {
		return refuse("a %s's name has 1 to %d of a-z, 0-9 and -, not %q", what, state.MaxName, name)
	}
	return nil
}

// outcomeError turns what Apply said into the answer an administrator gets.
func outcomeError(o state.Outcome) error {
	switch o.Code {
	case state.OK:
		return nil
	case state.NotFound:
		return &admin.Error{Status: http.StatusNotFound, Message: o.Detail}
	case state.Conflict:
		return &admin.Error{Status: http.StatusConflict, Message: o.Detail}
	}
	return &admin.Error{Status: http.StatusBadRequest, Message: o.Detail}
}

// change proposes one command and answers as the admin API does.
func (m *member) change(ctx context.Context, cmd state.Command, notes ...string) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	outcome, err := m.proposeChange(ctx, cmd)
	if err != nil {
		return nil, noQuorum(err)
	}
	if err := outcomeError(outcome); err != nil {
		return nil, err
	}
	m.awaitIndex(ctx, outcome.Index)
	return admin.Changed{Index: outcome.Index, ID: outcome.ID, Notes: notes}, nil
}

// awaitIndex waits until this node's own view has what was agreed elsewhere, so
// that the next command at the same node builds on it. A node that lags for
// longer answers all the same.
func (m *member) awaitIndex(ctx context.Context, index uint64) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for m.view().Index() < index && pause(ctx, time.Millisecond) {
	}
}

func noQuorum(err error) error {
	var known *admin.Error
	if errors.As(err, &known) {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &admin.Error{Status: http.StatusServiceUnavailable, Message: fmt.Sprintf("the change was not agreed within %s: there is no leader, or no majority of voters answers (forwarding goes on). It may still be agreed later: look before you repeat it. 'vpnlb cluster members' shows who is live", proposeTimeout)}
	}
	return &admin.Error{Status: http.StatusServiceUnavailable, Message: err.Error()}
}

func (m *member) addVIP(ctx context.Context, in admin.VIPRequest) (any, error) {
	if err := checkName("VIP", in.Name); err != nil {
		return nil, err
	}
	addr, err := unicast("the VIP's address", "203.0.113.10 or 2001:db8::10", in.Addr)
	if err != nil {
		return nil, err
	}
	put := state.PutVIP{VIP: state.VIP{Name: in.Name, Addr: addr, ClientBits: 64}}
	spec := m.spec()
	old, found := spec.VIPByName(in.Name)
	var notes []string
	if !found || old.Addr != addr {
		if err := m.refuseOwned(spec, "a VIP", addr); err != nil {
			return nil, err
		}
		if notes, err = readdress(spec, old, addr, in.Readdress); err != nil {
			return nil, err
		}
	}
	if found {
		put.VIP.ClientBits, put.VIP.SSTP, put.Expect = old.ClientBits, old.SSTP, old.Version
		put.VIP.Certificates, put.VIP.Transparent = old.Certificates, old.Transparent
	}
	if addr.Is4() {
		put.VIP.ClientBits = 64 // says nothing there; what an IPv6 VIP of this name had must not come back
	}
	if in.Bits != nil {
		put.VIP.ClientBits = *in.Bits
		if err := checkBits(spec, old, &put.VIP); err != nil {
			return nil, err
		}
	}
	more, err := vipSSTP(spec, old, &put.VIP, in)
	if err != nil {
		return nil, err
	}
	return m.change(ctx, put, append(notes, more...)...)
}

// readdress judges another address for a VIP. What clients dial is an address,
// so one that has servers moves only at an express word. old is nil for a new VIP.
func readdress(spec *state.Spec, old *state.VIP, addr netip.Addr, wanted bool) ([]string, error) {
	if old == nil {
		return nil, nil
	}
	var servers []string
	clients := uint32(0)
	for i := range spec.Backends {
		if b := &spec.Backends[i]; b.VIP == old.ID {
			servers = append(servers, b.Name)
			clients += b.Entries[0] + b.Entries[1]
		}
	}
	switch {
	case len(servers) == 0:
		return nil, nil
	case !wanted:
		return nil, &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("VIP %s has address %s, and %d clients reach %s there: all tunnels would break. Write %[2]s to change something else, choose another name for another VIP, or add --readdress if that is meant", old.Name, old.Addr, clients, strings.Join(servers, ", "))}
	}
	return []string{fmt.Sprintf("VIP %s was %s: the tunnels of its %d clients break, and they find %s again when DNS and the routers' static routes name %s", old.Name, old.Addr, clients, strings.Join(servers, ", "), addr)}, nil
}

// checkBits judges the prefix length that is to key a VIP's clients. Under
// another length no client would find its record again. old is nil for a new VIP.
func checkBits(spec *state.Spec, old, anew *state.VIP) error {
	switch {
	case anew.Addr.Is4():
		return refuse("--client-bits is for IPv6: the clients of %s are keyed by their whole IPv4 address", anew.Addr)
	case anew.ClientBits < 32 || anew.ClientBits > 128:
		return refuse("--client-bits is 32 to 128, not %d: clients share a record when so many bits of their addresses are equal", anew.ClientBits)
	case old == nil || old.ClientBits == anew.ClientBits:
		return nil
	}
	named := uint32(0)
	for i := range spec.Backends {
		if b := &spec.Backends[i]; b.VIP == old.ID {
			named += b.Entries[0] + b.Entries[1]
		}
	}
	if named > 0 {
		return refuse("VIP %s keys its clients by %d bits, and %d records are kept so: add another VIP with %d, or wait until they are gone", old.Name, old.ClientBits, named, anew.ClientBits)
	}
	return nil
}

func (m *member) removeVIP(ctx context.Context, in admin.NameRequest) (any, error) {
	v, ok := m.spec().VIPByName(in.Name)
	if !ok {
		return nil, missing("no VIP is called %q; 'vpnlb vip list' shows them", in.Name)
	}
	return m.change(ctx, state.RemoveVIP{ID: v.ID, Expect: v.Version})
}

func (m *member) addBackend(ctx context.Context, in admin.BackendRequest) (any, error) {
	if err := checkName("backend", in.Name); err != nil {
		return nil, err
	}
	addr, err := unicast("the server's address", "198.51.100.101 or 2001:db8:1::101", in.Addr)
	if err != nil {
		return nil, err
	}
	spec := m.spec()
	if _, known := spec.BackendByAddr(addr); !known {
		if err := m.refuseOwned(spec, "a server", addr); err != nil {
			return nil, err
		}
	}
	b := state.Backend{Name: in.Name, Addr: addr, Weight: 100, Admin: state.AdminEnabled}
	var expect uint64
	if old, ok := spec.BackendByName(in.Name); ok && old.Admin != state.AdminRemoved {
		b, expect = *old, old.Version
		b.Addr = addr
	}
	vip, err := pickVIP(spec, in.VIP, b.VIP)
	if err != nil {
		return nil, err
	}
	b.VIP = vip
	var notes []string
	switch in.Mode {
	case "":
	case "dnat":
		b.Mode = state.ModeDNAT
	case "dsr":
		b.Mode = state.ModeDSR
		notes = append(notes, dsrNote)
	default:
		return nil, refuse("--mode is dnat or dsr, not %q", in.Mode)
	}
	if in.Weight != nil {
		if *in.Weight > state.MaxWeight {
			return nil, refuse("--weight is 0 to %d, not %d", state.MaxWeight, *in.Weight)
		}
		b.Weight = *in.Weight
	}
	if in.Limit != nil {
		b.Limit = *in.Limit
	}
	if in.SSTPPort != nil {
		b.SSTPPort = *in.SSTPPort
	}
	return m.change(ctx, state.PutBackend{Backend: b, Expect: expect}, notes...)
}

// dsrNote is what an administrator must know of the mode.
const dsrNote = "in mode dsr the server holds the VIP on its loopback and stands on the nodes' segment; its replies are not seen here: when it is down or offline its clients are forgotten at once, and TCP goes by hash only"

// pickVIP finds the VIP that is meant: by name, else the one it has, else the
// only one there is.
func pickVIP(spec *state.Spec, name string, current state.VIPID) (state.VIPID, error) {
	if name != "" {
		v, ok := spec.VIPByName(name)
		if !ok {
			return 0, missing("no VIP is called %q; 'vpnlb vip list' shows them", name)
		}
		return v.ID, nil
	}
	switch {
	case current != 0:
		return current, nil
	case len(spec.VIPs) == 1:
		return spec.VIPs[0].ID, nil
	case len(spec.VIPs) == 0:
		return 0, refuse("there is no VIP yet: add one with 'vpnlb vip add NAME ADDR' first")
	}
	return 0, refuse("there are %d VIPs: name the one that is meant with --vip", len(spec.VIPs))
}

func (m *member) backendNamed(name string) (*state.Backend, error) {
	b, ok := m.spec().BackendByName(name)
	if !ok {
		return nil, missing("no backend is called %q; 'vpnlb backend list' shows them", name)
	}
	return b, nil
}

// changeBackend is change for a server that was there a moment ago: a removed one
// goes when its last record does, and the log knows its number only.
func (m *member) changeBackend(ctx context.Context, name string, cmd state.Command, notes ...string) (any, error) {
	out, err := m.change(ctx, cmd, notes...)
	var known *admin.Error
	if errors.As(err, &known) && known.Status == http.StatusNotFound {
		return nil, missing("backend %s had been removed, and is gone for good by now: 'vpnlb backend add %s ADDR' adds it again", name, name)
	}
	return out, err
}

func (m *member) setBackendAdmin(ctx context.Context, in admin.BackendAdminRequest) (any, error) {
	b, err := m.backendNamed(in.Name)
	if err != nil {
		return nil, err
	}
	cmd := state.SetBackendAdmin{ID: b.ID, Expect: b.Version}
	switch in.Admin {
	case "enabled":
		cmd.Admin = state.AdminEnabled
	case "drain":
		cmd.Admin = state.AdminDrain
	case "offline":
		cmd.Admin = state.AdminOffline
	default:
		return nil, refuse("a backend can be enabled, drain or offline, not %q", in.Admin)
	}
	return m.changeBackend(ctx, b.Name, cmd, adminNotes(m.spec(), b, cmd.Admin)...)
}

func (m *member) removeBackend(ctx context.Context, in admin.NameRequest) (any, error) {
	b, err := m.backendNamed(in.Name)
	if err != nil {
		return nil, err
	}
	return m.changeBackend(ctx, b.Name, state.RemoveBackend{ID: b.ID, Purge: in.Purge, Expect: b.Version}, removeNotes(m.spec(), b, in.Purge)...)
}

func (m *member) addGateway(ctx context.Context, in admin.GatewayRequest) (any, error) {
	addr, err := unicast("a gateway of the servers' subnet", "198.51.100.251 or 2001:db8:1::251", in.Addr)
	if err != nil {
		return nil, err
	}
	spec := m.spec()
	if g, ok := spec.GatewayByAddr(addr); ok { // nothing changes, and that is no failure
		return m.change(ctx, state.PutGateway{Addr: addr, Expect: g.Version}, "it was there before; 'vpnlb gateway list' shows its owner")
	}
	if err := m.refuseOwned(spec, "a gateway", addr); err != nil {
		return nil, err
	}
	return m.change(ctx, state.PutGateway{Addr: addr}, gatewayNotes(m.cfg.Dataplane.Inside, subnetsOn(m.cfg.Dataplane.Inside), addr)...)
}

func (m *member) removeGateway(ctx context.Context, in admin.GatewayRequest) (any, error) {
	spec := m.spec()
	addr, err := netip.ParseAddr(strings.TrimSpace(in.Addr))
	for i := range spec.Gateways {
		if g := &spec.Gateways[i]; err == nil && g.Addr == addr {
			return m.change(ctx, state.RemoveGateway{ID: g.ID, Expect: g.Version})
		}
	}
	return nil, missing("no gateway has the address %q; 'vpnlb gateway list' shows them", in.Addr)
}

func (m *member) set(ctx context.Context, in admin.SetRequest) (any, error) {
	old := m.spec().Settings
	changed, err := changeSetting(old, in.Key, in.Value)
	if err != nil {
		return nil, refuse("%v", err)
	}
	var notes []string
	after := *m.spec()
	after.Settings = changed
	if t1 := after.DemoteAfter(); strings.EqualFold(in.Key, "t1") && t1 != changed.Demote {
		notes = append(notes, fmt.Sprintf("%s is the default, and while TLS of SSTP ends on the nodes the default is %s: set another value to have that", changed.Demote, t1))
	}
	return m.change(ctx, state.SetSettings{Settings: changed, Expect: old.Version}, notes...)
}

func (m *member) forgetAffinity(ctx context.Context, in admin.ForgetRequest) (any, error) {
	client, err := parseClient(in.Name)
	if err != nil {
		return nil, err
	}
	var keys []state.Key
	for _, a := range recordsOf(m.view(), client) {
		keys = append(keys, a.Key)
	}
	if len(keys) == 0 {
		return nil, missing("client %s has no record", client)
	}
	m.log.Debug("records to be forgotten", "client", client.String(), "records", len(keys))
	return m.change(ctx, state.Forget{Keys: keys})
}
