package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane"
)

// Names of the sealed secrets in the agreement.
const (
	secretCA     = "ca"
	secretGossip = "gossip" // gossip keys, 32 bytes each, the one in use first
)

const gossipKeyBytes = 32

// openSecret reads a secret of the agreement with the cluster secret.
func (m *member) openSecret(name string) ([]byte, error) {
	plain, _, err := m.openSealed(name)
	return plain, err
}

// openSealed is openSecret with the version of the sealed value; 0: there is none.
func (m *member) openSealed(name string) (plain []byte, version uint64, err error) {
	s, ok := m.spec().SecretByName(name)
	if !ok {
		return nil, 0, fmt.Errorf("secret %q is not in the agreed state yet", name)
	}
	plain, err = transport.Open(m.ids.Identity().Secret, name, s.Sealed)
	return plain, s.Version, err
}

func splitKeys(b []byte) ([][]byte, error) {
	if len(b) == 0 || len(b)%gossipKeyBytes != 0 {
		return nil, errors.New("the gossip keys in the agreed state are malformed")
	}
	var keys [][]byte
	for ; len(b) > 0; b = b[gossipKeyBytes:] {
		keys = append(keys, b[:gossipKeyBytes])
	}
	return keys, nil
}

// runGossip gossips as soon as the agreement holds a key that this node can open,
// and follows key changes. Hints that travel by the mTLS port need no key: a node
// that cannot gossip hears and is heard all the same.
func (m *member) runGossip(ctx context.Context) error {
	id, unused := m.ids.Identity(), cluster.NewKey()
	deps := cluster.Deps{
		Key:    id.Key,
		Member: m.memberKey,
		Peers:  m.gossipPeers,
		Logger: m.log, Registerer: m.metrics,
	}
	m.gossipNet(&deps)
	g, err := cluster.New(cluster.Config{
		Cluster: id.Cluster(), Node: id.Node, Boot: id.Boot,
		Bind: m.cfg.Cluster.Gossip.String(), Keys: [][]byte{unused},
	}, deps)
	if err != nil {
		return err
	}
	m.gossip.Store(g)
	keys, version := m.awaitKeys(ctx, g)
	if keys == nil {
		return nil
	}
	m.ring = [][]byte{unused}
	if err := m.startKeys(g, keys); err != nil {
		return err
	}
	follow, cancel := context.WithCancel(ctx)
	defer cancel()
	go m.followKeys(follow, g, version) // ends with follow; writes nothing after it
	return m.keepGossip(ctx, g)
}

// awaitKeys waits for the gossip keys; nil: ctx ended. Why they do not come is in
// secretFault.
func (m *member) awaitKeys(ctx context.Context, g *cluster.Membership) (keys [][]byte, version uint64) {
	for {
		g.Raise(m.replica.Status().Boot) // the store may know of later starts than the file
		raw, version, err := m.openSealed(secretGossip)
		if err == nil {
			if keys, err = splitKeys(raw); err == nil {
				return keys, version
			}
		}
		if version > 0 && m.keysFault.set(err) {
			m.log.Warn("gossip does not start", "error", err.Error())
		}
		if !pause(ctx, 100*time.Millisecond) {
			return nil, 0
		}
	}
}

// startKeys puts the agreed keys in the place of the one that g was made with.
func (m *member) startKeys(g *cluster.Membership, keys [][]byte) error {
	for _, k := range keys {
		if err := g.AddKey(k); err != nil {
			return err
		}
	}
	return m.useKeys(g, keys)
}

// gossipRetry is between two tries to listen for gossip.
const gossipRetry = 2 * time.Second

// keepGossip runs the gossip, and begins anew where it cannot listen: its port may
// be taken, or its address not be there yet.
func (m *member) keepGossip(ctx context.Context, g *cluster.Membership) error {
	for {
		err := g.Run(ctx)
		if err == nil {
			return nil
		}
		if m.keysFault.set(err) {
			m.log.Warn("gossip does not start", "error", err.Error())
		}
		if !pause(ctx, gossipRetry) {
			return nil
		}
	}
}

