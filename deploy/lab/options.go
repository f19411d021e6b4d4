package lab

import (
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"time"
)

// PeerKind says what stands around the nodes.
type PeerKind string

// Kinds of peers.
const (
	Embedded PeerKind = "embedded" // router, responders and clients of this repository
	Real     PeerKind = "real"     // FRR, strongSwan servers and clients
)

// SSTPMode says what becomes of TCP 443 of the VIPs, as "vpnlb vip add" calls it.
type SSTPMode string

// Modes of SSTP. With one of them servers speak SSTP, and there are client
// networks for sstpc.
const (
	SSTPOff         SSTPMode = ""
	SSTPPassthrough SSTPMode = "passthrough"
	SSTPOffload     SSTPMode = "offload"
	SSTPReencrypt   SSTPMode = "reencrypt"
)

// ends reports whether TLS of clients ends on the nodes.
func (m SSTPMode) ends() bool { return m == SSTPOffload || m == SSTPReencrypt }

// Options say how large a lab is. The zero value of each field means its default.
type Options struct {
	Name    string   `json:"name"`    // [a-z0-9]{1,12}; default "lab"
	Binary  string   `json:"binary"`  // the vpnlb binary; default: this executable
	Nodes   int      `json:"nodes"`   // nodes that form the cluster, 1..8; default 3
	Spares  int      `json:"spares"`  // built but not started, for joins; default 1
	Servers int      `json:"servers"` // 1..20; default 3
	Clients int      `json:"clients"` // 0..4000; default 200
	Peers   PeerKind `json:"peers"`   // default Embedded
	Rate    int      `json:"rate"`    // data packets of each embedded client a second; default 10
	// LossAfter is how long an embedded client goes without an echo before it
	// logs in again, as dead peer detection would make it; default 5 s: more
	// than any drill on nodes may cost, so that a loss shows as what it is.
	LossAfter time.Duration `json:"loss_after"`
	// IPv6 makes the site dual stack: a VIP, servers, gateways and BGP sessions
	// of that family too, and every fourth client speaks it.
	IPv6 bool `json:"ipv6"`
	// Passthrough makes the VIPs forward TCP 443: servers listen on it, and some
	// clients hold a connection.
	Passthrough bool `json:"passthrough"`
	// SSTP makes servers speak SSTP, for sstpc; it takes the place of Passthrough,
	// whose servers want TCP 443 too. "off" is SSTPOff.
	SSTP SSTPMode `json:"sstp"`
	// ICMP says that the data plane judges fragments, and relays and answers
	// ICMP errors: the drills that need it may run.
	ICMP bool `json:"icmp"`
	// DSR makes all servers layer 2 DSR ones: VIP on their loopback, replies
	// straight to the router.
	DSR bool `json:"dsr"`
	// Other is another version of the vpnlb binary, for the drill that changes
	// between them; "": none is known, and the drill cannot run.
	Other string `json:"other,omitempty"`
	// Out gets one plain line for each thing done; nil: nothing.
	Out io.Writer `json:"-"`
}

// What the demo, the tests and the command line take where nobody says
// otherwise.
const (
	DefaultIPv6        = true
	DefaultPassthrough = true
	DefaultICMP        = true
)

// Limits of a lab: the address plan has room for this much.
const (
	maxNodes   = 9 // 198.51.100.1 to .9
	maxServers = 20
	maxClients = 4000 // strongSwan needs 51 s for 3000
)

var namePattern = regexp.MustCompile(`^[a-z0-9]{1,12}$`)

// withDefaults fills what is not set and reports every fault at once.
func (o Options) withDefaults() (Options, error) {
	def := func(p *int, v int) {
		if *p == 0 {
			*p = v
		}
	}
	if o.Name == "" {
		o.Name = "lab"
	}
	if o.Peers == "" {
		o.Peers = Embedded
	}
	def(&o.Nodes, 3)
	def(&o.Spares, 1)
	def(&o.Servers, 3)
	def(&o.Clients, 200)
	def(&o.Rate, 10)
	if o.LossAfter == 0 {
		o.LossAfter = 5 * time.Second
	}
	if o.Out == nil {
		o.Out = io.Discard
	}
	var errs []error
	switch o.SSTP {
	case "off":
		o.SSTP = SSTPOff
	case SSTPOff:
	case SSTPPassthrough, SSTPOffload, SSTPReencrypt:
		o.Passthrough = false
	default:
		errs = append(errs, fmt.Errorf("SSTP mode %q: want off, %s, %s or %s", o.SSTP, SSTPPassthrough, SSTPOffload, SSTPReencrypt))
	}
	if o.Binary == "" {
		exe, err := os.Executable()
		if err != nil {
			errs = append(errs, fmt.Errorf("find own executable: %w", err))
		}
		o.Binary = exe
	}
	if !namePattern.MatchString(o.Name) {
		errs = append(errs, fmt.Errorf("lab name %q: want 1 to 12 of a-z 0-9", o.Name))
	}
	if o.Peers != Embedded && o.Peers != Real {
		errs = append(errs, fmt.Errorf("peers %q: want %s or %s", o.Peers, Embedded, Real))
	}
	if o.Nodes < 1 || o.Spares < 0 || o.Nodes+o.Spares > maxNodes {
		errs = append(errs, fmt.Errorf("%d nodes and %d spares: want 1 to %d in all", o.Nodes, o.Spares, maxNodes))
	}
	if o.Servers < 1 || o.Servers > maxServers {
		errs = append(errs, fmt.Errorf("%d servers: want 1 to %d", o.Servers, maxServers))
	}
	if o.Clients < 0 || o.Clients > maxClients {
		errs = append(errs, fmt.Errorf("%d clients: want 0 to %d", o.Clients, maxClients))
	}
	if o.Peers == Real && (o.Passthrough || o.DSR || o.SSTP != SSTPOff) {
		errs = append(errs, errors.New("pass-through, SSTP and DSR need embedded peers"))
	}
	if o.DSR && o.SSTP != SSTPOff {
		errs = append(errs, errors.New("SSTP servers have no DSR here: choose one"))
	}
	if o.Rate < 1 || o.Rate > 1000 {
		errs = append(errs, fmt.Errorf("rate %d: want 1 to 1000", o.Rate))
	}
	return o, errors.Join(errs...)
}
