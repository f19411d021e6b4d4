package node

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
)

// The peers file stands beside the identity, apart from the store: a node
// whose store is gone or untrustworthy still knows whom to ask.
const filePeers = "peers.json"

// fileFirst holds what init is bootstrapped with until the log has it: a crash
// in between must not leave a node that belongs to a cluster without a log.
const fileFirst = "init.batch"

// peersFile is what is remembered, and under which node ID: a store that is
// blank although this node has been a member under this ID was lost.
type peersFile struct {
	Self  state.NodeID `json:"self"`
	Peers []knownPeer  `json:"peers"`
}

// knownPeer is one member as this node last knew it.
type knownPeer struct {
	ID   state.NodeID `json:"id"`
	Addr string       `json:"addr"`
	Key  []byte       `json:"key"`
}

// errNoPeers: a node that is alone has nobody to ask.
var errNoPeers = errors.New("no other member is known")

func (n *Node) peersPath() string { return filepath.Join(n.identityDir(), filePeers) }
func (n *Node) firstPath() string { return filepath.Join(n.identityDir(), fileFirst) }

func (n *Node) readPeers() (peersFile, error) {
	b, err := os.ReadFile(n.peersPath())
	if errors.Is(err, os.ErrNotExist) {
		return peersFile{}, nil
	}
	if err != nil {
		return peersFile{}, fmt.Errorf("read the known peers: %w", err)
	}
	var out peersFile
	if err := json.Unmarshal(b, &out); err != nil {
		n.setFileAside(n.peersPath(), err.Error(), "it is written anew when this node has caught up")
		return peersFile{}, nil
	}
	return out, nil
}

// rememberPeers writes the member list where it changed, and tells the peers
// how far this node's store is. A node that has no peers writes that, too: it
// was a member all the same.
func (m *member) rememberPeers(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.replica.Started():
	}
	m.keepOwner()
	var written []knownPeer
	wrote := false
	for {
		var now []knownPeer
		spec := m.spec()
		for i := range spec.Members {
			if other := &spec.Members[i]; other.ID != m.self {
				now = append(now, knownPeer{ID: other.ID, Addr: other.Cluster, Key: other.PublicKey})
			}
		}
		same := slices.EqualFunc(now, written, func(a, b knownPeer) bool { return a.ID == b.ID && a.Addr == b.Addr })
		if (!same || !wrote) && m.caughtUp.Load() {
			b, err := json.Marshal(peersFile{Self: m.self, Peers: now})
			if err != nil {
				return err
			}
			if err := transport.WriteFileAtomic(m.node.peersPath(), b, 0o600); err != nil {
				m.log.Warn("remember the peers", "error", err.Error())
			} else {
				written, wrote = now, true
			}
		}
		if m.tellMark(ctx, now) {
			return errReverted
		}
		m.keepLastGood()
		m.tellAddresses(ctx, spec)
		if !pause(ctx, 5*time.Second) {
			return nil
		}
	}
}

// tellAddresses keeps the member list's addresses of this node true: replies
// to an address that is missing there would be taken for return traffic.
//
// It also takes back the mark of a leave that was given up.
func (m *member) tellAddresses(ctx context.Context, spec *state.Spec) {
	select {
	case m.ownEntry <- struct{}{}:
		defer func() { <-m.ownEntry }()
	default:
		return
	}
	if m.leaving.Load() {
		return // it waits for the lock, and writes the mark
	}
	self, ok := spec.MemberByID(m.self)
	now, err := m.presentAddresses(spec)
	if !ok || err != nil || !m.caughtUp.Load() || len(now) == 0 {
		return
	}
	slices.SortFunc(now, netip.Addr.Compare)
	known := slices.Clone(self.Addrs)
	slices.SortFunc(known, netip.Addr.Compare)
	if slices.Equal(now, known) && !self.Draining && self.Format == state.Format && !m.elsewhere(self) {
		return
	}
	changed := *self
	changed.Cluster, changed.Gossip = m.cfg.Cluster.Address.String(), m.cfg.Cluster.Gossip.String()
	changed.Addrs, changed.Draining = now, false
	changed.Format = state.Format // this binary may be newer than the one that joined
	if fault := joinClash(spec, &joinRequest{Cluster: changed.Cluster, Gossip: changed.Gossip, Addrs: now}); fault != "" {
		if err := errors.New(fault); m.movedFault.set(err) {
			m.log.Warn("the own entry in the member list stays as it was", "error", fault)
		}
		return
	}
	m.movedFault.set(nil)
	if m.propose(ctx, state.UpdateMember{Member: changed}) {
		m.log.Info("own entry in the member list changed", "addresses", now)
	}
}

// removalOf signs the statement that a node was removed, for that node.
func (m *member) removalOf(id state.NodeID) []byte {
	r, ok := m.spec().RemovedByID(id)
	if !ok {
		return nil
	}
	own := m.ids.Identity()
	return transport.SignRemoval(transport.Removal{Cluster: own.Cluster(), Node: id, Index: r.Index, Signer: m.self}, own.Key)
}

// checkRemoved looks whether a refusal says, signed by a member this node
// knew, that it was removed. Then it withdraws, drops its gateways and parks.
func (m *member) checkRemoved(err error) {
	var told *transport.RemovedError
	if !errors.As(err, &told) || m.removed.Load() != nil {
		return
	}
	r, err := transport.VerifyRemoval(told.Statement, func(id state.NodeID) (ed25519.PublicKey, bool) { return m.memberKey(id) })
	if err != nil || r.Node != m.self || r.Cluster != m.ids.Identity().Cluster() {
		m.log.Warn("a statement of removal was not believed", "error", fmt.Sprint(err))
		return
	}
	if !m.removed.CompareAndSwap(nil, &r) {
		return
	}
	m.log.Error("this node was removed from the cluster", "index", r.Index, "by", r.Signer.String())
	m.park(fmt.Sprintf("removed from the cluster at log index %d; 'vpnlb cluster leave' clears it for a new join", r.Index))
	m.stopRaft()
	m.keeper.Kick()
}

// keepFirst and forgetFirst bracket a bootstrap.
func (n *Node) keepFirst(init state.Init) error {
	return transport.WriteFileAtomic(n.firstPath(), state.EncodeBatch(state.Batch{Envelopes: []state.Envelope{{Command: init}}}), 0o600)
}

func (n *Node) forgetFirst() {
	if err := os.Remove(n.firstPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		n.log.Warn("remove the init file", "error", err.Error())
	}
}

// firstOf reads what to bootstrap this cluster with; nil: nothing, or an init
// of another cluster that was cut short, which is forgotten.
func (n *Node) firstOf(cluster state.ClusterID) *firstMember {
	first := n.readFirst()
	if first != nil && first.init.ClusterID != cluster {
		n.forgetFirst()
		return nil
	}
	return first
}

// readFirst gives nil for a damaged file, too: a cluster whose log was begun needs
// none, and the other way is to begin again.
func (n *Node) readFirst() *firstMember {
	b, err := os.ReadFile(n.firstPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	var batch state.Batch
	if err == nil {
		batch, err = state.DecodeBatch(b)
	}
	if err == nil && len(batch.Envelopes) == 1 {
		if init, ok := batch.Envelopes[0].Command.(state.Init); ok {
			return &firstMember{init: init}
		}
	}
	if err == nil {
		err = errors.New("it holds another command")
	}
	n.setFileAside(n.firstPath(), err.Error(), "if this node does not start, 'vpnlb cluster leave --force' here and init again")
	return nil
}
