package bgp

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Defaults and bounds of the configuration.
const (
	DefaultPort         = 179
	DefaultHoldTime     = 3 * time.Second // RFC 4271 4.2: 0 or at least three seconds
	DefaultConnectRetry = time.Second     // the library allows no less
	DefaultHoldUp       = time.Second
	DefaultPrepend      = 3
	MaxPrepend          = 10 // longer paths are refused by common router policies
	MaxNeighbours       = 64 // routers next to one node; a typo guard
	MaxPasswordBytes    = 80 // TCP_MD5SIG_MAXKEYLEN
	maxHoldTime         = 65535 * time.Second
)

// Config is the BGP part of the node file.
type Config struct {
	ASN      uint32     `yaml:"asn" json:"asn"`
	RouterID netip.Addr `yaml:"router_id" json:"router_id"` // IPv4, unique per node

	Neighbours []Neighbour `yaml:"neighbours" json:"neighbours"`

	// NextHop6 is this node's global IPv6 address towards the routers: the
	// next hop of IPv6 VIPs on sessions of IPv4. Unset: those sessions carry
	// IPv4 alone.
	NextHop6 netip.Addr `yaml:"next_hop6,omitempty" json:"next_hop6,omitempty"`

	// HoldUp is how long an improvement must last before it is announced.
	// Too low: flapping reaches the routers. Too high: slow to return.
	// 0 = DefaultHoldUp, negative = none.
	HoldUp time.Duration `yaml:"hold_up,omitempty" json:"hold_up,omitempty"`
	// Prepend is how often the own ASN is added to a demoted route on eBGP.
	// 0 = DefaultPrepend. Must exceed the difference between the AS paths
	// of the nodes as the routers see them.
	Prepend int `yaml:"prepend,omitempty" json:"prepend,omitempty"`
	// ListenPort > 0 opens a listener too, on ListenAddresses. Off by
	// default: the node dials, so nothing of BGP is open to the network.
	ListenPort      int          `yaml:"listen_port,omitempty" json:"listen_port,omitempty"`
	ListenAddresses []netip.Addr `yaml:"listen_addresses,omitempty" json:"listen_addresses,omitempty"`
}

// Neighbour is one router.
type Neighbour struct {
	Address netip.Addr `yaml:"address" json:"address"`
	ASN     uint32     `yaml:"asn" json:"asn"` // equal to ours: iBGP

	// LocalAddress is the source of the session and the next hop of the
	// routes; unset = the kernel's choice.
	LocalAddress netip.Addr `yaml:"local_address,omitempty" json:"local_address,omitempty"`
	// NextHop6 instead of the Config's, for a session of IPv4 on another link.
	NextHop6 netip.Addr `yaml:"next_hop6,omitempty" json:"next_hop6,omitempty"`
	// Port of the router; 0 = DefaultPort.
	Port int `yaml:"port,omitempty" json:"port,omitempty"`
	// HoldTime; 0 = DefaultHoldTime. Keepalives go at a third of it.
	HoldTime time.Duration `yaml:"hold_time,omitempty" json:"hold_time,omitempty"`
	// ConnectRetry between dials; 0 = DefaultConnectRetry. Whole seconds.
	ConnectRetry time.Duration `yaml:"connect_retry,omitempty" json:"connect_retry,omitempty"`
	// Passive: wait for the router to dial. Needs ListenPort.
	Passive bool `yaml:"passive,omitempty" json:"passive,omitempty"`

	// Password is the TCP MD5 key (RFC 2385); never in a file of its own
	// format, never logged. PasswordFile is read by whoever loads the
	// configuration, this package opens no files.
	Password     string `yaml:"-" json:"-"`
	PasswordFile string `yaml:"password_file,omitempty" json:"password_file,omitempty"`

	// TTLSecurity (GTSM, RFC 5082): send 255, accept only 255. Excludes
	// MultihopTTL.
	TTLSecurity bool `yaml:"ttl_security,omitempty" json:"ttl_security,omitempty"`
	// MultihopTTL > 0 allows an eBGP router that is not on the link.
	MultihopTTL int `yaml:"multihop_ttl,omitempty" json:"multihop_ttl,omitempty"`
}

