package state

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net/netip"
	"time"
)

// NodeID names a node for ever. It is a random UUID, drawn and persisted
// before the node's first join; a node that loses its store returns with a new
// one. The zero value names nobody.
type NodeID [16]byte

// NewNodeID draws a random (version 4) NodeID.
func NewNodeID() NodeID {
	var id NodeID
	rand.Read(id[:]) // never fails (crypto/rand, Go 1.24)
	id[6] = id[6]&0x0f | 0x40
	id[8] = id[8]&0x3f | 0x80
	return id
}

// String gives the canonical 8-4-4-4-12 form.
func (id NodeID) String() string { return formatUUID(id) }

// IsZero reports whether id names nobody.
func (id NodeID) IsZero() bool { return id == NodeID{} }

// MarshalText implements encoding.TextMarshaler.
func (id NodeID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *NodeID) UnmarshalText(b []byte) error {
	p, err := ParseNodeID(string(b))
	if err == nil {
		*id = p
	}
	return err
}

// ParseNodeID reads the form that String writes.
func ParseNodeID(s string) (NodeID, error) {
	id, err := parseUUID(s)
	if err != nil {
		return NodeID{}, fmt.Errorf("parse node ID: %w", err)
	}
	return NodeID(id), nil
}

// ClusterID names a cluster for ever: random, in the first log entry, in every
// certificate, in the gossip label and in the pinned meta map.
type ClusterID [16]byte

// NewClusterID draws a random ClusterID.
func NewClusterID() ClusterID { return ClusterID(NewNodeID()) }

// String gives the canonical 8-4-4-4-12 form.
func (id ClusterID) String() string { return formatUUID(id) }

// IsZero reports whether the cluster was not initialised yet.
func (id ClusterID) IsZero() bool { return id == ClusterID{} }

