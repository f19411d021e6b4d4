package raft

import (
	"strconv"
	"time"

	hraft "github.com/hashicorp/raft"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Role of this node in raft, as the CLI prints it.
type Role string

// Roles.
const (
	RoleStopped   Role = "stopped"   // Run has not started raft, or has returned
	RoleFollower  Role = "follower"  //
	RoleCandidate Role = "candidate" //
	RoleLeader    Role = "leader"    //
	RoleParked    Role = "parked"    // off until the process restarts
)

// Server is one entry of raft's configuration.
type Server struct {
	ID    state.NodeID
	Addr  string
	Voter bool
}

// Mark is how far a store has come. None of its parts goes back in the life of
// a store: a lower one means that an old copy of the disk came back.
type Mark struct {
	Term    uint64 // raft's current term: a vote may have been given in it
	LogTerm uint64 // of the last entry (or snapshot)
	Index   uint64 // of the last entry; it falls only when LogTerm rises
}

// Before reports whether m is older than n in any part.
func (m Mark) Before(n Mark) bool {
	return m.Term < n.Term || m.LogTerm < n.LogTerm || m.LogTerm == n.LogTerm && m.Index < n.Index
}

// Restored tells what a start found on the disk, before any peer was heard.
type Restored struct {
	ClusterID state.ClusterID // zero: an empty store, or one without Init
	Index     uint64          // View.Index after the replay
	Commit    uint64          // last log index known to be committed
}

// Status is a snapshot of everything a person or a decision needs to know.
type Status struct {
	ID          state.NodeID
	Role        Role
	LeaderID    state.NodeID // zero: none known
	LeaderAddr  string
	Mark        Mark // what peers should RememberPeer
	Term        uint64
	LastIndex   uint64        // last log index
	CommitIndex uint64        // raft's: counts entries that are no commands
	Applied     uint64        // View.Index: last applied command
	Boot        uint64        // orders this node's commands over its starts; 0: the store is not open
	LastContact time.Duration // since the leader was heard; 0 on the leader; -1 never
	Servers     []Server      // raft's latest configuration
	Member      bool          // this node is in it
	Voter       bool          // and votes

	Restored Restored

	Parked      string        // why raft is off; empty: it is not
	StoreFailed bool          // the store is why: a new process may find it well again
	Fenced      bool          // the stream layer was fenced
	StoreStall  time.Duration // how long the operation in the store has hung; 0: none
	CommitStall time.Duration // on the leader: how long a commit has been waited for, beyond FenceAfter

	LogBytes int64 // of entries in the store
	Queued   int   // submissions waiting on this leader
}

// Quorum reports whether a majority of the voters is in contact, as far as this
// node can tell: it leads, or has heard the leader within two heartbeats.
func (s *Status) Quorum(heartbeat time.Duration) bool {
	if s.Role == RoleLeader {
		return true
	}
	return s.Role == RoleFollower && !s.LeaderID.IsZero() && s.LastContact >= 0 && s.LastContact <= 2*heartbeat
}

// Status reports the state of the replica; it never blocks on the disk.
func (r *Replica) Status() Status {
	s := Status{ID: r.cfg.ID, Role: RoleStopped, LastContact: -1, Applied: r.View().Index()}
	r.mu.Lock()
	s.Parked, s.StoreFailed, s.Fenced, s.Restored, s.Boot = r.parked, r.failed, r.fenced, r.restored, r.boot
	rt, running := r.raft, r.running
	r.mu.Unlock()
	s.Queued = len(r.queue)
	s.CommitStall = r.watchdog.stalled()
	if g := r.guard.Load(); g != nil {
		s.StoreStall = g.stalled(r.cfg.Tick)
		s.LogBytes = g.logBytes()
	}
	if rt != nil {
		r.raftStatus(&s, rt, running)
	}
	if s.Parked != "" {
		s.Role = RoleParked
		s.LeaderID, s.LeaderAddr = state.NodeID{}, ""
	}
	return s
}

func (r *Replica) raftStatus(s *Status, rt *hraft.Raft, running bool) {
	if running {
		switch rt.State() {
		case hraft.Leader:
			s.Role = RoleLeader
		case hraft.Candidate:
			s.Role = RoleCandidate
		case hraft.Follower:
			s.Role = RoleFollower
		}
		addr, id := rt.LeaderWithID()
		s.LeaderAddr = string(addr)
		s.LeaderID, _ = state.ParseNodeID(string(id))
	}
	s.Term, s.LastIndex, s.CommitIndex = rt.CurrentTerm(), rt.LastIndex(), rt.CommitIndex()
	s.Mark = mark(rt)
	if s.Role == RoleLeader {
		s.LastContact = 0
	} else if t := rt.LastContact(); !t.IsZero() {
		s.LastContact = time.Since(t)
	}
	s.Servers = servers(rt)
	for _, v := range s.Servers {
		if v.ID == r.cfg.ID {
			s.Member, s.Voter = true, v.Voter
		}
	}
}

// servers never blocks: hraft keeps a copy of its latest configuration.
func servers(rt *hraft.Raft) []Server {
	var out []Server
	for _, v := range rt.GetConfiguration().Configuration().Servers {
		id, _ := state.ParseNodeID(string(v.ID)) // ours are always UUIDs
		out = append(out, Server{ID: id, Addr: string(v.Address), Voter: v.Suffrage == hraft.Voter})
	}
	return out
}

// mark takes term and index of the last entry together: a pair that never was
// would be remembered by the peers, and pass for a store that went back. The
// last entry is the log's unless the snapshot's has a higher index, as for raft.
func mark(rt *hraft.Raft) Mark {
	stats := rt.Stats()
	m := Mark{Term: rt.CurrentTerm(), LogTerm: statistic(stats, "last_log_term"), Index: statistic(stats, "last_log_index")}
	if at := statistic(stats, "last_snapshot_index"); at > m.Index {
		m.LogTerm, m.Index = statistic(stats, "last_snapshot_term"), at
	}
	return m
}

// statistic reads what hraft has no method for.
func statistic(stats map[string]string, name string) uint64 {
	n, _ := strconv.ParseUint(stats[name], 10, 64)
	return n
}
