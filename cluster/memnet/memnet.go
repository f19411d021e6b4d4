package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// Network connects addresses (host:port). Hosts are what is cut.
type Network struct {
	mu      sync.Mutex
	streams map[string]*Listener
	gossip  map[string]*Gossip
	cut     map[[2]string]bool
	pipes   map[*pipe]struct{}
	drop    func(from, to string) bool
}

// New makes an empty network.
func New() *Network {
	return &Network{
		streams: make(map[string]*Listener),
		gossip:  make(map[string]*Gossip),
		cut:     make(map[[2]string]bool),
		pipes:   make(map[*pipe]struct{}),
	}
}

var (
	errRefused     = errors.New("memnet: connection refused")
	errUnreachable = errors.New("memnet: no answer")
)

// Cut stops everything between two hosts, connections there included.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	n.cut[[2]string{a, b}], n.cut[[2]string{b, a}] = true, true
	var dead []*pipe
	for p := range n.pipes {
		if n.cut[[2]string{p.from, p.to}] {
			dead = append(dead, p)
			delete(n.pipes, p)
		}
	}
	n.mu.Unlock()
	for _, p := range dead {
		p.close()
	}
}

// Heal undoes Cut.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, [2]string{a, b})
	delete(n.cut, [2]string{b, a})
}

// DropPackets makes gossip packets vanish where f says so; nil: none.
func (n *Network) DropPackets(f func(from, to string) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = f
}

// pipe is one stream connection, remembered so that Cut can end it.
type pipe struct {
	from, to string
	a, b     net.Conn
}

func (p *pipe) close() { p.a.Close(); p.b.Close() }

// connect makes a connection and gives its far end to accept.
func (n *Network) connect(ctx context.Context, from, to string, accept chan<- net.Conn, done <-chan struct{}) (net.Conn, error) {
	a, b := net.Pipe()
	p := &pipe{from: host(from), to: host(to), a: a, b: b}
	n.mu.Lock()
	if n.cut[[2]string{p.from, p.to}] {
		n.mu.Unlock()
		return nil, errUnreachable
	}
	n.pipes[p] = struct{}{}
	n.mu.Unlock()
	near := &end{Conn: a, n: n, p: p, local: addr(from), remote: addr(to)}
	far := &end{Conn: b, n: n, p: p, local: addr(to), remote: addr(from)}
	var err error
	select {
	case accept <- far:
		select {
		case <-done: // it may have looked at its queue for the last time
			err = errRefused
		default:
			return near, nil
		}
	case <-done:
		err = errRefused
	case <-ctx.Done():
		err = ctx.Err()
	}
	near.Close()
	far.Close()
	return nil, err
}

// end is one end of a pipe, with the addresses of the network.
type end struct {
	net.Conn
	n             *Network
	p             *pipe
	local, remote addr
}

func (e *end) LocalAddr() net.Addr  { return e.local }
func (e *end) RemoteAddr() net.Addr { return e.remote }

func (e *end) Close() error {
	e.n.mu.Lock()
	delete(e.n.pipes, e.p)
	e.n.mu.Unlock()
	return e.Conn.Close()
}

type addr string

func (a addr) Network() string { return "mem" }
func (a addr) String() string  { return string(a) }

func host(hostport string) string {
	h, _, err := net.SplitHostPort(hostport)
	if err != nil {
		return hostport
	}
	return h
}

// Listener is a net.Listener of the network.
type Listener struct {
	n    *Network
	addr string
	ch   chan net.Conn
	done chan struct{}
	once sync.Once
}

// Listen opens an address for stream connections. A listener that was closed
// may be opened again.
func (n *Network) Listen(address string) *Listener {
	l := &Listener{n: n, addr: address, ch: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.streams[address] = l
	return l
}

// Accept implements net.Listener.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case c := <-l.ch:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (l *Listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		l.n.mu.Lock()
		defer l.n.mu.Unlock()
		if l.n.streams[l.addr] == l {
			delete(l.n.streams, l.addr)
		}
	})
	return nil
}

// Addr implements net.Listener.
func (l *Listener) Addr() net.Addr { return addr(l.addr) }

// Dialer returns a dial function for the host of from.
func (n *Network) Dialer(from string) func(ctx context.Context, to string) (net.Conn, error) {
	return func(ctx context.Context, to string) (net.Conn, error) {
		n.mu.Lock()
		l, cut := n.streams[to], n.cut[[2]string{host(from), host(to)}]
		n.mu.Unlock()
		if cut { // silence, not an answer
			<-ctx.Done()
			return nil, ctx.Err()
		}
		if l == nil {
			return nil, errRefused
		}
		return n.connect(ctx, from, to, l.ch, l.done)
	}
}

// Gossip is a memberlist.Transport that drops instead of blocking.
type Gossip struct {
	n       *Network
	addr    netip.AddrPort
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	once    sync.Once
}

var _ memberlist.Transport = (*Gossip)(nil)

// Gossip opens an address (an IP address and a port) for gossip.
func (n *Network) Gossip(address netip.AddrPort) *Gossip {
	const queue = 1024 // packets and streams waiting; more are lost, as in a socket
	g := &Gossip{
		n: n, addr: address,
		packets: make(chan *memberlist.Packet, queue),
		streams: make(chan net.Conn, queue),
		done:    make(chan struct{}),
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.gossip[address.String()] = g
	return g
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (g *Gossip) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return net.IP(g.addr.Addr().AsSlice()), int(g.addr.Port()), nil
}

// WriteTo implements memberlist.Transport.
func (g *Gossip) WriteTo(b []byte, to string) (time.Time, error) {
	now := time.Now()
	if p := g.peer(to, true); p != nil {
		select {
		case p.packets <- &memberlist.Packet{Buf: append([]byte(nil), b...), From: addr(g.addr.String()), Timestamp: now}:
		default:
		}
	}
	return now, nil
}

// Inject delivers a packet as if it had come from somewhere: for tests of what
// strangers send.
func (g *Gossip) Inject(b []byte, from string) {
	select {
	case g.packets <- &memberlist.Packet{Buf: b, From: addr(from), Timestamp: time.Now()}:
	default:
	}
}

func (g *Gossip) peer(to string, packet bool) *Gossip {
	g.n.mu.Lock()
	defer g.n.mu.Unlock()
	p := g.n.gossip[to]
	if p == nil || g.closed() || p.closed() || g.n.cut[[2]string{g.addr.Addr().String(), p.addr.Addr().String()}] {
		return nil
	}
	if packet && g.n.drop != nil && g.n.drop(g.addr.String(), to) {
		return nil
	}
	return p
}

// PacketCh implements memberlist.Transport.
func (g *Gossip) PacketCh() <-chan *memberlist.Packet { return g.packets }

// StreamCh implements memberlist.Transport.
func (g *Gossip) StreamCh() <-chan net.Conn { return g.streams }

// DialTimeout implements memberlist.Transport.
func (g *Gossip) DialTimeout(to string, d time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	p := g.peer(to, false)
	if p == nil {
		select {
		case <-ctx.Done():
			return nil, errUnreachable
		case <-g.done:
			return nil, io.ErrClosedPipe
		}
	}
	return g.n.connect(ctx, g.addr.String(), to, p.streams, p.done)
}

// Shutdown implements memberlist.Transport.
func (g *Gossip) Shutdown() error {
	g.once.Do(func() { close(g.done) })
	for {
		select {
		case c := <-g.streams: // nobody will read it
			c.Close()
		default:
			return nil
		}
	}
}

func (g *Gossip) closed() bool {
	select {
	case <-g.done:
		return true
	default:
		return false
	}
}
