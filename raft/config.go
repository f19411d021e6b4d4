package raft

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// StreamLayer carries raft's connections. The Replica owns it once Run has
// begun: Run closes it before it returns.
type StreamLayer interface {
	net.Listener
	// Dial connects to the raft side of a peer.
	Dial(addr string, timeout time.Duration) (net.Conn, error)
	// Fence closes every raft connection and refuses dial and accept for ever.
	Fence()
}

// Forwarder carries encoded envelopes to the leader's Accept, by RPC. An error
// means that nobody knows whether they were applied; a *NotLeaderError (any
// depth) tells a better address.
type Forwarder interface {
	Forward(ctx context.Context, leaderAddr string, envelopes []byte) (outcomes []byte, err error)
}

// Config is what a replica must know. Zero durations and sizes take the
// defaults; New reports every fault at once.
type Config struct {
	// ID names this node for ever; Addr (host:port) is what its peers dial, the
	// address of the StreamLayer and of the RPC that Forward reaches.
	ID   state.NodeID
	Addr string

	// Boot is the least boot counter of this start: what is kept outside the store
	// may know of later starts than the store does. 0: the store's own counts.
	Boot uint64

	// Dir holds raft.db and snapshots/. It is made with mode 0700.
	Dir string

	// Heartbeat is raft's heartbeat, election and lease time. Lower: elections
	// by a pause of the garbage collector or a slow disk. Higher: a dead leader
	// is noticed later. Default 300 ms.
	Heartbeat time.Duration

	// Tick is how often the leader commits an entry of its own in a quiet
	// cluster: it carries cluster time and is what the watchdog watches. Lower:
	// more log. It must stay well below FenceAfter. Default 1 s.
	Tick time.Duration

	// FenceAfter is how long a commit on the leader may hang in its own store
	// before it fences itself. Default 3 s.
	FenceAfter time.Duration

	// Contact is how long a non-voter must have been reached without a break
	// before Promote. Default 10 s.
	Contact time.Duration

	// RPCTimeout bounds dial, read and write of one raft RPC. Default 3 s.
	RPCTimeout time.Duration

	// SnapshotBytes of log since the last snapshot make a new one; TrailingBytes
	// of log stay behind it for followers that lag. Defaults 32 MB and 16 MB.
	SnapshotBytes int64
	TrailingBytes int64
}

// Deps are the services a replica uses.
type Deps struct {
	Stream  StreamLayer
	Forward Forwarder
	Logger  *slog.Logger          // nil: silent
	Metrics prometheus.Registerer // nil: none

	// Vet is asked once, after the store was opened and before raft starts: is
	// the store at least where its peers remember it (PeerMark of this node at
	// the peers, two seconds at most)? false quarantines the store. May be nil.
	Vet func(ctx context.Context, own Mark) bool
}

// Errors of the package, for errors.Is.
var (
	// ErrNotStarted: Run has not opened the store yet, or has returned.
	ErrNotStarted = errors.New("raft is not started")
	// ErrParked: raft is off until the process restarts; the View stays. Status says why.
	ErrParked = errors.New("raft is parked")
	// ErrNotLeader: ask the leader; errors.As with *NotLeaderError gives its address.
	ErrNotLeader = errors.New("not the leader")
	// ErrUnanswered: the context ended before an answer. The command may or may not
	// have been applied, now or within the next moments.
	ErrUnanswered = errors.New("no answer, it may or may not have been applied")
	// ErrNotReady: a non-voter may not be promoted yet; the text says what is missing.
	ErrNotReady = errors.New("not ready to vote")
	// ErrBootstrapped: this store already belongs to a cluster.
	ErrBootstrapped = errors.New("already part of a cluster")
	// ErrInvalid: a command breaks a limit of its encoded form; the text says which.
	ErrInvalid = errors.New("not proposed")
	// ErrTooMany: more commands in one call than MaxCommands.
	ErrTooMany = errors.New("too many commands in one call")
)

// NotLeaderError is ErrNotLeader with the leader, where one is known.
type NotLeaderError struct {
	ID   state.NodeID // zero: unknown
	Addr string       // empty: unknown
}

