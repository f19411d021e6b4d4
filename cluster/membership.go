package cluster

import (
	"context"
	"crypto/ed25519"
	"log/slog"
	"net/netip"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/vpnlb/vpnlb/cluster/state"
)

// Config of a Membership. Zero values take the defaults named.
type Config struct {
	Cluster state.ClusterID // the label of every packet
	Node    state.NodeID
	Boot    uint64 // persisted boot counter: orders hints over restarts

	// Bind is the host:port to listen on, UDP and TCP, on the cluster
	// interface. It is also what the member list says of us.
	Bind string

	// Keys are the gossip keys, 1..MaxKeys, the first one encrypts.
	Keys [][]byte

	// Allowed are the only networks that may take part; empty: all.
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
	Status          *NodeStatus   // nil: none yet. Immutable
	StatusAge       time.Duration //
	Observations    []byte        // as given to SetObservations; nil: none yet. Immutable
	ObservationsAge time.Duration //
}

// Peer is what gossip believes of a node, for logs and status only.
type Peer struct {
	Node  state.NodeID
	Addr  string
	State string // "alive", "suspect", "dead" or "left"
}

// Limits.
const (
	MaxPayload = 8 << 10  // bytes of a status or an observation set
	MaxBundle  = 64 << 10 // bytes of a bundle: push/pull state, or one RPC
	MaxKeys    = 4        // a rotation needs two
)

// Membership is this node's part in the gossip.
type Membership struct{}

// New validates and allocates.
func New(cfg Config, deps Deps) (*Membership, error) { panic("soon") }

// Run gossips until ctx ends and returns nil; an error when it cannot listen.
func (m *Membership) Run(ctx context.Context) error { panic("soon") }

// SetStatus publishes the node's status. Nothing is repeated by itself: a
// status that is not set again grows old everywhere. Once a second is right.
func (m *Membership) SetStatus(s NodeStatus) error { panic("soon") }

// SetObservations publishes the node's observations of the backends, opaque
// here (at most MaxPayload bytes). As SetStatus, once a probe round is right.
func (m *Membership) SetObservations(b []byte) error { panic("soon") }

// Hints returns what is known of each committed member (this node included),
// by node ID. Members never heard of are there with nothing but their ID.
func (m *Membership) Hints() []Hints { panic("soon") }

// Watch returns a channel that receives (coalesced) after hints or peers
// changed, and a function that ends it.
func (m *Membership) Watch() (changed <-chan struct{}, stop func()) { panic("soon") }

// Bundle encodes this node's own newest hints, to be delivered to a peer by
// another way than gossip: UDP may be blocked. At most MaxBundle bytes.
func (m *Membership) Bundle() []byte { panic("soon") }

// Deliver takes a bundle of a peer. Hints in it are judged one by one as if
// gossip had brought them; the error names the first that was refused.
func (m *Membership) Deliver(bundle []byte) error { panic("soon") }

// Peers returns gossip's own view.
func (m *Membership) Peers() []Peer { panic("soon") }

// Rejoin joins every address of Deps.Peers now.
func (m *Membership) Rejoin() { panic("soon") }

// Leave tells the others that this node goes, waiting at most timeout. Run goes
// on until its context ends.
func (m *Membership) Leave(timeout time.Duration) error { panic("soon") }

// Rotation of the gossip key: AddKey everywhere, UseKey everywhere, RemoveKey.

// AddKey makes a key known: packets under it are understood.
func (m *Membership) AddKey(key []byte) error { panic("soon") }

// UseKey encrypts with a known key from now on.
func (m *Membership) UseKey(key []byte) error { panic("soon") }

// RemoveKey forgets a key that is not in use.
func (m *Membership) RemoveKey(key []byte) error { panic("soon") }

// KeyIDs names the known keys by KeyID, the one in use first.
func (m *Membership) KeyIDs() []string { panic("soon") }

// NewKey draws a gossip key (AES-256).
func NewKey() []byte { panic("soon") }

// KeyID names a key without telling it: for status and for confirming a
// rotation.
func KeyID(key []byte) string { panic("soon") }
