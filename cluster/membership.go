package cluster

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vpnlb/vpnlb/cluster/state"
)

// Config of a Membership. Zero values take the defaults named.
type Config struct {
	Cluster state.ClusterID // the label of every packet
	Node    state.NodeID
	Boot    uint64 // persisted boot counter: orders hints over restarts; see Membership.Boot

	// Bind is the host:port to listen on, UDP and TCP, on the cluster
	// interface. It is also what the member list says of us.
	Bind string

	// Keys are the gossip keys, 1..MaxKeys, the first one encrypts.
	Keys [][]byte

	// Allowed are the only networks whose nodes may take part (the library
	// checks the addresses that members announce); empty: all.
	Allowed []netip.Prefix

	ProbeInterval time.Duration // 1 s: a member is probed this often
	Rejoin        time.Duration // 10 s: every address of Deps.Peers is joined again this often
}

// Deps of a Membership. Key, Member and Peers are required.
type Deps struct {
	// Key is the node's Ed25519 key: it signs hints.
	Key ed25519.PrivateKey

	// Member gives the public key of a committed member; false for anybody
	// else. It is asked for each hint and must not block.
	Member func(state.NodeID) (ed25519.PublicKey, bool)

	// Peers gives the gossip address of every committed member.
	Peers func() []string

	Transport  memberlist.Transport  // nil: UDP and TCP on Config.Bind
	Logger     *slog.Logger          // nil: discarded
	Registerer prometheus.Registerer // nil: no metrics
}

// Hints is the newest that was heard from one committed member. Ages count from
// local receipt plus the age the relay admitted; a hint older than a caller
// wants is the caller's to ignore.
type Hints struct {
	Node            state.NodeID
	Alive           bool          // gossip reaches it
	Status          *NodeStatus   // nil: none yet, or of a newer form. Immutable
	StatusAge       time.Duration // of Status
	Observations    []byte        // as given to SetObservations; nil: none yet. Immutable
	ObservationsAge time.Duration // of Observations
}

// Peer is what gossip believes of a node, for logs and status only.
type Peer struct {
	Node  state.NodeID
	Addr  string
	State string // "alive" or "gone"
}

// Limits.
const (
	MaxPayload = 8 << 10  // bytes of a status or an observation set
	MaxBundle  = 64 << 10 // bytes of a bundle: push/pull state, or one RPC
	MaxKeys    = 4        // a rotation needs two
)

// ErrNotRunning means that the gossip has not begun or has ended.
var ErrNotRunning = errors.New("gossip is not running")

// Membership is this node's part in the gossip.
type Membership struct {
	cfg    Config
	deps   Deps
	log    *slog.Logger
	met    metrics
	ring   *memberlist.Keyring
	ledger *ledger
	queue  *memberlist.TransmitLimitedQueue
	rejoin chan struct{}

	mu       sync.Mutex
	list     *memberlist.Memberlist // nil before and after Run
	peers    map[state.NodeID]Peer
	watchers map[chan struct{}]struct{}
	boot     uint64    // Config.Boot, or above what this node was proved to have used
	raised   time.Time // when a proof last raised it
	sequence uint64
	live     int // in peers; read by the queue
}

