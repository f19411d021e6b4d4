package node

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/raft"
)

const dutyInterval = 100 * time.Millisecond

// runLeader runs the leader's duties whenever this node leads.
func (m *member) runLeader(ctx context.Context) error {
	return m.replica.Lead(ctx, func(office context.Context) {
		m.log.Info("leading", "term", m.replica.Status().Term)
		go m.keepServers(office) // blocking calls of their own; ends with the office
		go m.proveLeading(office)
		began := time.Now()
		m.tookOffice.Store(&began)
		defer m.tookOffice.Store(nil)
		defer m.gossipFault.set(nil) // the next one tries
		for pause(office, dutyInterval) {
			m.giveUpOffice(office)
			m.judge(office, time.Since(began))
			m.rotateGossipKey(office)
			m.tidyGossipKeys(office)
			m.rotateTickets(office)
			m.assignGateways(office)
		}
	})
}

// propose is for duties: what fails is seen again at the next turn.
func (m *member) propose(ctx context.Context, cmds ...state.Command) bool {
	timed, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	outcomes, err := m.replica.Propose(timed, cmds...)
	if err != nil {
		m.noteProposal(ctx, err)
		return false
	}
	ok := true
	for i, o := range outcomes {
		if o.Code != state.OK {
			ok = false
			m.log.Debug("duty refused", "command", i, "detail", o.Detail)
		}
	}
	return ok
}

// judge commits what the tally says.
func (m *member) judge(ctx context.Context, office time.Duration) {
	spec := m.spec()
	decisions := health.Decide(health.Facts{
		Spec: spec, Now: m.replica.Now(), Office: office,
		Observers: m.observers(), Listening: m.collector.Listening(), Lagging: m.lagging(spec),
	})
	for _, d := range decisions {
		if d.Command == nil {
			continue
		}
		b, ok := spec.BackendByID(d.Backend)
		if !ok {
			continue
		}
		if waitsForGeneration(d.Command) && !m.turn(spec) {
			continue // another change is on its way; the next turn judges anew
		}
		m.log.Info("verdict", "backend", b.Name, "class", d.Class.String(), "reason", string(d.Reason), "up", d.Votes.Up, "down", d.Votes.Down, "members", d.Votes.Members)
		m.propose(ctx, d.Command)
		if waitsForGeneration(d.Command) {
			<-m.generation
		}
	}
}

// lagging counts live members whose data plane has not reached the present
// generation: changes that are not urgent wait for them, so that two
// generations at most are in use at once. A member that has been silent, or
// unwell by its own word, longer than it takes to demote does not count: it is
// the last choice of the routers, and must not hold up everybody else.
func (m *member) lagging(spec *state.Spec) int {
	n := 0
	patience := spec.DemoteAfter() + 2*time.Second
	said := m.generations()
	for i := range spec.Members {
		other := &spec.Members[i]
		if other.Role != state.RoleNode || other.ID == m.self {
			continue
		}
		if !m.contacts.ever(other.ID) || m.contacts.silence(other.ID) > patience || m.unwell.longerThan(other.ID, patience) {
			continue
		}
		if said[other.ID] < spec.Generation {
			n++
		}
	}
	if m.caughtUp.Load() && m.sync.generation.Load() < spec.Generation {
		n++
	}
	return n
}

// generations is what the other members said last of their data planes, however
// long ago: one that fell silent had reached what it had reached, and holds nobody
// up before there is something newer.
func (m *member) generations() map[state.NodeID]uint64 {
	out := make(map[state.NodeID]uint64)
	if g := m.gossip.Load(); g != nil {
		for _, h := range g.Hints() {
			if h.Status != nil {
				out[h.Node] = h.Status.Generation
			}
		}
	}
	return out
}

// proofInterval is how often a leader asks whether it still is one: several times
// within the lease that its word has for the keeper of gateways.
const proofInterval = 250 * time.Millisecond

// proveLeading notes when a majority last said that this node leads. The time
// counts from before the question.
func (m *member) proveLeading(office context.Context) {
	defer m.proved.Store(nil)
	for {
		began := time.Now()
		call, cancel := context.WithTimeout(office, lease)
		_, err := m.replica.LeaderAnswer(call)
		cancel()
		if err == nil {
			m.proved.Store(&began)
		}
		if !pause(office, proofInterval) {
			return
		}
	}
}

