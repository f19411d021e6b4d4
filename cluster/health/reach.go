package health

import (
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// ReachAfter is for how long a server must not answer this node, from the first
// miss to the last, before the node doubts itself without a proof: a server that
// really died is missed by others by then. A demotion moves flows that have nothing to
// do with the server. A proof is an answer to another node that is later than the last
// question but one that stayed open here: then the server lived while it did not
// answer this node.
const ReachAfter = 3 * time.Second

// ReachFacts is what a node judges its own reach by.
type ReachFacts struct {
	Spec      *state.Spec
	Self      state.NodeID
	Observers []Observer // this node's own included
}

// ReachReason names the state of a node's own reach.
type ReachReason string

// Reasons of Reach.
const (
	ReachAll     ReachReason = "reaches_all"       // every server the cluster calls up
	ReachPending ReachReason = "not_probed_yet"    // no opinion on one of them yet
	ReachShared  ReachReason = "others_neither"    // some not, but nobody else reaches those either
	ReachSome    ReachReason = "misses_some_alone" // some not, though another node does: demote
	ReachNone    ReachReason = "reaches_none"      // none, though another node reaches some: withdraw
	ReachCutOff  ReachReason = "cut_off"           // none, and no other node is heard that could say whether it does: demote
	ReachNoUp    ReachReason = "no_server_up"      // the cluster calls none up
)

// Reached is a node's judgement of its own reach, for the decision to announce.
type Reached struct {
	Reason   ReachReason
	Doubts   bool              // demote: it alone misses a server the cluster calls up, or it is cut off
	None     bool              // withdraw: it reaches none, and not all nodes are so
	CutOff   bool              // it reaches none, and hears nobody: then nothing says that others do not
	Settled  bool              // of every server the cluster calls up it has an opinion, or an answer
	Up       int               // servers the cluster calls up
	Reach    int               // of these, not missed by this node
	Alone    []state.BackendID // missed by this node though another one reaches them
	AlsoLost []state.BackendID // missed by this node and everybody it hears of
}

// Reach judges which of the servers that the cluster calls up this node alone
// cannot reach. It is pure.
func Reach(f ReachFacts) Reached {
	var own *Observation
	for i := range f.Observers {
		if f.Observers[i].Member == f.Self {
			own = &f.Observers[i].Observation
		}
	}
	r := Reached{Settled: true}
	others := false // somebody else reaches something
	lonely := f.lonely()
	timing := TimingOf(&f.Spec.Settings)
	for i := range f.Spec.Backends {
		b := &f.Spec.Backends[i]
		if b.Admin != state.AdminEnabled && b.Admin != state.AdminDrain {
			continue
		}
		if b.Health[state.ClassIKE-1].Verdict != state.VerdictUp {
			continue
		}
		r.Up++
		elsewhere := f.reachedElsewhere(b.ID, timing, 0)
		others = others || elsewhere
		s, probed := seenBy(own, b.ID)
		r.Settled = r.Settled && probed
		switch {
		case s.Opinion != OpinionDown,
			s.Missed < ReachAfter && !(s.Before > 0 && f.reachedElsewhere(b.ID, timing, s.Before)):
			r.Reach++
		case elsewhere:
			r.Alone = append(r.Alone, b.ID)
		default:
			r.AlsoLost = append(r.AlsoLost, b.ID)
		}
	}
	r.conclude(others, lonely)
	return r
}

// lonely reports whether there are other members with a data plane, and none of
// them is heard.
func (f *ReachFacts) lonely() bool {
	there := false
	for i := range f.Spec.Members {
		m := &f.Spec.Members[i]
		if m.Role != state.RoleNode || m.ID == f.Self {
			continue
		}
		there = true
		for _, o := range f.Observers {
			if o.Member == m.ID && o.Age <= ObservationFresh {
				return false
			}
		}
	}
	return there
}

func (r *Reached) conclude(others, lonely bool) {
	none := r.Up > 0 && r.Reach == 0
	r.None, r.CutOff = none && others, none && lonely
	r.Doubts = len(r.Alone) > 0 || r.CutOff
	switch {
	case r.Up == 0:
		r.Reason = ReachNoUp
	case r.None:
		r.Reason = ReachNone
	case r.CutOff:
		r.Reason = ReachCutOff
	case r.Doubts:
		r.Reason = ReachSome
	case len(r.AlsoLost) > 0:
		r.Reason = ReachShared
	case !r.Settled:
		r.Reason = ReachPending
	default:
		r.Reason = ReachAll
	}
}

// seenBy is the node's own record of a server, and whether anything is known: an
// opinion, or a first answer of each port, which says enough before there are as many
// as an opinion takes.
func seenBy(own *Observation, id state.BackendID) (s Seen, probed bool) {
	if own == nil {
		return s, false
	}
	s, _ = own.Of(id, state.ClassIKE)
	return s, s.Opinion != OpinionUnknown || s.Answers > 0
}

// reachedElsewhere reports whether another node reaches a server. One that has
// begun to miss it, too, says nothing: it may only be a moment behind. With within,
// the other's last answer must be younger than that.
func (f *ReachFacts) reachedElsewhere(id state.BackendID, t Timing, within time.Duration) bool {
	for _, o := range f.Observers {
		if o.Member == f.Self || !observes(f.Spec, o.Member) {
			continue
		}
		s, ok := o.Observation.Of(id, state.ClassIKE)
		if !ok || !fresh(o, s, t.of(state.ClassIKE)) || s.Opinion != OpinionUp || s.Misses >= failingMisses {
			continue
		}
		if within == 0 || s.Misses == 0 && s.Answers > 0 && s.Age+o.Age+proofMargin < within {
			return true
		}
	}
	return false
}

// proofMargin is what ages may be wrong by: those of others are rounded, and an answer
// is on its way for a while.
const proofMargin = 200 * time.Millisecond
