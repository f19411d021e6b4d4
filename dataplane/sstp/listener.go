package sstp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// deferAccept is how long, in seconds, the kernel keeps a connection to itself
	// that has not sent a byte: those that only connect never get here.
	deferAccept = 10
	// A peer that is gone is noticed within 120 s, whether bytes are under way or
	// not: keepalives (seconds) begin after 60 s, userTimeout (milliseconds) says
	// for both when it is enough.
	keepaliveIdle, keepaliveInterval = 60, 15
	userTimeout                      = 120_000

	acceptPause, acceptPauseMax = 5 * time.Millisecond, time.Second // after a failure
)

// listener accepts for one address.
type listener struct {
	addr netip.AddrPort
	tcp  *net.TCPListener
	stop chan struct{}
	once sync.Once
}

func (l *listener) close() {
	l.once.Do(func() {
		close(l.stop)
		l.tcp.Close()
	})
}

// listen opens a listener: without multipath TCP, which lacks socket options
// that are needed, and also where the address is not on this node yet.
func listen(addr netip.AddrPort) (*net.TCPListener, error) {
	config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error { return listenOptions(raw) }}
	config.SetMultipathTCP(false)
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	ln, err := config.Listen(context.Background(), network, addr.String())
	if err != nil {
		return nil, err
	}
	return ln.(*net.TCPListener), nil
}

type option struct{ level, name, value int }

// listenOptions are set once on the listener: the connections inherit them.
func listenOptions(raw syscall.RawConn) error {
	return setOptions(raw, append([]option{
		{unix.SOL_IP, unix.IP_FREEBIND, 1}, // for IPv6 sockets, too
		{unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, deferAccept},
	}, connOptions...))
}

var connOptions = []option{
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, keepaliveIdle},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, keepaliveInterval},
	{unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, userTimeout},
}

func setOptions(raw syscall.RawConn, options []option) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		for _, o := range options {
			if err := unix.SetsockoptInt(int(fd), o.level, o.name, o.value); err != nil {
				failed = fmt.Errorf("set socket option %d of level %d: %w", o.name, o.level, err)
				return
			}
		}
	})
	return errors.Join(err, failed)
}

// openListeners makes the listeners those that the plan wants. s.mu is held.
func (s *Server) openListeners(p *plan) error {
	var errs []error
	wanted := map[netip.AddrPort]bool{}
	for addr := range p.services {
		at := netip.AddrPortFrom(addr, s.cfg.Port)
		wanted[at] = true
		if s.listeners[at] != nil || s.draining {
			continue
		}
		ln, err := s.takeOrListen(at)
		if err != nil {
			errs = append(errs, fmt.Errorf("sstp service %s: %w", p.services[addr].Name, err))
			continue
		}
		l := &listener{addr: at, tcp: ln, stop: make(chan struct{})}
		s.listeners[at] = l
		s.working.Go(func() { s.accept(l) })
		s.log.Info("sstp listens", "node", s.cfg.Self, "addr", at)
	}
	for at, l := range s.listeners {
		if !wanted[at] {
			l.close()
			delete(s.listeners, at)
			s.log.Info("sstp listens no more", "node", s.cfg.Self, "addr", at)
		}
	}
	s.closeInherited()
	return errors.Join(errs...)
}

// takeOrListen uses the inherited socket where there is one: connections that
// wait in its queue are not lost.
func (s *Server) takeOrListen(at netip.AddrPort) (*net.TCPListener, error) {
	ln := s.inherited[at.String()]
	if ln == nil {
		return listen(at)
	}
	delete(s.inherited, at.String())
	raw, err := ln.SyscallConn()
	if err == nil {
		err = listenOptions(raw)
	}
	if err != nil {
		ln.Close()
		return nil, fmt.Errorf("take over listener: %w", err)
	}
	return ln, nil
}

// accept takes connections until the listener is closed.
func (s *Server) accept(l *listener) {
	defer l.close()
	select {
	case <-s.started:
	case <-l.stop:
		return
	case <-s.ctx.Done():
		return
	}
	pause := time.Duration(0)
	for {
		c, err := l.tcp.AcceptTCP()
		switch {
		case err == nil:
			pause = 0
			s.admit(l, c)
			continue
		case errors.Is(err, net.ErrClosed):
			return
		}
		// Out of descriptors or memory: the queue keeps what comes.
		s.refuse(refusedAccept)
		if pause == 0 {
			s.log.Error("cannot accept sstp connections", "addr", l.addr, "err", err)
		}
		pause = min(max(acceptPause, 2*pause), acceptPauseMax)
		select {
		case <-time.After(pause):
		case <-l.stop:
			return
		}
	}
}

// Why a connection is refused before TLS.
const (
	refusedAccept      = "accept_failed"
	refusedConnections = "connections"
	refusedSource      = "source_connections"
	refusedHandshakes  = "source_handshakes"
	refusedNoService   = "no_service"
	refusedNoServer    = "no_server"
	refusedDraining    = "server_refuses"
)

var refusals = []string{refusedAccept, refusedConnections, refusedSource, refusedHandshakes, refusedNoService, refusedNoServer, refusedDraining}

// admit decides about a new connection, and starts serving it. It waits while
// as many handshakes compute as may: more connections wait in the kernel's
// queue.
func (s *Server) admit(l *listener, tcp *net.TCPConn) {
	s.metrics.accepted.Inc()
	c, refused := s.newSession(l, tcp)
	if refused != "" {
		s.refuse(refused)
		_ = tcp.SetLinger(0) // a reset: cheap, and the client knows at once
		tcp.Close()
		return
	}
	if c.turn = s.gate.enter(c); c.turn == nil { // the server ends
		c.end(endStopped)
		c.leave()
		return
	}
	select {
	case s.handoff <- c:
	default:
		s.working.Go(func() { s.serve(c) })
	}
}

// refuse counts a connection that is not served.
func (s *Server) refuse(reason string) {
	s.metrics.refused.WithLabelValues(reason).Inc()
	s.refused.note(reason, time.Now(), s.log)
}

// newSession picks the server of a new connection and counts it in.
func (s *Server) newSession(l *listener, tcp *net.TCPConn) (*session, string) {
	remote, ok := tcp.RemoteAddr().(*net.TCPAddr)
	p := s.plan.Load()
	v := p.services[l.addr.Addr()]
	if !ok || v == nil {
		return nil, refusedNoService
	}
	client := netip.AddrPortFrom(remote.AddrPort().Addr().Unmap(), remote.AddrPort().Port())
	key := v.clientKey(client.Addr())
	if refused := s.sources.enter(key, p.limits); refused != "" {
		return nil, refused
	}
	route, ok := s.deps.Choose(v.VIP, client.Addr())
	if !ok {
		s.sources.leave(key, true)
		return nil, refusedNoServer
	}
	route = s.instead(v, key, route)
	t := p.targets[route.Slot]
	refused := ""
	switch {
	case t == nil || t.service != v:
		refused = refusedNoServer
	case t.Refuse:
		refused = refusedDraining
	}
	if refused != "" {
		s.sources.leave(key, true)
		return nil, refused
	}
	c := &session{server: s, service: v, target: t, route: route, client: client, key: key, limits: p.limits, since: time.Now()}
	c.init(tcp)
	s.table.add(c)
	return c, ""
}
