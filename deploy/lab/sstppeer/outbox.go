package sstppeer

import (
	"io"
	"sync"
	"sync/atomic"
)

const (
	maxQueued   = 256 << 10 // bytes waiting to be sent: beyond it IP packets are dropped, as routers do
	maxOverflow = 64 << 10  // bytes more that control packets may take
)

// outbox collects packets while the connection is busy and sends them
// together: one write, one TLS record.
type outbox struct {
	mu      sync.Mutex
	pending []byte
	closed  bool
	wake    chan struct{} // holds one
	dropped atomic.Int64
	sent    atomic.Int64 // bytes
}

func newOutbox() *outbox { return &outbox{wake: make(chan struct{}, 1)} }

// control queues a packet that must not be lost; false: the client does not
// read, the call is beyond help.
func (o *outbox) control(packet []byte) bool {
	return o.add(maxQueued+maxOverflow, func(b []byte) []byte { return append(b, packet...) })
}

// data queues PPP in a data packet, or drops it.
func (o *outbox) data(protocol uint16, body []byte) bool {
	ok := o.add(maxQueued, func(b []byte) []byte { return appendData(b, protocol, body) })
	if !ok {
		o.dropped.Add(1)
	}
	return ok
}

func (o *outbox) add(limit int, appendTo func([]byte) []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed || len(o.pending) > limit {
		return false
	}
	o.pending = appendTo(o.pending)
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return true
}

// run writes until an error or the end.
func (o *outbox) run(w io.Writer) error {
	var buf []byte
	for range o.wake {
		o.mu.Lock()
		buf, o.pending = o.pending, buf[:0]
		closed := o.closed
		o.mu.Unlock()
		if len(buf) > 0 {
			n, err := w.Write(buf)
			o.sent.Add(int64(n))
			if err != nil {
				return err
			}
		}
		if closed {
			return nil
		}
	}
	return nil
}

// close ends run after what is queued.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
	select {
	case o.wake <- struct{}{}:
	default:
	}
}
