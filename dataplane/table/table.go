// Package table says, in the data plane's own words, what should be in its
// tables: the desired set that a node renders from the agreement, the changes
// of affinity records, and what comes back (evidence, activity, reasons).
//
// It is a leaf: plain values, no I/O. A Set is immutable once handed over.
package table

import "net/netip"

// Class is a service class. The numbers are those of the kernel's map keys.
type Class uint8

const (
	IKE Class = 1 // UDP 500 and 4500, their fragments, ESP
	TCP Class = 2 // TCP 443
)

// Classes is how many classes there are; arrays are indexed by Class-1.
const Classes = 2

// Slot is a backend's place in the arrays, 1..MaxSlots; 0 = none.
type Slot uint16

// Limits of one set.
const (
	MaxVIPs  = 16
	MaxSlots = 255
	// MaxPrefixes bounds NotReturn: 32 members with 64 addresses each, 16
	// gateways and 256 inside prefixes fit.
	MaxPrefixes = 2560
)

// Stance is what may be done with a backend of one class.
//
//	          unknown client   known: opening   known: else   record replaceable
//	Take      in Maglev        recorded         recorded      no
//	Keep      not in Maglev    recorded         recorded      no
//	Leave     not in Maglev    Maglev           recorded      yes
//	Void      not in Maglev    entry is absent: all by Maglev
type Stance uint8

const (
	None  Stance = 0 // no such service: as Void
	Take  Stance = 1
	Keep  Stance = 2
	Leave Stance = 3
	Void  Stance = 4
)

// MayTake reports whether a record may point here after a replacement.
func (s Stance) MayTake() bool { return s == Take || s == Keep }

// Known reports whether an existing record that names it counts at all.
func (s Stance) Known() bool { return s == Take || s == Keep || s == Leave }

// VIP is one virtual address.
type VIP struct {
	Index       uint8 // 0..MaxVIPs-1, stable while the VIP exists
	Addr        netip.Addr
	ClientBits  uint8 // IPv6 key prefix length
	Passthrough bool  // TCP 443 is forwarded like IKE; else it goes to the local stack
}

// Backend is one server.
type Backend struct {
	Slot   Slot
	ID     uint32 // permutation of Maglev comes from this, never from the slot
	VIP    uint8  // index of its VIP
	Addr   netip.Addr
	Weight uint16
	Stance [Classes]Stance
	// DSR: layer 2 direct server return. The frame gets the server's MAC and is
	// not changed otherwise; the VIP is on the server's loopback and replies
	// bypass the nodes.
	DSR bool
}

// Set is the whole desired set but the affinity records.
type Set struct {
	ClusterID  [16]byte
	Index      uint64 // log index it was rendered at
	Generation uint64 // log index of the last change of Maglev tables or permits
	HashKey    [16]byte
	TableSize  uint32 // Maglev slots of each pool (a VIP and a class), a prime
	VIPs       []VIP
	Backends   []Backend // those with Slot; every one keeps its return rule
	// NotReturn lists destinations whose packets from a backend are not
	// replies to clients: members, gateways, inside prefixes. VIPs and
	// backends are added by the plane itself.
	NotReturn []netip.Prefix
	// SourceLimit is how many packets a second to our services one client key
	// may send through this node; 0 = no limit.
	SourceLimit uint32
}

// Key names one affinity record: 16-byte client key (IPv4 mapped) and class.
type Key struct {
	Client [16]byte
	Class  Class
}

// Confirmation of an entry, as the program needs it to know what is left to learn.
type Confirmation uint8

const (
	EarnedSK   Confirmation = 1
	EarnedAuth Confirmation = 2
	Confirmed  Confirmation = 3
)

// Entry is one affinity record.
type Entry struct {
	Key
	Slot  Slot
	State Confirmation
}

// Delta is what one or more log entries changed, in log order. Upsert and
// Delete never name the same key. Set is nil where nothing but affinities
// changed; where it is not, affinity changes are written before the flip.
type Delta struct {
	Index  uint64
	Set    *Set
	Upsert []Entry
	Delete []Key
}

// Evidence is what a server's packet proved about a client.
type Evidence struct {
	Key
	Slot  Slot         // the server that sent it
	Saw   Slot         // the record the program saw then; 0 none
	Level Confirmation // strongest level seen so far
	// Opening: the response of an IKE_AUTH or IKE_INTERMEDIATE was among it,
	// the only evidence that may replace a record.
	Opening bool
}

// Answer is what user space tells the plane about a pending evidence.
type Answer uint8

const (
	Stored     Answer = 1 // committed (or already so): forget it
	Superseded Answer = 2 // the record says otherwise now: forget it
	Refused    Answer = 3 // budget or permit: keep quiet about it for 10 s
)

// Activity says that packets between a client and its recorded server were
// seen since the last sweep.
type Activity struct {
	Key
	Slot  Slot
	Heard bool   // among them packets from the server
	Age   uint32 // seconds since the last of them, at the sweep
}