// New validates and allocates.
func New(cfg Config, deps Deps) (*Membership, error) {
	cfg.ProbeInterval = cmp.Or(cfg.ProbeInterval, time.Second)
	cfg.Rejoin = cmp.Or(cfg.Rejoin, 10*time.Second)
	if err := errors.Join(cfg.check(), deps.check()); err != nil {
		return nil, err
	}
	ring, err := memberlist.NewKeyring(cfg.Keys, cfg.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	met, err := newMetrics(deps.Registerer)
	if err != nil {
		return nil, err
	}
	m := &Membership{
		cfg:      cfg,
		deps:     deps,
		log:      deps.Logger,
		met:      met,
		ring:     ring,
		ledger:   newLedger(cfg, deps),
		rejoin:   make(chan struct{}, 1),
		peers:    make(map[state.NodeID]Peer),
		watchers: make(map[chan struct{}]struct{}),
		boot:     cfg.Boot,
	}
	m.queue = &memberlist.TransmitLimitedQueue{NumNodes: m.numLive, RetransmitMult: retransmitMult}
	return m, nil
}

func (c Config) check() error {
	var faults []error
	if c.Cluster.IsZero() || c.Node.IsZero() {
		faults = append(faults, errors.New("gossip needs a cluster ID and a node ID"))
	}
	if ap, err := netip.ParseAddrPort(c.Bind); err != nil || ap.Addr().IsUnspecified() || ap.Port() == 0 {
		faults = append(faults, fmt.Errorf("gossip address %q: want an IP address of this node and a port", c.Bind))
	}
	if len(c.Keys) < 1 || len(c.Keys) > MaxKeys {
		faults = append(faults, fmt.Errorf("gossip with %d keys: want 1 to %d", len(c.Keys), MaxKeys))
	}
	for _, k := range c.Keys {
		if err := checkKey(k); err != nil {
			faults = append(faults, err)
		}
	}
	if c.ProbeInterval < 0 || c.Rejoin < 0 {
		faults = append(faults, errors.New("gossip intervals must not be negative"))
	}
	return errors.Join(faults...)
}

func (d Deps) check() error {
	if len(d.Key) != ed25519.PrivateKeySize || d.Member == nil || d.Peers == nil {
		return errors.New("gossip needs the node's key, Member and Peers")
	}
	return nil
}

// Run gossips until ctx ends and returns nil; an error when it cannot listen:
// then it may be called again. Hints that come and go by Bundle, Answer and
// Deliver need no Run.
func (m *Membership) Run(ctx context.Context) error {
	list, err := memberlist.Create(m.listConfig())
	if err != nil {
		return fmt.Errorf("start gossip on %s: %w", m.cfg.Bind, err)
	}
	m.mu.Lock()
	m.list = list
	m.mu.Unlock()
	m.met.running.Set(1)
	defer m.met.running.Set(0)
	tick := time.NewTicker(m.cfg.Rejoin)
	defer tick.Stop()
	for {
		m.joinAll(ctx, list)
		m.ledger.prune()
		if m.queue.NumQueued() > maxQueued { // Prune panics on a queue that was never used
			m.queue.Prune(maxQueued)
		}
		select {
		case <-ctx.Done():
			m.mu.Lock()
			m.list = nil // no Leave after Shutdown: memberlist panics at it
			m.mu.Unlock()
			if err := list.Shutdown(); err != nil {
				m.log.Warn("gossip did not stop cleanly", "err", err)
			}
			return nil
		case <-tick.C:
		case <-m.rejoin:
		}
	}
}

// Running reports whether Run gossips now.
func (m *Membership) Running() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.list != nil
}

// joinAll joins every member that gossip does not know to be alive: after a
// partition longer than GossipToTheDeadTime nobody else would. Where only the
// other side thinks us dead, it is the other side that joins.
func (m *Membership) joinAll(ctx context.Context, list *memberlist.Memberlist) {
	for _, addr := range m.deps.Peers() {
		if ctx.Err() != nil {
			return
		}
		if addr == m.cfg.Bind || m.aliveAt(addr) {
			continue
		}
		if _, err := list.Join([]string{addr}); err != nil {
			m.log.Debug("gossip join failed", "addr", addr, "err", err)
		}
	}
}

// Rejoin makes Run join every address of Deps.Peers that is not alive now, not
// only at the next interval: after the member list changed.
func (m *Membership) Rejoin() {
	select {
	case m.rejoin <- struct{}{}:
	default:
	}
}

// SetStatus publishes the node's status. Nothing is repeated by itself: a
// status that is not set again grows old everywhere. Once a second is right.
// The slices in it are the ledger's from now on. Boot is filled in.
func (m *Membership) SetStatus(s NodeStatus) error {
	if err := s.check(); err != nil {
		return fmt.Errorf("publish status: %w", err)
	}
	s.Boot = m.Boot()
	return m.publish(kindStatus, s.encode(), &s)
}

// SetObservations publishes the node's observations of the backends, opaque
// here (at most MaxPayload bytes). As SetStatus, once a probe round is right.
func (m *Membership) SetObservations(b []byte) error {
	return m.publish(kindObservations, slices.Clone(b), nil)
}

