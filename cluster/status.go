package cluster

import "github.com/vpnlb/vpnlb/cluster/state"

// PlaneMode says how the node's data plane is attached. Values are on the wire.
type PlaneMode uint8

const (
	PlaneNone    PlaneMode = 0 // not attached, or a witness
	PlaneNative  PlaneMode = 1
	PlaneGeneric PlaneMode = 2
)

// NodeStatus is what a node says of itself. It is a hint: good enough to wait
// for, to display and to doubt by, never to decide who is a member.
type NodeStatus struct {
	Role         state.Role
	Boot         uint64       // the node's boot counter
	Format       uint16       // highest command format the node understands
	Applied      uint64       // index of the last applied command
	PlaneApplied uint64       // index that the kernel maps have reached
	Generation   uint64       // state.Spec.Generation that the kernel maps have reached
	RaftTerm     uint64       // of its store: peers remember both, for a store that went back in time
	RaftLast     uint64       // last log index
	Leader       state.NodeID // who it believes leads; zero: nobody
	Quorum       bool         // it heard from a leader lately
	CaughtUp     bool
	Draining     bool
	Demoted      bool
	PlaneHealthy bool
	Plane        PlaneMode
	Announced    []state.VIPID     // announced to at least one router
	Gateways     []state.GatewayID // floating addresses it holds
	Activity     []BackendActivity // at most one for each backend
}

// BackendActivity counts packets from a backend to clients through this node,
// since the boot in NodeStatus.Boot: the passive evidence that a server lives.
type BackendActivity struct {
	Backend state.BackendID
	ESP     uint64 // ESP, also in UDP
	SK      uint64 // IKE with an encrypted payload
}
