package config

import (
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
	"time"
)

// Config is a node file that was read, checked and completed with defaults.
type Config struct {
	Name        string // of this node, a DNS label; unique in the cluster
	DataDir     string // identity and raft store
	AdminSocket string // unix socket of the admin API
	Cluster     Cluster
	Dataplane   Dataplane
	BGP         BGP
	SSTP        SSTP
	Log         Log
}

// Cluster is how this node is reached by the other nodes.
type Cluster struct {
	Address   netip.AddrPort // raft and RPC, TCP
	Gossip    netip.AddrPort // gossip, UDP and TCP
	Heartbeat time.Duration  // raft heartbeat and election timeout
}

// Dataplane is what the XDP programs are attached to.
type Dataplane struct {
	PinDir     string // folder on a bpffs
	Outside    string // interface towards routers and clients
	Inside     string // interface towards servers; equal to Outside when one-armed
	Attach     Attach
	MaxClients uint32 // capacity of the affinity map, entries
}

// OneArmed reports whether both sides are the same interface.
func (d Dataplane) OneArmed() bool { return d.Inside == d.Outside }

// Interfaces lists the distinct interfaces, outside first.
func (d Dataplane) Interfaces() []string {
	if d.OneArmed() {
		return []string{d.Outside}
	}
	return []string{d.Outside, d.Inside}
}

// Attach says how XDP programs are attached.
type Attach string

// Ways to attach.
const (
	AttachAuto    Attach = "auto"    // native where the driver can, else generic with an alarm
	AttachNative  Attach = "native"  // native or fail
	AttachGeneric Attach = "generic" // always in the network stack: slow
)

// BGP is this node's speaker. Without neighbours no BGP is spoken.
type BGP struct {
	ASN        uint32
	RouterID   netip.Addr    // IPv4
	NextHop6   netip.Addr    // of IPv6 VIPs on sessions of IPv4; zero: taken from the outside interface
	HoldUp     time.Duration // how long an improvement must last before it is announced
	Prepend    int           // how often a demoted route shows the own AS on eBGP
	ListenPort uint16        // for routers that dial; 0: nothing listens
	Neighbours []Neighbour
}

// Enabled reports whether there is anybody to speak to.
func (b BGP) Enabled() bool { return len(b.Neighbours) > 0 }

// Neighbour is one router.
type Neighbour struct {
	Address      netip.Addr
	ASN          uint32
	HoldTime     time.Duration // whole seconds, at least 3
	LocalAddress netip.Addr    // source of the session; zero: the kernel's choice
	NextHop6     netip.Addr    // instead of the section's, for this session
	Port         uint16        // TCP port of the router
	Passive      bool          // wait for the router to dial; needs BGP.ListenPort
	TTLSecurity  bool          // GTSM (RFC 5082): send 255, accept only 255
	MultihopTTL  uint8         // of an eBGP router that is not on the link; 0: it is
	PasswordFile string        // holds the TCP MD5 password (RFC 2385); empty: none
	Password     Secret        // its contents; Load fills it, Parse does not
}

// SSTP is what this node does where it ends TLS: modes offload and reencrypt.
type SSTP struct {
	Drain       time.Duration // at stop: how long calls may go on, the spread included
	Spread      time.Duration // the last part of Drain, over which they are closed
	Connections int           // at one time
	PerSource   int           // of one client key
	DecoyFile   string        // holds the page that strangers get; empty: a bare 404
	Decoy       []byte        // what Load read there
}

// MaxDecoy bounds the page, in bytes: it is one write.
const MaxDecoy = 16 << 10

// Secret is a string that does not print itself.
type Secret string

// String hides the value.
func (s Secret) String() string {
	if s == "" {
		return ""
	}
	return "[secret]"
}

// GoString hides the value from %#v.
func (s Secret) GoString() string { return fmt.Sprintf("%q", s.String()) }

// LogValue hides the value from slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }

// MarshalText hides the value from encoders.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Log is where and how much is logged.
type Log struct {
	Level  slog.Level
	Format Format
}

// Format of log lines.
type Format string

// Formats.
const (
	FormatText Format = "text"
	FormatJSON Format = "json"
)

// Fault is one thing wrong with a node file.
type Fault struct {
	Line int    // from 1; 0: the file as a whole
	Key  string // dotted path, "bgp.neighbours[0].asn"; empty: the file as a whole
	Text string // what is wrong and what to write instead
}

// String gives "line N: key: text".
func (f Fault) String() string {
	var b strings.Builder
	if f.Line > 0 {
		fmt.Fprintf(&b, "line %d: ", f.Line)
	}
	if f.Key != "" {
		b.WriteString(f.Key + ": ")
	}
	b.WriteString(f.Text)
	return b.String()
}

// InvalidError carries every fault of a node file.
type InvalidError struct {
	Path   string
	Faults []Fault
}

// Error lists all faults, one in each line.
func (e *InvalidError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "node file %s has %d fault(s):", e.Path, len(e.Faults))
	for _, f := range e.Faults {
		b.WriteString("\n  " + f.String())
	}
	return b.String()
}

// Defaults, each stated once. deploy/vpnlb.example.yaml tells what happens
// with too low and too high values.
const (
	DefaultDataDir     = "/var/lib/vpnlb"
	DefaultAdminSocket = "/run/vpnlb/admin.sock"
	DefaultClusterPort = 7950
	DefaultGossipPort  = 7946
	DefaultHeartbeat   = 300 * time.Millisecond
	DefaultPinDir      = "/sys/fs/bpf/vpnlb"
	DefaultMaxClients  = 250_000
	DefaultHoldTime    = 3 * time.Second
	DefaultBGPPort     = 179
	DefaultHoldUp      = time.Second
	DefaultPrepend     = 3
	DefaultDrain       = 30 * time.Second
	DefaultSpread      = 10 * time.Second
	DefaultConnections = 20_000
	DefaultPerSource   = 256
)

// Limits, each with its reason.
const (
	MaxFile       = 64 << 10              // bytes of a node file; a real one has less than 4 KiB
	MinHeartbeat  = 50 * time.Millisecond // below, scheduling hiccups elect leaders
	MaxHeartbeat  = 10 * time.Second      // above, failover is slower than any drill allows
	MinHoldTime   = 3 * time.Second       // RFC 4271, section 4.2
	MaxHoldTime   = 90 * time.Second      // above, a hung node attracts traffic for too long
	MaxHoldUp     = time.Minute           // above, a node that is back stays idle for too long
	MaxPrepend    = 10                    // longer paths are refused by common router policies
	MinMaxClients = 1024                  //
	MaxMaxClients = 4 << 20               // records the cluster holds at most
	MaxNeighbours = 16                    // routers of one node
	MaxPassword   = 80                    // TCP_MD5SIG_MAXKEYLEN of the kernel
	MaxDrain      = time.Hour             // a restart waits for it
	maxSocketPath = 103                   // sun_path of a unix socket (108) without its NUL and the ".new" it is made under
	maxIfName     = 15                    // IFNAMSIZ without its NUL
)
