package transport

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/vpnlb/vpnlb/cluster/state"
)

// Config of a Transport. Zero values take the defaults named.
type Config struct {
	// Addr is the host:port of this node in the member list: it is listened on,
	// and raft knows the node by it.
	Addr string

	// HandshakeTimeout bounds a TLS handshake, both ways; 10 s. Shorter drops
	// peers on a loaded machine, longer keeps half-open connections around.
	HandshakeTimeout time.Duration

	// MaxHalfOpen bounds connections that have not proved who they are, joining
	// ones included; 128. When one more comes, the oldest is closed: a real
	// handshake takes milliseconds, one of a flood is always older.
	MaxHalfOpen int

	// MaxHalfOpenPerSource is the same for one source address (IPv6: /64); 16.
	MaxHalfOpenPerSource int

	// MaxBody bounds an RPC's request and its response; 16 MiB. The largest
	// real one is a batch of 4096 learns, well below 1 MiB.
	MaxBody int64

	// MaxCalls bounds RPC requests being served at once; 256. One more is
	// answered 503.
	MaxCalls int
}

// Deps of a Transport. Identity and Authorize are required.
type Deps struct {
	// Identity gives the node's identity of now (IdentityStore.Identity). It is
	// asked for each connection. Before the node is a member nothing is served
	// and nothing dialled.
	Identity func() Identity

	// Authorize says whether the committed member list has this node with this
	// Ed25519 public key: nil, or why not. It is asked on each connection and
	// each RPC, so it must be quick.
	Authorize func(id state.NodeID, key []byte) error

	// Removal returns the signed statement (SignRemoval) for a node that was
	// removed, or nil. Optional. It is what a refused node is told.
	Removal func(id state.NodeID) []byte

	// Listener to accept from; nil: Listen(Config.Addr). Run closes it.
	Listener net.Listener

	// Dial opens a plain connection; nil: a net.Dialer without MPTCP.
	Dial func(ctx context.Context, addr string) (net.Conn, error)

	Logger     *slog.Logger          // nil: discarded
	Registerer prometheus.Registerer // nil: no metrics
}

// Target names who is called.
type Target struct {
	Addr string       // host:port of the Transport
	Node state.NodeID // who must answer; zero: any member
}

// StatusError is a refusal that the other side expressed: any response that is
// not 2xx. A handler made by Bytes or JSON that returns one sends it as it is.
type StatusError struct {
	Code   int    `json:"code"`             // HTTP status
	Reason string `json:"reason"`           // one sentence for a person
	Detail string `json:"detail,omitempty"` // for a program: the leader's address, say
}

// Error implements error.
func (e *StatusError) Error() string { return e.Reason }

// RemovedError is returned by Call when the callee says that this node was
// removed from the cluster. Its signature is not checked yet: VerifyRemoval.
type RemovedError struct {
	Statement []byte
}

// Error implements error.
func (e *RemovedError) Error() string { return "peer says that this node was removed from the cluster" }

// Errors of the transport.
var (
	ErrNotMember = errors.New("this node belongs to no cluster yet")
	ErrFenced    = errors.New("raft connections are fenced on this node")
	ErrClosed    = errors.New("transport is closed")
)

// Transport is one node's end of all connections between nodes.
type Transport struct {
	cfg  Config
	deps Deps
}

// New validates and allocates. Run starts to listen.
func New(cfg Config, deps Deps) (*Transport, error) { panic("soon") }

// Run listens and serves until ctx ends, then closes every connection and
// returns nil. It returns an error when it cannot listen.
func (t *Transport) Run(ctx context.Context) error { panic("soon") }

// Raft returns the stream layer for raft: always the same one.
func (t *Transport) Raft() *RaftLayer { panic("soon") }

// HandleRPC serves pattern (as http.ServeMux) to members; PeerOf tells who
// calls. It may be called before and while Run runs, once per pattern.
func (t *Transport) HandleRPC(pattern string, h http.Handler) { panic("soon") }

// HandleJoin serves nodes that have no certificate yet. The body is bounded (64
// KiB), nobody is authenticated: the handler judges the token. nil stops it.
func (t *Transport) HandleJoin(h http.Handler) { panic("soon") }

// Call makes one RPC. in: nil sends an empty body, []byte is sent as it is,
// anything else as JSON. out: nil discards the answer, *[]byte takes it as it
// is, anything else is decoded from JSON. Connections are kept and reused.
func (t *Transport) Call(ctx context.Context, to Target, path string, in, out any) error {
	panic("soon")
}

// Ping proves that a member answers at an address, both sides authenticated
// and authorised, and says who it is.
func (t *Transport) Ping(ctx context.Context, to Target) (Name, error) { panic("soon") }

// Reauthorize asks Authorize again about every open connection and closes
// those it refuses: to be called when the member list changed.
func (t *Transport) Reauthorize() { panic("soon") }

// PeerOf returns who sent an RPC request, from the request's context.
func PeerOf(ctx context.Context) (Peer, bool) { panic("soon") }

// Bytes makes an RPC handler of a function from body to body. Its error goes
// back as a StatusError (500 unless it is one).
func Bytes(f func(ctx context.Context, peer Peer, in []byte) ([]byte, error)) http.Handler {
	panic("soon")
}

// JSON is Bytes with JSON bodies.
func JSON[In, Out any](f func(ctx context.Context, peer Peer, in In) (Out, error)) http.Handler {
	panic("soon")
}

// RaftLayer carries raft: a net.Listener that dials. Dial expects any
// authorised member.
type RaftLayer struct{ t *Transport }

// Accept returns the next authenticated raft connection. After Fence it blocks
// until Close.
func (l *RaftLayer) Accept() (net.Conn, error) { panic("soon") }

// Close ends Accept. It leaves the Transport and its other connections alone.
func (l *RaftLayer) Close() error { panic("soon") }

// Addr is Config.Addr.
func (l *RaftLayer) Addr() net.Addr { panic("soon") }

// Dial opens a raft connection to a member.
func (l *RaftLayer) Dial(addr string, timeout time.Duration) (net.Conn, error) { panic("soon") }

// Fence closes every raft connection and refuses to dial and accept for ever.
func (l *RaftLayer) Fence() { panic("soon") }

// Joiner calls a cluster that the node does not belong to yet.
type Joiner struct {
	Addr   string // host:port of any member
	CAHash CAHash
	Dial   func(ctx context.Context, addr string) (net.Conn, error) // nil: TCP
}

// Join sends a request (as Call's in and out) to the member at j.Addr over a
// connection whose server proves to hold a certificate of the pinned CA. It
// returns that server's name (and with it the cluster ID) and the DER of the
// pinned CA certificate.
func (j Joiner) Join(ctx context.Context, in, out any) (server Name, ca []byte, err error) {
	panic("soon")
}

// Listen opens a TCP listener without MPTCP, on which some socket options that
// we may want do not work.
func Listen(ctx context.Context, addr string) (net.Listener, error) { panic("soon") }
