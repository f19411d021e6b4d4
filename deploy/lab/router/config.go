package router

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Defaults.
const (
	DefaultASN         = 64999
	DefaultPort        = 179
	DefaultMetric      = 20  // what common routers give to eBGP routes
	DefaultFloatMetric = 250 // worse than anything a routing protocol installs
	DefaultHoldTime    = 3 * time.Second
)

// Config of one router process. JSON, so that it fits on a command line.
type Config struct {
	ASN      uint32       `json:"asn,omitempty"`
	RouterID netip.Addr   `json:"router_id"`
	Listen   []netip.Addr `json:"listen,omitempty"` // own addresses; empty = 0.0.0.0
	Port     int          `json:"port,omitempty"`
	Nodes    []Node       `json:"nodes"`
	// VIPs get a floating static route over all nodes.
	VIPs        []netip.Addr  `json:"vips,omitempty"`
	FloatMetric int           `json:"float_metric,omitempty"`
	Metric      int           `json:"metric,omitempty"` // of learned routes
	HoldTime    time.Duration `json:"hold_time,omitempty"`
	// Interface pins all next hops to one device; empty = the kernel finds it.
	Interface string `json:"interface,omitempty"`
}

// Node is one neighbour. The node dials, the router waits.
type Node struct {
	Address  netip.Addr `json:"address"`
	ASN      uint32     `json:"asn"`
	Password string     `json:"password,omitempty"`
}

// Validate reports every fault at once.
func (c *Config) Validate() error {
	var faults []error
	bad := func(format string, a ...any) { faults = append(faults, fmt.Errorf(format, a...)) }
	if !c.RouterID.Is4() {
		bad("router_id: not an IPv4 address")
	}
	if len(c.Nodes) == 0 {
		bad("nodes: none")
	}
	for i, n := range c.Nodes {
		if !n.Address.Is4() && !n.Address.Is6() || n.Address.Is4In6() {
			bad("nodes[%d].address: not an address", i)
		}
		if n.ASN == 0 {
			bad("nodes[%d].asn: must not be 0", i)
		}
	}
	for i, v := range c.VIPs {
		if !v.Is4() && !v.Is6() || v.Is4In6() {
			bad("vips[%d]: not an address", i)
		}
	}
	if c.HoldTime != 0 && c.HoldTime < 3*time.Second {
		bad("hold_time: %s is below 3s", c.HoldTime)
	}
	if c.Metric < 0 || c.FloatMetric < 0 || c.Port < 0 || c.Port > 65535 {
		bad("metric, float_metric or port: out of range")
	}
	return errors.Join(faults...)
}

func (c Config) withDefaults() Config {
	if c.ASN == 0 {
		c.ASN = DefaultASN
	}
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.Metric == 0 {
		c.Metric = DefaultMetric
	}
	if c.FloatMetric == 0 {
		c.FloatMetric = DefaultFloatMetric
	}
	if c.HoldTime == 0 {
		c.HoldTime = DefaultHoldTime
	}
	if len(c.Listen) == 0 {
		c.Listen = []netip.Addr{netip.IPv4Unspecified()}
	}
	return c
}
