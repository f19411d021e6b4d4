package screen

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"
)

// Neighbour is one router. The fields are those of the node file, defaults filled
// in.
type Neighbour struct {
	Address, LocalAddress, NextHop6 netip.Addr
	ASN                             uint32
	Port                            int
	HoldTime, ConnectRetry          time.Duration
	Passive, TTLSecurity            bool
	Password                        string
	MultihopTTL                     int
}

// Config is the outer side of all sessions.
type Config struct {
	ASN        uint32
	RouterID   netip.Addr
	Neighbours []Neighbour
	// ListenPort > 0 lets routers dial, at ListenAddresses or, without any, at all.
	ListenPort      int
	ListenAddresses []netip.Addr
}

// Inner is where the library finds a neighbour: it dials Router from Local and
// proves itself with Key (RFC 2385). All three are random, so that no other process
// of the host can speak for either side.
type Inner struct {
	Router netip.AddrPort
	Local  netip.Addr
	Key    string
}

// Deps are what the screen needs of its owner.
type Deps struct {
	Log *slog.Logger
	// Renew makes the library forget the neighbour with this index and dial its
	// Inner anew. A new peer has no idle time after a lost session.
	Renew func(index int) error
	// Changed is called when a session is established or lost.
	Changed func(index int, up bool, cause string)
}

// Status is one neighbour.
type Status struct {
	State       string // RFC 4271, section 8.2.2, lower case
	Since       time.Time
	Local       netip.Addr // of the session; zero unless established
	Families    []Family   // negotiated; none unless established
	Hold        time.Duration
	RouterHold  time.Duration // what the router offered last
	Sent        uint64        // UPDATE messages that were written to the router
	Dropped     uint64        // UPDATE messages of the router that were dropped
	Refused     uint64        // connections ended for a fault of the router
	LastRefusal string
	Error       string    // why the session is down; empty while it is established
	OutSince    time.Time // since when there is no session
	EverUp      bool
	HoldExpired bool // the last session ended because nothing was heard
}

// Screen holds the sessions with all routers.
type Screen struct {
	cfg        Config
	deps       Deps
	neighbours []*neighbour
	outer      []*net.TCPListener

	stop    context.CancelFunc
	running sync.WaitGroup
	fatal   chan error // capacity 1
}

// Listen checks the protection of every session and opens the listeners. Nothing is
// dialled before Start.
func Listen(ctx context.Context, cfg Config, deps Deps) (*Screen, error) {
	s := &Screen{cfg: cfg, deps: deps, fatal: make(chan error, 1)}
	for i := range cfg.Neighbours {
		c := &cfg.Neighbours[i]
		if err := c.check(c.ASN != cfg.ASN); err != nil {
			return nil, fmt.Errorf("neighbour %s: %w", c.Address, err)
		}
		n, err := newNeighbour(ctx, s, i)
		if err != nil {
			s.closeListeners()
			return nil, fmt.Errorf("loopback side of neighbour %s: %w", c.Address, err)
		}
		s.neighbours = append(s.neighbours, n)
	}
	if err := s.listenOutside(ctx); err != nil {
		s.closeListeners()
		return nil, err
	}
	return s, nil
}

func (s *Screen) listenOutside(ctx context.Context) error {
	if s.cfg.ListenPort <= 0 {
		return nil
	}
	at := s.cfg.ListenAddresses
	if len(at) == 0 {
		at = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	for _, a := range at {
		l, err := listen(ctx, a, s.cfg.ListenPort, s.cfg.Neighbours)
		if err != nil {
			return fmt.Errorf("listen for routers at %s port %d: %w", a, s.cfg.ListenPort, err)
		}
		s.outer = append(s.outer, l)
	}
	return nil
}

// Inner tells where the library finds the neighbour with this index.
func (s *Screen) Inner(index int) Inner { return s.neighbours[index].inner }

// Fatal delivers the failure after which no session may go on.
func (s *Screen) Fatal() <-chan error { return s.fatal }

func (s *Screen) fail(err error) {
	select {
	case s.fatal <- err:
	default: // one is enough
	}
}

// Start begins the sessions.
func (s *Screen) Start(ctx context.Context) {
	ctx, s.stop = context.WithCancel(ctx)
	for _, l := range s.outer {
		s.running.Go(func() { s.accept(ctx, l) })
	}
	for _, n := range s.neighbours {
		s.running.Go(func() { n.run(ctx) })
	}
}

// accept hands connections to the neighbour whose address they come from. Any
// other is closed unread.
func (s *Screen) accept(ctx context.Context, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // out of descriptors, or the connection is gone already
			if !pause(ctx, time.Second) {
				return
			}
			continue
		}
		from, taken := addressOf(c.RemoteAddr()), false
		for _, n := range s.neighbours {
			if n.cfg.Address.WithZone("") == from {
				taken = n.offer(c)
			}
		}
		if !taken {
			c.Close()
		}
	}
}

// Quit lets established sessions finish and begins no new ones. Call it before
// the library is stopped.
func (s *Screen) Quit() {
	for _, n := range s.neighbours {
		n.quit()
	}
}

// Close ends what is left, once the library's last words have been passed on or
// ctx ends.
func (s *Screen) Close(ctx context.Context) {
	s.Quit()
	for _, n := range s.neighbours {
		select {
		case <-n.finished:
		case <-ctx.Done():
		}
	}
	if s.stop != nil {
		s.stop()
	}
	s.closeListeners()
	s.running.Wait()
}

func (s *Screen) closeListeners() {
	for _, l := range s.outer {
		l.Close()
	}
	for _, n := range s.neighbours {
		n.listener.Close()
	}
}

// Status tells of every neighbour, in configured order.
func (s *Screen) Status() []Status {
	out := make([]Status, len(s.neighbours))
	for i, n := range s.neighbours {
		n.mu.Lock()
		out[i] = n.status
		n.mu.Unlock()
	}
	return out
}

// newInner draws addresses and a key, and opens the listener that the library
// will dial.
func newInner(ctx context.Context) (Inner, *net.TCPListener, error) {
	var raw [6 + 20]byte
	rand.Read(raw[:]) // never fails
	loopback := func(b []byte) netip.Addr {
		return netip.AddrFrom4([4]byte{127, 64 | b[0]&0x3f, b[1], 1 + b[2]%254})
	}
	in := Inner{Local: loopback(raw[:3]), Key: hex.EncodeToString(raw[6:])}
	router := loopback(raw[3:6])
	l, err := listen(ctx, router, 0, []Neighbour{{Address: in.Local, Password: in.Key}})
	if err != nil {
		return in, nil, err
	}
	in.Router = l.Addr().(*net.TCPAddr).AddrPort()
	return in, l, nil
}

func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
