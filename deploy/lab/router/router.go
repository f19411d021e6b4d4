// Package router is the laboratory's router: it speaks BGP with the nodes and
// installs what it hears as multipath routes into the kernel of the network
// namespace its process runs in. It is no part of the product.
package router

import (
	"context"
	"io"
	"log/slog"
	"net/netip"
	"time"
)

// Config of one router process. JSON, so that it fits on a command line.
type Config struct {
	ASN      uint32       `json:"asn"` // 0 = 64999
	RouterID netip.Addr   `json:"router_id"`
	Listen   []netip.Addr `json:"listen"` // own addresses; empty = 0.0.0.0
	Port     int          `json:"port"`   // 0 = 179
	// Nodes are the neighbours: those with an ASN are configured, others
	// may be accepted by DynamicPrefix.
	Nodes []Node `json:"nodes"`
	// VIPs that get a floating static route over all nodes with FloatMetric.
	VIPs        []netip.Addr  `json:"vips"`
	FloatMetric int           `json:"float_metric"` // 0 = 250
	Metric      int           `json:"metric"`       // of learned routes; 0 = 20
	HoldTime    time.Duration `json:"hold_time"`    // 0 = 3 s
	// Interface restricts the accepted next hops to one device (optional).
	Interface string `json:"interface"`
}

// Node is one neighbour.
type Node struct {
	Address  netip.Addr `json:"address"`
	ASN      uint32     `json:"asn"`
	Password string     `json:"password"`
}

// Event is one line of JSON on the output.
type Event struct {
	Time     time.Time    `json:"time"`
	Kind     string       `json:"kind"` // ready, route, session, error
	VIP      netip.Addr   `json:"vip,omitzero"`
	NextHops []netip.Addr `json:"next_hops,omitempty"` // of the kernel's route by BGP; empty = only the floating one is left
	Node     netip.Addr   `json:"node,omitzero"`
	State    string       `json:"state,omitempty"`
	Error    string       `json:"error,omitempty"`
}

// Run serves until ctx ends; then the routes it installed are removed. Events
// go to out, one JSON object a line.
func Run(ctx context.Context, cfg Config, out io.Writer, log *slog.Logger) error {
	<-ctx.Done()
	return nil
}
