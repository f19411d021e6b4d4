package node

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/raft"
)

// hintFresh bounds the age of a hint that decides anything: contacts bring a
// new one four times a second.
const hintFresh = 3 * time.Second

func (m *member) stage() bgp.Stage { return bgp.Stage(m.draining.Load()) }

func (m *member) quorum(st *raft.Status) bool { return st.Quorum(m.cfg.Cluster.Heartbeat) }

// quorumLost is how long there has been no leader that a majority stands
// behind; 0 = there is one.
func (m *member) quorumLost() time.Duration {
	if m.noteQuorum() {
		return 0
	}
	since := m.started
	if t := m.lastQuorum.Load(); t != nil {
		since = *t
	}
	return max(time.Since(since), time.Nanosecond)
}

// noteQuorum remembers when there was a leader last. Raft's own last contact
// would not do: a vote that was granted refreshes it.
func (m *member) noteQuorum() bool {
	st := m.replica.Status()
	if !m.quorum(&st) {
		return false
	}
	now := time.Now()
	m.lastQuorum.Store(&now)
	return true
}

// leaseGap is how long ago the process began to stand still, if no leader has been
// heard since, or no majority that stands behind this one; else 0.
func (m *member) leaseGap() time.Duration { return m.alive.unconfirmed(m.leaderHeard()) }

// leaderHeard is when a leader was heard last; zero: never. A leader hears itself
// when a majority has said that it is one: a process that stood still believes
// for a moment that it leads.
func (m *member) leaderHeard() time.Time {
	st := m.replica.Status()
	if st.Role == raft.RoleLeader {
		if proved := m.proved.Load(); proved != nil {
			return *proved
		}
		return time.Time{}
	}
	if st.LeaderID.IsZero() || st.LastContact < 0 {
		return time.Time{}
	}
	return time.Now().Add(-st.LastContact)
}

// hints are the fresh words of the other members.
func (m *member) hints() []cluster.Hints {
	g := m.gossip.Load()
	if g == nil {
		return nil
	}
	return slices.DeleteFunc(g.Hints(), func(h cluster.Hints) bool {
		return h.Node == m.self || h.Status == nil || h.StatusAge > hintFresh
	})
}

const factsInterval = 100 * time.Millisecond

// runFacts feeds the announcer: the durations in the facts only move when it
// is told.
func (m *member) runFacts(ctx context.Context) error {
	for {
		facts := m.routeFacts()
		if err := m.announcer.Update(facts); err != nil {
			return err
		}
		m.tellReady(facts)
		if !pause(ctx, factsInterval) {
			return nil
		}
	}
}

// anyAnnounced reports whether some router has a route from this node.
func (m *member) anyAnnounced() bool {
	return slices.ContainsFunc(m.announcer.Status(), func(v bgp.VIPStatus) bool { return v.Announced != bgp.Withdraw && m.carried(v.VIP) })
}

// announcedInFull reports whether routers have a route from this node that is not demoted.
func (m *member) announcedInFull() bool {
	return m.announcer != nil && slices.ContainsFunc(m.announcer.Status(), func(v bgp.VIPStatus) bool {
		return v.Announced == bgp.Announce && m.carried(v.VIP)
	})
}

// routeFacts gathers what each VIP's decision depends on.
func (m *member) routeFacts() map[netip.Addr]bgp.Facts {
	spec := m.spec()
	limits := m.limits
	if t1 := spec.DemoteAfter(); t1 > 0 {
		limits.QuorumGrace = t1
	}
	m.alive.beat()
	node := m.nodeFacts()
	reach := health.Reach(health.ReachFacts{Spec: spec, Self: m.self, Observers: m.observers()})
	hints, now := m.hints(), time.Now()
	probing := m.firstProbes.wait(node.CaughtUp || m.cold.Load(), reach.Settled, now)
	announced := make(map[netip.Addr]bool)
	for _, s := range m.announcer.Status() {
		announced[s.VIP] = s.Announced != bgp.Withdraw
	}
	maps.DeleteFunc(m.faults, func(id state.VIPID, _ lasting) bool { _, ok := spec.VIPByID(id); return !ok })
	out := make(map[netip.Addr]bgp.Facts, len(spec.VIPs))
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		facts := vipFacts(spec, v, &reach)
		facts.Carries = v.SSTP.Ends()
		facts.ServiceFailed = m.routeFault(v, announced[v.Addr], now)
		facts.Unprobed = probing && !announced[v.Addr]
		for _, h := range hints {
			if slices.Contains(h.Status.Willing, v.ID) {
				facts.OthersWilling++
			}
			if slices.Contains(h.Status.Announced, v.ID) {
				facts.OthersAnnouncing++
			}
		}
		out[v.Addr] = bgp.Facts{Node: node, VIP: facts, Limits: limits}
	}
	return out
}

