package bgp

import "time"

// Stage is how far this node is on its way out. Only the node's own procedure
// moves it, and only forward.
type Stage uint8

const (
	// StageServing: wants traffic.
	StageServing Stage = iota
	// StageDraining: leaving; traffic is asked to go elsewhere but still
	// forwarded.
	StageDraining
	// StageStopping: the route goes.
	StageStopping
)

// Limits are the durations that a decision depends on.
type Limits struct {
	// QuorumGrace (T1) is how long a node without a leader keeps its normal
	// route. Too low: every election moves traffic. Too high: an isolated
	// node takes clients by an old agreement. 60 s where TLS is offloaded,
	// because demotion there cuts connections.
	QuorumGrace time.Duration
	// ColdStartWait (T_cold) is how long a node that never caught up looks
	// for a leader before it trusts its stored state.
	ColdStartWait time.Duration
	// StateAge is the oldest stored state that a cold start may use unless
	// an operator forces it.
	StateAge time.Duration
}

// DefaultLimits are the limits that the drills are written for.
func DefaultLimits() Limits {
	return Limits{
		QuorumGrace:   5 * time.Second,
		ColdStartWait: 30 * time.Second,
		StateAge:      7 * 24 * time.Hour,
	}
}

// NodeFacts are the facts that hold for every VIP of this node.
type NodeFacts struct {
	Stage   Stage
	Removed bool // a member said, signed, that this node was removed
	Parked  bool // raft is off for good in this process

	PlaneAttached  bool // programs on every data interface, maps written
	PlaneSelfCheck bool // the synthetic packet came out right

	// CaughtUp is latched by the caller: once the map writer has reached
	// what a confirmed leader named, it stays true in this process. Losing
	// the leader later only demotes.
	CaughtUp bool
	// QuorumLost is how long there has been no confirmed leader; 0 = there
	// is one. Before catching up: since the start of the process.
	QuorumLost time.Duration
	// LeaseGap is how long ago the monotonic clock began to jump by more than the
	// lease (SIGSTOP, a suspended VM), if no leader has confirmed since; 0: a leader
	// has, or there was no jump.
	LeaseGap time.Duration

	// The stored state, for the cold start.
	SpecStored bool          // the store held a spec with at least one VIP
	StateAge   time.Duration // since the stored state was last known good
	ForceCold  bool          // an operator accepts a StateAge over the limit
}

// VIPFacts are the facts of one VIP.
type VIPFacts struct {
	// Backends counts the backends of the VIP that the spec names at all.
	Backends int
	// Usable counts those that the tables keep for anything (take or keep):
	// after the panic rule, not raw health.
	Usable int
	// Up counts the backends that the cluster calls up, Reached those of
	// them that answer this node's own probes.
	Up, Reached int
	// Doubtful: at least one backend that is up has been out of reach of this
	// node alone, for longer than a verdict takes. The caller judges that.
	Doubtful bool
	// ServiceFailed: what this node itself serves at the VIP (TLS of SSTP) does
	// not work here: no listener, no certificate.
	ServiceFailed bool
	// Carries: clients' connections end on this node (TLS of SSTP), so a withdrawal
	// ends them.
	Carries bool
	// Unprobed: this node has just started, announced nothing of the VIP yet, and
	// does not know yet whether it reaches the servers. The caller bounds it: a
	// server that never gives an opinion must not keep a node out.
	Unprobed bool
	// OthersWilling counts the other live members whose own Decision.Wish
	// for this VIP is not Withdraw. It must be the wish, never what they
	// announce at the moment: with the latter two nodes would take turns.
	OthersWilling int
	// OthersAnnouncing counts the other live members that announce this VIP
	// right now, demoted or not. The Announcer uses it to skip the hold-up.
	OthersAnnouncing int
}

// Facts is everything a Decision depends on.
type Facts struct {
	Node NodeFacts
	VIP  VIPFacts
	// Limits, unless zero, replace those of the announcer: the cluster may
	// agree on others (T1) while the node runs. Decide takes its own.
	Limits Limits
}

// Decision is what to do with one VIP, and why.
type Decision struct {
	Action Action
	Reason Reason
	// Wish is the action before the guard "never so that all nodes
	// withdraw". Nodes tell each other this one.
	Wish Action
	// Soft: forwarding still works well enough that a demotion may stand in
	// for the withdrawal (true also when the guard has already done so).
	Soft bool
}

