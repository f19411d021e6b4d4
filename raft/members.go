package raft

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Bootstrap makes this node the first and only voter of a new cluster and
// commits Init. It may be repeated after a crash in between; a store that has
// its Init already gives ErrBootstrapped.
func (r *Replica) Bootstrap(ctx context.Context, init state.Init) error {
	rt, err := r.use()
	if err != nil {
		return err
	}
	if !r.View().Spec().ClusterID.IsZero() {
		return ErrBootstrapped
	}
	self := hraft.Server{ID: hraft.ServerID(r.cfg.ID.String()), Address: hraft.ServerAddress(r.cfg.Addr)}
	err = r.await(ctx, func() error {
		return rt.BootstrapCluster(hraft.Configuration{Servers: []hraft.Server{self}}).Error()
	})
	if err != nil && !errors.Is(err, hraft.ErrCantBootstrap) {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if s := servers(rt); len(s) != 1 || s[0].ID != r.cfg.ID { // it has joined, or is about to join, another cluster
		return ErrBootstrapped
	}
	out, err := r.Propose(ctx, init)
	if err != nil {
		return fmt.Errorf("bootstrap: %w", err)
	}
	if out[0].Code != state.OK {
		return fmt.Errorf("bootstrap: init refused: %s", out[0].Detail)
	}
	return nil
}

// change makes one change of raft's configuration, on the leader, after the
// ones before it.
func (r *Replica) change(ctx context.Context, what string, f func(*hraft.Raft) hraft.Future) error {
	rt, err := r.use()
	if err != nil {
		return err
	}
	r.membership.Lock()
	defer r.membership.Unlock()
	if o, _ := r.current(); o == nil {
		return r.notLeader()
	}
	err = r.await(ctx, func() error { return f(rt).Error() })
	switch {
	case err == nil:
		r.log.Info("raft configuration changed", "change", what)
		return nil
	case errors.Is(err, hraft.ErrNotLeader): // refused before it was written
		return r.notLeader()
	}
	return fmt.Errorf("%s: %w", what, err)
}

// enqueue bounds how long a change waits for the one before it.
const enqueue = 10 * time.Second

// AddNonvoter lets a node receive the log. For a known ID it changes the
// address. Leader only.
func (r *Replica) AddNonvoter(ctx context.Context, id state.NodeID, addr string) error {
	for _, s := range r.Status().Servers {
		if s.Addr == addr && s.ID != id {
			return fmt.Errorf("add node %s: %s is the address of node %s", id, addr, s.ID)
		}
		if s.ID == id && s.Voter {
			return r.change(ctx, "change address of node "+id.String(), func(rt *hraft.Raft) hraft.Future {
				return rt.AddVoter(hraft.ServerID(id.String()), hraft.ServerAddress(addr), 0, enqueue)
			})
		}
	}
	return r.change(ctx, "add node "+id.String(), func(rt *hraft.Raft) hraft.Future {
		return rt.AddNonvoter(hraft.ServerID(id.String()), hraft.ServerAddress(addr), 0, enqueue)
	})
}

// Applied asks a node, over a connection made for the purpose, for the index of
// the last command it applied.
type Applied func(ctx context.Context) (index uint64, err error)

// Promote gives a non-voter its vote once it may have it: it has been in
// contact without a break for Config.Contact, the leader can dial it, and it has
// applied what was applied here when Promote began. Otherwise the error is
// ErrNotReady with the reason: call again later. A voter already is no error.
// Leader only. (Adding an unreachable voter takes a lone leader its quorum.)
func (r *Replica) Promote(ctx context.Context, id state.NodeID, applied Applied) error {
	if _, err := r.use(); err != nil {
		return err
	}
	o, _ := r.current()
	if o == nil || !o.isReady() {
		return r.notLeader()
	}
	want := r.View().Index()
	var server *Server
	for _, s := range r.Status().Servers {
		if s.ID == id {
			server = &s
		}
	}
	switch {
	case server == nil:
		return fmt.Errorf("promote node %s: %w: it is not in raft's configuration", id, ErrNotReady)
	case server.Voter:
		return nil
	}
	if have := min(time.Since(o.since), r.contacts.since(id)); have < r.cfg.Contact {
		return fmt.Errorf("promote node %s: %w: in contact for %v of %v", id, ErrNotReady, have.Round(time.Millisecond), r.cfg.Contact)
	}
	if err := r.dialBack(ctx, server.Addr); err != nil {
		return fmt.Errorf("promote node %s: %w: dial back: %w", id, ErrNotReady, err)
	}
	have, err := applied(ctx)
	if err != nil {
		return fmt.Errorf("promote node %s: %w: ask for its applied index: %w", id, ErrNotReady, err)
	}
	if have < want {
		return fmt.Errorf("promote node %s: %w: it has applied %d of %d", id, ErrNotReady, have, want)
	}
	return r.change(ctx, "promote node "+id.String(), func(rt *hraft.Raft) hraft.Future {
		return rt.AddVoter(hraft.ServerID(id.String()), hraft.ServerAddress(server.Addr), 0, enqueue)
	})
}

func (r *Replica) dialBack(ctx context.Context, addr string) error {
	r.mu.Lock()
	st := r.stream
	r.mu.Unlock()
	return r.await(ctx, func() error {
		c, err := st.Dial(hraft.ServerAddress(addr), r.cfg.RPCTimeout)
		if err != nil {
			return err
		}
		return c.Close()
	})
}

// RemoveServer takes a node out of raft's configuration; one that is not in it
// is no error. Whether a quorum of live voters is left is for the caller to
// judge. Leader only; a leader may remove itself and then no longer leads.
func (r *Replica) RemoveServer(ctx context.Context, id state.NodeID) error {
	return r.change(ctx, "remove node "+id.String(), func(rt *hraft.Raft) hraft.Future {
		return rt.RemoveServer(hraft.ServerID(id.String()), 0, enqueue)
	})
}

// TransferLeadership hands the leadership to the voter that is furthest, and
// returns when this node no longer leads.
func (r *Replica) TransferLeadership(ctx context.Context) error {
	return r.change(ctx, "transfer leadership", func(rt *hraft.Raft) hraft.Future {
		return rt.LeadershipTransfer()
	})
}

// Snapshot writes a snapshot now and compacts the log.
func (r *Replica) Snapshot(ctx context.Context) error {
	rt, err := r.use()
	if err != nil {
		return err
	}
	return r.snapshot(ctx, rt)
}

// contacts knows since when the leader has reached each follower without a
// break: hraft says when a heartbeat fails.
type contacts struct {
	mu    sync.Mutex
	start map[hraft.ServerID]time.Time
}

func newContacts() *contacts { return &contacts{start: map[hraft.ServerID]time.Time{}} }

// since gives how long; 0 for a node never seen.
func (c *contacts) since(id state.NodeID) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.start[hraft.ServerID(id.String())]
	if !ok {
		return 0
	}
	return time.Since(t)
}

