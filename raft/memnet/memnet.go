// Package memnet is a network in memory for tests: stream layers joined by
// net.Pipe, which work inside a testing/synctest bubble, with links that can be
// cut and healed.
package memnet

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"
)

// Network joins layers by address.
type Network struct {
	mu     sync.Mutex
	layers map[string]*Layer
	cut    map[[2]string]bool
	conns  map[*conn]struct{}
}

// New returns a network without layers; every link works.
func New() *Network {
	return &Network{layers: map[string]*Layer{}, cut: map[[2]string]bool{}, conns: map[*conn]struct{}{}}
}

// Layer is one endpoint: a raft.StreamLayer.
type Layer struct {
	n      *Network
	addr   string
	accept chan net.Conn
	done   chan struct{}
	once   sync.Once
	fenced bool // guarded by n.mu
}

// Layer listens at addr, in the place of a layer that was closed.
func (n *Network) Layer(addr string) *Layer {
	l := &Layer{n: n, addr: addr, accept: make(chan net.Conn), done: make(chan struct{})}
	n.mu.Lock()
	n.layers[addr] = l
	n.mu.Unlock()
	return l
}

func link(a, b string) [2]string {
	if a > b {
		a, b = b, a
	}
	return [2]string{a, b}
}

// Cut ends the connections between a and b; dials between them time out.
func (n *Network) Cut(a, b string) {
	n.mu.Lock()
	n.cut[link(a, b)] = true
	n.mu.Unlock()
	n.closeConns(func(c *conn) bool { return c.link == link(a, b) })
}

// Heal undoes Cut.
func (n *Network) Heal(a, b string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, link(a, b))
}

// Isolate cuts addr off from every layer there is.
func (n *Network) Isolate(addr string) {
	for _, o := range n.others(addr) {
		n.Cut(addr, o)
	}
}

// Rejoin undoes Isolate.
func (n *Network) Rejoin(addr string) {
	for _, o := range n.others(addr) {
		n.Heal(addr, o)
	}
}

func (n *Network) others(addr string) (out []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for a := range n.layers {
		if a != addr {
			out = append(out, a)
		}
	}
	return out
}

// Reachable reports whether the link between a and b works.
func (n *Network) Reachable(a, b string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.cut[link(a, b)]
}

func (n *Network) closeConns(match func(*conn) bool) {
	n.mu.Lock()
	var found []*conn
	for c := range n.conns {
		if match(c) {
			found = append(found, c)
		}
	}
	n.mu.Unlock()
	for _, c := range found {
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (l *Layer) Accept() (net.Conn, error) {
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener; connections stay.
func (l *Layer) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// Addr implements net.Listener.
func (l *Layer) Addr() net.Addr { return addr(l.addr) }

// Fence ends all connections of the layer and refuses new ones for ever.
func (l *Layer) Fence() {
	l.n.mu.Lock()
	l.fenced = true
	l.n.mu.Unlock()
	_ = l.Close()
	l.n.closeConns(func(c *conn) bool { return c.link[0] == l.addr || c.link[1] == l.addr })
}

// Dial connects to the layer at to.
func (l *Layer) Dial(to string, timeout time.Duration) (net.Conn, error) {
	l.n.mu.Lock()
	peer, dead, fenced := l.n.layers[to], l.n.cut[link(l.addr, to)], l.fenced
	l.n.mu.Unlock()
	switch {
	case fenced:
		return nil, errors.New("memnet: fenced")
	case dead:
		select {
		case <-time.After(timeout):
		case <-l.done:
		}
		return nil, fmt.Errorf("memnet: dial %s: %w", to, os.ErrDeadlineExceeded)
	case peer == nil:
		return nil, fmt.Errorf("memnet: dial %s: nobody listens", to)
	}
	a, b := net.Pipe()
	ca, cb := l.n.conn(a, l.addr, to, to), l.n.conn(b, l.addr, to, l.addr)
	t := time.NewTimer(timeout)
	defer t.Stop()
	var err error
	select {
	case peer.accept <- cb:
		return ca, nil
	case <-peer.done:
		err = fmt.Errorf("memnet: dial %s: refused", to)
	case <-l.done:
		err = net.ErrClosed
	case <-t.C:
		err = fmt.Errorf("memnet: dial %s: %w", to, os.ErrDeadlineExceeded)
	}
	_, _ = ca.Close(), cb.Close()
	return nil, err
}

func (n *Network) conn(c net.Conn, from, to, remote string) *conn {
	w := &conn{Conn: c, n: n, link: link(from, to), remote: addr(remote)}
	n.mu.Lock()
	n.conns[w] = struct{}{}
	n.mu.Unlock()
	return w
}

type conn struct {
	net.Conn
	n      *Network
	link   [2]string
	remote addr
}

func (c *conn) RemoteAddr() net.Addr { return c.remote }

func (c *conn) Close() error {
	c.n.mu.Lock()
	delete(c.n.conns, c)
	c.n.mu.Unlock()
	return c.Conn.Close()
}

type addr string

func (addr) Network() string  { return "mem" }
func (a addr) String() string { return string(a) }