func (m *Membership) publish(k kind, payload []byte, s *NodeStatus) error {
	if len(payload) > MaxPayload {
		return fmt.Errorf("publish hint: %d bytes, most are %d", len(payload), MaxPayload)
	}
	m.mu.Lock()
	m.sequence++
	o := order{boot: m.boot, sequence: m.sequence}
	m.mu.Unlock()
	raw := makeParts(m.cfg.Cluster, m.cfg.Node, m.deps.Key, k, o, payload)
	m.ledger.put(k, o, payload, raw, s)
	m.send(raw)
	for i, r := range raw {
		m.queue.QueueBroadcast(&broadcast{name: broadcastName(m.cfg.Node, k, i), raw: r})
	}
	m.notify()
	return nil
}

// send gives parts directly to every live peer. Gossip alone carries one packet
// a peer and interval, which is too little for a set of nine parts each second;
// it is there for those that we cannot reach ourselves.
func (m *Membership) send(raw [][]byte) {
	m.mu.Lock()
	list := m.list
	var to []string
	for id, p := range m.peers {
		if p.State == "alive" && id != m.cfg.Node {
			to = append(to, p.Addr)
		}
	}
	m.mu.Unlock()
	if list == nil {
		return
	}
	for _, addr := range to {
		for _, r := range raw {
			if err := list.SendToAddress(memberlist.Address{Addr: addr}, r); err != nil {
				m.log.Debug("hint not sent", "addr", addr, "err", err)
				break
			}
		}
	}
}

// Hints returns what is known of each committed member that was heard (this
// node included), by node ID.
func (m *Membership) Hints() []Hints { return m.ledger.hints(m.isAlive) }

// Watch returns a channel that receives (coalesced) after hints or peers
// changed, and a function that ends it.
func (m *Membership) Watch() (changed <-chan struct{}, stop func()) {
	ch := make(chan struct{}, 1)
	m.mu.Lock()
	m.watchers[ch] = struct{}{}
	m.mu.Unlock()
	return ch, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, ch)
	}
}

func (m *Membership) notify() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for ch := range m.watchers {
		select {
		case ch <- struct{}{}:
		default: // it has not looked since the last one
		}
	}
}

// Bundle encodes this node's own newest hints, to be delivered to a peer by
// another way than gossip: UDP may be blocked. At most MaxBundle bytes.
func (m *Membership) Bundle() []byte { return m.ledger.bundle(false) }

// Deliver takes a bundle of a peer. Hints in it are judged one by one as if
// gossip had brought them; the error names the first that was refused.
func (m *Membership) Deliver(bundle []byte) error {
	var first error
	news := false
	err := readBundle(bundle, func(raw []byte, age time.Duration) {
		p, v := m.receive(raw, age)
		news = news || v == partFresh
		if e := refusal(p, v); e != nil && first == nil {
			first = e
		}
	})
	if news {
		m.notify()
	}
	if err != nil {
		return fmt.Errorf("read bundle: %w", err)
	}
	return first
}

// receive judges a part and passes news on.
func (m *Membership) receive(raw []byte, age time.Duration) (part, verdict) {
	m.mu.Lock()
	ours := order{boot: m.boot, sequence: m.sequence}
	m.mu.Unlock()
	p, v := m.ledger.receive(raw, age, ours)
	m.met.hints.WithLabelValues(string(v)).Inc()
	switch v {
	case partFresh, partUnknown:
		m.queue.QueueBroadcast(&broadcast{name: broadcastName(p.origin, p.kind, p.part), raw: slices.Clone(raw)})
	case partClone:
		m.overtake(p.order)
	case partForged:
		m.log.Warn("hint with a wrong signature refused", "node", p.origin.String())
	}
	return p, v
}

// Leave tells the others that this node goes, waiting at most timeout. Run goes
// on until its context ends, but this node is out until it runs again.
func (m *Membership) Leave(timeout time.Duration) error {
	m.mu.Lock()
	list := m.list
	m.mu.Unlock()
	if list == nil {
		return ErrNotRunning
	}
	if err := list.Leave(timeout); err != nil {
		return fmt.Errorf("leave gossip: %w", err)
	}
	return nil
}
