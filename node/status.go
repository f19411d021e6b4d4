package node

import (
	"encoding/hex"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/admin"
)

// status is this node at a glance.
func (n *Node) status(r *http.Request) (any, error) {
	stage, reason := n.stageNow()
	st := admin.Status{
		Node: n.cfg.Name, Stage: string(stage), StageReason: reason,
		Uptime: time.Since(n.started).Round(time.Second).String(), UptimeSeconds: seconds(time.Since(n.started)), Version: n.deps.Version,
		MaxClients: int(n.cfg.Dataplane.MaxClients),
		// Lists are never null in JSON.
		Plane: []admin.Interface{}, VIPs: []admin.VIPStatus{}, Neighbours: []admin.Neighbour{},
		Backends: []admin.Backend{}, Gateways: []admin.Gateway{}, Packets: []admin.Counter{}, Warnings: []string{},
	}
	if ids := n.ids.Load(); ids != nil {
		st.ID = ids.Identity().Node.String()
	}
	st.Warnings = append(st.Warnings, n.fileNotes()...)
	m := n.member.Load()
	if m == nil {
		if stage == StageWaiting && st.ID == "" {
			st.Warnings = append(st.Warnings, "this node is no member now, for its identity cannot be opened: "+reason)
		} else if stage == StageWaiting {
			st.Warnings = append(st.Warnings, n.waitingWarnings()...)
		}
		return st, nil
	}
	m.fillAgreement(&st)
	m.fillPlane(&st)
	m.fillRoutes(&st)
	spec := m.spec()
	st.Backends, st.Gateways = m.backends(spec), m.gateways(spec)
	st.Warnings = append(st.Warnings, m.warnings(&st)...)
	if r.URL.Query().Get("hash") != "" {
		view := m.view()
		sum := view.Hash()
		st.Index, st.StateHash = view.Index(), hex.EncodeToString(sum[:])
	}
	return st, nil
}

func (m *member) fillAgreement(st *admin.Status) {
	rs := m.replica.Status()
	spec := m.spec()
	st.Cluster = m.ids.Identity().Cluster().String()
	st.Role, st.Term, st.Index, st.Quorum = string(rs.Role), rs.Term, rs.Applied, m.quorum(&rs)
	if leader, ok := spec.MemberByID(rs.LeaderID); ok {
		st.Leader = leader.Name
	}
	for _, s := range rs.Servers {
		if !s.Voter {
			continue
		}
		st.Voters++
		if m.liveVoter(s.ID) {
			st.LiveVoters++
		}
	}
	st.CaughtUp, st.Affinities = m.caughtUp.Load(), spec.Affinities
	st.PlaneIndex, st.Generation = m.sync.index.Load(), m.sync.generation.Load()
}

func (m *member) fillPlane(st *admin.Status) {
	plane := m.plane.Status()
	st.PlaneEntries, st.MaxClients = plane.Entries, plane.Capacity
	st.PlaneHealthy = m.planeHealthy()
	for _, i := range plane.Interfaces {
		mode := i.Mode.String()
		if i.ProgramID == 0 {
			mode = "detached"
		}
		st.Plane = append(st.Plane, admin.Interface{Name: i.Name, Mode: mode, Alarm: i.Alarm})
	}
	counters, err := m.plane.Counters()
	if err != nil {
		return
	}
	for reason := table.ReasonNone + 1; reason < table.ReasonCount; reason++ {
		if c := counters.Reasons[reason]; c.Packets > 0 {
			st.Packets = append(st.Packets, admin.Counter{Reason: reason.String(), Packets: c.Packets, Bytes: c.Bytes})
		}
	}
}

func (m *member) fillRoutes(st *admin.Status) {
	spec := m.spec()
	if m.announcer == nil {
		for i := range spec.VIPs {
			st.VIPs = append(st.VIPs, admin.VIPStatus{Name: spec.VIPs[i].Name, Addr: spec.VIPs[i].Addr, Announce: "withdrawn", Reason: "no_bgp_neighbours"})
		}
		return
	}
	words := map[bgp.Action]string{bgp.Withdraw: "withdrawn", bgp.Drain: "draining", bgp.Demote: "demoted", bgp.Announce: "announced"}
	for _, v := range m.announcer.Status() {
		name := v.VIP.String()
		if vip, ok := spec.VIPByAddr(v.VIP); ok {
			name = vip.Name
		}
		shown := admin.VIPStatus{Name: name, Addr: v.VIP, Announce: words[v.Announced], Reason: v.Decision.Reason.String(), Since: ago(time.Since(v.Since)), SinceSeconds: seconds(time.Since(v.Since))}
		if v.Announced != bgp.Withdraw && !m.carried(v.VIP) {
			shown.Announce, shown.Reason = "unsent", "no_session"
		}
		st.VIPs = append(st.VIPs, shown)
	}
	for _, nb := range m.routers() {
		st.Neighbours = append(st.Neighbours, shownNeighbour(&nb))
	}
}

