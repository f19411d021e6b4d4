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
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/raft"
)

// The peers file stands beside the identity, apart from the store: a node
// whose store is gone or untrustworthy still knows whom to ask.
const filePeers = "peers.json"

// fileFirst holds what init is bootstrapped with until the log has it: a crash
// in between must not leave a node that belongs to a cluster without a log.
const fileFirst = "init.batch"

// fileFresh holds the new node ID that a node without its store has asked for:
// the answer may be lost, and asking again must name the same one.
const fileFresh = "fresh-id"

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
		return peersFile{}, fmt.Errorf("read the known peers in %s: %w", n.peersPath(), err)
	}
	return out, nil
}

// rememberPeers writes the member list where it changed, and tells the peers
// how far this node's store is.
func (m *member) rememberPeers(ctx context.Context) error {
	var written []knownPeer
	for {
		var now []knownPeer
		spec := m.spec()
		for i := range spec.Members {
			if other := &spec.Members[i]; other.ID != m.self {
				now = append(now, knownPeer{ID: other.ID, Addr: other.Cluster, Key: other.PublicKey})
			}
		}
		same := slices.EqualFunc(now, written, func(a, b knownPeer) bool { return a.ID == b.ID && a.Addr == b.Addr })
		if !same && m.caughtUp.Load() {
			b, err := json.Marshal(peersFile{Self: m.self, Peers: now})
			if err != nil {
				return err
			}
			if err := transport.WriteFileAtomic(m.node.peersPath(), b, 0o600); err != nil {
				m.log.Warn("remember the peers", "error", err.Error())
			} else {
				written = now
			}
		}
		m.tellMark(ctx, now)
		m.tellAddresses(ctx, spec)
		if !pause(ctx, 5*time.Second) {
			return nil
		}
	}
}

func (m *member) tellMark(ctx context.Context, peers []knownPeer) {
	mark := m.replica.Status().Mark
	for _, p := range peers {
		if m.contacts.silence(p.ID) > silentAfter {
			continue
		}
		call, cancel := context.WithTimeout(ctx, contactTimeout)
		err := m.transport.Call(call, transport.Target{Addr: p.Addr, Node: p.ID}, pathMark, mark, nil)
		cancel()
		if err != nil {
			m.log.Debug("tell the store's mark", "error", err.Error())
		}
	}
}

// tellAddresses keeps the member list's addresses of this node true: replies
// to an address that is missing there would be taken for return traffic.
//
// It also takes back the mark of a leave that was given up.
func (m *member) tellAddresses(ctx context.Context, spec *state.Spec) {
	if !m.leaving.TryLock() {
		return
	}
	defer m.leaving.Unlock()
	self, ok := spec.MemberByID(m.self)
	now, err := ownAddresses(func(a netip.Addr) bool {
		_, gateway := spec.GatewayByAddr(a)
		_, vip := spec.VIPByAddr(a)
		return gateway || vip
	})
	if !ok || err != nil || !m.caughtUp.Load() || len(now) == 0 {
		return
	}
	slices.SortFunc(now, netip.Addr.Compare)
	known := slices.Clone(self.Addrs)
	slices.SortFunc(known, netip.Addr.Compare)
	if slices.Equal(now, known) && !self.Draining && self.Format == state.Format {
		return
	}
	changed := *self
	changed.Addrs, changed.Draining = now, false
	changed.Format = state.Format // this binary may be newer than the one that joined
	if m.propose(ctx, state.UpdateMember{Member: changed}) {
		m.log.Info("own entry in the member list changed", "addresses", now)
	}
}

// vetTime bounds the question whether the store went back in time. Nobody
// answering must not keep a node from starting.
const vetTime = 2 * time.Second

// vetStore asks the peers, before raft starts, how far they remember this
// node's store: a reverted virtual machine must not vote twice in one term.
func (m *member) vetStore(ctx context.Context, own raft.Mark) bool {
	known, err := m.node.readPeers()
	if err != nil {
		m.log.Warn("vet the store", "error", err.Error())
	}
	if own == (raft.Mark{}) && known.Self == m.self {
		m.log.Error("the store is blank, but this node was a member under this ID")
		return false
	}
	peers := known.Peers
	ctx, cancel := context.WithTimeout(ctx, vetTime)
	defer cancel()
	answers := make(chan bool, len(peers))
	for _, p := range peers {
		go func() {
			var told raft.Mark
			err := m.transport.Call(ctx, transport.Target{Addr: p.Addr, Node: p.ID}, pathMark, own, &told)
			answers <- err == nil && own.Before(told)
		}()
	}
	for range peers {
		select {
		case older := <-answers:
			if older {
				m.log.Error("the store is older than a peer remembers it: it is set aside", "own", fmt.Sprintf("%+v", own))
				return false
			}
		case <-ctx.Done():
			return true
		}
	}
	return true
}

