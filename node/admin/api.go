// Package admin is the local door of a node: HTTP and JSON on a unix socket.
// It holds the shapes that travel there, the server that guards the socket and
// the client that the command line uses. What is done with a request is the
// node's business (package node).
package admin

import (
	"log/slog"
	"net/netip"
	"time"
)

// Paths of the API. Reading is GET, changing is POST with a JSON body. Long
// operations (join, leave) answer with a stream of Progress, one JSON value a
// line; the last one has Done or Error set.
const (
	PathStatus         = "/v1/status"
	PathMetrics        = "/metrics" // Prometheus text format
	PathSpec           = "/v1/spec"
	PathMembers        = "/v1/cluster/members"
	PathInit           = "/v1/cluster/init"
	PathToken          = "/v1/cluster/token"
	PathJoin           = "/v1/cluster/join"
	PathLeave          = "/v1/cluster/leave"
	PathRemove         = "/v1/cluster/remove"
	PathSet            = "/v1/cluster/set"
	PathVIPAdd         = "/v1/vip/add"
	PathVIPRemove      = "/v1/vip/remove"
	PathBackendAdd     = "/v1/backend/add"
	PathBackendAdmin   = "/v1/backend/admin"
	PathBackendRemove  = "/v1/backend/remove"
	PathGatewayAdd     = "/v1/gateway/add"
	PathGatewayRemove  = "/v1/gateway/remove"
	PathAffinityList   = "/v1/affinity"     // ?limit=N (0: as many as a page holds)[&backend=NAME][&after=NEXT]
	PathAffinityGet    = "/v1/affinity/get" // ?client=ADDR
	PathAffinityForget = "/v1/affinity/forget"
	PathTrace          = "/v1/plane/trace" // ?client=ADDR|PREFIX&count=N; lines of Traced
	PathExplain        = "/v1/explain"     // ?client=ADDR[&vip=NAME][&class=ike|tcp]
	PathCertList       = "/v1/cert"
	PathCertAdd        = "/v1/cert/add"
	PathCertUse        = "/v1/cert/use"
	PathCertRemove     = "/v1/cert/remove"
	PathCertRotate     = "/v1/cert/rotate"
	PathSSTPSessions   = "/v1/sstp/sessions"
	PathSSTPStatus     = "/v1/sstp/status"
	PathSSTPRRAS       = "/v1/sstp/rras" // ?server=NAME[&certificate=NAME]
)

// MaxBody bounds every request, in bytes.
const MaxBody = 1 << 20

// Error is what a refused or failed request answers, with a status code of
// HTTP: 400 the request is wrong, 404 no such thing, 409 somebody else changed
// it or it is in the way, 503 no leader or not ready.
type Error struct {
	Message string `json:"error"`
	Status  int    `json:"-"`
}

// Error implements error.
func (e *Error) Error() string { return e.Message }

// Progress is one line of a long operation.
type Progress struct {
	Step   string `json:"step,omitempty"`
	Done   bool   `json:"done,omitempty"`
	Error  string `json:"error,omitempty"`
	Status int    `json:"status,omitempty"` // of the error: what an answer of its own would have
}

// Status is one node at a glance.
type Status struct {
	Node          string      `json:"node"`
	ID            string      `json:"id"`
	Stage         string      `json:"stage"` // waiting, starting, running, leaving, stopping, parked
	StageReason   string      `json:"stage_reason,omitempty"`
	Uptime        string      `json:"uptime"`
	UptimeSeconds float64     `json:"uptime_seconds"`
	Version       string      `json:"version"`
	Cluster       string      `json:"cluster,omitempty"` // cluster ID
	Role          string      `json:"role,omitempty"`    // leader, follower, candidate, nonvoter
	Leader        string      `json:"leader,omitempty"`  // name
	Term          uint64      `json:"term,omitempty"`
	Index         uint64      `json:"index"`         // last applied command
	PlaneIndex    uint64      `json:"plane_index"`   // what the data plane has
	Generation    uint64      `json:"generation"`    // of the tables
	CaughtUp      bool        `json:"caught_up"`     // latched since start
	Quorum        bool        `json:"quorum"`        // a leader was heard of within its lease
	LiveVoters    int         `json:"live_voters"`   // as this node sees them
	Voters        int         `json:"voters"`        //
	Affinities    int         `json:"affinities"`    // records agreed
	PlaneEntries  int         `json:"plane_entries"` // records in the kernel
	MaxClients    int         `json:"max_clients"`
	Plane         []Interface `json:"plane"`
	PlaneHealthy  bool        `json:"plane_healthy"`
	VIPs          []VIPStatus `json:"vips"`
	Neighbours    []Neighbour `json:"neighbours"`
	Backends      []Backend   `json:"backends"`
	Gateways      []Gateway   `json:"gateways"`
	Packets       []Counter   `json:"packets"`
	Warnings      []string    `json:"warnings"`
	StateHash     string      `json:"state_hash,omitempty"` // ?hash=1: of the state at Index
}

