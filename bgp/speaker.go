package bgp

import (
	"context"
	"net/netip"
	"slices"
	"time"
)

// Advertisement is one VIP and how attractive its route is. The route is the
// host route of VIP: /32 or /128.
type Advertisement struct {
	VIP    netip.Addr `json:"vip"`
	Action Action     `json:"action"` // never Withdraw: leave it out instead
}

// NeighbourStatus is one router as the speaker sees it.
type NeighbourStatus struct {
	Address     netip.Addr    `json:"address"`
	ASN         uint32        `json:"asn"`
	Established bool          `json:"established"`
	State       string        `json:"state"`           // RFC 4271 8.2.2, lower case: idle, connect, ..., established
	Since       time.Time     `json:"since"`           // of State, display only
	Uptime      time.Duration `json:"uptime"`          // 0 unless established
	Sent        uint64        `json:"sent_updates"`    // UPDATE messages
	Advertised  int           `json:"advertised"`      // routes this router should hold from us
	Families    []string      `json:"families"`        // negotiated: ipv4, ipv6; none unless established
	LocalAddr   netip.Addr    `json:"local_address"`   // of the session; zero unless established
	Error       string        `json:"error,omitempty"` // the last reason why it is not established

	Hold        time.Duration `json:"hold_time"`              // negotiated; 0 unless established
	RouterHold  time.Duration `json:"router_hold_time"`       // what the router offered last; 0: nothing yet
	Dropped     uint64        `json:"dropped_updates"`        // UPDATE messages of the router, unread
	Refused     uint64        `json:"refused"`                // connections ended for a fault of the router
	LastRefusal string        `json:"last_refusal,omitempty"` // the fault of the last one
	Out         time.Duration `json:"out"`                    // since when there has been no session; 0 while established
	EverUp      bool          `json:"ever_established"`       // since this speaker runs
	HoldExpired bool          `json:"hold_expired,omitempty"` // the last session ended because nothing was heard of the router
}

// Carried reports whether some session is established that carries routes of the
// family of vip: what the speaker took without one is told to nobody.
func Carried(neighbours []NeighbourStatus, vip netip.Addr) bool {
	family := familyName(familyOf(vip))
	return slices.ContainsFunc(neighbours, func(n NeighbourStatus) bool {
		return n.Established && slices.Contains(n.Families, family)
	})
}

// Speaker brings advertisements to the routers. Set and Neighbours may be
// called from any goroutine, before Run too.
type Speaker interface {
	// Set makes the given advertisements the only ones. It returns when they
	// are handed to the sessions, not when the routers have them; before
	// the speaker runs it only remembers.
	Set(ctx context.Context, ads []Advertisement) error
	// Neighbours reports every configured router, in configured order.
	Neighbours() []NeighbourStatus
	// Stop withdraws everything, waits until that has been written to every
	// established session (or ctx ends), and closes the sessions. Set after
	// Stop fails with ErrStopped.
	Stop(ctx context.Context) error
}