// afterQuarantine brings a node whose store was set aside back under a new ID.
// Its key and certificate, kept apart from the store, prove who it was.
func (m *member) afterQuarantine(ctx context.Context, q *raft.QuarantineError) error {
	m.log.Error("store quarantined", "path", q.Path, "cause", q.Cause.Error())
	m.node.setStage(StageParked, q.Error())
	m.node.notify.ready()
	m.quarantined.Store(true)
	known, err := m.node.readPeers()
	if err != nil {
		return err
	}
	if len(known.Peers) == 0 {
		return fmt.Errorf("%w; no other member is known to rejoin at: restore the store from %s, or move %s away and join again", q, q.Path, m.node.identityDir())
	}
	id := m.ids.Identity()
	fresh, err := m.freshID()
	if err != nil {
		return err
	}
	req, err := m.node.describe(id)
	if err != nil {
		return err
	}
	if req.CSR, err = transport.NewCSR(fresh, id.Key); err != nil {
		return err
	}
	caller, stop, err := m.caller()
	if err != nil {
		return err
	}
	defer stop()
	for {
		for _, p := range known.Peers {
			var out joinAnswer
			err := caller.Call(ctx, transport.Target{Addr: p.Addr, Node: p.ID}, pathReplace, req, &out)
			if err == nil && len(out.Secret) == 32 {
				if err := m.node.adopt(fresh, out); err != nil {
					return err
				}
				if err := os.Remove(m.freshPath()); err != nil {
					m.log.Warn("remove the file of the new node ID", "error", err.Error())
				}
				return fmt.Errorf("%w: new ID %s: %w", errRejoin, fresh, q)
			}
			if m.toldRemoved(err, known.Peers) {
				return m.awaitLeave(ctx)
			}
			m.log.Warn("ask for a new node ID", "peer", p.Addr, "error", fmt.Sprint(err))
		}
		select {
		case <-ctx.Done():
			return nil
		case <-m.left:
			return errLeft
		case <-time.After(2 * time.Second):
		}
	}
}

func (m *member) freshPath() string { return filepath.Join(m.node.identityDir(), fileFresh) }

// freshID is the new node ID to ask for, the same in every try.
func (m *member) freshID() (state.NodeID, error) {
	b, err := os.ReadFile(m.freshPath())
	if err == nil {
		return state.ParseNodeID(strings.TrimSpace(string(b)))
	}
	if !errors.Is(err, os.ErrNotExist) {
		return state.NodeID{}, fmt.Errorf("read the new node ID: %w", err)
	}
	id := state.NewNodeID()
	return id, transport.WriteFileAtomic(m.freshPath(), []byte(id.String()+"\n"), 0o600)
}

// toldRemoved reports whether a refusal says, signed by a known peer, that this
// node was removed.
func (m *member) toldRemoved(err error, peers []knownPeer) bool {
	var told *transport.RemovedError
	if !errors.As(err, &told) {
		return false
	}
	r, err := transport.VerifyRemoval(told.Statement, func(id state.NodeID) (ed25519.PublicKey, bool) {
		for _, p := range peers {
			if p.ID == id {
				return p.Key, true
			}
		}
		return nil, false
	})
	if err != nil || r.Node != m.self || r.Cluster != m.ids.Identity().Cluster() {
		return false
	}
	m.park(fmt.Sprintf("the store was set aside, and the node was removed from the cluster at log index %d; 'vpnlb cluster leave' clears it for a new join", r.Index))
	return true
}

func (m *member) awaitLeave(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.left:
		return errLeft
	}
}

// caller is a transport that only calls: the membership's own has ended.
func (m *member) caller() (*transport.Transport, func(), error) {
	t, err := transport.New(transport.Config{Addr: m.cfg.Cluster.Address.String()}, transport.Deps{
		Identity:  m.ids.Identity,
		Authorize: func(state.NodeID, []byte) error { return nil }, // the CA vouches; the peers are the last known ones
		Logger:    m.log,
	})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := t.Run(ctx); err != nil {
			m.log.Warn("listen while asking for a new node ID", "error", err.Error())
		}
	}()
	return t, func() { cancel(); <-done }, nil
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

// stateAge is how long ago the stored state was last known good: the age of
// the store's files at the start, or the time without a leader.
func (m *member) stateAge() time.Duration {
	if m.storedAt.IsZero() {
		return 0
	}
	return time.Since(m.storedAt)
}

// lastWrite is when the store was last written.
func lastWrite(dir string) time.Time {
	info, err := os.Stat(filepath.Join(dir, "raft.db"))
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
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
func (n *Node) firstOf(cluster state.ClusterID) (*firstMember, error) {
	first, err := n.readFirst()
	if err == nil && first != nil && first.init.ClusterID != cluster {
		n.forgetFirst()
		first = nil
	}
	return first, err
}

func (n *Node) readFirst() (*firstMember, error) {
	b, err := os.ReadFile(n.firstPath())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the init file: %w", err)
	}
	batch, err := state.DecodeBatch(b)
	if err != nil || len(batch.Envelopes) != 1 {
		return nil, fmt.Errorf("read the init file %s: %w", n.firstPath(), err)
	}
	init, ok := batch.Envelopes[0].Command.(state.Init)
	if !ok {
		return nil, fmt.Errorf("the init file %s holds another command: remove the folder %s and init again", n.firstPath(), n.identityDir())
	}
	return &firstMember{init: init}, nil
}