// Interface is one attached interface.
type Interface struct {
	Name  string `json:"name"`
	Mode  string `json:"mode"` // native, generic, detached
	Alarm string `json:"alarm,omitempty"`
}

// VIPStatus says whether this node announces a VIP, and why.
type VIPStatus struct {
	Name string     `json:"name"`
	Addr netip.Addr `json:"addr"`
	// Announce is announced, demoted, draining or withdrawn; unsent where that was
	// decided, but no router is in session that could have the route.
	Announce     string  `json:"announce"`
	Reason       string  `json:"reason"`
	Since        string  `json:"since,omitempty"`
	SinceSeconds float64 `json:"since_seconds,omitempty"`
}

// Neighbour is one BGP session.
type Neighbour struct {
	Addr  string `json:"addr"`
	ASN   uint32 `json:"asn"`
	State string `json:"state"`
	Since string `json:"since,omitempty"`
	// Families that the session carries: ipv4, ipv6.
	Families []string `json:"families,omitempty"`
	Error    string   `json:"error,omitempty"` // the last reason why there is no session
	// HoldSeconds is the hold time in force, RouterHoldSeconds what the router offered.
	HoldSeconds       float64 `json:"hold_seconds,omitempty"`
	RouterHoldSeconds float64 `json:"router_hold_seconds,omitempty"`
	// DroppedUpdates counts UPDATE messages of the router; this node uses none.
	DroppedUpdates uint64 `json:"dropped_updates,omitempty"`
	LastRefusal    string `json:"last_refusal,omitempty"` // the last message that was refused
	EverUp         bool   `json:"ever_established,omitempty"`
	// OutSeconds is for how long there has been no session, or none yet.
	OutSeconds float64 `json:"out_seconds,omitempty"`
}