// gossipSilent says why this node does not gossip; empty: it does, or has only just
// started.
func (m *member) gossipSilent() string {
	if g := m.gossip.Load(); g != nil && g.Running() {
		return ""
	}
	return m.keysFault.get()
}

func (m *member) memberKey(id state.NodeID) (ed25519.PublicKey, bool) {
	member, ok := m.spec().MemberByID(id)
	if !ok {
		return nil, false
	}
	return member.PublicKey, true
}

func (m *member) gossipPeers() []string {
	spec := m.spec()
	var out []string
	for i := range spec.Members {
		if spec.Members[i].ID != m.self {
			out = append(out, spec.Members[i].Gossip)
		}
	}
	return out
}

// useAfter is how long a new key is only understood before it is used: the log
// brings it to every live member within a second. Who is further behind hears
// nothing by gossip until its log is there, and hints by the other port.
const useAfter = 3 * time.Second

// followKeys makes the keyring what the agreement says: every key of the list
// is understood at once, and later the first one encrypts and the rest goes.
func (m *member) followKeys(ctx context.Context, g *cluster.Membership, seen uint64) {
	var next [][]byte // understood, not used yet
	var due time.Time
	for pause(ctx, time.Second) {
		if next != nil && time.Now().After(due) {
			err := m.useKeys(g, next)
			if m.followFault.set(err) {
				m.log.Warn("follow the gossip keys", "error", err.Error())
			}
			if err == nil {
				next = nil
				m.log.Info("gossip keys follow the agreement", "index", seen)
			}
		}
		s, ok := m.spec().SecretByName(secretGossip)
		if !ok || s.Version == seen {
			continue
		}
		keys, err := m.learnKeys(g)
		if m.followFault.set(err) {
			m.log.Warn("learn the gossip keys", "error", err.Error())
		}
		if err != nil {
			continue
		}
		next, due, seen = keys, time.Now().Add(useAfter), s.Version
	}
}

func (m *member) learnKeys(g *cluster.Membership) ([][]byte, error) {
	raw, err := m.openSecret(secretGossip)
	if err != nil {
		return nil, err
	}
	keys, err := splitKeys(raw)
	if err != nil {
		return nil, err
	}
	for _, k := range keys {
		if err := g.AddKey(k); err != nil {
			return nil, err
		}
		if !slices.ContainsFunc(m.ring, func(o []byte) bool { return bytes.Equal(o, k) }) {
			m.ring = append(m.ring, k)
		}
	}
	return keys, nil
}

func (m *member) useKeys(g *cluster.Membership, keys [][]byte) error {
	if err := g.UseKey(keys[0]); err != nil {
		return err
	}
	known := make(map[string]bool, len(keys))
	for _, k := range keys {
		known[cluster.KeyID(k)] = true
	}
	for _, k := range m.ring {
		if !known[cluster.KeyID(k)] {
			if err := g.RemoveKey(k); err != nil {
				return err
			}
		}
	}
	m.ring = keys
	return nil
}

const statusInterval = 500 * time.Millisecond

// runStatus publishes what this node says of itself and of the servers.
func (m *member) runStatus(ctx context.Context) error {
	tick := time.NewTicker(statusInterval)
	defer tick.Stop()
	for {
		m.alive.beat()
		m.mendKernel()
		m.noteQuorum()
		observed := m.observation()
		if g := m.gossip.Load(); g != nil {
			if err := errors.Join(g.SetStatus(m.nodeStatus()), g.SetObservations(observed)); m.publishFault.set(err) {
				m.log.Warn("tell the others this node's status and observations", "error", err.Error())
			}
			m.keepBoot(g)
			m.collect(g)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-m.prober.Changed(): // a new opinion is worth telling at once
		case <-m.tell:
		}
	}
}