// assignGateways moves gateways whose owner is gone or unfit.
func (m *member) assignGateways(ctx context.Context) {
	spec := m.spec()
	if len(spec.Gateways) == 0 || time.Since(m.alive.gapSince()) < silentAfter {
		return // after a standstill everybody seems silent
	}
	var fit []state.NodeID
	for i := range spec.Members {
		other := &spec.Members[i]
		if other.Role == state.RoleNode && !other.Draining && m.fitForGateway(ctx, spec, other) {
			fit = append(fit, other.ID)
		}
	}
	m.noteBlindness(fit, time.Now())
	misses := m.blind.misses(spec)
	for _, own := range gateway.Assign(fit, spec.Gateways, misses) {
		g, _ := spec.GatewayByID(own.ID)
		to, _ := spec.MemberByID(own.Owner)
		if m.propose(ctx, own) {
			m.log.Info("gateway moves", "gateway", g.Addr.String(), "to", to.Name, "owner_misses", misses(g.Owner, g.Addr))
		}
	}
}

// deathConfirmed asks the other members whether they hear it. Only where there
// is no other one, or all have long been dead, does this node's own word do: a
// leader that stood still itself hears nobody for a moment.
func (m *member) deathConfirmed(ctx context.Context, spec *state.Spec, suspect state.NodeID) bool {
	witnesses := 0
	for i := range spec.Members {
		witness := &spec.Members[i]
		if witness.ID == m.self || witness.ID == suspect || m.contacts.silence(witness.ID) > spec.DemoteAfter()+2*time.Second {
			continue
		}
		witnesses++
		call, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
		var out silenceAnswer
		err := m.transport.Call(call, transport.Target{Addr: witness.Cluster, Node: witness.ID}, pathSilence, silenceRequest{Node: suspect}, &out)
		cancel()
		if err != nil {
			continue
		}
		if time.Duration(out.Millis)*time.Millisecond > silentAfter*3/4 {
			return true
		}
	}
	return witnesses == 0
}

// keepServers makes raft's configuration what the member list says: joiners
// come in as non-voters, one at a time become voters, removed ones go. At most
// one becomes a voter in a pass: the next pass counts the voters anew.
func (m *member) keepServers(office context.Context) {
	for pause(office, 500*time.Millisecond) {
		spec := m.spec()
		st := m.replica.Status()
		for _, s := range st.Servers {
			if _, ok := spec.MemberByID(s.ID); !ok {
				m.server(office, "remove", s.ID, m.replica.RemoveServer(office, s.ID))
				m.replica.ForgetPeer(s.ID)
			}
		}
		promoted := false
		for i := range spec.Members {
			other := &spec.Members[i]
			at := slices.IndexFunc(st.Servers, func(s raft.Server) bool { return s.ID == other.ID })
			switch {
			case at < 0 || st.Servers[at].Addr != other.Cluster:
				m.server(office, "add", other.ID, m.replica.AddNonvoter(office, other.ID, other.Cluster))
			case !st.Servers[at].Voter && !other.Draining && !promoted && mayVote(&st):
				err := m.replica.Promote(office, other.ID, m.appliedBy(other))
				m.server(office, "promote", other.ID, err)
				promoted = !errors.Is(err, raft.ErrNotReady) // also where the outcome is not known
			}
		}
	}
}

// maxVoters: more voters make commits slower and nothing safer.
const maxVoters = 5

func mayVote(st *raft.Status) bool {
	voters := 0
	for _, s := range st.Servers {
		if s.Voter {
			voters++
		}
	}
	return voters < maxVoters
}

// appliedBy asks a joiner, over its own port and authenticated, how far it is.
func (m *member) appliedBy(other *state.Member) raft.Applied {
	to := transport.Target{Addr: other.Cluster, Node: other.ID}
	return func(ctx context.Context) (uint64, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		var out indexAnswer
		err := m.transport.Call(ctx, to, pathApplied, struct{}{}, &out)
		return out.Index, err
	}
}

func (m *member) server(ctx context.Context, doing string, id state.NodeID, err error) {
	switch {
	case err == nil:
		m.log.Info("raft configuration", "change", doing, "member", id.String())
	case ctx.Err() == nil && !errors.Is(err, raft.ErrNotReady):
		m.log.Warn("raft configuration", "change", doing, "member", id.String(), "error", err.Error())
	}
}