// Counter is packets that left the program for one reason.
type Counter struct {
	Reason  string `json:"reason"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Backend is one server as the cluster and this node see it.
type Backend struct {
	ID     uint32     `json:"id"`
	Name   string     `json:"name"`
	VIP    string     `json:"vip"`
	Addr   netip.Addr `json:"addr"`
	Mode   string     `json:"mode"` // dnat, dsr
	Weight uint16     `json:"weight"`
	Limit  uint32     `json:"limit,omitempty"`
	Admin  string     `json:"admin"`
	Health string     `json:"health"` // agreed verdict of IKE
	Stance string     `json:"stance"` // take, keep, leave, void
	// StanceWhy: what keeps it from taking new clients, or that it takes them for want of others.
	StanceWhy string   `json:"stance_why,omitempty"`
	Local     string   `json:"local,omitempty"`  // what this node's own probes say
	Detail    string   `json:"detail,omitempty"` // hint of the prober
	Clients   uint32   `json:"clients"`
	Version   uint64   `json:"version"`
	Returned  uint64   `json:"returned,omitempty"` // ESP and SK packets from it, this node; none are seen of one in mode dsr
	TCP       *Service `json:"tcp,omitempty"`      // TCP 443, where its VIP has SSTP
	In        Traffic  `json:"in"`                 // forwarded to it by this node
	Out       Traffic  `json:"out"`                // replies of its; none pass by of one in mode dsr
}

// Traffic is what a node forwarded, since its tables were made.
type Traffic struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Add adds up.
func (t *Traffic) Add(u Traffic) {
	t.Packets += u.Packets
	t.Bytes += u.Bytes
}

// Service is a second service of a server: what Backend says of IKE.
type Service struct {
	Health    string `json:"health"`
	Stance    string `json:"stance"`
	StanceWhy string `json:"stance_why,omitempty"`
	Local     string `json:"local,omitempty"`
	Detail    string `json:"detail,omitempty"`
	Clients   uint32 `json:"clients"`
	// Where the nodes end TLS.
	Port        uint16 `json:"port,omitempty"`        // that they dial
	Certificate string `json:"certificate,omitempty"` // whose hash it pins, by name
	Sessions    int    `json:"sessions,omitempty"`    // of this node
}

// Gateway is one floating gateway address.
type Gateway struct {
	ID    uint32     `json:"id"`
	Addr  netip.Addr `json:"addr"`
	Owner string     `json:"owner"`
	Here  bool       `json:"here"` // this node holds the address
	Alarm string     `json:"alarm,omitempty"`
}

// Member is one committed member with what is heard of it.
type Member struct {
	ID         string   `json:"id"`
	Name       string   `json:"name"`
	Role       string   `json:"role"`
	Suffrage   string   `json:"suffrage"` // voter, nonvoter, none
	Leader     bool     `json:"leader"`
	Cluster    string   `json:"cluster_addr"`
	Gossip     string   `json:"gossip_addr"`
	Addrs      []string `json:"addrs"`
	Live       bool     `json:"live"`
	HeardAgo   string   `json:"heard_ago,omitempty"`
	PlaneIndex uint64   `json:"plane_index"`
	Draining   bool     `json:"draining,omitempty"`
	Announced  bool     `json:"announced"`
	Self       bool     `json:"self,omitempty"`
	RaftOff    bool     `json:"raft_off,omitempty"` // its consensus is parked
	// Stale: nothing fresh is known of it: announced is false then, whatever it
	// does, and plane_index what it said last.
	Stale           bool    `json:"stale,omitempty"`
	HeardAgoSeconds float64 `json:"heard_ago_seconds,omitempty"`
	// StatusAgo is the age of what a member said last of itself; left out for this
	// node and where it is fresh.
	StatusAgo        string  `json:"status_ago,omitempty"`
	StatusAgoSeconds float64 `json:"status_ago_seconds,omitempty"`
}

// Spec is what the administrator set.
type Spec struct {
	Cluster  string            `json:"cluster"`
	VIPs     []VIP             `json:"vips"`
	Backends []Backend         `json:"backends"`
	Gateways []Gateway         `json:"gateways"`
	Settings map[string]string `json:"settings"`
}

// VIP is one virtual address.
type VIP struct {
	ID      uint32     `json:"id"`
	Name    string     `json:"name"`
	Addr    netip.Addr `json:"addr"`
	SSTP    string     `json:"sstp"`
	Bits    uint8      `json:"client_bits,omitempty"` // prefix length that keys its clients; IPv6 only
	Version uint64     `json:"version"`
	// Where the nodes end TLS.
	Certificates []string `json:"sstp_certs,omitempty"`
	Transparent  bool     `json:"sstp_transparent,omitempty"`
}

// Affinity is one record.
type Affinity struct {
	Client  netip.Addr `json:"client"` // address of the key: of IPv6 clients the first of their prefix
	Key     string     `json:"key"`    // the address, or the prefix that stands for an IPv6 client
	VIP     string     `json:"vip"`
	Class   string     `json:"class"`
	Backend string     `json:"backend"`
	State   string     `json:"state"` // unconfirmed, authenticated, confirmed
	Index   uint64     `json:"index"` // of the log entry that made it
	Since   string     `json:"since"` // ago, on cluster time
	// Seen: last activity as the node that is asked knows it, ago: the agreed one,
	// told every touch_interval, or a later packet that crossed this node.
	Seen         string  `json:"seen"`
	SinceSeconds float64 `json:"since_seconds"`
	SeenSeconds  float64 `json:"seen_seconds"`
}

// Affinities is a page of records.
type Affinities struct {
	Total   int        `json:"total"`   // that match, on all pages
	Records []Affinity `json:"records"` // in the order of their addresses, IPv4 first
	// Next, where it is set, is what to ask for the page behind this one with
	// (?after=). What changes meanwhile may be on a page or not.
	Next string `json:"next,omitempty"`
}

// Explanation says which server a client gets now, and why.
type Explanation struct {
	Client netip.Addr `json:"client"`
	VIP    string     `json:"vip"`
	Class  string     `json:"class"` // ike, tcp
	Record *Affinity  `json:"record,omitempty"`
	Cases  []Case     `json:"cases"`
	Notes  []string   `json:"notes,omitempty"`
}

// Case is the answer for one kind of packet.
type Case struct {
	Packet  string `json:"packet"`
	Backend string `json:"backend"`
	Reason  string `json:"reason"`
	Why     string `json:"why"`
}

// InitRequest makes a new cluster of this one node.
type InitRequest struct {
	Force bool `json:"force,omitempty"`
}

// InitAnswer tells what was made.
type InitAnswer struct {
	Cluster  string   `json:"cluster"`
	Node     string   `json:"node"`
	CAHash   string   `json:"ca_hash"`
	Warnings []string `json:"warnings,omitempty"`
}

// TokenRequest asks for a join token.
type TokenRequest struct {
	Name string        `json:"name,omitempty"` // the only node name it admits
	TTL  time.Duration `json:"ttl"`            // nanoseconds
}

// TokenAnswer is what a joining node needs.
type TokenAnswer struct {
	Token          string   `json:"token"`
	CAHash         string   `json:"ca_hash"`
	Expires        string   `json:"expires"` // "in 10m0s"
	ExpiresSeconds float64  `json:"expires_seconds"`
	Name           string   `json:"name,omitempty"` // the only node name it admits
	Addrs          []string `json:"addrs"`          // members to join at
}

// JoinRequest joins this node to a cluster.
type JoinRequest struct {
	Addr   string `json:"addr"`
	Token  string `json:"token"`
	CAHash string `json:"ca_hash"`
}

// LogValue leaves the token out of the log.
func (r JoinRequest) LogValue() slog.Value {
	return slog.GroupValue(slog.String("addr", r.Addr), slog.String("ca_hash", r.CAHash))
}

// LeaveRequest makes this node leave.
type LeaveRequest struct {
	Force bool `json:"force,omitempty"`
}

// RemoveRequest removes another member for good.
type RemoveRequest struct {
	Node  string `json:"node"` // name or ID
	Force bool   `json:"force,omitempty"`
}

// SetRequest changes one setting.
type SetRequest struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// NameRequest names a VIP, backend or gateway. Purge is for backends.
type NameRequest struct {
	Name  string `json:"name"`
	Purge bool   `json:"purge,omitempty"`
}

// ForgetRequest names a client whose records are to go.
type ForgetRequest struct {
	Name string `json:"name"` // address, or prefix as lists show it
}

// VIPRequest adds a VIP or changes the one of this name.
type VIPRequest struct {
	Name string `json:"name"`
	Addr string `json:"addr"`
	SSTP string `json:"sstp,omitempty"` // off, passthrough, offload, reencrypt
	Bits *uint8 `json:"client_bits,omitempty"`
	// Names of certificates, the default first; nil: as it is.
	Certificates *[]string `json:"sstp_certs,omitempty"`
	Transparent  *bool     `json:"sstp_transparent,omitempty"`
	Readdress    bool      `json:"readdress,omitempty"` // another address, although servers stand behind it
}

// BackendRequest adds a backend or changes the one of this name.
type BackendRequest struct {
	Name   string  `json:"name"`
	VIP    string  `json:"vip,omitempty"`
	Addr   string  `json:"addr"`
	Mode   string  `json:"mode,omitempty"` // dnat, dsr; empty: as it is, dnat for a new one
	Weight *uint16 `json:"weight,omitempty"`
	Limit  *uint32 `json:"limit,omitempty"`
	// SSTPPort is where the nodes dial it; 0: what its VIP's mode says.
	SSTPPort *uint16 `json:"sstp_port,omitempty"`
}

// BackendAdminRequest drains, takes offline or enables a backend.
type BackendAdminRequest struct {
	Name  string `json:"name"`
	Admin string `json:"admin"` // enabled, drain, offline
}

// GatewayRequest adds or removes a floating gateway address.
type GatewayRequest struct {
	Addr string `json:"addr"`
}

// Changed answers a change: the log index it was applied at, and what else
// the administrator should know.
type Changed struct {
	Index uint64   `json:"index"`
	ID    uint64   `json:"id,omitempty"`
	Notes []string `json:"notes,omitempty"`
}