func shownNeighbour(nb *bgp.NeighbourStatus) admin.Neighbour {
	return admin.Neighbour{
		Addr: nb.Address.String(), ASN: nb.ASN, State: nb.State, Since: ago(nb.Uptime), Families: nb.Families, Error: nb.Error,
		HoldSeconds: nb.Hold.Seconds(), RouterHoldSeconds: nb.RouterHold.Seconds(),
		DroppedUpdates: nb.Dropped, LastRefusal: nb.LastRefusal, EverUp: nb.EverUp, OutSeconds: nb.Out.Seconds(),
	}
}

func ago(d time.Duration) string {
	switch {
	case d < 0 || d > 100*365*24*time.Hour:
		return ""
	case d < 10*time.Second:
		return d.Round(time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// seconds is ago for programs: what ago leaves out is 0.
func seconds(d time.Duration) float64 {
	if ago(d) == "" {
		return 0
	}
	return d.Round(time.Millisecond).Seconds()
}

var adminWords = map[state.AdminState]string{
	state.AdminEnabled: "enabled", state.AdminDrain: "drain", state.AdminOffline: "offline", state.AdminRemoved: "removed",
}

var verdictWords = map[state.Verdict]string{
	state.VerdictUnknown: "unknown", state.VerdictUp: "up", state.VerdictDown: "down",
}

var sstpWords = map[state.SSTPMode]string{
	state.SSTPOff: "off", state.SSTPPassthrough: "passthrough", state.SSTPOffload: "offload", state.SSTPReencrypt: "reencrypt",
}

func (m *member) backends(spec *state.Spec) []admin.Backend {
	local := make(map[state.BackendID]health.Report)
	for _, r := range m.prober.Reports() {
		local[r.Backend] = r
	}
	counters, err := m.plane.Counters()
	_, sessions := m.sessionCounts()
	out := []admin.Backend{}
	for i := range spec.Backends {
		b := &spec.Backends[i]
		h := b.Health[state.ClassIKE-1]
		a := admin.Backend{
			ID: uint32(b.ID), Name: b.Name, Addr: b.Addr, Mode: b.Mode.String(), Weight: b.Weight, Limit: b.Limit, Version: b.Version,
			Admin: adminWords[b.Admin], Health: verdictWords[h.Verdict], Stance: spec.Stance(b, state.ClassIKE).String(),
			StanceWhy: stanceWhy(spec, b, state.ClassIKE), Clients: b.Entries[state.ClassIKE-1],
		}
		if v, ok := spec.VIPByID(b.VIP); ok {
			a.VIP = v.Name
			if v.SSTP != state.SSTPOff {
				a.TCP = service(spec, b, v)
				a.TCP.Sessions = sessions[b.Name]
			}
		}
		if r, ok := local[b.ID]; ok {
			a.Local = r.Opinion.String()
			for _, p := range r.Ports {
				if hint := p.Note.Hint(); hint != "" && a.Detail == "" {
					a.Detail = fmt.Sprintf("UDP %d: %s", p.Port, hint)
				}
			}
			if a.TCP != nil && r.SSTP != nil {
				a.TCP.Local, a.TCP.Detail = r.SSTP.Opinion.String(), r.SSTP.Hint()
			}
		}
		if err == nil {
			n := counters.Returns[b.Slot]
			a.Returned = n.ESP + n.SK
			a.In = traffic(counters.In[b.Slot])
			a.Out = traffic(counters.Out[b.Slot])
		}
		out = append(out, a)
	}
	return out
}

// service is TCP 443 of a server.
func service(spec *state.Spec, b *state.Backend, v *state.VIP) *admin.Service {
	s := &admin.Service{
		Health: verdictWords[b.Health[state.ClassTCP-1].Verdict], Stance: spec.Stance(b, state.ClassTCP).String(),
		StanceWhy: stanceWhy(spec, b, state.ClassTCP), Clients: b.Entries[state.ClassTCP-1],
	}
	if v.SSTP.Ends() {
		s.Port, s.Certificate = spec.SSTPPort(b), v.CertificateOf(b)
	}
	return s
}

func (m *member) gateways(spec *state.Spec) []admin.Gateway {
	out := []admin.Gateway{}
	kept := m.keeper.Status()
	for i := range spec.Gateways {
		g := &spec.Gateways[i]
		a := admin.Gateway{ID: uint32(g.ID), Addr: g.Addr}
		if owner, ok := spec.MemberByID(g.Owner); ok {
			a.Owner = owner.Name
		}
		a.Here, a.Alarm = gatewayHere(&kept, g.ID)
		out = append(out, a)
	}
	return out
}

func (m *member) warnings(st *admin.Status) []string {
	out := []string{}
	add := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	m.partWarnings(st, add)
	if f := m.sync.failure.Load(); f != nil {
		add("%s", *f)
	}
	if f := m.kernelFault.get(); f != "" {
		add("kernel settings: %s", f)
	}
	if list := m.foreign.texts.Load(); list != nil {
		for _, text := range *list {
			add("%s", text)
		}
	}
	if f := m.foreign.fault.get(); f != "" {
		add("the rules of other firewalls on this host are not known: %s", f)
	}
	if f := m.setBack.get(); f != "" {
		add("%s", f)
	}
	if f := m.movedFault.get(); f != "" {
		add("%s", f)
	}
	if f := m.gossipFault.get(); f != "" {
		add("the gossip key was not changed after a removal: %s", f)
	}
	m.identityWarnings(add)
	if f := m.policyFault.get(); f != "" {
		add("the node forwards whatever reaches it: %s", f)
	}
	if m.sync.full.Load() {
		add("the affinity table is full (%d entries): clients without a record are forwarded by Maglev; %s", st.MaxClients, raiseMaxClients)
	} else if plane := m.plane.Status(); max(plane.Entries4, plane.Entries6)*10 > plane.Capacity*8 {
		add("the affinity table holds %d records of one family, above 80 %% of the %d it is meant for: %s", max(plane.Entries4, plane.Entries6), plane.Capacity, raiseMaxClients)
	}
	if !st.Quorum {
		add("no leader is heard: forwarding goes on, nothing new is agreed")
	}
	if st.Voters == 2 {
		add("two voters: the loss of either ends agreement (not forwarding); add a third node")
	}
	if st.Voters == 1 {
		add("one voter: this node alone holds the cluster's state and keys")
	}
	rs := m.replica.Status()
	if rs.Parked != "" {
		add("consensus is off on this node: %s; %s", rs.Parked, wayBack(rs.StoreFailed))
	}
	if rs.CommitStall > 0 {
		add("a commit has been waiting for %s", rs.CommitStall.Round(time.Millisecond))
	}
	if id, ok := m.strangers.unanswered(); ok {
		add("node %s calls, and is in no member list that this node has: none of the members that it knows can say who that is. Start them; if all were replaced while this node was away, 'vpnlb cluster leave --force' here and join again", id)
	}
	if err := m.plane.SelfCheck(); err != nil {
		add("the data plane's self-check fails, so this node leaves the VIPs and gateways to others where there are any: %v", err)
	}
	if e := m.keeper.Status().Err; e != "" {
		add("gateway addresses: %s", e)
	}
	m.gatewayWarnings(st, add)
	m.routeWarnings(st, add)
	m.sstpWarnings(m.spec(), add)
	return out
}

func (m *member) members(*http.Request) (any, error) { return m.memberList(), nil }

func (m *member) memberList() []admin.Member {
	spec := m.spec()
	rs := m.replica.Status()
	heard := make(map[state.NodeID]cluster.Hints)
	if g := m.gossip.Load(); g != nil {
		for _, h := range g.Hints() {
			heard[h.Node] = h
		}
	}
	out := []admin.Member{}
	for i := range spec.Members {
		c := &spec.Members[i]
		a := admin.Member{ID: c.ID.String(), Name: c.Name, Role: "node", Suffrage: "none", Leader: rs.LeaderID == c.ID,
			Cluster: c.Cluster, Gossip: c.Gossip, Draining: c.Draining, Self: c.ID == m.self, Addrs: []string{}}
		if c.Role == state.RoleWitness {
			a.Role = "witness"
		}
		for _, addr := range c.Addrs {
			a.Addrs = append(a.Addrs, addr.String())
		}
		for _, s := range rs.Servers {
			if s.ID == c.ID {
				a.Suffrage = "nonvoter"
				if s.Voter {
					a.Suffrage = "voter"
				}
			}
		}
		silence := m.contacts.silence(c.ID)
		a.Live = a.Self || silence < silentAfter
		if !a.Self {
			a.HeardAgo, a.HeardAgoSeconds = ago(silence), seconds(silence)
		}
		switch h := heard[c.ID]; {
		case a.Self:
			a.PlaneIndex, a.Announced = m.sync.index.Load(), m.announcer != nil && m.anyAnnounced()
		case h.Status == nil || h.StatusAge > hintFresh || !a.Live:
			a.Stale = true // what it said last may not be so any more
			age := time.Since(m.started)
			if h.Status != nil {
				a.PlaneIndex, age = h.Status.PlaneApplied, h.StatusAge
			}
			a.StatusAgo, a.StatusAgoSeconds = ago(age), seconds(age)
		default:
			a.PlaneIndex, a.Announced, a.RaftOff = h.Status.PlaneApplied, len(h.Status.Announced) > 0, h.Status.RaftOff
		}
		out = append(out, a)
	}
	slices.SortFunc(out, func(a, b admin.Member) int {
		if a.Name < b.Name {
			return -1
		}
		return 1
	})
	return out
}

func (m *member) specAnswer(*http.Request) (any, error) {
	spec := m.spec()
	out := admin.Spec{Cluster: spec.ClusterID.String(), VIPs: []admin.VIP{}, Backends: m.backends(spec), Gateways: m.gateways(spec), Settings: settingsInForce(spec)}
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		a := admin.VIP{ID: uint32(v.ID), Name: v.Name, Addr: v.Addr, SSTP: sstpWords[v.SSTP], Version: v.Version,
			Certificates: v.Certificates, Transparent: v.Transparent}
		if v.Addr.Is6() {
			a.Bits = v.ClientBits
		}
		out.VIPs = append(out.VIPs, a)
	}
	return out, nil
}

func traffic(c dataplane.Count) admin.Traffic { return admin.Traffic(c) }
