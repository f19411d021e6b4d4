package raft

import (
	"errors"
	"net"
	"sync"
	"time"

	hraft "github.com/hashicorp/raft"
)

// stream gives hraft our StreamLayer: with the address that peers dial, whatever
// the socket is bound to, and with every connection known, because hraft's
// transport closes neither accepted nor pooled ones when it stops.
type stream struct {
	StreamLayer
	addr string

	mu     sync.Mutex
	conns  map[*trackedConn]struct{}
	closed bool
}

func newStream(l StreamLayer, addr string) *stream {
	return &stream{StreamLayer: l, addr: addr, conns: map[*trackedConn]struct{}{}}
}

// Addr implements net.Listener: hraft's own address.
func (s *stream) Addr() net.Addr { return streamAddr(s.addr) }

// Accept implements net.Listener.
func (s *stream) Accept() (net.Conn, error) { return s.track(s.StreamLayer.Accept()) }

// Dial implements hraft.StreamLayer.
func (s *stream) Dial(addr hraft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return s.track(s.StreamLayer.Dial(string(addr), timeout))
}

func (s *stream) track(c net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	t := &trackedConn{Conn: c, s: s}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = c.Close()
		return nil, errors.New("raft stream layer is closed")
	}
	s.conns[t] = struct{}{}
	return t, nil
}

// closeAll ends all connections, and those to come.
func (s *stream) closeAll() {
	s.mu.Lock()
	s.closed = true
	conns := s.conns
	s.conns = map[*trackedConn]struct{}{}
	s.mu.Unlock()
	for c := range conns {
		_ = c.Conn.Close()
	}
	_ = s.StreamLayer.Close()
}

type trackedConn struct {
	net.Conn
	s *stream
}

func (c *trackedConn) Close() error {
	c.s.mu.Lock()
	delete(c.s.conns, c)
	c.s.mu.Unlock()
	return c.Conn.Close()
}

type streamAddr string

func (streamAddr) Network() string  { return "tcp" }
func (a streamAddr) String() string { return string(a) }
