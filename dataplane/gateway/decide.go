package gateway

import (
	"cmp"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// ClaimAfter is how long an address must be without an answer, and the node
// without a leader, before the first member claims it; each member after it waits
// as long again, for the case that the ones before cannot. Too low: an election
// moves gateways. Too high: servers wait that long for a way out.
const ClaimAfter = time.Second

// Decide says which addresses this node should hold and announce.
func Decide(f Facts) Plan {
	var p Plan
	for _, g := range f.Gateways {
		p.Gateways = append(p.Gateways, decideGateway(&f, &g))
	}
	for _, a := range f.FoundGateways {
		p.Gateways = append(p.Gateways, leftover(&f, Step{Addr: a}))
	}
	for _, v := range f.VIPs {
		s := Step{Addr: v.Addr, Hold: true, Reason: Wanted}
		if !f.CaughtUp {
			s.Hold, s.Reason = v.Held, CatchingUp
		}
		p.VIPs = append(p.VIPs, s)
	}
	for _, a := range f.FoundVIPs {
		p.VIPs = append(p.VIPs, leftover(&f, Step{Addr: a}))
	}
	return p
}

// leftover is an address of ours that the spec does not name.
func leftover(f *Facts, s Step) Step {
	s.Hold, s.Reason = !f.CaughtUp, Removed
	if !f.CaughtUp {
		s.Reason = CatchingUp
	}
	return s
}

func decideGateway(f *Facts, g *GatewayFacts) Step {
	s := Step{Addr: g.Addr, Gateway: g.ID, Hold: g.Held, Alarm: g.Holder == HolderForeign}
	switch {
	case !f.CaughtUp:
		s.Reason = CatchingUp
	case f.Confirmed:
		byLog(&s, f, g)
	default:
		withoutLeader(&s, f, g)
	}
	return s
}

// byLog: a leader speaks, so the log's owner is the owner.
func byLog(s *Step, f *Facts, g *GatewayFacts) {
	switch {
	case g.Owner.IsZero():
		s.Reason = OwnerNobody // kept if held: no owner is an outage
	case g.Owner != f.Self:
		s.Hold, s.Reason = false, OwnerElsewhere
	case g.Holder == HolderForeign && !g.Held:
		s.Reason = ForeignMAC
	case g.Holder == HolderUnknown && !g.Held:
		s.Reason = OwnerUnproven
	default: // though a member may still answer for it
		s.Hold, s.Announce, s.Reason = true, true, Owner
	}
}

// withoutLeader: what is held stays, unsaid; what nobody answers for is claimed.
func withoutLeader(s *Step, f *Facts, g *GatewayFacts) {
	switch {
	case f.Suspended:
		s.Claimed, s.Reason = g.Claimed, SuspendedGap
	case g.Held && g.Claimed:
		s.Announce, s.Claimed, s.Reason = true, true, ClaimedNoLeader
	case g.Held:
		s.Reason = KeptWithoutLeader
	case g.Holder == HolderForeign:
		s.Reason = ForeignMAC
	case g.Holder == HolderMember:
		s.Reason = AnsweredElsewhere
	case g.Holder == HolderUnknown:
		s.Reason = OwnerUnproven
	case f.Unfit:
		s.Reason = NotFit
	case min(g.SilentFor, f.NoLeaderFor) < ClaimAfter*time.Duration(1+rank(f, g)):
		s.Reason = NotFirst
	default:
		s.Hold, s.Announce, s.Claimed, s.Reason = true, true, true, ClaimedNoLeader
	}
}

// rank is how many members claim before this node. The log's last owner waits for
// nobody: the servers already know its MAC.
func rank(f *Facts, g *GatewayFacts) int {
	if g.Owner == f.Self {
		return 0
	}
	before := 0
	own := rendezvous(g.Addr, f.Self)
	for _, id := range f.Live {
		if id != f.Self && rendezvous(g.Addr, id) > own {
			before++
		}
	}
	return before
}

// sortedLive makes the list of live members one that every node makes alike.
func sortedLive(ids []state.NodeID) []state.NodeID {
	slices.SortFunc(ids, func(a, b state.NodeID) int { return cmp.Compare(a.String(), b.String()) })
	return slices.Compact(ids)
}
