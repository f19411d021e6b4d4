package screen

import (
	"bufio"
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"time"
)

const (
	// openBound is how long a router may take for its OPEN. RFC 4271, section 8.2.2,
	// suggests four minutes; a router that is that slow is dialled anew.
	openBound = 30 * time.Second
	// maxHandshakes bounds the connections of one neighbour that are not established.
	maxHandshakes = 4
	// noticeBound is how long a NOTIFICATION may take to be written.
	noticeBound = time.Second
)

// connection is one TCP connection with the router.
type connection struct {
	net.Conn
	in      *bufio.Reader
	buf     [maxMessage]byte
	dialled bool
	machine *Machine
	hold    time.Duration // negotiated; valid from EventOpen on
	verdict chan bool     // whether it survives a collision
	lost    bool          // the owner's: it did not
}

// progress is what a handshake tells the owner of the neighbour.
type progress struct {
	c   *connection // nil: the dial failed
	err error       // not nil: it ended
}

func (n *neighbour) dial(ctx context.Context) (*connection, error) {
	d := net.Dialer{
		Timeout: max(n.cfg.ConnectRetry-time.Second, time.Second),
		Control: n.cfg.control(n.external()),
	}
	d.SetMultipathTCP(false)
	if n.cfg.LocalAddress.IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(n.cfg.LocalAddress, 0))
	}
	c, err := d.DialContext(ctx, "tcp", net.JoinHostPort(n.cfg.Address.String(), strconv.Itoa(n.cfg.Port)))
	if err != nil {
		return nil, err
	}
	return n.newConnection(c, true), nil
}

func (n *neighbour) newConnection(c net.Conn, dialled bool) *connection {
	return &connection{
		Conn: c, in: bufio.NewReaderSize(c, maxMessage), dialled: dialled,
		machine: NewMachine(&n.expect), verdict: make(chan bool, 1),
	}
}

// receive reads and judges the router's next message.
func (c *connection) receive() (Event, error) {
	m, t, err := Read(c.in, c.buf[:])
	if err != nil {
		return EventNone, err
	}
	return c.machine.Receive(t, m, time.Now())
}

// refuse answers a fault as RFC 4271 asks for and closes; any other error just
// closes.
func (c *connection) refuse(err error) {
	if f := new(Fault); errors.As(err, &f) {
		c.say(f.notification())
	}
	c.Close()
}

func (c *connection) say(m []byte) {
	_ = c.SetWriteDeadline(time.Now().Add(noticeBound))
	_, _ = c.Write(m)
}

var errCollision = fault(codeCease, ceaseCollision, nil, "a second connection with the router (RFC 4271, section 6.8)")

// handshake brings a connection to Established. It tells tell of the OPEN, waits
// for the verdict, and tells of the end.
func (c *connection) handshake(ctx context.Context, open []byte, ours time.Duration, tell chan<- progress) {
	undo := context.AfterFunc(ctx, func() { c.Close() })
	defer undo()
	_ = c.SetDeadline(time.Now().Add(openBound))
	_, err := c.Write(open)
	for err == nil {
		var e Event
		if e, err = c.receive(); err != nil {
			break
		}
		switch e {
		case EventClosed:
			err = errors.New(c.machine.Cause)
		case EventOpen:
			c.hold = min(ours, c.machine.Open.Hold)
			if err = c.judged(ctx, tell); err == nil {
				_ = c.SetDeadline(time.Now().Add(c.hold))
				_, err = c.Write(keepalive())
			}
		case EventUp:
			report(ctx, tell, progress{c: c})
			return
		}
	}
	c.refuse(err)
	report(ctx, tell, progress{c: c, err: err})
}

func (c *connection) judged(ctx context.Context, tell chan<- progress) error {
	report(ctx, tell, progress{c: c})
	select {
	case <-ctx.Done():
		return ctx.Err()
	case stays := <-c.verdict:
		if !stays {
			return errCollision
		}
		return nil
	}
}

func report(ctx context.Context, to chan<- progress, p progress) {
	select {
	case to <- p:
	case <-ctx.Done():
		p.close()
	}
}

func (p *progress) close() {
	if p.c != nil {
		p.c.Close()
	}
}
