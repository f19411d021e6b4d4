package node

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
)

// fitness is what this node knows of its own arms, routers and data plane.
// runFitness writes it, anybody reads.
type fitness struct {
	outsideDead, insideDead atomic.Bool
	sessions                atomic.Pointer[[]bgp.NeighbourStatus] // routers at the last look; nil: none yet
	unfit                   fault                                 // why no gateway should be here
	alone                   atomic.Pointer[[]state.BackendID]     // not reached from here, though from other nodes; nil: none yet

	sessionSeen time.Time // runFitness': when a router was last in session
	failing     time.Time // runFitness': since when the data plane has failed; zero: it works
}

// runFitness looks at arms, routers, data plane and reach. Gateways depend on
// them also where no BGP is spoken.
func (m *member) runFitness(ctx context.Context) error {
	for {
		m.watchArms(time.Now())
		m.watchPlane(time.Now())
		if !pause(ctx, factsInterval) {
			return nil
		}
	}
}

// armDead reports whether an arm of this node is dead.
func (m *member) armDead() bool { return m.fit.outsideDead.Load() || m.fit.insideDead.Load() }

// outsideGrace is how long no router may be in session before the outside arm
// counts as dead although its link is up: a session that a router tears down may
// come back at once, and moving gateways costs little. Sessions that all ended by
// the hold timer get no grace: their routers were silent for the hold time already.
const outsideGrace = 2 * time.Second

// watchArms notices links without carrier, and an outside arm behind which no
// router answers any more. Servers' replies must not be sent to a node that
// cannot pass them on, nor clients' packets to one that cannot reach a server.
func (m *member) watchArms(now time.Time) {
	if m.speaker != nil {
		sessions := m.speaker.Neighbours()
		m.fit.sessions.Store(&sessions)
	}
	m.fit.arms(linkUp(m.cfg.Dataplane.Outside), linkUp(m.cfg.Dataplane.Inside), now)
}

// arms judges both, given their links.
func (f *fitness) arms(outsideUp, insideUp bool, now time.Time) {
	sessions := f.sessions.Load() // nil: this node speaks no BGP
	if sessions == nil || slices.ContainsFunc(*sessions, func(n bgp.NeighbourStatus) bool { return n.Established }) {
		f.sessionSeen = now
	}
	// A node that never had a session yet says nothing about its arm.
	lost := !f.sessionSeen.IsZero() && now.Sub(f.sessionSeen) > 0 &&
		(now.Sub(f.sessionSeen) > outsideGrace || allSilent(*sessions))
	f.outsideDead.Store(!outsideUp || lost)
	f.insideDead.Store(!insideUp)
}

// allSilent reports whether every session there was ended by the hold timer, and
// there was one. A router that was never in session says nothing.
func allSilent(sessions []bgp.NeighbourStatus) bool {
	silent := false
	for _, n := range sessions {
		if n.EverUp && !n.HoldExpired {
			return false
		}
		silent = silent || n.HoldExpired
	}
	return silent
}

func linkUp(name string) bool {
	i, err := net.InterfaceByName(name)
	return err == nil && i.Flags&net.FlagUp != 0 && i.Flags&net.FlagRunning != 0
}

// routers are the neighbours as they were a moment ago.
func (m *member) routers() []bgp.NeighbourStatus {
	if sessions := m.fit.sessions.Load(); sessions != nil {
		return *sessions
	}
	return nil
}

// carried reports whether a router in session carries routes of the VIP's family.
// What the announcer decided and its library took is told to nobody without one.
func (m *member) carried(vip netip.Addr) bool { return bgp.Carried(m.routers(), vip) }

// planePatience is how long the data plane must fail before gateways go: a write
// that fails is repeated after half a second, and each move costs the servers'
// caches an announcement.
const planePatience = 2 * time.Second

// watchPlane judges whether this node may hold gateways.
func (m *member) watchPlane(now time.Time) {
	reach := health.Reach(health.ReachFacts{Spec: m.spec(), Self: m.self, Observers: m.observers()})
	if m.fit.setAlone(reach.Alone) {
		m.tellSoon()
	}
	if m.fit.judge(m.planeFault(), &reach, now) {
		m.log.Warn("gateways should go to other nodes", "reason", m.fit.unfit.get())
	}
}