// Validate reports every fault at once.
func (c *Config) Validate() error {
	var faults []error
	bad := func(format string, a ...any) { faults = append(faults, fmt.Errorf(format, a...)) }
	if c.ASN == 0 {
		bad("asn: must not be 0")
	}
	if !c.RouterID.Is4() || c.RouterID.IsUnspecified() {
		bad("router_id: %q is not an IPv4 address", text(c.RouterID))
	}
	if fault := hopFault(c.NextHop6); fault != "" {
		bad("%s", fault)
	}
	if c.Prepend < 0 || c.Prepend > MaxPrepend {
		bad("prepend: %d is not within 0..%d", c.Prepend, MaxPrepend)
	}
	if c.ListenPort < 0 || c.ListenPort > 65535 {
		bad("listen_port: %d is not a port", c.ListenPort)
	}
	if c.ListenPort == 0 && len(c.ListenAddresses) > 0 {
		bad("listen_addresses: given without listen_port")
	}
	for i, a := range c.ListenAddresses {
		if !a.IsValid() {
			bad("listen_addresses[%d]: not an address", i)
		}
	}
	if len(c.Neighbours) > MaxNeighbours {
		bad("neighbours: %d are more than %d", len(c.Neighbours), MaxNeighbours)
	}
	seen := make(map[netip.Addr]bool, len(c.Neighbours))
	for i := range c.Neighbours {
		n := &c.Neighbours[i]
		at := fmt.Sprintf("neighbours[%d]", i)
		if seen[n.Address] {
			bad("%s.address: %s appears twice", at, n.Address)
		}
		seen[n.Address] = n.Address.IsValid()
		for _, err := range n.faults(c) {
			bad("%s.%w", at, err)
		}
	}
	return errors.Join(faults...)
}

func (n *Neighbour) faults(c *Config) (faults []error) {
	bad := func(format string, a ...any) { faults = append(faults, fmt.Errorf(format, a...)) }
	if !n.Address.IsValid() || n.Address.IsUnspecified() || n.Address.IsMulticast() || n.Address.Is4In6() {
		bad("address: %q is not the address of a router", text(n.Address))
	}
	if n.ASN == 0 {
		bad("asn: must not be 0")
	}
	if n.LocalAddress.IsValid() && n.Address.IsValid() && n.LocalAddress.Is4() != n.Address.Is4() {
		bad("local_address: %s is of another family than %s", n.LocalAddress, n.Address)
	}
	if fault := hopFault(n.NextHop6); fault != "" {
		bad("%s", fault)
	}
	if n.NextHop6.IsValid() && n.Address.Is6() {
		bad("next_hop6: is for a session of IPv4; over %s it is the session's own address", n.Address)
	}
	if n.Port < 0 || n.Port > 65535 {
		bad("port: %d is not a port", n.Port)
	}
	if h := n.HoldTime; h != 0 && (h < 3*time.Second || h > maxHoldTime || h%time.Second != 0) {
		bad("hold_time: %s is not a whole number of seconds from 3 on", h)
	}
	if r := n.ConnectRetry; r != 0 && (r < time.Second || r > time.Minute || r%time.Second != 0) {
		bad("connect_retry: %s is not a whole number of seconds within 1..60", r)
	}
	if n.Passive && c.ListenPort == 0 {
		bad("passive: needs listen_port")
	}
	if len(n.Password) > MaxPasswordBytes {
		bad("password: longer than %d bytes", MaxPasswordBytes)
	}
	if n.PasswordFile != "" && n.Password == "" {
		bad("password_file: %s was not read, or is empty", n.PasswordFile)
	}
	if n.MultihopTTL < 0 || n.MultihopTTL > 255 {
		bad("multihop_ttl: %d is not within 0..255", n.MultihopTTL)
	}
	if n.MultihopTTL > 0 && n.TTLSecurity {
		bad("multihop_ttl: excludes ttl_security")
	}
	if n.MultihopTTL > 0 && n.ASN == c.ASN {
		bad("multihop_ttl: is for eBGP only")
	}
	return faults
}

func text(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// withDefaults returns a copy with every zero replaced by its default.
func (c Config) withDefaults() Config {
	if c.HoldUp == 0 {
		c.HoldUp = DefaultHoldUp
	}
	if c.Prepend == 0 {
		c.Prepend = DefaultPrepend
	}
	if c.ListenPort == 0 {
		c.ListenPort = -1
	}
	out := make([]Neighbour, len(c.Neighbours))
	for i, n := range c.Neighbours {
		if n.Port == 0 {
			n.Port = DefaultPort
		}
		if n.HoldTime == 0 {
			n.HoldTime = DefaultHoldTime
		}
		if n.ConnectRetry == 0 {
			n.ConnectRetry = DefaultConnectRetry
		}
		out[i] = n
	}
	c.Neighbours = out
	return c
}
