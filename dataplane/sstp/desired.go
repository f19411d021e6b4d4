package sstp

import (
	"crypto/tls"
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Mode says how the relay talks to servers.
type Mode uint8

const (
	// Offload: plain HTTP to the server (RRAS: "Use HTTP").
	Offload Mode = 1
	// Reencrypt: TLS again to the server, which must show the very certificate
	// that its clients saw here: RRAS supports re-encryption only so.
	Reencrypt Mode = 2
)

// Hash is the SHA-256 of a certificate's DER leaf: what RRAS pins, and what
// clients repeat in Call Connected.
type Hash [32]byte

// Desired is what the server should do; the node renders it from the agreement.
type Desired struct {
	Services     []Service
	Targets      []Target
	Certificates []Certificate
	// TicketKeys of TLS session tickets, the newest first: shared by the
	// cluster, so that a session resumes on any node. Empty: tickets are off.
	TicketKeys [][32]byte
	Limits     Limits
}

// Service is one VIP whose TLS ends here.
type Service struct {
	VIP  uint8  // its index in the data plane
	Name string // for logs and metrics
	Addr netip.Addr
	Mode Mode
	// ClientBits is the IPv6 prefix length that keys a client.
	ClientBits uint8
	// Transparent: connect to servers from the client's own address.
	Transparent bool
	// Decoy is what a request that is no SSTP gets; the zero value: a bare 404.
	Decoy Decoy
}

// Decoy is a fixed answer to everything but SSTP. The connection ends with it.
type Decoy struct {
	Status int    // 200 to 599; 0: 404
	Type   string // Content-Type of Body
	Body   []byte // up to MaxDecoyBytes
}

// MaxDecoyBytes bounds a decoy's body, so that it is one write.
const MaxDecoyBytes = 16 << 10

// Target is one server behind a Service.
type Target struct {
	Slot table.Slot
	VIP  uint8
	Name string
	Addr netip.AddrPort
	// Certificate whose hash the server pins, by name. Its clients see this one,
	// whatever name they dial and whatever keys they know.
	Certificate string
	// Refuse: takes no new connection, whatever the chooser says (drain of SSTP
	// with a deadline). Standing ones end by Server.CloseTarget.
	Refuse bool
}

// Certificate is one certificate of the cluster with its key.
type Certificate struct {
	Name string
	Hash Hash
	// TLS holds chain, key and Leaf; OCSP staples are the server's own work.
	TLS *tls.Certificate
}

// Limits bound what clients can make the node hold. The zero value of a field
// means its default.
type Limits struct {
	Connections      int           // at one time, of all services: 20000
	PerSource        int           // at one time, of one client key (IPv4 address, IPv6 /64): 256, many users share one NAT address
	Handshakes       int           // under way at one time: 4096, of one client key a 32nd of it; more wait in the kernel's queue
	HandshakeTimeout time.Duration // for TLS: 10 s
	HeadTimeout      time.Duration // from the end of the handshake to the end of the head: 10 s
	ResponseTimeout  time.Duration // for the server's response head: 60 s, as long as Windows waits
	DialTimeout      time.Duration // 5 s
	IdleTimeout      time.Duration // nothing in either direction: 300 s; SSTP echoes come every 60 s
}

// Route is where a client's new connection goes.
type Route struct {
	Slot   table.Slot
	Saw    table.Slot // the record that the choice was made by; 0 none
	Reason string     // the word that explain prints
}

// Session is one connection as `vpnlb sstp sessions` lists it.
type Session struct {
	ID          uint64
	VIP         string
	Target      string
	Slot        table.Slot
	Client      netip.AddrPort
	Certificate string // shown to the client
	TLS         string // version, suite, resumed or not
	State       string // handshake, head, dialing, response, negotiating, connected, closing
	Since       time.Time
	Idle        time.Duration
	In, Out     uint64 // bytes of the client, bytes to it, after TLS
	Echoes      uint64 // echo responses seen
	EchoLost    uint64 // echo requests that had no response when the next came
	// Proven: the call has stood for 10 s since Call Connected, so its server
	// took it. A client can say Call Connected without having logged in.
	Proven bool
}