// judge reports whether there is a reason that did not stand before.
func (f *fitness) judge(planeFault string, reach *health.Reached, now time.Time) (news bool) {
	switch {
	case planeFault == "":
		f.failing = time.Time{}
	case f.failing.IsZero():
		f.failing = now
	}
	failing := time.Duration(0)
	if planeFault != "" {
		failing = now.Sub(f.failing)
	}
	return f.unfit.set(unfitness(planeFault, failing, reach))
}

// planeFault says why return traffic would not be forwarded here; empty: it is.
func (m *member) planeFault() string {
	if m.planeMode() == cluster.PlaneNone {
		return "the program is not on every interface"
	}
	if f := m.sync.failure.Load(); f != nil {
		return *f
	}
	if err := m.plane.SelfCheck(); err != nil {
		return "self-check of the data plane: " + err.Error()
	}
	return ""
}

// unfitError is why a node should hold no gateways.
type unfitError string

func (e unfitError) Error() string { return string(e) }

// unfitness is pure. A node that answers for the servers' gateway and cannot pass
// their replies on takes every reply through it; so does one whose inside path is
// broken although its link is up. Where nobody reaches a server nothing is gained
// by a move, so reach counts only against others that do better.
func unfitness(planeFault string, failing time.Duration, reach *health.Reached) error {
	switch {
	case planeFault != "" && failing >= planePatience:
		return unfitError(planeFault)
	case reach.None:
		return unfitError("no server is reached from here, though other nodes reach some")
	}
	return nil
}

// unfit reports whether this node should hold no gateways; see armDead too.
func (m *member) unfit() bool { return m.fit.unfit.get() != "" || m.secretFault.get() != "" }

// candidate is what the leader knows of a member that may own gateways.
type candidate struct {
	owns   bool                // it owns one already
	silent bool                // it has not answered this node for silentAfter
	said   *cluster.NodeStatus // lately; nil: nothing
}

// fit is pure but for its question. A silent owner counts as dead only when a
// second member does not reach it either: dead asks, and is asked of nobody else.
// What an owner says against itself counts at once, it has waited itself; what it
// does not say does not: an older version says less, and a restarted daemon's
// pinned program forwards. A member that owns nothing yet must be well in all.
func (c *candidate) fit(dead func() bool) bool {
	switch {
	case c.silent:
		return c.owns && !dead()
	case c.said == nil:
		return c.owns
	case c.said.ArmDead || c.said.Unfit:
		return false
	}
	return c.owns || c.said.CaughtUp && c.said.PlaneHealthy && !c.said.Draining
}

// fitForGateway judges a member, this one included, as this leader sees it.
func (m *member) fitForGateway(ctx context.Context, spec *state.Spec, other *state.Member) bool {
	c := candidate{owns: slices.ContainsFunc(spec.Gateways, func(g state.Gateway) bool { return g.Owner == other.ID })}
	if other.ID == m.self {
		c.said = &cluster.NodeStatus{}
		m.sayFitness(c.said)
	} else {
		c.silent = m.contacts.silence(other.ID) > silentAfter
		for _, h := range m.hints() {
			if h.Node == other.ID {
				c.said = h.Status
			}
		}
	}
	return c.fit(func() bool { return m.deathConfirmed(ctx, spec, other.ID) })
}

// sayFitness writes what this node's status says of its fitness.
func (m *member) sayFitness(st *cluster.NodeStatus) {
	st.CaughtUp, st.Draining = m.caughtUp.Load(), m.stage() != bgp.StageServing
	st.Plane, st.PlaneHealthy = m.planeMode(), m.planeHealthy()
	st.ArmDead, st.Unfit = m.armDead(), m.unfit()
}

// saysUnfit reports whether a member says that it should own no gateway.
func saysUnfit(hints []cluster.Hints, id state.NodeID) bool {
	return slices.ContainsFunc(hints, func(h cluster.Hints) bool {
		return h.Node == id && (h.Status.ArmDead || h.Status.Unfit)
	})
}
