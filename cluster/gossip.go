package cluster

import (
	"fmt"
	"log"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/vpnlb/vpnlb/cluster/state"
)

const (
	// retransmitMult times log10(N+1), rounded up, is how often a hint is sent.
	retransmitMult = 4
	// maxQueued bounds the parts waiting to be sent. Newer parts replace older
	// ones of the same place, so the bound is what all members can fill.
	maxQueued = state.MaxMembers * 2 * maxParts
	// packetSize is the most bytes in one UDP packet: an Ethernet frame with
	// room for a tunnel's headers.
	packetSize = 1400
)

// listConfig states everything; nothing is left to the library's defaults.
// They are those of its LAN profile but where a comment says why not.
func (m *Membership) listConfig() *memberlist.Config {
	bind := netip.MustParseAddrPort(m.cfg.Bind) // checked by New
	c := &memberlist.Config{
		Name:                    m.cfg.Node.String(),
		Transport:               m.deps.Transport,
		Label:                   m.cfg.Cluster.String(), // authenticated with each packet
		BindAddr:                bind.Addr().String(),
		BindPort:                int(bind.Port()),
		AdvertiseAddr:           bind.Addr().String(),
		AdvertisePort:           int(bind.Port()),
		ProtocolVersion:         memberlist.ProtocolVersionMax,
		TCPTimeout:              3 * time.Second, // 10 s: a dead address would hold a round of joins up
		IndirectChecks:          3,
		RetransmitMult:          retransmitMult,
		SuspicionMult:           4,
		SuspicionMaxTimeoutMult: 6,
		PushPullInterval:        30 * time.Second,
		ProbeInterval:           m.cfg.ProbeInterval,
		ProbeTimeout:            m.cfg.ProbeInterval / 2,
		AwarenessMaxMultiplier:  8,
		GossipInterval:          200 * time.Millisecond,
		GossipNodes:             3,
		GossipToTheDeadTime:     30 * time.Second,
		GossipVerifyIncoming:    true,
		GossipVerifyOutgoing:    true,
		EnableCompression:       false, // hints are small, and what is not decompressed cannot explode
		Keyring:                 m.ring,
		Delegate:                delegate{m},
		Events:                  delegate{m},
		Alive:                   delegate{m},
		Conflict:                delegate{m},
		Logger:                  log.New(logWriter{m.log}, "", 0),
		HandoffQueueDepth:       1024,
		UDPBufferSize:           packetSize,
		DeadNodeReclaimTime:     10 * time.Second, // 0: a node that comes back at another address would stay dead
		QueueCheckInterval:      30 * time.Second,
		MsgpackUseNewTimeFormat: true,
	}
	for _, p := range m.cfg.Allowed {
		c.CIDRsAllowed = append(c.CIDRsAllowed, net.IPNet{
			IP:   p.Masked().Addr().AsSlice(),
			Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen()),
		})
	}
	return c
}

// delegate is what memberlist calls. None of it may block.
type delegate struct{ m *Membership }

// NodeMeta implements memberlist.Delegate: we use none.
func (d delegate) NodeMeta(int) []byte { return nil }

// NotifyMsg implements memberlist.Delegate.
func (d delegate) NotifyMsg(b []byte) {
	if _, v := d.m.receive(b, 0); v == partFresh {
		d.m.notify()
	}
}