// MarshalText implements encoding.TextMarshaler.
func (id ClusterID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (id *ClusterID) UnmarshalText(b []byte) error {
	p, err := parseUUID(string(b))
	if err != nil {
		return fmt.Errorf("parse cluster ID: %w", err)
	}
	*id = p
	return nil
}

func formatUUID(id [16]byte) string {
	h := hex.EncodeToString(id[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

func parseUUID(s string) (id [16]byte, err error) {
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, fmt.Errorf("%q is not of the form 8-4-4-4-12 hexadecimal digits", s)
	}
	_, err = hex.Decode(id[:], []byte(s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:]))
	return id, err
}

// Identifiers that the Machine hands out, in log order, from 1; never used
// again. 0 names nothing.
type (
	VIPID     uint32
	BackendID uint32
	GatewayID uint32
)

// Slot is the place of a backend in the data plane's arrays, 1..MaxBackends; 0
// names no backend. A slot is given out again only when no affinity names its
// last holder.
type Slot uint16

// Time is cluster time: nanoseconds since the cluster was initialised, kept by
// the leaders' stamps (max of old and new). It never goes back and has nothing
// to do with any wall clock.
type Time int64

// Sub returns t-u.
func (t Time) Sub(u Time) time.Duration { return time.Duration(t - u) }

// Add returns t+d.
func (t Time) Add(d time.Duration) Time { return t + Time(d) }

// Class is a service class: an affinity record, a verdict and a permit exist
// once per class. Values are written to the log: never renumber.
type Class uint8

const (
	ClassIKE Class = 1 // UDP 500 and 4500, their fragments, ESP
	ClassTCP Class = 2 // TCP 443
)

// Classes lists all classes, in their order.
var Classes = [...]Class{ClassIKE, ClassTCP}

// String gives the word used by the CLI: "ike" or "tcp".
func (c Class) String() string {
	switch c {
	case ClassIKE:
		return "ike"
	case ClassTCP:
		return "tcp"
	}
	return fmt.Sprintf("class(%d)", uint8(c))
}

// Client is the key of an affinity: the client's source address alone; IPv4 as
// an IPv4-mapped IPv6 address, IPv6 cut to the VIP's prefix length (default 64).
type Client [16]byte

// ClientOf returns the key of an address. bits is the IPv6 prefix length and
// is ignored for IPv4.
func ClientOf(a netip.Addr, bits int) Client {
	if a.Is4() || a.Is4In6() {
		return Client(a.As16())
	}
	p, _ := a.Prefix(bits) // bits was checked when the VIP was added
	return Client(p.Addr().As16())
}

// Addr returns the address, IPv4 unmapped.
func (c Client) Addr() netip.Addr { return netip.AddrFrom16(c).Unmap() }

// String gives the address in text.
func (c Client) String() string { return c.Addr().String() }

// Key names one affinity record.
type Key struct {
	Client Client
	Class  Class
}

// VIP is a virtual address that clients dial.
type VIP struct {
	ID         VIPID
	Name       string
	Addr       netip.Addr
	Place      uint8    // 0..MaxVIPs-1, stable while the VIP exists: its index in the data plane
	ClientBits uint8    // IPv6 clients are keyed by this prefix length; 64
	SSTP       SSTPMode // what happens to TCP 443

	// Where TLS of SSTP ends on the nodes (SSTP.Ends).
	Certificates []string // names; the first is the default, the others are for other names or key types
	Transparent  bool     // servers see the clients' own addresses

	Version uint64 // log index of the last change; an admin command may expect it
}

// Ends reports whether the nodes end the TLS of TCP 443 themselves.
func (m SSTPMode) Ends() bool { return m == SSTPOffload || m == SSTPReencrypt }

// SSTPMode says who ends TCP 443 of a VIP. Values are in the log.
type SSTPMode uint8

const (
	SSTPOff         SSTPMode = 0 // 443 goes to the local stack, where nothing listens
	SSTPPassthrough SSTPMode = 1 // the data plane forwards it like IKE
	SSTPOffload     SSTPMode = 2 // TLS ends on the node, plain HTTP to the server
	SSTPReencrypt   SSTPMode = 3 // TLS ends on the node, TLS again to the server
)

// AdminState is what the administrator wants of a backend. Values are in the log.
type AdminState uint8

const (
	AdminEnabled AdminState = 1 // takes new clients while healthy
	AdminDrain   AdminState = 2 // takes no unknown client; keeps known ones, their new logins too
	AdminOffline AdminState = 3 // known clients may be served elsewhere at their next login
	AdminRemoved AdminState = 4 // offline for good; stays listed until no affinity names it
)

// Verdict is the cluster's agreed opinion of one service class of a backend.
// Values are in the log.
type Verdict uint8

const (
	VerdictUnknown Verdict = 0 // not judged yet: treated as down for new clients
	VerdictUp      Verdict = 1
	VerdictDown    Verdict = 2
)

// Health is the committed verdict on one class of one backend.
type Health struct {
	Verdict Verdict
	Index   uint64 // log index of the SetHealth that set it; the next one must name it
	Since   Time   // when the verdict last changed
	UpSince Time   // when it last became up: dwell before the next down
	Voided  uint64 // log index of the VoidBackend that voided its entries; 0 none
}

// Mode says how packets get to a backend. Values are in the log.
type Mode uint8

const (
	ModeDNAT Mode = 0 // the destination becomes the backend's address; replies cross a node
	ModeDSR  Mode = 1 // layer 2 direct server return: the frame gets the backend's MAC, replies bypass the nodes
)

// String gives the word used by the CLI: "dnat" or "dsr".
func (m Mode) String() string {
	switch m {
	case ModeDNAT:
		return "dnat"
	case ModeDSR:
		return "dsr"
	}
	return fmt.Sprintf("mode(%d)", uint8(m))
}

// Backend is one RRAS server behind one VIP.
type Backend struct {
	ID      BackendID
	VIP     VIPID
	Name    string
	Addr    netip.Addr
	Slot    Slot
	Weight  uint16 // share of new clients, 0..MaxWeight; 0 = none
	Mode    Mode
	Limit   uint32 // affinities of class IKE from which it is full; 0 = no limit
	Filled  bool   // it reached its Limit, and has not fallen its slack below it since; see Full
	Admin   AdminState
	Health  [len(Classes)]Health // by Class-1
	Entries [len(Classes)]uint32 // affinities that name it, by Class-1
	Purged  bool                 // removed with --purge: its entries are void
	Version uint64               // log index of the last administrative change

	// Where its VIP's mode of SSTP ends TLS on the nodes.
	SSTPPort    uint16 // 0: what the mode says, see Spec.SSTPPort
	Certificate string // whose hash the server pins; empty: its VIP's
}

// Stance is what the data plane may do with a backend, per class: the columns
// of the affinity table.
type Stance uint8

const (
	StanceNone  Stance = 0 // no such service here
	StanceTake  Stance = 1 // up: unknown clients by Maglev, known ones stay
	StanceKeep  Stance = 2 // drain, full, weight 0: known clients stay, their openings too
	StanceLeave Stance = 3 // down, offline, removed: openings go by Maglev, all else stays
	StanceVoid  Stance = 4 // down long enough, purged: entries count as absent
)

// String gives the word the CLI prints.
func (s Stance) String() string {
	switch s {
	case StanceNone:
		return "none"
	case StanceTake:
		return "take"
	case StanceKeep:
		return "keep"
	case StanceLeave:
		return "leave"
	case StanceVoid:
		return "void"
	}
	return fmt.Sprintf("stance(%d)", uint8(s))
}

// Affinity is the memory of which server a client went to.
type Affinity struct {
	Key
	Backend BackendID
	Index   uint64 // log index of the Learn that made or replaced it: compare-and-swap
	Since   Time   // of that Learn
	Seen    Time   // last activity that was reported
	Heard   Time   // last report with the bit "packets from the server since the last touch"
	State   Confirmation
}

// Confirmation says how an entry was earned, and so how long it lives. Values
// are in the log.
type Confirmation uint8

const (
	EarnedSK   Confirmation = 1 // an SK payload from the server: 2 minutes
	EarnedAuth Confirmation = 2 // an IKE_AUTH response with message ID >= 2: 10 minutes
	Confirmed  Confirmation = 3 // ESP (or TCP payload) from the server: the affinity timeout
)

// Gateway is a floating address inside that servers use as default gateway.
type Gateway struct {
	ID      GatewayID
	Addr    netip.Addr
	Owner   NodeID // zero: nobody yet
	Index   uint64 // log index of the last change of owner; the next must name it
	Version uint64
}

// Role of a member. Values are in the log and in certificates.
type Role uint8

const (
	RoleNode    Role = 1 // raft and data plane
	RoleWitness Role = 2 // raft only
)

// Member is one node that the cluster admitted. Membership is what the log
// says, never what gossip says.
type Member struct {
	ID        NodeID
	Name      string
	Role      Role
	Cluster   string       // host:port of raft and RPC
	Gossip    string       // host:port of gossip
	Addrs     []netip.Addr // every address of its own: replies to these are not return traffic
	PublicKey []byte       // Ed25519: signs hints, is in the certificate
	Joined    uint64       // log index of admission
	Draining  bool         // leave has begun
	Format    uint16       // highest command format it understands
}

// RemovedMember remembers who must not come back.
type RemovedMember struct {
	ID    NodeID
	Name  string
	Index uint64
}

// Token is a join token: single use, hashed at rest, expiring on cluster time.
type Token struct {
	Hash    [32]byte // SHA-256 of the token
	Name    string   // the only node name it admits; empty: any
	Expires Time
	UsedBy  NodeID // zero: unused. The same key may repeat the join until it expires
}

// Secret is a sealed value (CA key, gossip keys): opaque here, opened with the
// cluster secret that is never in the log.
type Secret struct {
	Name    string
	Version uint64
	Sealed  []byte
}

// CertificatePlace says where the TLS certificate called Name lies and which
// certificate that is. The key itself is never in the spec.
type CertificatePlace struct {
	Name    string
	SHA256  [32]byte // of the DER leaf: what RRAS pins
	Path    string   // on the nodes: chain and key as PEM; empty: in the Secret that SecretOfCertificate names
	Version uint64
}

// Settings are the cluster-wide knobs. Durations are on cluster time.
type Settings struct {
	InsidePrefixes    []netip.Prefix // destinations of servers that are not clients
	ForwardPrefixes   []netip.Prefix // what the nodes route for servers
	AffinityTimeout   time.Duration  // 40 min; longer than RRAS' 30 min network outage time
	UnheardTimeout    time.Duration  // 12 h: most that touches without server packets extend
	EarnedSKTimeout   time.Duration  // 2 min
	EarnedAuthTimeout time.Duration  // 10 min
	TouchInterval     time.Duration  // 5 min: at most one touch a client in this time
	VoidAfter         time.Duration  // 120 s down before the leader may void
	DownAfter         uint8          // 3 misses
	UpAfter           uint8          // 5 answers
	ProbeInterval     time.Duration  // 1 s
	ProbeTimeout      time.Duration  // 1 s
	UpDwell           time.Duration  // 10 s between an up and the next down
	Demote            time.Duration  // T1, 5 s: without a quorum for this long a node demotes
	NodeBudget        uint32         // unconfirmed entries per proposing node
	PrefixBudget      uint32         // unconfirmed entries per /24 or /48
	SourceLimit       uint32         // packets a second of one client key that a node lets through to our services; 0: no limit
	Version           uint64
}

// Limits. Each is stated once, here, with its reason.
const (
	MaxVIPs      = 16       // the data plane walks them
	MaxBackends  = 255      // slots of one generation; RRAS farms have 20
	MaxGateways  = 16       // one per server subnet and node is plenty
	MaxMembers   = 32       // ECMP groups end near there; five vote
	MaxTokens    = 64       // outstanding join tokens
	MaxRemoved   = 1024     // oldest forgotten first
	MaxSecrets   = 64       //
	MaxCerts     = 64       //
	MaxVIPCerts  = 8        // of one VIP: a name or two, old and new, ECDSA and RSA
	MaxPrefixes  = 256      // of each list in Settings
	MaxLimit     = 10000000 // of SourceLimit: more than a node forwards of all clients
	MaxWeight    = 1000     // keeps the Maglev fill bounded
	MaxName      = 63       // bytes of any name: a DNS label
	MaxAffinity  = 4 << 20  // records
	MaxBatch     = 4096     // learns or touches or expiries in one command
	ResultWindow = 1024     // remembered results per origin and boot
	MaxOrigins   = 64       // origins whose results are remembered: twice MaxMembers
	MaxProposers = 255      // nodes with unconfirmed records at one time: a byte in each record
	MaxAddrs     = 64       // addresses of one member
	MaxText      = 255      // bytes of host:port and of a name before Apply judges it
	MaxPath      = 1024     // bytes of a certificate's path
	MaxSealed    = 64 << 10 // bytes of one sealed secret
	MaxDetail    = 1024     // bytes of Outcome.Detail
	MinTableSize = 251      // Maglev slots of one pool: small ones are for tests and labs
	MaxTableSize = 1 << 20  //
)

// DefaultTableSize is a prime, and more than 100 times a farm of 255 servers
// (Maglev, section 5.3: the imbalance stays below 1 %).
const DefaultTableSize = 65537

// Names of the secrets that the cluster itself makes. Storing SecretGossip
// sets Spec.KeyEpoch.
const (
	SecretCA      = "ca"
	SecretGossip  = "gossip"
	SecretTickets = "tickets" // keys of TLS session tickets

	secretCertificates = "cert/"
)

// SecretOfCertificate names the Secret with chain and key of a certificate that
// lies in the log.
func SecretOfCertificate(name string) string { return secretCertificates + name }

// Spec is everything agreed but affinities: small, immutable once published.
type Spec struct {
	ClusterID  ClusterID
	Index      uint64 // last applied command
	Generation uint64 // log index of the last change that alters Maglev tables or permits
	Now        Time   // cluster time of the last stamp
	HashKey    [16]byte
	TableSize  uint32 // Maglev slots of each pool, a prime
	Settings   Settings
	VIPs       []VIP     // by ID
	Backends   []Backend // by ID; removed ones that are still named included
	Gateways   []Gateway // by ID
	Members    []Member  // by ID
	Removed    []RemovedMember
	Tokens     []Token
	Secrets    []Secret
	Certs      []CertificatePlace
	KeyEpoch   uint64 // gossip key epoch: the index of the command that installed the key in use
	Affinities int    // records held
}
