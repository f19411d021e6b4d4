package sstp

import (
	"cmp"
	"crypto/tls"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
)

// phase of a connection; those after phaseResponse are told by the follower.
type phase int32

const (
	phaseHandshake phase = iota
	phaseHead
	phaseDialing
	phaseResponse
	phaseRelay
	phaseClosing
)

// Why a connection ended.
const (
	endDone        = "done"       // both sides said so
	endClient      = "client"     // its connection broke
	endServer      = "server"     // its connection broke
	endIdle        = "idle"       // nothing in either direction
	endStalled     = "stalled"    // a peer takes nothing
	endClosed      = "closed"     // by us: drain, or the server's sessions were told to go
	endStopped     = "stopped"    // the process stops
	endHandshake   = "handshake"  // TLS did not come up
	endCrowded     = "crowded"    // TLS did not come up in time, and others needed the place
	endHead        = "head"       // no good request
	endDial        = "dial"       // the server was not reached
	endCertificate = "server_tls" // TLS to the server did not come up, or not with the right certificate
	endResponse    = "response"   // no good answer of the server
	endStatus      = "status"     // the server said no
	endSetup       = "setup"      // the kernel refused something
)

var ends = []string{endDone, endClient, endServer, endIdle, endStalled, endClosed, endStopped, endHandshake, endCrowded, endHead, endDial,
	endCertificate, endResponse, endStatus, endSetup}

// session is one connection of a client, and the one to the server that belongs
// to it.
type session struct {
	server  *Server
	service *service
	target  *target
	route   Route
	limits  *Limits
	client  netip.AddrPort
	key     [16]byte
	since   time.Time
	id      uint64

	front     tlsEnd // the client
	tlsInfo   string // set with the end of the handshake
	handshook bool   // serve's alone
	turn      *turn  // likewise; nil behind the handshake

	phase   atomic.Int32
	settled atomic.Bool // phase has passed the handshake: tlsInfo can be read
	flow    [2]flow     // by control.Side
	running atomic.Int32
	follow  control.Follower
	proven  atomic.Bool // the call stood for stayUp; the sweeper's to set
	heard   atomic.Bool // the server sent data on the call that is up
	left    atomic.Bool // the server went without a word, which was noticed

	mu      sync.Mutex
	back    end       // nil: none yet
	ended   string    // the first reason
	closeAt int64     // tick at which a gentle close becomes a hard one; 0: none
	counted [2]uint64 // of flow.bytes, that the metrics have

	// The sweeper's alone.
	upSince  int64 // tick at which the call was first seen up
	told     bool  // that the server confirmed the call
	reminded int   // how often again
}

// flow is one direction.
type flow struct {
	bytes   atomic.Uint64
	last    atomic.Int64 // tick of the last bytes
	sending atomic.Int64 // tick at which the send under way began; 0: none
	fresh   atomic.Bool  // bytes came since Activity was asked
	closed  atomic.Bool  // this side will send no more

	// Guarded by session.mu.
	parked bool // waits in the lot, without a goroutine
	known  bool // the lot has seen its socket
}

func (c *session) init(tcp *net.TCPConn) {
	c.front.link = &link{tcp: tcp}
}

func (c *session) setPhase(p phase) { c.phase.Store(int32(p)) }

// end closes both connections; what runs on them notices. The first reason
// counts; it tells whether this is it.
func (c *session) end(reason string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != "" {
		return false
	}
	if c.isClosing() && reason != endStopped {
		reason = endClosed
	}
	c.ended = reason
	c.front.Close()
	if c.back != nil {
		c.back.Close()
	}
	for i := range c.flow { // to see it
		c.unpark(control.Side(i))
	}
	return true
}

// ends of a direction.
func (c *session) ends(from control.Side) (src, dst end) {
	if from == control.Client {
		return &c.front, c.back
	}
	return c.back, &c.front
}

// setBack takes the connection to the server, unless the session has ended.
func (c *session) setBack(e end) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ended != "" {
		e.Close()
		return false
	}
	c.back = e
	return true
}

// leave counts the session out, when nothing runs on it any more.
func (c *session) leave() {
	s := c.server
	c.mu.Lock()
	reason := c.ended
	c.mu.Unlock()
	s.count(c)
	s.metrics.ended.WithLabelValues(reason).Inc()
	s.metrics.duration.Observe(time.Since(c.since).Seconds())
	s.sources.leave(c.key, !c.handshook)
	s.table.remove(c)
}

// idle is how many ticks ago bytes came last.
func (c *session) idle(tick int64) int64 {
	return tick - max(c.flow[control.Client].last.Load(), c.flow[control.Server].last.Load())
}

// state is the word that `vpnlb sstp sessions` prints.
func (c *session) state() string {
	switch phase(c.phase.Load()) {
	case phaseHandshake:
		return "handshake"
	case phaseHead:
		return "head"
	case phaseDialing:
		return "dialing"
	case phaseResponse:
		return "response"
	case phaseClosing:
		return "closing"
	}
	switch call := c.follow.Call(); {
	case call.Off:
		return "unknown"
	case call.State == control.Up:
		return "connected"
	case call.State > control.Up:
		return "closing"
	}
	return "negotiating"
}

func (c *session) report(tick int64) Session {
	call := c.follow.Call()
	out := Session{ID: c.id, VIP: c.service.Name, Target: c.target.Name, Slot: c.target.Slot, Client: c.client, State: c.state(), Since: c.since,
		In: c.flow[control.Client].bytes.Load(), Out: c.flow[control.Server].bytes.Load(), Echoes: call.Echoes, EchoLost: call.EchoLost, Proven: c.proven.Load()}
	if c.settled.Load() {
		out.Certificate, out.TLS = c.target.cert.name, c.tlsInfo
	}
	if phase(c.phase.Load()) >= phaseRelay {
		out.Idle = time.Duration(c.idle(tick)) * pace
	} else {
		out.Idle = time.Since(c.since).Truncate(pace)
	}
	return out
}

func tlsText(cs *tls.ConnectionState) string {
	text := tls.VersionName(cs.Version) + " " + tls.CipherSuiteName(cs.CipherSuite)
	if cs.DidResume {
		text += " resumed"
	}
	return text
}

// sessions is all there are. The limit of connections bounds it.
type sessions struct {
	mu    sync.Mutex
	by    map[uint64]*session
	last  uint64
	empty chan struct{} // closed and replaced whenever none is left
}

func (t *sessions) init() { t.by, t.empty = map[uint64]*session{}, make(chan struct{}) }

func (t *sessions) add(c *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.last++
	c.id = t.last
	t.by[c.id] = c
}

func (t *sessions) find(id uint64) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.by[id]
}

func (t *sessions) remove(c *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.by, c.id)
	if len(t.by) == 0 {
		close(t.empty)
		t.empty = make(chan struct{})
	}
}

// each lists them in any order.
func (t *sessions) each() []*session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.AppendSeq(make([]*session, 0, len(t.by)), maps.Values(t.by))
}

// all lists them by age.
func (t *sessions) all() []*session {
	out := t.each()
	slices.SortFunc(out, func(a, b *session) int { return cmp.Compare(a.id, b.id) })
	return out
}

// none is closed when no session is left: at once if there is none now.
func (t *sessions) none() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.by) == 0 {
		done := make(chan struct{})
		close(done)
		return done
	}
	return t.empty
}
