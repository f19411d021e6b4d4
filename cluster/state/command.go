package state

import (
	"crypto/rand"
	"net/netip"
	"time"
)

// Command is the closed sum of everything that can be agreed. Every command is
// total (Apply gives an Outcome, never a panic) and idempotent under
// re-delivery (Envelope). The encoded forms are for ever: golden tests hold
// them, a Kind is never used again.
type Command interface {
	kind() Kind
}

// Kind numbers the commands in the log.
type Kind uint8

// Kinds. Never renumber, never reuse.
const (
	KindInit              Kind = 1
	KindPutVIP            Kind = 2
	KindRemoveVIP         Kind = 3
	KindPutBackend        Kind = 4
	KindSetBackendAdmin   Kind = 5
	KindRemoveBackend     Kind = 6
	KindSetHealth         Kind = 7
	KindVoidBackend       Kind = 8
	KindPutGateway        Kind = 9
	KindRemoveGateway     Kind = 10
	KindOwnGateway        Kind = 11
	KindSetSettings       Kind = 12
	KindAddToken          Kind = 13
	KindAdmitMember       Kind = 14
	KindUpdateMember      Kind = 15
	KindRemoveMember      Kind = 16
	KindReplaceMember     Kind = 17
	KindPutSecret         Kind = 18
	KindPutCertificate    Kind = 19
	KindRemoveCertificate Kind = 20
	KindLearn             Kind = 21
	KindTouch             Kind = 22
	KindExpire            Kind = 23
	KindForget            Kind = 24
	KindTick              Kind = 25
	KindPutBackendMode    Kind = 26 // format 2: PutBackend of another mode than DNAT
	KindSetSettingsLimit  Kind = 27 // format 2: SetSettings with a SourceLimit
	KindPutVIPSSTP        Kind = 28 // format 3: PutVIP with certificates or transparent
	KindPutBackendSSTP    Kind = 29 // format 3: PutBackend with a port of SSTP or a certificate, of any mode
	KindDropCertificate   Kind = 30 // format 3: RemoveCertificate with its secret
)

// Init is the first command of a cluster's log; only `cluster init` makes it.
// Its Settings have no SourceLimit: SetSettings brings one.
type Init struct {
	ClusterID ClusterID
	HashKey   [16]byte
	TableSize uint32
	Settings  Settings
	First     Member   // the node that initialises
	Secrets   []Secret // CA key, gossip keys
}

// NewInit draws a cluster ID and a hash key, and fills in the defaults. It is
// for the node that initialises a cluster, never for Apply.
func NewInit(first Member) Init {
	in := Init{
		ClusterID: NewClusterID(),
		TableSize: DefaultTableSize,
		Settings:  DefaultSettings(),
		First:     first,
	}
	rand.Read(in.HashKey[:]) // never fails (crypto/rand, Go 1.24)
	return in
}

// PutVIP adds a VIP (ID 0) or changes the one with this name. Expect is the
// version the administrator saw: 0 on adding; another one is refused.
type PutVIP struct {
	VIP    VIP
	Expect uint64
}

// RemoveVIP removes a VIP without backends.
type RemoveVIP struct {
	ID     VIPID
	Expect uint64
}

// PutBackend adds a backend or changes name, mode, weight, limit and what SSTP
// needs of an existing one; the mode only while no record names it. ID, slot, health and entries are the Machine's. Adding the address of a
// removed backend that is still named revives it. A backend address belongs to
// one VIP per family and service.
type PutBackend struct {
	Backend Backend
	Expect  uint64
}

// SetBackendAdmin drains, takes offline or enables a backend.
type SetBackendAdmin struct {
	ID     BackendID
	Admin  AdminState // enabled, drain or offline
	Expect uint64
}

// RemoveBackend takes a backend out for good. It keeps ID, slot, address and
// return rule until no entry names it; Purge voids its entries at once.
type RemoveBackend struct {
	ID     BackendID
	Purge  bool
	Expect uint64
}

// SetHealth commits one verdict; Previous is Health.Index of the one it replaces.
type SetHealth struct {
	Backend  BackendID
	Class    Class
	Verdict  Verdict
	Previous uint64
}

// VoidBackend makes the entries of a backend, down for VoidAfter, count as
// absent. Previous is Health.Index of the down verdict.
type VoidBackend struct {
	Backend  BackendID
	Class    Class
	Previous uint64
}

// PutGateway adds a floating gateway address.
type PutGateway struct {
	Addr   netip.Addr
	Expect uint64
}

// RemoveGateway removes one.
type RemoveGateway struct {
	ID     GatewayID
	Expect uint64
}

// OwnGateway moves a gateway to a member; Previous is Gateway.Index.
type OwnGateway struct {
	ID       GatewayID
	Owner    NodeID
	Previous uint64
}

// SetSettings replaces the settings; Expect is Settings.Version.
type SetSettings struct {
	Settings Settings
	Expect   uint64
}

// AddToken stores a join token's hash for Life of cluster time.
type AddToken struct {
	Hash [32]byte
	Name string
	Life time.Duration
}

// AdmitMember uses a token and stores the new member, in one command. The same
// key may repeat it until the token expires.
type AdmitMember struct {
	Token  [32]byte // hash
	Member Member
}

// UpdateMember changes what a member says of itself (addresses, format,
// draining). ID and key never change.
type UpdateMember struct {
	Member Member
}

// RemoveMember removes a member for good and moves it to Removed.
type RemoveMember struct {
	ID NodeID
}

// ReplaceMember gives a member that lost its store a new ID; authenticated by
// the same key, checked before proposing and again in Apply.
type ReplaceMember struct {
	Old    NodeID
	Member Member
}

