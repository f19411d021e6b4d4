package screen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// lifePace bounds the KEEPALIVEs that stand for dropped UPDATEs.
	lifePace = 250 * time.Millisecond
)

// neighbour is one router: run owns the sessions, status is read by any goroutine.
type neighbour struct {
	screen   *Screen
	index    int
	cfg      *Neighbour
	expect   Expect
	inner    Inner
	listener *net.TCPListener
	accepted chan net.Conn // capacity 1
	waiting  atomic.Bool   // run would take an accepted connection
	quitting chan struct{}
	quitOnce sync.Once
	finished chan struct{} // closed once run has returned

	mu     sync.Mutex
	status Status
}

func newNeighbour(ctx context.Context, s *Screen, index int) (*neighbour, error) {
	n := &neighbour{
		screen: s, index: index, cfg: &s.cfg.Neighbours[index],
		accepted: make(chan net.Conn, 1), quitting: make(chan struct{}), finished: make(chan struct{}),
		status: Status{State: "idle", Since: time.Now(), OutSince: time.Now()},
	}
	n.expect = Expect{LocalAS: s.cfg.ASN, RemoteAS: n.cfg.ASN, LocalID: s.cfg.RouterID}
	var err error
	n.inner, n.listener, err = newInner(ctx)
	return n, err
}

func (n *neighbour) external() bool { return n.expect.LocalAS != n.expect.RemoteAS }
func (n *neighbour) quit()          { n.quitOnce.Do(func() { close(n.quitting) }) }

// offer takes a connection that the router opened. While a session is established
// there is no use for one.
func (n *neighbour) offer(c net.Conn) bool {
	if !n.waiting.Load() {
		return false
	}
	select {
	case n.accepted <- c:
		return true
	default:
		return false
	}
}

// run holds one session after the other.
func (n *neighbour) run(ctx context.Context) {
	defer close(n.finished)
	defer n.drainAccepted()
	for ctx.Err() == nil && !closed(n.quitting) {
		err := n.session(ctx)
		if errors.Is(err, ErrSocketOption) {
			n.screen.fail(fmt.Errorf("neighbour %s: %w", n.cfg.Address, err))
			return
		}
		if err != nil && !closed(n.quitting) && ctx.Err() == nil {
			n.note(err)
			pause(ctx, 100*time.Millisecond) // the library's dial paces the rest
		}
	}
}

func (n *neighbour) drainAccepted() {
	n.waiting.Store(false)
	select {
	case c := <-n.accepted:
		c.Close()
	default:
	}
}

// session makes the library ready first: what it writes as its OPEN is what the
// router gets. Then one connection with the router is brought up, and both are
// joined until either ends.
func (n *neighbour) session(ctx context.Context) error {
	n.state("idle")
	if err := n.screen.deps.Renew(n.index); err != nil {
		pause(ctx, time.Second)
		return fmt.Errorf("bgp library: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	lib, err := n.acceptLibrary(ctx)
	if err != nil {
		return err
	}
	defer lib.Close()
	go lib.read()
	outer, err := n.bringUp(ctx, lib)
	if outer == nil {
		return err
	}
	return n.join(ctx, outer, lib)
}

// join carries messages both ways until either side ends.
func (n *neighbour) join(ctx context.Context, c *connection, lib *library) error {
	defer c.Close()
	undo := context.AfterFunc(ctx, func() { c.Close() })
	defer undo()
	_ = c.SetDeadline(time.Time{})
	n.up(c)
	result := make(chan error, 2)
	go func() { result <- n.inward(c, lib) }()
	go func() { result <- n.outward(c, lib) }()
	err := <-result
	c.Close()
	lib.Close()
	<-result
	n.down(err)
	return err
}

var errHold = errors.New("hold timer expired: nothing was heard of the router")

// inward judges what the router says. The library hears of it in messages of the
// screen's own.
func (n *neighbour) inward(c *connection, lib *library) error {
	tell := func(m []byte) error {
		_ = lib.SetWriteDeadline(time.Now().Add(c.hold))
		_, err := lib.Write(m)
		return err
	}
	if err := tell(append(c.machine.Open.write(), keepalive()...)); err != nil {
		return fmt.Errorf("bgp library: %w", err)
	}
	var told time.Time
	for {
		_ = c.SetReadDeadline(time.Now().Add(c.hold))
		e, err := c.receive()
		if f := new(Fault); errors.As(err, &f) {
			c.refuse(err)
			return err
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			c.say((&Fault{Code: codeHoldTimer}).notification())
			return errHold
		case err != nil:
			return explain(err)
		}
		switch e {
		case EventClosed:
			return errors.New(c.machine.Cause)
		case EventRefresh:
			err = tell(routeRefresh(c.machine.Refresh))
		case EventRoutes:
			n.dropped()
			if now := time.Now(); now.Sub(told) >= lifePace {
				told, err = now, tell(keepalive())
			}
		case EventKeepalive:
			err = tell(keepalive())
		}
		// A library that has closed may have left a last word, which outward passes
		// on before it ends the session.
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return fmt.Errorf("bgp library does not read: %w", err)
		}
	}
}

// explain gives the usual ends of a connection words of their own.
func explain(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the router closed the connection")
	case errors.Is(err, os.ErrDeadlineExceeded):
		return errors.New("the router accepts the connection and does not answer")
	}
	return err
}

