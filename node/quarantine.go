package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/raft"
)

// fileFresh holds the new node ID that a node without its store has asked for:
// the answer may be lost, and asking again must name the same one.
const fileFresh = "fresh-id"

// vetTime bounds the question whether the store went back in time. Nobody
// answering must not keep a node from starting.
const vetTime = 2 * time.Second

// vetRetry is how soon a peer that did not answer is asked again: after a power
// cut all nodes come up within seconds.
const vetRetry = 100 * time.Millisecond

// markAnswer is what a peer remembers of the caller's store.
type markAnswer struct {
	raft.Mark
	Replaced bool `json:"replaced,omitempty"` // the caller's key is a member under another, later ID
}

// convicts reports whether the answer proves that a store at own is an old copy.
func (a *markAnswer) convicts(own raft.Mark) bool { return a.Replaced || own.Before(a.Mark) }

// serveMark answers what this node remembers of a peer's store, and remembers
// what the peer says now. Before this node's own memory is read it says so:
// "nothing" would pass for an answer.
func (m *member) serveMark(p transport.Peer, in raft.Mark) (markAnswer, error) {
	if !m.remembers.Load() {
		return markAnswer{}, &transport.StatusError{Code: http.StatusServiceUnavailable, Reason: "this node's store is not open yet: ask again"}
	}
	out := markAnswer{Mark: m.replica.PeerMemory()[p.Node]}
	spec := m.spec()
	if _, gone := spec.RemovedByID(p.Node); gone && hasKey(spec.Members, p.PublicKey) {
		out.Replaced = true
		return out, nil
	}
	m.replica.RememberPeer(p.Node, in)
	return out, nil
}

// vetStore asks the peers, before raft starts, how far they remember this
// node's store: a reverted virtual machine must not vote twice in one term.
// Raft calls it when it has read its memory of the peers.
func (m *member) vetStore(ctx context.Context, own raft.Mark) bool {
	m.remembers.Store(true)
	if m.distrusted {
		m.log.Error("the store went back in time, as a peer found when it was in use: it is set aside")
		return false
	}
	known, err := m.node.readPeers()
	if err != nil {
		m.log.Warn("vet the store", "error", err.Error())
	}
	if own == (raft.Mark{}) && known.Self == m.self {
		m.log.Error("the store is blank, but this node was a member under this ID")
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, vetTime)
	defer cancel()
	answers := make(chan bool, len(known.Peers))
	for _, p := range known.Peers {
		go func() { answers <- m.askMark(ctx, p, own) }()
	}
	for range known.Peers {
		if older := <-answers; older {
			return false
		}
	}
	return true
}

// askMark asks one peer until it answers or ctx ends, and reports whether the
// store is an old copy.
func (m *member) askMark(ctx context.Context, p knownPeer, own raft.Mark) (older bool) {
	for {
		var told markAnswer
		err := m.transport.Call(ctx, transport.Target{Addr: p.Addr, Node: p.ID}, pathMark, own, &told)
		if err == nil {
			return m.convicted(p, own, &told)
		}
		var refused *transport.StatusError
		var removed *transport.RemovedError
		if errors.As(err, &refused) && refused.Code != http.StatusServiceUnavailable || errors.As(err, &removed) || !pause(ctx, vetRetry) {
			return false
		}
	}
}

func (m *member) convicted(p knownPeer, own raft.Mark, told *markAnswer) bool {
	if !told.convicts(own) {
		return false
	}
	m.log.Error("the store is older than a peer remembers it: it is set aside", "peer", p.Addr,
		"own", fmt.Sprintf("%+v", own), "remembered", fmt.Sprintf("%+v", told.Mark), "replaced", told.Replaced)
	return true
}

// tellMark tells the peers how far this node's store is, once raft has started.
// A peer that could not be asked before that is asked now, about the store as it
// was then: it reports whether that was an old copy.
func (m *member) tellMark(ctx context.Context, peers []knownPeer) (older bool) {
	for _, p := range peers {
		if m.contacts.silence(p.ID) > silentAfter {
			continue
		}
		marks := []raft.Mark{m.replica.Status().Mark}
		if !m.vetted[p.ID] {
			marks = []raft.Mark{m.replica.Own(), marks[0]}
		}
		for _, mark := range marks {
			call, cancel := context.WithTimeout(ctx, contactTimeout)
			var told markAnswer
			err := m.transport.Call(call, transport.Target{Addr: p.Addr, Node: p.ID}, pathMark, mark, &told)
			cancel()
			if err != nil {
				m.log.Debug("tell the store's mark", "error", err.Error())
				break
			}
			if m.removed.Load() == nil && m.replica.Status().Parked == "" && m.convicted(p, mark, &told) {
				return true
			}
			m.vetted[p.ID] = true
		}
	}
	return false
}

