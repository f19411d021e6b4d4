package transport

import (
	"container/list"
	"context"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// conn is a connection past its handshake. It hides the *tls.Conn, which
// net/http would otherwise treat by its own ideas of ALPN.
type conn struct {
	net.Conn          // the TLS end
	raw      net.Conn // below it
	peer     Peer     // zero for join
	proto    string
	owner    *Transport
	ticket   *ticket // half-open still: a joiner, or a member no more
	once     sync.Once
}

// Close says farewell and closes; for net/http and raft.
func (c *conn) Close() error {
	c.forget()
	return c.Conn.Close()
}

// cut closes at once: the farewell of TLS may block for seconds.
func (c *conn) cut() {
	c.forget()
	c.raw.Close()
}

func (c *conn) forget() {
	c.once.Do(func() {
		c.ticket.done()
		c.owner.mu.Lock()
		delete(c.owner.conns, c)
		c.owner.mu.Unlock()
	})
}

// halfOpen bounds the connections that have not proved who they are, in all
// and by source. Beyond a bound the oldest is closed: under a flood it is
// nearly always one of the flood's.
type halfOpen struct {
	max, maxSource int
	met            metrics

	mu       sync.Mutex
	all      *list.List                  // of *ticket, oldest first
	bySource map[netip.Prefix]*list.List // the same tickets
}

// ticket is the place of one half-open connection. The nil ticket is none.
type ticket struct {
	h            *halfOpen
	raw          net.Conn
	source       netip.Prefix
	inAll, inSrc *list.Element // nil when given back
}

func newHalfOpen(total, perSource int, met metrics) *halfOpen {
	return &halfOpen{max: total, maxSource: perSource, met: met, all: list.New(), bySource: make(map[netip.Prefix]*list.List)}
}

// admit gives a place to a connection, taking it from another if need be.
func (h *halfOpen) admit(raw net.Conn) *ticket {
	tk := &ticket{h: h, raw: raw, source: sourceOf(raw.RemoteAddr())}
	h.mu.Lock()
	src := h.bySource[tk.source]
	var out *ticket
	switch {
	case src != nil && src.Len() >= h.maxSource:
		out = src.Front().Value.(*ticket)
	case h.all.Len() >= h.max:
		out = h.all.Front().Value.(*ticket)
	}
	if out != nil {
		h.remove(out)
	}
	if src = h.bySource[tk.source]; src == nil {
		src = list.New()
		h.bySource[tk.source] = src
	}
	tk.inAll, tk.inSrc = h.all.PushBack(tk), src.PushBack(tk)
	h.met.halfOpen.Set(float64(h.all.Len()))
	h.mu.Unlock()
	if out != nil {
		h.met.evicted.Inc()
		out.raw.Close()
	}
	return tk
}

// remove must be called with the lock held.
func (h *halfOpen) remove(tk *ticket) {
	if tk.inAll == nil {
		return
	}
	src := h.bySource[tk.source]
	h.all.Remove(tk.inAll)
	src.Remove(tk.inSrc)
	if src.Len() == 0 {
		delete(h.bySource, tk.source)
	}
	tk.inAll, tk.inSrc = nil, nil
	h.met.halfOpen.Set(float64(h.all.Len()))
}

func (h *halfOpen) len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.all.Len()
}

func (h *halfOpen) cutAll() {
	h.mu.Lock()
	var cut []net.Conn
	for e := h.all.Front(); e != nil; e = e.Next() {
		cut = append(cut, e.Value.(*ticket).raw)
	}
	h.mu.Unlock()
	for _, raw := range cut {
		raw.Close()
	}
}

// done gives the place back.
func (tk *ticket) done() {
	if tk == nil {
		return
	}
	tk.h.mu.Lock()
	defer tk.h.mu.Unlock()
	tk.h.remove(tk)
}

// sourceOf tells sources apart: by address, IPv6 by /64. Addresses that are no
// IP addresses (in-memory networks) are one source.
func sourceOf(a net.Addr) netip.Prefix {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.Prefix{}
	}
	ip := ap.Addr().Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, _ := ip.Prefix(bits) // fits by construction
	return p
}

// queueListener is a net.Listener over connections that somebody else accepted.
type queueListener struct {
	addr textAddr
	ch   chan *conn
	done chan struct{}
	once sync.Once
}

func newQueueListener(addr string) *queueListener {
	return &queueListener{addr: textAddr(addr), ch: make(chan *conn), done: make(chan struct{})}
}

// push hands a connection over, or closes it when nobody takes it in time.
func (q *queueListener) push(c *conn, patience time.Duration) {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case q.ch <- c:
	case <-q.done:
		c.cut()
	case <-timer.C:
		c.cut()
	}
}

// Accept implements net.Listener.
func (q *queueListener) Accept() (net.Conn, error) {
	select {
	case c := <-q.ch:
		return c, nil
	case <-q.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (q *queueListener) Close() error {
	q.once.Do(func() { close(q.done) })
	return nil
}

// Addr implements net.Listener.
func (q *queueListener) Addr() net.Addr { return q.addr }

// textAddr is an address that is only its text: raft compares it with what the
// configuration says.
type textAddr string

func (a textAddr) Network() string { return "tcp" }
func (a textAddr) String() string  { return string(a) }

// unackedTimeout is how long the kernel waits for an acknowledgement before it
// gives a connection up (TCP_USER_TIMEOUT, RFC 5482). Its own default is a
// quarter of an hour, in which a dead peer's connection looks usable.
const unackedTimeout = 10 * time.Second

func keepAlive() net.KeepAliveConfig {
	return net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}
}

func setTimeout(_, _ string, rc syscall.RawConn) error {
	var err error
	cerr := rc.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(unackedTimeout.Milliseconds()))
	})
	if cerr != nil {
		return cerr
	}
	return err
}

// Listen opens a TCP listener without MPTCP, on which some socket options that
// we may want do not work.
func Listen(ctx context.Context, addr string) (net.Listener, error) {
	lc := net.ListenConfig{KeepAliveConfig: keepAlive(), Control: setTimeout} // accepted sockets inherit both
	lc.SetMultipathTCP(false)
	return lc.Listen(ctx, "tcp", addr)
}

func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{KeepAliveConfig: keepAlive(), Control: setTimeout}
	d.SetMultipathTCP(false)
	return d.DialContext(ctx, "tcp", addr)
}
