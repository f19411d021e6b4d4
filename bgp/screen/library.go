package screen

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"sync"
	"time"
)

// innerBound is how long the library may take to dial and to write its OPEN: it
// waits one or two seconds before a dial.
const innerBound = 10 * time.Second

// library is the inner connection. read is the one reader.
type library struct {
	net.Conn
	in       *bufio.Reader
	open     []byte
	messages chan []byte   // closed at the end
	done     chan struct{} // closed by Close: nothing is read any more
	once     sync.Once
}

// Close implements net.Conn.
func (l *library) Close() error {
	l.once.Do(func() { close(l.done) })
	return l.Conn.Close()
}

func (l *library) read() {
	defer close(l.messages)
	for {
		m, _, err := Read(l.in, make([]byte, maxMessage))
		if err != nil {
			return
		}
		select {
		case l.messages <- m:
		case <-l.done:
			return
		}
	}
}

// acceptLibrary waits for the library's connection and its OPEN. The key keeps
// other processes out; the address of what arrives is checked all the same.
func (n *neighbour) acceptLibrary(ctx context.Context) (*library, error) {
	deadline := time.Now().Add(innerBound)
	_ = n.listener.SetDeadline(deadline)
	undo := context.AfterFunc(ctx, func() { _ = n.listener.SetDeadline(time.Unix(1, 0)) })
	defer undo()
	for {
		c, err := n.listener.AcceptTCP()
		if err != nil {
			return nil, fmt.Errorf("bgp library does not dial: %w", err)
		}
		if addressOf(c.RemoteAddr()) != n.inner.Local {
			c.Close()
			continue
		}
		l := &library{Conn: c, in: bufio.NewReaderSize(c, maxMessage), messages: make(chan []byte), done: make(chan struct{})}
		_ = c.SetReadDeadline(deadline)
		m, t, err := Read(l.in, make([]byte, maxMessage))
		if err == nil && t != TypeOpen {
			err = fmt.Errorf("message of type %d instead of an OPEN", t)
		}
		if err != nil {
			c.Close()
			return nil, fmt.Errorf("bgp library: %w", err)
		}
		l.open = m
		_ = c.SetReadDeadline(time.Time{})
		return l, nil
	}
}