func (c *contacts) note(data any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch o := data.(type) {
	case hraft.PeerObservation:
		delete(c.start, o.Peer.ID)
		if !o.Removed {
			c.start[o.Peer.ID] = time.Now()
		}
	case hraft.FailedHeartbeatObservation:
		if _, ok := c.start[o.PeerID]; ok {
			c.start[o.PeerID] = time.Now()
		}
	}
}

// observe follows raft's observations: contacts, and changes of the leader for
// those who wait for one.
func (r *Replica) observe() {
	r.mu.Lock()
	rt := r.raft
	r.mu.Unlock()
	if rt == nil {
		return
	}
	c := make(chan hraft.Observation, 256) // raft drops what does not fit
	ob := hraft.NewObserver(c, false, func(o *hraft.Observation) bool {
		switch o.Data.(type) {
		case hraft.PeerObservation, hraft.FailedHeartbeatObservation, hraft.LeaderObservation:
			return true
		}
		return false
	})
	rt.RegisterObserver(ob)
	defer rt.DeregisterObserver(ob)
	for {
		select {
		case <-r.done:
			return
		case o := <-c:
			if _, ok := o.Data.(hraft.LeaderObservation); ok {
				r.mu.Lock()
				r.ringBell()
				r.mu.Unlock()
				continue
			}
			r.contacts.note(o.Data)
		}
	}
}
