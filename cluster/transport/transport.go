package transport

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
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
	Addr string            // host:port of the Transport
	Node state.NodeID      // who must answer; zero: any member
	Key  ed25519.PublicKey // which key must answer; nil: any member's. It outlives a change of the node's ID.
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

// ALPN protocols (RFC 7301). One connection speaks one of them.
const (
	protoRaft = "vpnlb-raft/1"
	protoRPC  = "vpnlb-rpc/1"
	protoJoin = "vpnlb-join/1"
)

// Transport is one node's end of all connections between nodes.
type Transport struct {
	cfg      Config
	deps     Deps
	log      *slog.Logger
	met      metrics
	halfOpen *halfOpen
	raft     *RaftLayer
	rpc      *queueListener
	join     *queueListener
	mux      *http.ServeMux
	joiner   atomic.Pointer[http.Handler]
	calls    chan struct{} // one token per RPC being served
	pool     *http.Transport

	served sync.WaitGroup // connections that net/http serves

	mu     sync.Mutex
	conns  map[*conn]struct{} // authenticated ones, both directions
	closed bool
}

// New validates and allocates. Run starts to listen.
func New(cfg Config, deps Deps) (*Transport, error) {
	var faults []error
	if _, _, err := net.SplitHostPort(cfg.Addr); err != nil {
		faults = append(faults, fmt.Errorf("transport address: %w", err))
	}
	if deps.Identity == nil || deps.Authorize == nil {
		faults = append(faults, errors.New("transport needs Identity and Authorize"))
	}
	cfg.HandshakeTimeout = cmp.Or(cfg.HandshakeTimeout, 10*time.Second)
	cfg.MaxHalfOpen = cmp.Or(cfg.MaxHalfOpen, 128)
	cfg.MaxHalfOpenPerSource = cmp.Or(cfg.MaxHalfOpenPerSource, 16)
	cfg.MaxBody = cmp.Or(cfg.MaxBody, 16<<20)
	cfg.MaxCalls = cmp.Or(cfg.MaxCalls, 256)
	if cfg.HandshakeTimeout < 0 || cfg.MaxHalfOpen < 0 || cfg.MaxHalfOpenPerSource < 0 || cfg.MaxBody < 0 || cfg.MaxCalls < 0 {
		faults = append(faults, errors.New("transport limits must not be negative"))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if deps.Logger == nil {
		deps.Logger = slog.New(slog.DiscardHandler)
	}
	if deps.Dial == nil {
		deps.Dial = dialTCP
	}
	met, err := newMetrics(deps.Registerer)
	if err != nil {
		return nil, err
	}
	t := &Transport{
		cfg:      cfg,
		deps:     deps,
		log:      deps.Logger,
		met:      met,
		halfOpen: newHalfOpen(cfg.MaxHalfOpen, cfg.MaxHalfOpenPerSource, met),
		rpc:      newQueueListener(cfg.Addr),
		join:     newQueueListener(cfg.Addr),
		mux:      http.NewServeMux(),
		calls:    make(chan struct{}, cfg.MaxCalls),
		conns:    make(map[*conn]struct{}),
	}
	t.raft = &RaftLayer{t: t, queue: newQueueListener(cfg.Addr), fenced: make(chan struct{})}
	t.pool = t.newPool()
	t.mux.Handle(pathPing, JSON(func(context.Context, Peer, struct{}) (pong, error) {
		return pong(t.deps.Identity().name), nil
	}))
	return t, nil
}

// Run listens and serves until ctx ends, then closes every connection and
// returns nil. It returns an error when it cannot listen. It may be called once.
func (t *Transport) Run(ctx context.Context) error {
	ln := t.deps.Listener
	if ln == nil {
		var err error
		if ln, err = Listen(ctx, t.cfg.Addr); err != nil {
			return err
		}
	}
	var wg sync.WaitGroup
	rpc, join := t.rpcServer(ctx), t.joinServer(ctx)
	wg.Go(func() { rpc.Serve(t.rpc) })
	wg.Go(func() { join.Serve(t.join) })
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	err := t.accept(ctx, ln, &wg)
	stop()
	ln.Close()
	t.shut()
	rpc.Close()
	join.Close()
	wg.Wait()
	t.served.Wait() // handlers see their context end with the connection
	return err
}

// accept takes connections until ctx ends. Errors of accept (no descriptors
// left, say) are waited out.
func (t *Transport) accept(ctx context.Context, ln net.Listener, wg *sync.WaitGroup) error {
	const longest = time.Second
	wait := 5 * time.Millisecond
	for {
		raw, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				raw.Close()
			}
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("accept on %s: %w", t.cfg.Addr, err)
		}
		if err != nil {
			t.log.Warn("cannot accept connections", "err", err)
			select {
			case <-ctx.Done():
			case <-time.After(wait):
			}
			wait = min(2*wait, longest)
			continue
		}
		wait = 5 * time.Millisecond
		tk := t.halfOpen.admit(raw)
		wg.Go(func() { t.serve(ctx, raw, tk) })
	}
}

