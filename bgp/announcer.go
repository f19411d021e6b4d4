package bgp

import (
	"context"
	"net/netip"
	"time"
)

// AnnouncerConfig says how decisions become announcements.
type AnnouncerConfig struct {
	// HoldUp as in Config: 0 = DefaultHoldUp, negative = none.
	HoldUp time.Duration
	Limits Limits // zero = DefaultLimits
}

// VIPStatus is one VIP as the announcer sees it.
type VIPStatus struct {
	VIP       netip.Addr `json:"vip"`
	Decision  Decision   `json:"decision"`  // the latest
	Announced Action     `json:"announced"` // what the speaker was last told, successfully
	Since     time.Time  `json:"since"`     // of Announced, display only
	Reason    Reason     `json:"reason"`    // of Announced
	Held      bool       `json:"held"`      // an improvement waits for the hold-up
	Limited   bool       `json:"limited"`   // a withdrawal became a demotion: too many changes
}

// Announcer is the only writer of what the speaker announces.
type Announcer struct {
	speaker Speaker
}

// NewAnnouncer does no I/O. speaker is written by this announcer alone.
func NewAnnouncer(cfg AnnouncerConfig, speaker Speaker, deps Deps) (*Announcer, error) {
	return &Announcer{speaker: speaker}, nil
}

// Update replaces the facts of all VIPs; a VIP that is not named is withdrawn
// at once. It never blocks. Call it on every change and at least every 250 ms:
// the durations in the facts only move when it is called.
func (a *Announcer) Update(facts map[netip.Addr]Facts) {}

// Run announces until ctx ends, then returns nil and leaves the routes as they
// are: stopping the speaker withdraws them.
func (a *Announcer) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Status reports every VIP of the latest Update, ordered by address.
func (a *Announcer) Status() []VIPStatus { return nil }

// Changed returns a channel that is closed at the next change of Status.
func (a *Announcer) Changed() <-chan struct{} { return nil }
