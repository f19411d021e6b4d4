package transport

import (
	"context"
	"net"
	"sync"
	"time"
)

// RaftLayer carries raft: a net.Listener that dials. Dial expects any
// authorised member.
type RaftLayer struct {
	t      *Transport
	queue  *queueListener
	once   sync.Once
	fenced chan struct{}
}

// Accept returns the next authenticated raft connection. After Fence it blocks
// until Close: an error would only make raft's accept loop spin and log.
func (l *RaftLayer) Accept() (net.Conn, error) {
	for {
		c, err := l.queue.Accept()
		if err != nil || !l.isFenced() {
			return c, err
		}
		c.(*conn).cut()
	}
}

// Close ends Accept. It leaves the Transport and its other connections alone.
func (l *RaftLayer) Close() error { return l.queue.Close() }

// Addr is Config.Addr.
func (l *RaftLayer) Addr() net.Addr { return l.queue.Addr() }

// Dial opens a raft connection to a member. timeout 0 means the handshake
// timeout alone.
func (l *RaftLayer) Dial(addr string, timeout time.Duration) (net.Conn, error) {
	if l.isFenced() {
		return nil, ErrFenced
	}
	ctx, cancel := context.Background(), context.CancelFunc(func() {})
	if timeout > 0 {
		ctx, cancel = context.WithTimeout(ctx, timeout)
	}
	defer cancel()
	// Also a dial under way ends when the fence comes down.
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	go func() {
		select {
		case <-l.fenced:
			stop(ErrFenced)
		case <-ctx.Done():
		}
	}()
	c, err := l.t.dial(ctx, Target{Addr: addr}, protoRaft)
	if err != nil {
		if l.isFenced() {
			err = ErrFenced
		}
		return nil, err
	}
	return c, nil
}

// Fence closes every raft connection and refuses to dial and accept for ever.
// It returns at once and never touches a disk: it is what is done when one
// hangs.
func (l *RaftLayer) Fence() {
	l.once.Do(func() {
		l.t.mu.Lock() // no register between this and the cut
		close(l.fenced)
		l.t.mu.Unlock()
		l.t.log.Warn("raft connections fenced")
		l.t.cutWhere(func(c *conn) bool { return c.proto == protoRaft })
	})
}

func (l *RaftLayer) isFenced() bool {
	select {
	case <-l.fenced:
		return true
	default:
		return false
	}
}

// Raft returns the stream layer for raft: always the same one.
func (t *Transport) Raft() *RaftLayer { return t.raft }
