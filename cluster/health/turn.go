package health

import (
	"bytes"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Who makes a call of SSTP, and when, without a word between the nodes: time is
// cut into slots of Deep each, and each slot of a server belongs to one member.

// CallFacts is what a node's part in the calls is judged by.
type CallFacts struct {
	Spec      *state.Spec
	Self      state.NodeID
	Now       state.Time // cluster time, as well as this node knows it
	Observers []Observer
}

// Call is a node's part in the calls of one server.
type Call struct {
	Slot uint64
	Turn bool // the slot is this node's
	// Failing tells that calls of another member fail; for that long, by the
	// latest that began to. Who has not asked since should ask.
	Failing bool
	Since   time.Duration
}

// Calls gives this node's part in the calls of each server that gets some. It is
// pure.
func Calls(targets []Target, f CallFacts) map[state.BackendID]Call {
	var members []state.NodeID
	for i := range f.Spec.Members {
		if m := &f.Spec.Members[i]; m.Role == state.RoleNode {
			members = append(members, m.ID)
		}
	}
	calls := map[state.BackendID]Call{}
	for _, t := range targets {
		if t.SSTP == nil || t.SSTP.Deep <= 0 {
			continue
		}
		slot := deepSlot(f.Now, t.SSTP.Deep, t.Backend)
		calls[t.Backend] = Call{Slot: slot, Turn: DeepTurn(members, f.Self, t.Backend, slot)}
	}
	if len(calls) == 0 {
		return calls
	}
	for _, o := range f.Observers {
		if o.Member == f.Self || o.Age > ObservationFresh || !slices.Contains(members, o.Member) {
			continue
		}
		for _, s := range o.Observation.Seen {
			if s.Failing == 0 {
				continue
			}
			c, ok := calls[s.Backend]
			if !ok {
				continue
			}
			if since := s.Failing + o.Age; !c.Failing || since < c.Since {
				c.Failing, c.Since = true, since
				calls[s.Backend] = c
			}
		}
	}
	return calls
}

// DeepTurn reports whether a slot of a server belongs to self. Members take the
// slots in rotation, so that each finds out with its own calls, and one that is
// away costs its own slots alone; servers begin at different members.
func DeepTurn(members []state.NodeID, self state.NodeID, id state.BackendID, slot uint64) bool {
	if len(members) == 0 {
		return false
	}
	sorted := slices.SortedFunc(slices.Values(members), func(a, b state.NodeID) int { return bytes.Compare(a[:], b[:]) })
	return sorted[(uint64(id)+slot)%uint64(len(sorted))] == self
}

// deepSlot numbers the slots of a server. They begin at different moments for
// different servers: a pool is not called all at once.
func deepSlot(now state.Time, every time.Duration, id state.BackendID) uint64 {
	phase := uint64(id) * 0x9e3779b97f4a7c15 % uint64(every) // 2^64 by the golden ratio: neighbours lie far apart
	return (uint64(max(now, 0)) + phase) / uint64(every)
}
