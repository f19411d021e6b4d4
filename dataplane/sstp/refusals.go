package sstp

import (
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// refusalAge is how long a refusal is told about in the status, and how long no
// more of its kind are before the next is logged again.
const refusalAge = 10 * time.Minute

// remedies say what a refusal means, and what helps.
var remedies = map[string]string{
	refusedAccept:      "this node could not take them (descriptors or memory): see its log, raise LimitNOFILE of the service",
	refusedConnections: "this node has as many as it may: raise 'connections' of section sstp in the node file, or add a node",
	refusedSource:      "one client address has as many as it may: where many users share it, raise 'per_source' of section sstp in the node file",
	refusedHandshakes:  "one client address has too many TLS handshakes under way: a faulty client, or an attack",
	refusedNoService:   "their VIP's service was just taken away",
	refusedNoServer:    "no server of the VIP takes new clients",
	refusedDraining:    "the server that their record names was removed",
}

// Refusal is what happened to new connections lately, for one reason.
type Refusal struct {
	Reason string // the label of metric vpnlb_sstp_refused_total
	Count  uint64 // since none had been refused for it for ten minutes
	Last   time.Time
	Text   string // for people, with the remedy
}

// refusalBook remembers refusals: a client that is refused costs its user the tunnel.
type refusalBook struct {
	mu sync.Mutex
	by map[string]Refusal // by reason
}

// note counts a refusal, and logs the first of its kind.
func (b *refusalBook) note(reason string, now time.Time, log *slog.Logger) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.by == nil {
		b.by = make(map[string]Refusal, len(remedies))
	}
	r := b.by[reason]
	if now.Sub(r.Last) >= refusalAge {
		r = Refusal{Reason: reason}
		log.Warn("sstp refuses connections", "reason", reason, "remedy", remedies[reason])
	}
	r.Count++
	r.Last = now
	b.by[reason] = r
}

// recent lists them, by reason.
func (b *refusalBook) recent(now time.Time) (out []Refusal) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, r := range b.by {
		if now.Sub(r.Last) < refusalAge {
			r.Text = fmt.Sprintf("%d new connections were refused lately: %s", r.Count, remedies[r.Reason])
			out = append(out, r)
		}
	}
	slices.SortFunc(out, func(a, b Refusal) int { return strings.Compare(a.Reason, b.Reason) })
	return out
}