// Error implements error.
func (e *NotLeaderError) Error() string {
	if e.Addr == "" {
		return "not the leader, and none is known"
	}
	return fmt.Sprintf("not the leader, which is %s at %s", e.ID, e.Addr)
}

// Is makes errors.Is(err, ErrNotLeader) true.
func (e *NotLeaderError) Is(target error) bool { return target == ErrNotLeader }

// QuarantineError is what Run returns when the store could not be trusted and
// was moved aside. The node may come back only under a new ID.
type QuarantineError struct {
	Path  string // where the store is now
	Cause error
}

// Error implements error.
func (e *QuarantineError) Error() string {
	return fmt.Sprintf("store moved to %s, rejoin under a new node ID: %v", e.Path, e.Cause)
}

// Unwrap gives the cause.
func (e *QuarantineError) Unwrap() error { return e.Cause }

// Limits.
const (
	// MaxCommands in one Propose or Accept: they are in one log entry.
	MaxCommands = 256
	// maxOutstanding is the span of unanswered sequences: half of the window in
	// which the Machine remembers results, so that no repeat falls out of it.
	maxOutstanding = state.ResultWindow / 2
	// maxQueue submissions wait on the leader; beyond it callers wait in turn.
	maxQueue = 1024
	// maxEntries of ours are in raft's hands at once; what comes meanwhile is
	// gathered into the next entry.
	maxEntries = 8
	// maxEntryWeight bounds one entry: commands plus 1 for each 16 records, or
	// for each weightBytes of those without records.
	maxEntryWeight = 512
	weightBytes    = 700
	// maxDeltas wait for one watcher; beyond it the watcher must resync.
	maxDeltas = 1024
	// maxAppend is raft's MaxAppendEntries.
	maxAppend = 64
	// forwardTry is the most one forwarded attempt may take: a leader that died
	// is replaced in far less.
	forwardTry = 2 * time.Second
	// stopWait is the longest Run waits for raft when it stops.
	stopWait = 3 * time.Second
	// replayEntries since the last snapshot make a new one whatever their size,
	// so that a start replays for seconds only.
	replayEntries = 1 << 17
	// maxPeers remembered; members are fewer (state.MaxMembers), removed ones linger.
	maxPeers = 2 * state.MaxMembers
)

func (c *Config) setDefaults() {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.Heartbeat, 300*time.Millisecond)
	def(&c.Tick, time.Second)
	def(&c.FenceAfter, 3*time.Second)
	def(&c.Contact, 10*time.Second)
	def(&c.RPCTimeout, 3*time.Second)
	if c.SnapshotBytes == 0 {
		c.SnapshotBytes = 32 << 20
	}
	if c.TrailingBytes == 0 {
		c.TrailingBytes = 16 << 20
	}
}

func (c *Config) validate(d Deps) error {
	var errs []error
	fault := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	fault(c.ID.IsZero(), "node ID is missing")
	fault(c.Addr == "", "address is missing")
	fault(c.Dir == "", "directory is missing")
	fault(c.Heartbeat < 20*time.Millisecond || c.Heartbeat > 30*time.Second, "heartbeat %v is not between 20ms and 30s", c.Heartbeat)
	fault(c.Tick <= 0 || c.Tick > c.FenceAfter/2, "tick %v is not between 0 and half of fence-after %v", c.Tick, c.FenceAfter)
	fault(c.Contact < 0, "contact %v is negative", c.Contact)
	fault(c.RPCTimeout < 2*c.Heartbeat, "RPC timeout %v is less than two heartbeats of %v", c.RPCTimeout, c.Heartbeat)
	fault(c.SnapshotBytes < 1, "snapshot bytes %d is not positive", c.SnapshotBytes)
	fault(c.TrailingBytes < 1, "trailing bytes %d is not positive", c.TrailingBytes)
	fault(d.Stream == nil, "stream layer is missing")
	fault(d.Forward == nil, "forwarder is missing")
	if len(errs) > 0 {
		return fmt.Errorf("raft configuration: %w", errors.Join(errs...))
	}
	return nil
}