// outward passes on what the library says, with the session's next hops.
func (n *neighbour) outward(c *connection, lib *library) error {
	hop4, hop6 := addressOf(c.LocalAddr()), n.cfg.NextHop6
	if hop4.Is6() {
		hop6 = hop4
	}
	for m := range lib.messages {
		t := Type(m[headerLen-1])
		if t == TypeOpen {
			return errors.New("bgp library: a second OPEN")
		}
		if t == TypeUpdate {
			if err := SetNextHops(m, hop4, hop6); err != nil {
				return err
			}
		}
		_ = c.SetWriteDeadline(time.Now().Add(c.hold))
		if _, err := c.Write(m); err != nil {
			return fmt.Errorf("write to the router: %w", err)
		}
		switch t {
		case TypeUpdate:
			n.mu.Lock()
			n.status.Sent++
			n.mu.Unlock()
		case TypeNotification:
			if m[headerLen] == codeHoldTimer {
				return errHold
			}
			return errors.New("this node ended the session: " + notificationText(m))
		}
	}
	return errors.New("bgp library ended the session")
}

func (n *neighbour) up(c *connection) {
	o := &c.machine.Open
	families := slices.DeleteFunc(slices.Clone(n.offers()), func(f Family) bool { return !slices.Contains(o.Families, f) })
	n.mu.Lock()
	s := &n.status
	s.State, s.Since, s.Error = stateNames[Established], time.Now(), ""
	s.Local, s.Families, s.Hold, s.RouterHold = addressOf(c.LocalAddr()), families, c.hold, o.Hold
	s.EverUp, s.HoldExpired = true, false
	n.mu.Unlock()
	n.screen.deps.Changed(n.index, true, "")
}

// offers are the families that this node offers to the router.
func (n *neighbour) offers() []Family {
	switch {
	case n.cfg.Address.Is6():
		return []Family{IPv6}
	case n.cfg.NextHop6.IsValid():
		return []Family{IPv4, IPv6}
	}
	return []Family{IPv4}
}

func (n *neighbour) down(err error) {
	n.mu.Lock()
	s := &n.status
	s.Local, s.Families, s.Hold, s.HoldExpired = netip.Addr{}, nil, 0, errors.Is(err, errHold)
	s.OutSince = time.Now()
	n.mu.Unlock()
	n.state("idle")
	n.screen.deps.Changed(n.index, false, err.Error())
}

func (n *neighbour) state(name string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.status.State != name {
		n.status.State, n.status.Since = name, time.Now()
	}
}

func (n *neighbour) dropped() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.status.Dropped++
}

// note remembers why there is no session, and logs what is new.
func (n *neighbour) note(err error) {
	f := new(Fault)
	refused := errors.As(err, &f)
	n.mu.Lock()
	fresh := n.status.Error != err.Error()
	n.status.Error = err.Error()
	if refused {
		n.status.Refused++
		n.status.LastRefusal = err.Error()
	}
	n.mu.Unlock()
	if fresh && refused {
		n.screen.deps.Log.Warn("bgp message of the router refused", "neighbour", n.cfg.Address, "reason", err)
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