// serve authenticates one accepted connection and hands it over.
func (t *Transport) serve(ctx context.Context, raw net.Conn, tk *ticket) {
	id := t.deps.Identity()
	if !id.Member() {
		raw.Close()
		tk.done()
		return
	}
	hs, cancel := context.WithTimeout(ctx, t.cfg.HandshakeTimeout)
	defer cancel()
	var peer Peer
	tc := tls.Server(raw, t.serverTLS(id, &peer))
	if err := tc.HandshakeContext(hs); err != nil {
		raw.Close()
		tk.done()
		t.met.accepted.WithLabelValues("unknown", "refused").Inc()
		t.log.Debug("connection refused", "remote", raw.RemoteAddr().String(), "err", err)
		return
	}
	peer.Addr = raw.RemoteAddr().String()
	c := &conn{Conn: tc, raw: raw, peer: peer, proto: tc.ConnectionState().NegotiatedProtocol, owner: t}
	t.met.accepted.WithLabelValues(c.proto, "ok").Inc()
	switch c.proto {
	case protoJoin:
		c.ticket = tk // stays half-open: nobody is authenticated
		raw.SetDeadline(time.Now().Add(joinTimeout))
		t.join.push(c, t.cfg.HandshakeTimeout)
		return
	case protoRPC:
		if err := t.deps.Authorize(peer.Node, peer.PublicKey); err != nil {
			// Not a member (any more). It is let in so far that it can be
			// told why, and stays half-open.
			c.ticket = tk
			raw.SetDeadline(time.Now().Add(t.cfg.HandshakeTimeout))
			t.rpc.push(c, t.cfg.HandshakeTimeout)
			return
		}
	}
	tk.done()
	if err := t.register(c); err != nil {
		c.cut()
		return
	}
	if c.proto == protoRaft {
		t.raft.queue.push(c, t.cfg.HandshakeTimeout)
	} else {
		t.rpc.push(c, t.cfg.HandshakeTimeout)
	}
}

// dial opens an authenticated connection to a member.
func (t *Transport) dial(ctx context.Context, to Target, proto string) (*conn, error) {
	id := t.deps.Identity()
	if !id.Member() {
		return nil, ErrNotMember
	}
	ctx, cancel := context.WithTimeout(ctx, t.cfg.HandshakeTimeout)
	defer cancel()
	raw, err := t.deps.Dial(ctx, to.Addr)
	if err != nil {
		t.met.dialled.WithLabelValues(proto, "unreachable").Inc()
		return nil, fmt.Errorf("dial %s: %w", to.Addr, err)
	}
	peer := Peer{Addr: to.Addr}
	tc := tls.Client(raw, t.clientTLS(id, to, proto, &peer))
	if err := tc.HandshakeContext(ctx); err != nil {
		raw.Close()
		t.met.dialled.WithLabelValues(proto, "refused").Inc()
		return nil, fmt.Errorf("greet %s: %w", to.Addr, err)
	}
	c := &conn{Conn: tc, raw: raw, peer: peer, proto: proto, owner: t}
	if err := t.register(c); err != nil {
		c.cut()
		return nil, err
	}
	t.met.dialled.WithLabelValues(proto, "ok").Inc()
	return c, nil
}

// register makes a connection one that Fence, Reauthorize and the end of Run
// know of, or refuses it. The member list is asked once more: it may have
// changed, and Reauthorize gone by, since the handshake.
func (t *Transport) register(c *conn) error {
	t.mu.Lock()
	switch {
	case t.closed:
		t.mu.Unlock()
		return ErrClosed
	case c.proto == protoRaft && t.raft.isFenced():
		t.mu.Unlock()
		return ErrFenced
	}
	t.conns[c] = struct{}{}
	t.mu.Unlock()
	return t.authorize(c.peer)
}

// cutWhere closes the connections that sel chooses, without farewell.
func (t *Transport) cutWhere(sel func(*conn) bool) {
	t.mu.Lock()
	var cut []*conn
	for c := range t.conns {
		if sel(c) {
			cut = append(cut, c)
			delete(t.conns, c)
		}
	}
	t.mu.Unlock()
	for _, c := range cut {
		c.cut()
	}
}

// Reauthorize asks Authorize again about every open connection and closes
// those it refuses: to be called when the member list changed.
func (t *Transport) Reauthorize() {
	t.cutWhere(func(c *conn) bool {
		return t.deps.Authorize(c.peer.Node, c.peer.PublicKey) != nil
	})
}

func (t *Transport) shut() {
	t.mu.Lock()
	t.closed = true
	t.mu.Unlock()
	t.raft.Close()
	t.rpc.Close()
	t.join.Close()
	t.halfOpen.cutAll()
	t.cutWhere(func(*conn) bool { return true })
	t.pool.CloseIdleConnections()
}
