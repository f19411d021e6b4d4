package node

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
)

// Timing of the contacts. A member that has not answered for silentAfter and
// that a second member does not reach either counts as dead for gateways: a
// server's replies may be gone for two seconds at most, and the handover
// itself takes some of it.
const (
	contactInterval = 250 * time.Millisecond
	contactTimeout  = 750 * time.Millisecond
	silentAfter     = time.Second
)

// contacts remembers when each member last answered this node over the mTLS
// port. Every node keeps in touch with every other, so that a new leader can
// judge at once, and so that hints travel where UDP is blocked.
type contacts struct {
	mu    sync.Mutex
	heard map[state.NodeID]time.Time
	since time.Time
}

func newContacts() *contacts {
	return &contacts{heard: make(map[state.NodeID]time.Time), since: time.Now()}
}

func (c *contacts) mark(id state.NodeID) {
	c.mu.Lock()
	c.heard[id] = time.Now()
	c.mu.Unlock()
}

// silence is how long a member has not answered; for one never heard, since
// this node began to listen.
func (c *contacts) silence(id state.NodeID) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.heard[id]; ok {
		return time.Since(t)
	}
	return time.Since(c.since)
}

// ever reports whether a member was heard in this process's life.
func (c *contacts) ever(id state.NodeID) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, ok := c.heard[id]
	return ok
}

// keep forgets everybody who is not a member any more.
func (c *contacts) keep(members []state.Member) {
	known := make(map[state.NodeID]bool, len(members))
	for i := range members {
		known[members[i].ID] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.heard {
		if !known[id] {
			delete(c.heard, id)
		}
	}
}

// unwell remembers since when a member says that it hears no leader, has not
// caught up, or that its data plane fails.
type unwell struct {
	mu    sync.Mutex
	since map[state.NodeID]time.Time
}

func newUnwell() *unwell { return &unwell{since: make(map[state.NodeID]time.Time)} }

func (u *unwell) note(id state.NodeID, well bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if well {
		delete(u.since, id)
	} else if _, ok := u.since[id]; !ok {
		u.since[id] = time.Now()
	}
}

func (u *unwell) longerThan(id state.NodeID, d time.Duration) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	t, ok := u.since[id]
	return ok && time.Since(t) > d
}

// runContacts keeps one loop per member; each exchanges hint bundles.
func (m *member) runContacts(ctx context.Context) error {
	type peer struct {
		addr   string
		cancel context.CancelFunc
	}
	peers := make(map[state.NodeID]peer)
	var loops sync.WaitGroup
	defer loops.Wait()
	for {
		spec := m.spec()
		m.contacts.keep(spec.Members)
		m.followMembers(spec)
		for id, p := range peers {
			if other, ok := spec.MemberByID(id); !ok || other.Cluster != p.addr {
				p.cancel()
				delete(peers, id)
			}
		}
		for i := range spec.Members {
			other := &spec.Members[i]
			if _, ok := peers[other.ID]; ok || other.ID == m.self {
				continue
			}
			loop, cancel := context.WithCancel(ctx)
			peers[other.ID] = peer{addr: other.Cluster, cancel: cancel}
			to := transport.Target{Addr: other.Cluster, Node: other.ID}
			loops.Go(func() { m.contact(loop, to) })
		}
		if !pause(ctx, contactInterval) {
			for _, p := range peers {
				p.cancel()
			}
			return nil
		}
	}
}

// followMembers closes the connections of who is a member no more, and lets
// gossip know who is new.
func (m *member) followMembers(spec *state.Spec) {
	ids := make([]state.NodeID, 0, len(spec.Members))
	for i := range spec.Members {
		ids = append(ids, spec.Members[i].ID)
	}
	for _, s := range m.replica.Status().Servers {
		ids = append(ids, s.ID)
	}
	if slices.Equal(ids, m.lastMembers) {
		return
	}
	m.lastMembers = ids
	m.transport.Reauthorize()
	if g := m.gossip.Load(); g != nil {
		g.Rejoin()
	}
}

// contact calls one member again and again. Calls do not wait for each other's
// timeout to pass in full: the next one begins an interval after the last
// began, or when it ended.
func (m *member) contact(ctx context.Context, to transport.Target) {
	refused := 0
	for {
		began := time.Now()
		call, cancel := context.WithTimeout(ctx, contactTimeout)
		var answer []byte
		err := m.transport.Call(call, to, pathContact, m.bundle(), &answer)
		cancel()
		if err == nil {
			m.contacts.mark(to.Node)
			m.deliver(answer)
			refused = 0
		} else if ctx.Err() == nil {
			refused++
			m.checkRemoved(err)
		}
		wait := contactInterval - time.Since(began)
		if refused > 8 {
			wait = max(wait, time.Second) // a dead member is not worth more
		}
		if wait > 0 && !pause(ctx, wait) {
			return
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// bundle is this node's newest hints; empty before gossip has begun.
func (m *member) bundle() []byte {
	if g := m.gossip.Load(); g != nil {
		return g.Bundle()
	}
	return nil
}

// answerContact takes a member's hints and gives this node's.
func (m *member) answerContact(from state.NodeID, in []byte) []byte {
	g := m.gossip.Load()
	if g == nil {
		return nil
	}
	out, err := g.Answer(from, in)
	if err != nil {
		m.log.Debug("hint refused", "error", err.Error())
	}
	return out
}

func (m *member) deliver(bundle []byte) {
	if g := m.gossip.Load(); g != nil && len(bundle) > 0 {
		if err := g.Deliver(bundle); err != nil {
			m.log.Debug("hint refused", "error", err.Error())
		}
	}
}

// heartbeat notices that the process stood still (SIGSTOP, a suspended
// virtual machine): monotonic time jumps between two beats.
type heartbeat struct {
	mu   sync.Mutex
	last time.Time
	from time.Time // when the last gap began
	gap  time.Time // when it ended; zero: there was none
	over bool      // a leader was heard since
}

// lease is how long a process may stand still before it must hear a leader
// again: longer than any pause of the scheduler, shorter than a take-over.
const lease = time.Second

// beat is to be called every few hundred milliseconds at most.
func (h *heartbeat) beat() {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Now()
	if !h.last.IsZero() && now.Sub(h.last) > lease {
		if h.over || h.gap.IsZero() { // else no leader was heard in between
			h.from = h.last
		}
		h.gap, h.over = now, false
	}
	h.last = now
}

// unconfirmed gives how long ago the last gap began, if no leader has been heard
// since its end, given when one was heard last; else 0. Once one was, the gap is
// over: what becomes of leaders later is another matter.
func (h *heartbeat) unconfirmed(leader time.Time) time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.over = h.over || !leader.Before(h.gap)
	if h.over || h.gap.IsZero() {
		return 0
	}
	return time.Since(h.from)
}

// gapSince returns the end of the last gap.
func (h *heartbeat) gapSince() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.gap
}