func (m *member) nodeFacts() bgp.NodeFacts {
	st := m.replica.Status()
	lost := m.quorumLost()
	if m.cold.Load() {
		// A leader has just appeared, and this node has not caught up with it
		// yet: its route stays as it is until it has.
		lost = max(lost, m.limits.ColdStartWait)
	}
	return bgp.NodeFacts{
		Stage:          m.stage(),
		Removed:        m.removed.Load() != nil,
		Parked:         st.Parked != "" && m.parkedForGood(),
		PlaneAttached:  m.planeMode() != cluster.PlaneNone && (m.holdsTables() || m.tablesMayWait()), // after lost
		PlaneSelfCheck: m.sync.failure.Load() == nil && !m.fit.insideDead.Load() && m.plane.SelfCheck() == nil,
		CaughtUp:       m.caughtUp.Load(),
		QuorumLost:     lost,
		LeaseGap:       m.leaseGap(),
		SpecStored:     m.specStored(),
		StateAge:       m.stateAge(),
		ForceCold:      m.node.deps.ForceCold,
	}
}

// parkedForGood: an entry that this version does not know means that the
// tables grow old without anybody noticing; a hung disk does not.
func (m *member) parkedForGood() bool { return !m.caughtUp.Load() }

// probePatience is how long a node that could announce waits for the first answers
// of the servers. Three misses take as long; and a server of which no opinion comes
// must not keep a node out.
const probePatience = 4 * time.Second

// firstProbes is the wait of a node that has just started for its first probes:
// routes are up in two seconds, and would bring clients to a node that reaches no
// server, until it finds out.
type firstProbes struct {
	since time.Time // when it first could announce
	over  bool
}

// wait reports whether the wait goes on. Once over it does not come back: servers
// that are added later are nobody's fault.
func (p *firstProbes) wait(able, settled bool, now time.Time) bool {
	if able && p.since.IsZero() {
		p.since = now
	}
	p.over = p.over || able && (settled || now.Sub(p.since) >= probePatience)
	return !p.over
}

// vipFacts is pure: what the spec and this node's reach say of one VIP.
func vipFacts(spec *state.Spec, v *state.VIP, reach *health.Reached) bgp.VIPFacts {
	var f bgp.VIPFacts
	for i := range spec.Backends {
		b := &spec.Backends[i]
		if b.VIP != v.ID || b.Admin == state.AdminRemoved && b.Entries[state.ClassIKE-1] == 0 {
			continue
		}
		f.Backends++
		if spec.Stance(b, state.ClassIKE).MayTake() {
			f.Usable++
		}
		if b.Admin == state.AdminEnabled || b.Admin == state.AdminDrain {
			if b.Health[state.ClassIKE-1].Verdict == state.VerdictUp {
				f.Up++
				alone := slices.Contains(reach.Alone, b.ID)
				if !alone && !slices.Contains(reach.AlsoLost, b.ID) {
					f.Reached++
				}
				if alone || reach.CutOff {
					f.Doubtful = true
				}
			}
		}
	}
	return f
}

// agreement is what the gateway keeper needs of the cluster.
func (m *member) agreement() gateway.Agreement {
	if m.removed.Load() != nil {
		return gateway.Agreement{CaughtUp: true, LeaderHeard: time.Now(), Unfit: true} // nothing is its own any more
	}
	spec := m.spec()
	out := gateway.Agreement{
		CaughtUp: m.caughtUp.Load() || m.cold.Load(),
		Gateways: spec.Gateways,
		Unfit:    m.stage() != bgp.StageServing || m.armDead() || m.unfit(),
	}
	out.LeaderHeard = m.leaderHeard()
	hints := m.hints()
	for i := range spec.VIPs {
		out.VIPs = append(out.VIPs, spec.VIPs[i].Addr)
	}
	for i := range spec.Members {
		other := &spec.Members[i]
		if other.ID == m.self {
			continue
		}
		out.Peers = append(out.Peers, gateway.Peer{
			ID: other.ID, Addrs: other.Addrs,
			Live: other.Role == state.RoleNode && !other.Draining && m.contacts.silence(other.ID) < silentAfter && !saysUnfit(hints, other.ID),
		})
	}
	return out
}
