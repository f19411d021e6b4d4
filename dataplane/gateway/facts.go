package gateway

import (
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Agreement is what the node knows of the cluster when the Keeper asks. The
// Keeper does not change what its slices hold.
type Agreement struct {
	// CaughtUp: this node's state is not older than the cluster's (latched), or
	// a cold start was declared. Before, the Keeper keeps the addresses it finds
	// and is silent about them.
	CaughtUp bool
	// LeaderHeard is when a leader last confirmed this node; now, on the leader
	// itself while its lease holds; zero: never.
	LeaderHeard time.Time
	Gateways    []state.Gateway
	VIPs        []netip.Addr
	// Peers are the other members and their state by gossip.
	Peers []Peer
	// Unfit: this node should own nothing (draining, an arm is dead, it cannot carry
	// replies). It still keeps what the log gives it, but claims nothing by itself.
	Unfit bool
}

// Peer is another member of the cluster.
type Peer struct {
	ID    state.NodeID
	Addrs []netip.Addr // its own addresses; those on the inside segment show its MAC
	Live  bool         // heard of lately, and fit to own a gateway
}

// Holder says who answers for a gateway address on the segment, as far as this
// node's own probes know.
type Holder uint8

// Holders.
const (
	HolderUnknown Holder = iota // not asked yet, or asked a moment ago
	HolderNobody                // asked, no answer
	HolderMember                // a member's MAC answers
	HolderForeign               // a MAC that is no member's answers
)

// GatewayFacts is one address.
type GatewayFacts struct {
	ID    state.GatewayID
	Addr  netip.Addr
	Owner state.NodeID // by the log; zero: nobody yet
	Held  bool         // on this node's interface now
	// Claimed: held because this node claimed it without a leader.
	Claimed bool
	Holder  Holder
	MAC     [6]byte // of who answers, where Holder says that somebody does
	// SilentFor is how long probes have gone unanswered without a gap.
	SilentFor time.Duration
}

// VIPFacts is one VIP.
type VIPFacts struct {
	Addr netip.Addr
	Held bool // on lo now
}

// Facts is all that Decide looks at.
type Facts struct {
	Self     state.NodeID
	CaughtUp bool
	Unfit    bool
	// Confirmed: a leader was heard within the lease.
	Confirmed bool
	// NoLeaderFor is the time since the lease ran out; 0 while Confirmed.
	NoLeaderFor time.Duration
	// Suspended: the process stood still for longer than the lease, and no
	// leader has been heard since.
	Suspended bool
	Live      []state.NodeID // live, fit members; with Self unless Unfit
	Gateways  []GatewayFacts
	VIPs      []VIPFacts
	// Addresses of ours on the inside interface and on lo that neither Gateways
	// nor VIPs name.
	FoundGateways, FoundVIPs []netip.Addr
}

// Reason names why a step is as it is.
type Reason uint8

// Reasons.
const (
	ReasonNone        Reason = iota
	CatchingUp               // keeps what it finds, silent
	Owner                    // the log says it is ours
	OwnerElsewhere           // the log says it is another's
	OwnerNobody              // the log names nobody yet
	OwnerUnproven            // ours, but the segment was not asked yet who has it
	ForeignMAC               // somebody outside the cluster has it
	KeptWithoutLeader        // held when the leader was lost: kept, silent
	ClaimedNoLeader          // nobody answers, no leader: ours until one speaks
	AnsweredElsewhere        // no leader, but somebody answers for it
	NotFirst                 // no leader, nobody answers: another member claims first
	SuspendedGap             // the process stood still: no claim before a leader speaks
	NotFit                   // this node should own nothing
	Removed                  // not in the spec any more
	Wanted                   // a VIP of the spec
	gatewayReasonCount
)

var reasonNames = [gatewayReasonCount]string{
	"none", "catching_up", "owner", "owner_elsewhere", "owner_nobody", "owner_unproven", "foreign_mac",
	"kept_without_leader", "claimed_no_leader", "answered_elsewhere", "not_first", "suspended",
	"not_fit", "removed", "wanted",
}

// String names the reason as metrics and status show it.
func (r Reason) String() string {
	if r < gatewayReasonCount {
		return reasonNames[r]
	}
	return "invalid"
}

// Step is what should be so for one address.
type Step struct {
	Addr     netip.Addr
	Gateway  state.GatewayID // 0: a VIP, or an address that is no gateway any more
	Hold     bool            // on the interface
	Announce bool            // said to the segment, by the schedule
	Claimed  bool            // held without the log's word
	Alarm    bool            // an administrator must look: a stranger answers for it
	Reason   Reason
}

// Plan is the whole of it: every address of Facts once.
type Plan struct {
	Gateways []Step
	VIPs     []Step
}
