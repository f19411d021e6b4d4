package node

import (
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
)

// A gateway's owner that does not reach a server, though others do, is a dead end
// for that server's replies. It says so in its status, and the leader moves the gateway
// to a member that misses fewer of the servers.

// blindFor is for how long a server counts as missed after a member has said so for the
// last time: a path that comes and goes moves a gateway once.
const blindFor = 30 * time.Second

// blindness remembers when each member last said that it alone does not reach a
// server. The leader's duties write and read it; a new leader begins without.
type blindness map[state.NodeID]map[state.BackendID]time.Time

// note takes what a member says, and forgets what is over.
func (b blindness) note(id state.NodeID, alone []state.BackendID, now time.Time) {
	said := b[id]
	for backend, at := range said {
		if now.Sub(at) > blindFor {
			delete(said, backend)
		}
	}
	if said == nil && len(alone) > 0 {
		said = make(map[state.BackendID]time.Time)
		b[id] = said
	}
	for _, backend := range alone {
		said[backend] = now
	}
	if len(said) == 0 {
		delete(b, id)
	}
}

// misses counts the servers that a member alone does not reach and that may send
// their replies to a gateway: those of its family whose replies come by the cluster.
// Which gateway a server uses is set on the server, and not known here.
func (b blindness) misses(spec *state.Spec) gateway.Misses {
	return func(id state.NodeID, gw netip.Addr) (n int) {
		for backend := range b[id] {
			if s, ok := spec.BackendByID(backend); ok && s.Mode != state.ModeDSR && s.Addr.Is4() == gw.Is4() {
				n++
			}
		}
		return n
	}
}

// noteBlindness takes the word of every member, this one included.
func (m *member) noteBlindness(spec *state.Spec, now time.Time) {
	for id := range m.blind {
		if _, ok := spec.MemberByID(id); !ok {
			delete(m.blind, id)
		}
	}
	hints := m.hints()
	for i := range spec.Members {
		id := spec.Members[i].ID
		var alone []state.BackendID
		if id == m.self {
			alone = m.aloneMissed()
		}
		for _, h := range hints {
			if h.Node == id {
				alone = h.Status.Alone
			}
		}
		m.blind.note(id, alone, now)
	}
}

// aloneMissed are the servers that this node does not reach, though others do.
func (m *member) aloneMissed() []state.BackendID {
	if alone := m.fit.alone.Load(); alone != nil {
		return *alone
	}
	return nil
}

// setAlone reports whether there is anything new in it.
func (f *fitness) setAlone(alone []state.BackendID) bool {
	was := f.alone.Swap(&alone)
	return was == nil && len(alone) > 0 || was != nil && !slices.Equal(*was, alone)
}

// tellSoon has this node's status published at once.
func (m *member) tellSoon() {
	select {
	case m.tell <- struct{}{}:
	default:
	}
}
