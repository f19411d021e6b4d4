package sstp

import (
	"container/list"
	"errors"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// clientPatience is how long a client that has sent its whole hello may keep
// a handshake waiting when others need its place. Those are round trips, and
// in a storm of honest clients none must be ended half done.
const clientPatience = time.Second

// computingPlaces is how many handshakes compute at one time: all processors of
// the runtime but one. A handshake computes for up to some milliseconds (RSA of
// 4096 bits), and a goroutine that becomes ready waits behind those that are
// ready already: with one processor left, consensus and BGP never wait behind
// handshakes. The command gives the runtime one processor more than the machine
// has, so that this costs no throughput.
func computingPlaces() int { return max(runtime.GOMAXPROCS(0)-1, 1) }

// gate lets few handshakes compute at a time, and many be under way. A handshake
// that waits for its client is not one that computes: so slow clients keep no
// other from computing. When as many are under way as may, the oldest that waits
// for its client makes room.
type gate struct {
	mu        sync.Mutex
	free      sync.Cond // for enter
	begun     sync.Cond // for goOn
	places    int       // how many may compute
	limit     int       // how many may be under way
	total     uint64    // that began since the start
	computing int
	resuming  int          // have heard of their client, and wait to compute again
	waiting   [2]list.List // for their clients; of *turn, the oldest first: without a whole hello, and with one
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

func (g *gate) init(places, limit int) {
	g.free.L, g.begun.L, g.places, g.limit = &g.mu, &g.mu, places, limit
}

// enter waits until a handshake may begin; nil: the gate is closed. Those that
// have begun go first.
func (g *gate) enter(c *session) *turn {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.closed {
		if g.computing < g.places && g.resuming == 0 {
			if g.all() < g.limit {
				g.computing++
				g.total++
				g.wake()
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

func (g *gate) all() int {
	return g.computing + g.resuming + g.waiting[0].Len() + g.waiting[1].Len()
}

// wake tells one of those that want to compute, if one may. g.mu is held.
func (g *gate) wake() {
	switch {
	case g.computing >= g.places:
	case g.resuming > 0:
		g.begun.Signal()
	default:
		g.free.Signal()
	}
}

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
	g.wake()
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
	g.wake()
}

// goOn waits until the handshake may compute again, before any that is new: what
// has begun should end before more begins. False: it lost its place while it
// waited for its client.
func (t *turn) goOn() bool {
	g := t.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if t.over {
		return false
	}
	g.list(t).Remove(t.at)
	t.at = nil
	g.resuming++
	for g.computing >= g.places {
		g.begun.Wait()
	}
	g.resuming--
	g.computing++
	g.wake()
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
	failed := t.do(raw.Read, func(fd uintptr) bool {
		n, err = readFD(fd, p)
		return err != syscall.EAGAIN
	})
	switch {
	case failed != nil:
		return 0, failed
	case err != nil && err != io.EOF:
		return 0, os.NewSyscallError("read", err)
	}
	return n, err
}

// write is the same for writing: a client that takes nothing must not hold a place.
func (t *turn) write(out *sender, p []byte) (int, error) {
	return out.write(p, func(try func(fd uintptr) bool) error { return t.do(out.raw.Write, try) })
}

// do tries until it need not wait for the client any more.
func (t *turn) do(until func(func(fd uintptr) bool) error, try func(fd uintptr) bool) error {
	waited := false
	err := until(func(fd uintptr) bool {
		if try(fd) {
			return true
		}
		if !waited {
			waited = true
			t.wait()
		}
		return false
	})
	if waited && !t.goOn() {
		return errCrowded
	}
	return err
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

// begins is how many handshakes began since the start.
func (g *gate) begins() uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.total
}

// look lets those that wait see whose patience has run out since.
func (g *gate) look() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.free.Broadcast()
}