// afterQuarantine brings a node whose store was set aside back under a new ID.
// Its key and certificate, kept apart from the store, prove who it was. A node
// that knows nobody to ask waits for a person.
func (m *member) afterQuarantine(ctx context.Context, q *raft.QuarantineError) error {
	m.log.Error("store quarantined", "path", q.Path, "cause", q.Cause.Error())
	m.quarantined.Store(true)
	m.park(q.Error())
	known, err := m.node.readPeers()
	if err == nil && len(known.Peers) == 0 {
		err = errNoPeers
	}
	if err != nil {
		m.park(fmt.Sprintf("%v; %v that could give this node a new ID: stop the service and put a good copy of the store back in place of %s, or 'vpnlb cluster leave' here and init or join again", q, err, m.node.storeDir()))
		return m.awaitLeave(ctx)
	}
	caller, stop, err := m.caller()
	if err != nil {
		return err
	}
	defer stop()
	asking, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { // a leave waits for no answer
		select {
		case <-m.left:
			cancel()
		case <-asking.Done():
		}
	}()
	for {
		for _, p := range known.Peers {
			err := m.askAgain(asking, caller, p)
			if err == nil {
				return fmt.Errorf("%w: new ID %s: %w", errRejoin, m.ids.Identity().Node, q)
			}
			if m.toldRemoved(err, known.Peers) {
				return m.awaitLeave(ctx)
			}
			if asking.Err() == nil {
				m.log.Warn("ask for a new node ID", "peer", p.Addr, "error", err.Error())
				m.park(fmt.Sprintf("%v; asking for a new node ID at %s: %v", q, p.Addr, err))
			}
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

// askAgain asks one member for a new ID, and takes it.
func (m *member) askAgain(ctx context.Context, caller *transport.Transport, p knownPeer) error {
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
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	var out joinAnswer
	if err := caller.Call(ctx, transport.Target{Addr: p.Addr, Key: p.Key}, pathReplace, req, &out); err != nil {
		var refused *transport.StatusError
		if errors.As(err, &refused) && refused.Code == http.StatusGone {
			m.dropFresh()
		}
		return err
	}
	if len(out.Secret) != 32 {
		return fmt.Errorf("the answer has a cluster secret of %d bytes", len(out.Secret))
	}
	if err := m.node.adopt(fresh, out); err != nil {
		return err
	}
	m.dropFresh()
	return nil
}

func (m *member) freshPath() string { return filepath.Join(m.node.identityDir(), fileFresh) }

// freshID is the new node ID to ask for, the same in every try. One that this
// node has already is left from an earlier loss: the file was to be removed.
func (m *member) freshID() (state.NodeID, error) {
	b, err := os.ReadFile(m.freshPath())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return state.NodeID{}, fmt.Errorf("read the new node ID: %w", err)
	}
	if id, fault := state.ParseNodeID(strings.TrimSpace(string(b))); err == nil && fault == nil && id != m.self {
		return id, nil
	}
	id := state.NewNodeID()
	return id, transport.WriteFileAtomic(m.freshPath(), []byte(id.String()+"\n"), 0o600)
}

// dropFresh makes the next try name another ID.
func (m *member) dropFresh() {
	if err := os.Remove(m.freshPath()); err != nil && !errors.Is(err, os.ErrNotExist) {
		m.log.Warn("remove the file of the new node ID", "error", err.Error())
	}
}

// replacedBy gives the ID under which the caller of pathReplace is a member now:
// its disk may be older than its last replacement. An ID that the cluster has
// seen already cannot be given again, unless it is this very call repeated.
func (m *member) replacedBy(p transport.Peer, in joinRequest) (state.NodeID, error) {
	csr, err := transport.ParseCSR(in.CSR)
	if err != nil {
		return p.Node, badJoin("%v", err)
	}
	if !csr.PublicKey.Equal(p.PublicKey) {
		return p.Node, badJoin("the request is for another key than the caller's")
	}
	spec := m.spec()
	fresh, taken := spec.MemberByID(csr.Node)
	_, gone := spec.RemovedByID(csr.Node)
	if gone || csr.Node == p.Node || taken && !csr.PublicKey.Equal(ed25519.PublicKey(fresh.PublicKey)) {
		return p.Node, &transport.StatusError{Code: http.StatusGone, Reason: fmt.Sprintf("node ID %s was used already: draw another", csr.Node)}
	}
	if _, ok := spec.MemberByID(p.Node); ok || taken {
		return p.Node, nil
	}
	for i := range spec.Members {
		if csr.PublicKey.Equal(ed25519.PublicKey(spec.Members[i].PublicKey)) {
			return spec.Members[i].ID, nil
		}
	}
	return p.Node, nil
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
	if err := m.dropAddrs(); err != nil { // nobody else does: the parts have ended
		m.log.Error("drop the cluster's addresses", "error", err.Error())
	}
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

// makeCaller is a transport that only calls: the membership's own has ended.
func (m *member) makeCaller() (*transport.Transport, error) {
	return transport.New(transport.Config{Addr: m.cfg.Cluster.Address.String()}, transport.Deps{
		Identity:  m.ids.Identity,
		Authorize: func(state.NodeID, []byte) error { return nil }, // the CA vouches; the peers are the last known ones
		Logger:    m.log,
	})
}

func (m *member) caller() (*transport.Transport, func(), error) {
	t, err := m.newCaller()
	if err != nil {
		return nil, nil, err
	}
	// Others may ask here who is a member. Without an answer of its own this would be
	// taken for an older version, which does not know the question.
	t.HandleRPC(pathVouch, transport.JSON(func(context.Context, transport.Peer, vouchRequest) (vouchAnswer, error) {
		return vouchAnswer{}, &transport.StatusError{Code: http.StatusServiceUnavailable, Reason: "this node's store was set aside"}
	}))
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