func (m *member) nodeStatus() cluster.NodeStatus {
	st := m.replica.Status()
	out := cluster.NodeStatus{
		Role: m.ids.Identity().Role(), Format: state.Format,
		Applied: st.Applied, PlaneApplied: m.sync.index.Load(), Generation: m.sync.generation.Load(),
		RaftTerm: st.Term, RaftLast: st.LastIndex, Leader: st.LeaderID,
		Quorum: m.quorum(&st), RaftOff: st.Parked != "" || m.removed.Load() != nil,
	}
	m.sayFitness(&out)
	spec := m.spec()
	if m.announcer != nil {
		for _, v := range m.announcer.Status() {
			vip, ok := spec.VIPByAddr(v.VIP)
			if !ok || !m.carried(v.VIP) {
				continue // what no router can have helps nobody
			}
			if v.Announced != bgp.Withdraw {
				out.Announced = append(out.Announced, vip.ID)
				out.Demoted = out.Demoted || v.Announced != bgp.Announce
			}
			if v.Decision.Wish != bgp.Withdraw {
				out.Willing = append(out.Willing, vip.ID)
			}
		}
	}
	kept := m.keeper.Status()
	out.Gateways = heldGateways(&kept)
	out.Activity = m.backendActivity()
	out.Unanswered = firstDoubts(m.returns.Unanswered())
	out.Alone = firstDoubts(m.aloneMissed())
	return out
}

// firstDoubts are as many as a status holds.
func firstDoubts(ids []state.BackendID) []state.BackendID {
	return ids[:min(len(ids), cluster.MaxDoubts)]
}

func (m *member) backendActivity() []cluster.BackendActivity {
	counters, err := m.plane.Counters()
	if err != nil {
		return nil
	}
	spec := m.spec()
	var out []cluster.BackendActivity
	for i := range spec.Backends {
		b := &spec.Backends[i]
		if n := counters.Returns[b.Slot]; b.Slot != 0 && (n.ESP > 0 || n.SK > 0) {
			out = append(out, cluster.BackendActivity{Backend: b.ID, ESP: n.ESP, SK: n.SK})
		}
	}
	return out
}

func (m *member) planeMode() cluster.PlaneMode {
	mode := cluster.PlaneNone
	for _, i := range m.plane.Status().Interfaces {
		switch {
		case i.ProgramID == 0:
			return cluster.PlaneNone
		case i.Mode == dataplane.Generic:
			mode = cluster.PlaneGeneric
		case mode == cluster.PlaneNone:
			mode = cluster.PlaneNative
		}
	}
	return mode
}

// planeHealthy: the program is on every interface and the writer keeps up.
func (m *member) planeHealthy() bool {
	return m.planeMode() != cluster.PlaneNone && m.sync.failure.Load() == nil
}

// keepBoot keeps a boot counter that the others proved to be too low.
func (m *member) keepBoot(g *cluster.Membership) {
	if err := m.ids.RaiseBoot(g.Boot()); m.bootFault.set(err) {
		m.log.Warn("keep the boot counter", "error", err.Error())
	}
}

// collect hands what the others observed to the tally's collector, and notes which
// of them are not well. A member that answers calls and says nothing of itself is
// not well either: nobody can know how far its data plane is.
func (m *member) collect(g *cluster.Membership) {
	said := make(map[state.NodeID]bool)
	for _, h := range g.Hints() {
		if h.Node != m.self && h.Status != nil && h.StatusAge <= hintFresh {
			said[h.Node] = true
			m.unwell.note(h.Node, h.Status.Quorum && h.Status.CaughtUp && h.Status.PlaneHealthy)
		}
		if h.Observations == nil || h.Node == m.self || h.ObservationsAge > hintFresh {
			continue
		}
		o, err := health.DecodeObservation(h.Observations)
		if err != nil {
			m.log.Debug("observation refused", "from", h.Node.String(), "error", err.Error())
			continue
		}
		m.collector.Receive(h.Node, o)
	}
	spec := m.spec()
	for i := range spec.Members {
		if id := spec.Members[i].ID; id != m.self && !said[id] && m.contacts.ever(id) && m.contacts.silence(id) < silentAfter {
			m.unwell.note(id, false)
		}
	}
}