// Decide is pure: no clock, no state. The clauses are tried from the top, the
// first that applies gives the reason.
//
//  1. Nothing may be announced: stopping, removed, parked, plane not attached,
//     no backend at all.
//  2. Not caught up: withdrawn, unless the cold start rule holds.
//  3. Better not announced, but better than nobody (soft): lease gap, self
//     check, no usable backend, none reached, own service failed. If no other member is willing
//     they demote only. Not probed yet: withdrawn while others are willing, else
//     nothing of it but the wish.
//  4. Draining.
//  5. Announced demoted: cold start, no quorum, reach doubt.
//  6. OK.
func Decide(f Facts, l Limits) Decision {
	if r := forbidden(f); r != OK {
		return Decision{Action: Withdraw, Wish: Withdraw, Reason: r}
	}
	cold := false
	if !f.Node.CaughtUp {
		if r := coldStart(f.Node, l); r != ColdStart {
			return Decision{Action: Withdraw, Wish: Withdraw, Reason: r}
		}
		cold = true
	}
	if r := unfit(f, l); r != OK {
		d := Decision{Action: Withdraw, Wish: Withdraw, Reason: r, Soft: true}
		if f.VIP.OthersWilling <= 0 {
			d.Action = lowered(f.Node)
		}
		return d
	}
	d := able(f, l, cold)
	if f.VIP.Unprobed {
		d.Wish, d.Reason, d.Soft = Withdraw, NotProbed, true
		if f.VIP.OthersWilling > 0 {
			d.Action = Withdraw
		}
	}
	return d
}

// able decides for a node that can serve the VIP.
func able(f Facts, l Limits, cold bool) Decision {
	switch {
	case f.Node.Stage == StageDraining:
		return Decision{Action: Drain, Wish: Drain, Reason: Draining}
	case cold:
		return Decision{Action: Demote, Wish: Demote, Reason: ColdStart}
	case f.Node.QuorumLost > 0 && f.Node.QuorumLost >= l.QuorumGrace:
		return Decision{Action: Demote, Wish: Demote, Reason: NoQuorum}
	case f.VIP.Doubtful:
		return Decision{Action: Demote, Wish: Demote, Reason: ReachDoubt}
	}
	return Decision{Action: Announce, Wish: Announce, Reason: OK}
}

// forbidden gives the reason why no route may exist whatever the others do,
// or OK.
func forbidden(f Facts) Reason {
	switch {
	case f.Node.Stage >= StageStopping:
		return Stopping
	case f.Node.Removed:
		return Removed
	case f.Node.Parked:
		return Parked
	case !f.Node.PlaneAttached:
		return PlaneNotAttached
	case f.VIP.Backends <= 0:
		// A VIP that was only just added: nobody can serve it, so there is
		// nothing that the guard could save.
		return NoBackends
	}
	return OK
}

// coldStart gives ColdStart if a node that never caught up may announce from
// its stored state, else why not.
func coldStart(n NodeFacts, l Limits) Reason {
	switch {
	case !n.SpecStored, n.QuorumLost <= 0, n.QuorumLost < l.ColdStartWait:
		return NotCaughtUp
	case n.StateAge > l.StateAge && !n.ForceCold:
		return StateTooOld
	}
	return ColdStart
}

// unfit gives the reason why this node should leave the VIP to others if
// there are any, or OK. After a standstill a VIP whose connections end here is no
// worse than on a node that has lost its leader, so it has the same time.
func unfit(f Facts, l Limits) Reason {
	switch {
	case f.Node.LeaseGap > 0 && (!f.VIP.Carries || f.Node.LeaseGap >= l.QuorumGrace):
		return LeaseGap
	case !f.Node.PlaneSelfCheck:
		return SelfCheckFailed
	case f.VIP.Usable <= 0:
		return NoBackends
	case f.VIP.Up > 0 && f.VIP.Reached <= 0 && f.VIP.Doubtful:
		return ReachNone
	case f.VIP.ServiceFailed:
		return ServiceFailed
	}
	return OK
}

// lowered is the least attractive route that still exists.
func lowered(n NodeFacts) Action {
	if n.Stage == StageDraining {
		return Drain
	}
	return Demote
}
