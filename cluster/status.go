package cluster

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vpnlb/vpnlb/cluster/state"
)

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
	ArmDead      bool // one of its arms is dead: no gateway should be here
	Unfit        bool // it cannot carry servers' replies, or reaches no server: the same; older versions never say it
	RaftOff      bool // consensus is parked: it answers, but does not vote
	Plane        PlaneMode
	Announced    []state.VIPID     // announced to at least one router in session
	Willing      []state.VIPID     // would be announced by its own judgement, whatever the others do, to a router in session
	Gateways     []state.GatewayID // floating addresses that are on its interface
	Activity     []BackendActivity // at most one for each backend
	// Appended to form 1: older versions neither say nor read these. At most MaxDoubts each.
	Alone      []state.BackendID // called up by the cluster and reached by others, but not by this node
	Unanswered []state.BackendID // their answers passed this node and have stopped, though clients go on sending
}

// MaxDoubts bounds the lists of servers in doubt: the largest status must fit one
// payload, and a node that misses more than these has said enough.
const MaxDoubts = 64

// BackendActivity counts packets from a backend to clients through this node,
// since the boot in NodeStatus.Boot: the passive evidence that a server lives.
type BackendActivity struct {
	Backend state.BackendID
	ESP     uint64 // ESP, also in UDP
	SK      uint64 // IKE with an encrypted payload
}

// Form 1 of a status: version (1) | role (1) | plane mode (1) | flags (1) |
// leader (16) | format, applied, plane applied, generation, raft term, raft
// last (uvarints) | announced, willing, gateways (count, IDs) | activity (count,
// then backend, ESP, SK), all uvarints; alone, unanswered (count, IDs), which may be
// missing. What a newer version appends is
// ignored, and so are flags it does not know; a change of what is here needs a
// new form. All eight flags are taken: the next one is an appended byte.
const statusVersion = 1

const (
	flagQuorum = 1 << iota
	flagCaughtUp
	flagDraining
	flagDemoted
	flagPlaneHealthy
	flagArmDead
	flagRaftOff
	flagUnfit
)

// maxID is the largest identifier (VIPID, BackendID, GatewayID).
const maxID = 1<<32 - 1

func (s *NodeStatus) check() error {
	switch {
	case len(s.Announced) > state.MaxVIPs:
		return fmt.Errorf("status with %d announced VIPs, most are %d", len(s.Announced), state.MaxVIPs)
	case len(s.Willing) > state.MaxVIPs:
		return fmt.Errorf("status with %d willing VIPs, most are %d", len(s.Willing), state.MaxVIPs)
	case len(s.Gateways) > state.MaxGateways:
		return fmt.Errorf("status with %d gateways, most are %d", len(s.Gateways), state.MaxGateways)
	case len(s.Activity) > state.MaxBackends:
		return fmt.Errorf("status with the activity of %d backends, most are %d", len(s.Activity), state.MaxBackends)
	case len(s.Alone) > MaxDoubts || len(s.Unanswered) > MaxDoubts:
		return fmt.Errorf("status with %d and %d servers in doubt, most are %d", len(s.Alone), len(s.Unanswered), MaxDoubts)
	}
	return nil
}

func (s *NodeStatus) encode() []byte {
	var flags byte
	for bit, on := range map[byte]bool{
		flagQuorum: s.Quorum, flagCaughtUp: s.CaughtUp, flagDraining: s.Draining,
		flagDemoted: s.Demoted, flagPlaneHealthy: s.PlaneHealthy, flagArmDead: s.ArmDead,
		flagRaftOff: s.RaftOff, flagUnfit: s.Unfit,
	} {
		if on {
			flags |= bit
		}
	}
	b := []byte{statusVersion, byte(s.Role), byte(s.Plane), flags}
	b = append(b, s.Leader[:]...)
	for _, v := range []uint64{uint64(s.Format), s.Applied, s.PlaneApplied, s.Generation, s.RaftTerm, s.RaftLast} {
		b = binary.AppendUvarint(b, v)
	}
	for _, list := range [][]state.VIPID{s.Announced, s.Willing} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, v := range list {
			b = binary.AppendUvarint(b, uint64(v))
		}
	}
	b = binary.AppendUvarint(b, uint64(len(s.Gateways)))
	for _, g := range s.Gateways {
		b = binary.AppendUvarint(b, uint64(g))
	}
	b = binary.AppendUvarint(b, uint64(len(s.Activity)))
	for _, a := range s.Activity {
		b = binary.AppendUvarint(b, uint64(a.Backend))
		b = binary.AppendUvarint(b, a.ESP)
		b = binary.AppendUvarint(b, a.SK)
	}
	for _, list := range [][]state.BackendID{s.Alone, s.Unanswered} {
		b = binary.AppendUvarint(b, uint64(len(list)))
		for _, v := range list {
			b = binary.AppendUvarint(b, uint64(v))
		}
	}
	return b
}

// decodeStatus reads a status; the boot is the hint's, not in the payload.
func decodeStatus(b []byte, boot uint64) (*NodeStatus, error) {
	r := reader{b: b}
	if v := r.byte(); v != statusVersion {
		return nil, fmt.Errorf("status has form %d, not %d", v, statusVersion)
	}
	s := &NodeStatus{Boot: boot, Role: state.Role(r.byte()), Plane: PlaneMode(r.byte())}
	flags := r.byte()
	s.Quorum, s.CaughtUp = flags&flagQuorum != 0, flags&flagCaughtUp != 0
	s.Draining, s.Demoted = flags&flagDraining != 0, flags&flagDemoted != 0
	s.PlaneHealthy, s.ArmDead, s.RaftOff = flags&flagPlaneHealthy != 0, flags&flagArmDead != 0, flags&flagRaftOff != 0
	s.Unfit = flags&flagUnfit != 0
	copy(s.Leader[:], r.take(uint64(len(s.Leader))))
	s.Format = uint16(r.bounded(1<<16 - 1))
	for _, v := range []*uint64{&s.Applied, &s.PlaneApplied, &s.Generation, &s.RaftTerm, &s.RaftLast} {
		*v = r.uvarint()
	}
	for _, list := range []*[]state.VIPID{&s.Announced, &s.Willing} {
		for range r.count(state.MaxVIPs) {
			*list = append(*list, state.VIPID(r.bounded(maxID)))
		}
	}
	for range r.count(state.MaxGateways) {
		s.Gateways = append(s.Gateways, state.GatewayID(r.bounded(maxID)))
	}
	for range r.count(state.MaxBackends) {
		s.Activity = append(s.Activity, BackendActivity{
			Backend: state.BackendID(r.bounded(maxID)), ESP: r.uvarint(), SK: r.uvarint(),
		})
	}
	for _, list := range []*[]state.BackendID{&s.Alone, &s.Unanswered} {
		if len(r.b) == 0 {
			break // an older version
		}
		for range r.count(MaxDoubts) {
			*list = append(*list, state.BackendID(r.bounded(maxID)))
		}
	}
	if r.bad {
		return nil, errors.New("status is cut short or beyond its limits")
	}
	return s, nil
}
