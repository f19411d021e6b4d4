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

// settleFor is for how long a member that has become fit is believed as it speaks, and
// nothing is remembered: its path is just coming back, server by server. Where the link
// was cut, fitness has moved its gateways already; to keep them away for blindFor would
// make them return at a moment when nothing happens any more.
const settleFor = 5 * time.Second

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
func (m *member) noteBlindness(fit []state.NodeID, now time.Time) {
	said := make(map[state.NodeID][]state.BackendID)
	for _, h := range m.hints() {
		said[h.Node] = h.Status.Alone
	}
	said[m.self] = m.aloneMissed()
	m.blind.noteFit(m.fitSince, fit, said, now)
}

// noteFit notes what the members that are fit for gateways say, and forgets what the
// others said. since tells from when on each is fit; it is kept here.
func (b blindness) noteFit(since map[state.NodeID]time.Time, fit []state.NodeID, said map[state.NodeID][]state.BackendID, now time.Time) {
	for id := range since {
		if !slices.Contains(fit, id) {
			delete(since, id)
			delete(b, id)
		}
	}
	for _, id := range fit {
		if _, ok := since[id]; !ok {
			since[id] = now
		}
		if now.Sub(since[id]) < settleFor {
			delete(b, id)
		}
		b.note(id, said[id], now)
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
