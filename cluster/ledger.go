package cluster

import (
	"crypto/ed25519"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// verdict is what became of a received part. Values are metric labels.
type verdict string

const (
	partFresh     verdict = "fresh"         // news: stored and passed on
	partStale     verdict = "stale"         // known already, or overtaken: the normal fate of gossip
	partOwn       verdict = "own"           // our own, come back
	partMalformed verdict = "malformed"     //
	partStranger  verdict = "unknown_node"  // its origin is no committed member
	partForged    verdict = "bad_signature" //
	partClone     verdict = "clone"         // signed by our key but newer than ours: two nodes are one
	partUnknown   verdict = "unreadable"    // a status of a newer form
)

// ledger keeps the newest hints of each committed member.
type ledger struct {
	cluster state.ClusterID
	self    state.NodeID
	member  func(state.NodeID) (ed25519.PublicKey, bool)

	mu      sync.Mutex
	records map[state.NodeID]*record // committed members only, so at most state.MaxMembers
}

type record struct {
	status       entry
	observations entry
}

// entry is the newest complete hint of one kind, and a newer one in the making.
type entry struct {
	order   order
	at      time.Time // of local receipt, less the age it was said to have
	raw     [][]byte  // signed parts, to pass on
	payload []byte
	status  *NodeStatus // of kindStatus
	next    assembly
}

// assembly collects the parts of one hint; parts of an older one are dropped.
type assembly struct {
	order order
	at    time.Time // of its oldest part
	raw   [][]byte
	body  [][]byte
	have  int
}

func newLedger(cfg Config, deps Deps) *ledger {
	return &ledger{cluster: cfg.Cluster, self: cfg.Node, member: deps.Member, records: make(map[state.NodeID]*record)}
}

func (r *record) entry(k kind) *entry {
	if k == kindObservations {
		return &r.observations
	}
	return &r.status
}

// receive judges one part. ours is the newest order this node has used itself.
// The part is copied when it is kept.
func (l *ledger) receive(raw []byte, age time.Duration, ours order) (part, verdict) {
	p, err := parsePart(raw)
	if err != nil {
		return p, partMalformed
	}
	if p.origin == l.self && !p.order.after(ours) {
		return p, partOwn
	}
	if !l.isNews(p) { // cheap, and what happens to nearly all of them
		return p, partStale
	}
	key, ok := l.member(p.origin)
	switch {
	case !ok:
		return p, partStranger
	case !p.verify(l.cluster, key):
		return p, partForged
	case p.origin == l.self:
		return p, partClone
	}
	return p, l.store(p, time.Now().Add(-age))
}

func (l *ledger) isNews(p part) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records[p.origin]
	return r == nil || r.entry(p.kind).wants(p)
}

func (e *entry) wants(p part) bool {
	if !p.order.after(e.order) || e.next.order.after(p.order) {
		return false
	}
	if e.next.order != p.order {
		return true
	}
	return p.part < len(e.next.raw) && len(e.next.raw) == p.parts && e.next.raw[p.part] == nil
}

// store keeps a verified part.
func (l *ledger) store(p part, at time.Time) verdict {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records[p.origin]
	if r == nil {
		r = &record{}
		l.records[p.origin] = r
	}
	e := r.entry(p.kind)
	if !e.wants(p) { // another goroutine was faster
		return partStale
	}
	if e.next.order != p.order {
		e.next = assembly{order: p.order, at: at, raw: make([][]byte, p.parts), body: make([][]byte, p.parts)}
	}
	n := &e.next
	n.raw[p.part] = slices.Clone(p.raw)
	n.body[p.part] = n.raw[p.part][len(p.signed)-len(p.payload) : len(p.signed)]
	n.have++
	if at.Before(n.at) {
		n.at = at
	}
	if n.have < p.parts {
		return partFresh
	}
	done := entry{order: n.order, at: n.at, raw: n.raw, payload: slices.Concat(n.body...)}
	result := partFresh
	if p.kind == kindStatus {
		var err error
		if done.status, err = decodeStatus(done.payload, n.order.boot); err != nil {
			result = partUnknown // kept: it is passed on, and it is a sign of life
		}
	}
	*e = done
	return result
}

