package sstp

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
)

// A direction is parked when nothing came for firstLinger to twice that. While
// bytes come the time grows to longestLinger, so that looking costs nothing:
// waking a parked direction costs some microseconds, and a busy one should not
// pay them often.
const firstLinger, longestLinger = 250 * time.Millisecond, 4 * time.Second

// lot is where silent directions wait without a goroutine: an epoll instance of
// its own, itself watched by the runtime's. A goroutine costs a silent
// connection more than all that TLS keeps for it.
type lot struct {
	ep  *os.File
	raw syscall.RawConn
	fd  int
}

func openLot() (*lot, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make an epoll instance: %w", err)
	}
	ep := os.NewFile(uintptr(fd), "epoll")
	raw, err := ep.SyscallConn()
	if err != nil {
		ep.Close()
		return nil, fmt.Errorf("watch an epoll instance: %w", err)
	}
	return &lot{ep: ep, raw: raw, fd: fd}, nil
}

// wait tells wake the token of each direction that got something to read, once
// for each park. It ends with close.
func (l *lot) wait(wake func(token uint64)) {
	var events [128]unix.EpollEvent
	for {
		n := 0
		var failed error
		err := l.raw.Read(func(fd uintptr) bool {
			n, failed = unix.EpollWait(int(fd), events[:], 0)
			return n != 0 || failed != nil
		})
		if err != nil {
			return
		}
		if failed != nil && failed != unix.EINTR { // cannot be: the descriptor is ours
			panic(fmt.Sprintf("wait for parked connections: %v", failed))
		}
		for _, e := range events[:max(n, 0)] {
			wake(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32)
		}
	}
}

func (l *lot) close() { l.ep.Close() }

// add waits for fd, which is known from an earlier time or not.
func (l *lot) add(fd uintptr, token uint64, known bool) error {
	e := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(uint32(token)), Pad: int32(uint32(token >> 32))}
	op := unix.EPOLL_CTL_ADD
	if known {
		op = unix.EPOLL_CTL_MOD
	}
	return unix.EpollCtl(l.fd, op, int(fd), &e)
}

// token names a direction of a session. IDs are not used again, so a token that
// comes late meets nobody.
func (c *session) token(from control.Side) uint64 { return c.id<<1 | uint64(from) }

// park leaves a direction to the lot; its goroutine ends then. False: it goes
// on, without a deadline.
func (c *session) park(from control.Side) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := &c.flow[from]
	src, _ := c.ends(from)
	tcp := src.socket()
	if err := tcp.SetReadDeadline(time.Time{}); err != nil || c.ended != "" {
		return false
	}
	raw, err := tcp.SyscallConn()
	if err == nil {
		f.parked = true // before it can wake
		var failed error
		err = errors.Join(raw.Control(func(fd uintptr) { failed = c.server.lot.add(fd, c.token(from), f.known) }), failed)
		f.known = f.known || err == nil
	}
	if err != nil {
		f.parked = false
		c.server.log.Debug("connection cannot wait without a goroutine", "session", c.id, "err", err)
		return false
	}
	return true
}

// wake goes on with a parked direction.
func (s *Server) wake(token uint64) {
	c := s.table.find(token >> 1)
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.unpark(control.Side(token & 1))
}

// unpark starts the goroutine of a direction that is parked. c.mu is held.
func (c *session) unpark(from control.Side) {
	if f := &c.flow[from]; f.parked {
		f.parked = false
		c.server.working.Go(func() { c.pump(from) })
	}
}