// PutSecret stores a sealed value; Expect is its version, 0 for a new one.
type PutSecret struct {
	Name   string
	Sealed []byte
	Expect uint64
}

// PutCertificate records a certificate's place; Expect as in PutSecret.
type PutCertificate struct {
	Certificate CertificatePlace
	Expect      uint64
}

// RemoveCertificate forgets a certificate's place, and with Secret its sealed
// chain and key as well. It is refused while a VIP or a server uses it.
type RemoveCertificate struct {
	Name   string
	Secret bool
	Expect uint64
}

// Learned is one record to insert or replace. Replaces is the Affinity.Index
// of the record it replaces; 0 inserts if absent.
type Learned struct {
	Key
	Backend  BackendID
	State    Confirmation
	Replaces uint64
	Opening  bool // evidence was a response of IKE_AUTH or IKE_INTERMEDIATE, or TCP payload
}

// Learn inserts, replaces or raises the confirmation of records. One log entry
// carries many (MaxBatch); each has its own LearnResult.
type Learn struct {
	Records []Learned
}

// Touched is activity between a client and its recorded server.
type Touched struct {
	Key
	Index uint64 // Affinity.Index of the record that was active; another one is ignored
	Heard bool   // packets from the server since the last touch
	Age   uint32 // seconds it was old at proposal
}

// Touch extends the life of records.
type Touch struct {
	Records []Touched
}

// Expired names a record that Expiry found too old.
type Expired struct {
	Key
	Index uint64 // of the record, else ignored
	Seen  Time   // the Seen it was judged by; a newer one is kept
}

// Expire removes records whose time is up; Apply judges each again.
type Expire struct {
	Records []Expired
}

// Forget removes records at an administrator's word.
type Forget struct {
	Keys []Key
}

// Tick carries nothing but its stamp: cluster time goes on in a quiet cluster.
type Tick struct{}

func (Init) kind() Kind            { return KindInit }
func (RemoveVIP) kind() Kind       { return KindRemoveVIP }
func (SetBackendAdmin) kind() Kind { return KindSetBackendAdmin }
func (RemoveBackend) kind() Kind   { return KindRemoveBackend }
func (SetHealth) kind() Kind       { return KindSetHealth }
func (VoidBackend) kind() Kind     { return KindVoidBackend }
func (PutGateway) kind() Kind      { return KindPutGateway }
func (RemoveGateway) kind() Kind   { return KindRemoveGateway }
func (OwnGateway) kind() Kind      { return KindOwnGateway }
func (AddToken) kind() Kind        { return KindAddToken }
func (AdmitMember) kind() Kind     { return KindAdmitMember }
func (UpdateMember) kind() Kind    { return KindUpdateMember }
func (RemoveMember) kind() Kind    { return KindRemoveMember }
func (ReplaceMember) kind() Kind   { return KindReplaceMember }
func (PutSecret) kind() Kind       { return KindPutSecret }
func (PutCertificate) kind() Kind  { return KindPutCertificate }
func (Learn) kind() Kind           { return KindLearn }
func (Touch) kind() Kind           { return KindTouch }
func (Expire) kind() Kind          { return KindExpire }
func (Forget) kind() Kind          { return KindForget }
func (Tick) kind() Kind            { return KindTick }

// What format 1 can say keeps its form: members of that format read it.

func (c PutVIP) kind() Kind {
	if len(c.VIP.Certificates) == 0 && !c.VIP.Transparent {
		return KindPutVIP
	}
	return KindPutVIPSSTP
}

func (c PutBackend) kind() Kind {
	switch {
	case c.Backend.SSTPPort != 0 || c.Backend.Certificate != "":
		return KindPutBackendSSTP
	case c.Backend.Mode != ModeDNAT:
		return KindPutBackendMode
	}
	return KindPutBackend
}

func (c RemoveCertificate) kind() Kind {
	if c.Secret {
		return KindDropCertificate
	}
	return KindRemoveCertificate
}

func (c SetSettings) kind() Kind {
	if c.Settings.SourceLimit == 0 {
		return KindSetSettings
	}
	return KindSetSettingsLimit
}

// Envelope carries one command from its origin to the log. Origin, Boot (the
// origin's persisted boot counter) and Sequence (from 1 in each boot) make a
// command that was forwarded twice apply once.
type Envelope struct {
	Origin   NodeID
	Boot     uint64
	Sequence uint64
	Command  Command
}

// Batch is the data of one log entry: the leader's stamp and the envelopes.
type Batch struct {
	Stamp     Time
	Envelopes []Envelope
}

// Outcome says what Apply did with one envelope.
type Outcome struct {
	Code   Code
	Index  uint64        // log index it was applied at
	ID     uint64        // of what the command made or found (VIP, backend, gateway); records changed by Touch, Expire, Forget
	Detail string        // one sentence for a person, when Code is not OK
	Learns []LearnResult // one for each Learned
}

// Code of an Outcome. Values are in snapshots and on the wire.
type Code uint8

const (
	OK         Code = 1
	Conflict   Code = 2 // the expected version or previous index is not the current one
	NotFound   Code = 3
	Invalid    Code = 4 // the command contradicts the spec; Detail says how
	Full       Code = 5 // a limit of the Spec is reached; Detail names it
	TooOld     Code = 6 // its sequence lies below the window
	NotAllowed Code = 7 // token unknown, used or expired; member removed; not initialised
)

// LearnResult answers one Learned. Values are in snapshots and on the wire.
type LearnResult uint8

const (
	LearnStored     LearnResult = 1 // the record is as asked (made, raised, or was so already)
	LearnSuperseded LearnResult = 2 // somebody else's record stands
	LearnRefused    LearnResult = 3 // a permit or a budget says no
)