// put keeps a hint of this node's own.
func (l *ledger) put(k kind, o order, payload []byte, raw [][]byte, s *NodeStatus) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records[l.self]
	if r == nil {
		r = &record{}
		l.records[l.self] = r
	}
	if e := r.entry(k); o.after(e.order) { // two may publish at once
		*e = entry{order: o, at: time.Now(), raw: raw, payload: payload, status: s}
	}
}

// prune forgets nodes that are members no more. The member list is asked
// without the lock.
func (l *ledger) prune() {
	l.mu.Lock()
	ids := slices.Collect(maps.Keys(l.records))
	l.mu.Unlock()
	for _, id := range ids {
		if _, ok := l.member(id); ok || id == l.self {
			continue
		}
		l.mu.Lock()
		delete(l.records, id)
		l.mu.Unlock()
	}
}

// hints returns what is known, by node ID; alive is gossip's opinion.
func (l *ledger) hints(alive func(state.NodeID) bool) []Hints {
	l.prune()
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	out := make([]Hints, 0, len(l.records))
	for id, r := range l.records {
		h := Hints{Node: id, Alive: alive(id)}
		if r.status.status != nil {
			h.Status, h.StatusAge = r.status.status, now.Sub(r.status.at)
		}
		if r.observations.raw != nil {
			h.Observations, h.ObservationsAge = r.observations.payload, now.Sub(r.observations.at)
		}
		out = append(out, h)
	}
	slices.SortFunc(out, func(a, b Hints) int { return slices.Compare(a.Node[:], b.Node[:]) })
	return out
}

// worthPassingOn is the age above which push/pull leaves a hint out: its origin
// is silent, and everybody has heard it.
const worthPassingOn = 30 * time.Second

// bundle encodes this node's hints and, if all, then those of the others, the
// youngest first, as far as there is room.
func (l *ledger) bundle(all bool) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	var entries []*entry
	for id, r := range l.records {
		if id != l.self && !all {
			continue
		}
		for _, e := range []*entry{&r.status, &r.observations} {
			if e.raw != nil && (id == l.self || now.Sub(e.at) < worthPassingOn) {
				entries = append(entries, e)
			}
		}
	}
	own := l.records[l.self]
	slices.SortFunc(entries, func(a, b *entry) int {
		if own != nil {
			ao, bo := a == &own.status || a == &own.observations, b == &own.status || b == &own.observations
			if ao != bo {
				if ao {
					return -1
				}
				return 1
			}
		}
		return b.at.Compare(a.at)
	})
	out := []byte{bundleVersion}
	for _, e := range entries {
		one := out
		for _, raw := range e.raw {
			one = appendBundle(one, raw, now.Sub(e.at))
		}
		if len(one) > MaxBundle {
			break
		}
		out = one
	}
	return out
}

// fellBack reports whether a bundle of a node is of an older boot than is known of
// it already.
func (l *ledger) fellBack(from state.NodeID, bundle []byte) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records[from]
	if r == nil || from == l.self {
		return false
	}
	back := false
	_ = readBundle(bundle, func(raw []byte, _ time.Duration) { // Deliver has reported what is wrong with it
		if p, err := parsePart(raw); err == nil && p.origin == from && p.order.boot < r.entry(p.kind).order.boot {
			back = true
		}
	})
	return back
}

// remind appends the newest hint of a node to a bundle for that node: its first
// part is enough.
func (l *ledger) remind(from state.NodeID, bundle []byte) []byte {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.records[from]
	if r == nil {
		return bundle
	}
	newest := &r.status
	if r.observations.order.after(newest.order) {
		newest = &r.observations
	}
	if len(newest.raw) == 0 {
		return bundle
	}
	out := appendBundle(bundle, newest.raw[0], time.Since(newest.at))
	if len(out) > MaxBundle {
		return bundle
	}
	return out
}

// refusal makes an error of a verdict that a caller should hear about.
func refusal(p part, v verdict) error {
	switch v {
	case partFresh, partStale, partOwn, partUnknown:
		return nil
	}
	return fmt.Errorf("hint of node %s refused: %s", p.origin, v)
}