// GetBroadcasts implements memberlist.Delegate.
func (d delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.m.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate.
func (d delegate) LocalState(bool) []byte { return d.m.ledger.bundle(true) }

// MergeRemoteState implements memberlist.Delegate.
func (d delegate) MergeRemoteState(b []byte, _ bool) {
	if err := d.m.Deliver(b); err != nil {
		d.m.log.Debug("part of a peer's state refused", "err", err)
	}
}

// NotifyAlive implements memberlist.AliveDelegate: who is no committed member
// is no peer, whatever key he holds.
func (d delegate) NotifyAlive(n *memberlist.Node) error {
	id, err := state.ParseNodeID(n.Name)
	if err != nil {
		return err
	}
	if _, ok := d.m.deps.Member(id); !ok && id != d.m.cfg.Node {
		return fmt.Errorf("node %s is not a member", id)
	}
	return nil
}

// NotifyConflict implements memberlist.ConflictDelegate.
func (d delegate) NotifyConflict(a, b *memberlist.Node) {
	d.m.log.Error("two nodes with one ID", "node", a.Name, "addr", a.Address(), "other", b.Address())
}

// NotifyJoin implements memberlist.EventDelegate.
func (d delegate) NotifyJoin(n *memberlist.Node) { d.m.setPeer(n, "alive") }

// NotifyUpdate implements memberlist.EventDelegate.
func (d delegate) NotifyUpdate(n *memberlist.Node) { d.m.setPeer(n, "alive") }

// NotifyLeave implements memberlist.EventDelegate. Whether the node died or
// left the library does not say here (v0.7.0 leaves Node.State at its zero).
func (d delegate) NotifyLeave(n *memberlist.Node) { d.m.setPeer(n, "gone") }

func (m *Membership) setPeer(n *memberlist.Node, what string) {
	id, err := state.ParseNodeID(n.Name)
	if err != nil {
		return // NotifyAlive let nobody in without an ID
	}
	p := Peer{Node: id, Addr: n.Address(), State: what}
	m.mu.Lock()
	if m.peers[id] != p {
		m.log.Info("gossip peer", "node", n.Name, "addr", p.Addr, "state", what)
	}
	m.peers[id] = p
	m.live = 0
	for _, q := range m.peers {
		if q.State == "alive" {
			m.live++
		}
	}
	m.met.live.Set(float64(m.live))
	m.mu.Unlock()
	m.notify()
}

// Peers returns gossip's own view, this node included, by node ID; nodes that
// are members no more are left out.
func (m *Membership) Peers() []Peer {
	m.mu.Lock()
	all := make([]Peer, 0, len(m.peers))
	for _, p := range m.peers {
		all = append(all, p)
	}
	m.mu.Unlock()
	out := slices.DeleteFunc(all, func(p Peer) bool {
		_, ok := m.deps.Member(p.Node)
		return !ok && p.Node != m.cfg.Node
	})
	slices.SortFunc(out, func(a, b Peer) int { return slices.Compare(a.Node[:], b.Node[:]) })
	return out
}

func (m *Membership) isAlive(id state.NodeID) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peers[id].State == "alive"
}

func (m *Membership) aliveAt(addr string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.peers {
		if p.Addr == addr && p.State == "alive" {
			return true
		}
	}
	return false
}

func (m *Membership) numLive() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(1, m.live)
}

// broadcast is one part waiting to be sent. A newer part of the same place
// (origin, kind, number) takes its turn over.
type broadcast struct {
	name string
	raw  []byte
}

var _ memberlist.NamedBroadcast = (*broadcast)(nil)

func broadcastName(id state.NodeID, k kind, part int) string {
	return string(append(id[:], byte(k), byte(part)))
}

// Name implements memberlist.NamedBroadcast: by it the queue invalidates.
func (b *broadcast) Name() string { return b.name }

// Invalidates implements memberlist.Broadcast.
func (b *broadcast) Invalidates(o memberlist.Broadcast) bool {
	other, ok := o.(*broadcast)
	return ok && other.name == b.name
}

// Message implements memberlist.Broadcast.
func (b *broadcast) Message() []byte { return b.raw }

// Finished implements memberlist.Broadcast.
func (b *broadcast) Finished() {}

// logWriter takes memberlist's lines ("[WARN] memberlist: text"). Its warnings
// are about single packets and dead peers, which are ordinary here: they are
// for debugging, and its errors are our information.
type logWriter struct{ log *slog.Logger }

func (w logWriter) Write(p []byte) (int, error) {
	line := strings.TrimSpace(string(p))
	if text, ok := strings.CutPrefix(line, "[ERR] "); ok {
		w.log.Info("gossip library", "text", strings.TrimPrefix(text, "memberlist: "))
	} else {
		w.log.Debug("gossip library", "text", line)
	}
	return len(p), nil
}
