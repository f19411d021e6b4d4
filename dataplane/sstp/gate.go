package sstp

import (
	"container/list"
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

const (
	// waitersPerPlace: how many handshakes may be under way for each that may
	// compute. Most of them wait for their clients, which costs memory alone.
	waitersPerPlace = 8
	// clientPatience is how long a client that has sent its whole hello may keep
	// a handshake waiting when others need its place. Those are round trips, and
	// in a storm of honest clients none must be ended half done.
	clientPatience = time.Second
)

// gate lets a limited number of handshakes compute, and some times as many be
// under way. A handshake that waits for its client is not one that computes: so
// slow clients keep nobody from computing. When all places are taken by such,
// the oldest of them makes room.
type gate struct {
	mu        sync.Mutex
	free      sync.Cond // for enter
	limit     int
	computing int
	waiting   [2]list.List // of *turn, the oldest first: without a whole hello, and with one
	closed    bool
}

// turn is a handshake's standing with the gate.
type turn struct {
	gate    *gate
	session *session
	hello   bool          // it has the client's hello; the handshake's goroutine's alone
	at      *list.Element // in waiting, its own or the other list's; nil: it computes
	since   time.Time     // of waiting
	over    bool          // counted out
}

func (g *gate) init(limit int) { g.free.L, g.limit = &g.mu, limit }

// enter waits until a handshake may begin; nil: the gate is closed.
func (g *gate) enter(c *session) *turn {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.closed {
		if g.computing < g.limit {
			if g.all() < g.limit*waitersPerPlace {
				g.computing++
				return &turn{gate: g, session: c}
			}
			if t := g.oldest(); t != nil {
				g.remove(t)
				g.mu.Unlock()
				t.session.end(endCrowded)
				g.mu.Lock()
				continue
			}
		}
		g.free.Wait()
	}
	return nil
}

func (g *gate) all() int { return g.computing + g.waiting[0].Len() + g.waiting[1].Len() }

// oldest is the handshake that may be ended first; nil: none may. The kernel
// hands a connection over with its first bytes, and an honest hello comes whole:
// so those without one go first. g.mu is held.
func (g *gate) oldest() *turn {
	if e := g.waiting[0].Front(); e != nil {
		return e.Value.(*turn)
	}
	if e := g.waiting[1].Front(); e != nil {
		if t := e.Value.(*turn); time.Since(t.since) >= clientPatience {
			return t
		}
	}
	return nil
}

// remove counts a turn out. g.mu is held.
func (g *gate) remove(t *turn) {
	switch {
	case t.over:
		return
	case t.at != nil:
		g.list(t).Remove(t.at)
		t.at = nil
	default:
		g.computing--
	}
	t.over = true
	g.free.Signal()
}

func (g *gate) list(t *turn) *list.List {
	if t.hello {
		return &g.waiting[1]
	}
	return &g.waiting[0]
}

// wait says that the handshake waits for its client.
func (t *turn) wait() {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.over {
		return
	}
	g.computing--
	t.since = time.Now()
	t.at = g.list(t).PushBack(t)
	g.free.Signal()
}

// goOn says that it waits no more; false: it lost its place. It need not queue:
// what is under way is bounded, and what has begun should end before more begins.
func (t *turn) goOn() bool {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.over {
		return false
	}
	g.list(t).Remove(t.at)
	t.at = nil
	g.computing++
	return true
}

// leave says that the handshake is over.
func (t *turn) leave() {
	t.gate.mu.Lock()
	defer t.gate.mu.Unlock()
	t.gate.remove(t)
}

// errCrowded ends a handshake that lost its place.
var errCrowded = errors.New("handshake kept others out for too long")

// read reads for the handshake, and tells the gate if that has to wait.
func (t *turn) read(raw syscall.RawConn, p []byte) (n int, err error) {
	waited := false
	failed := raw.Read(func(fd uintptr) bool {
		n, err = readFD(fd, p)
		if err != syscall.EAGAIN {
			return true
		}
		if !waited {
			waited = true
			t.wait()
		}
		return false
	})
	switch {
	case waited && !t.goOn():
		return 0, errCrowded
	case failed != nil:
		return 0, failed
	case err != nil && err != io.EOF:
		return 0, os.NewSyscallError("read", err)
	}
	return n, err
}

func (g *gate) set(limit int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.limit = limit
	g.free.Broadcast()
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.free.Broadcast()
}

func (g *gate) under() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.all()
}

// look lets those that wait see whose patience has run out since.
func (g *gate) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free.Broadcast()
}
