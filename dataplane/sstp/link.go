package sstp

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// link is the TCP connection below a TLS connection. It lets TLS read without
// waiting, so that a buffer need not wait either, and gathers the records of
// one piece of data into one write.
type link struct {
	tcp   *net.TCPConn
	raw   syscall.RawConn
	shown *certificate // by the handshake's callback

	// Reading: the one goroutine that reads.
	nowait bool
	dry    bool // the last read left nothing behind
	p      []byte
	n      int
	err    error
	try    func(fd uintptr) bool

	// Writing: by the goroutine that writes, and by the one that reads when TLS
	// answers a key update.
	mu    sync.Mutex
	batch *buffer
	fill  int
}

func newLink(tcp *net.TCPConn) (*link, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &link{tcp: tcp, raw: raw}
	l.try = func(fd uintptr) bool {
		l.n, l.err = readFD(fd, l.p)
		return true
	}
	return l, nil
}

// readFD reads once; EAGAIN is an error of its own, the end is io.EOF.
func readFD(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return n, nil
	}
}

// errAgain says that there is nothing to read now. Being temporary it leaves
// the state of TLS as it is: the next read goes on in the same record.
var errAgain net.Error = again{}

type again struct{}

func (again) Error() string   { return "nothing to read yet" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

func (l *link) Read(p []byte) (int, error) {
	if !l.nowait {
		n, err := l.tcp.Read(p)
		l.dry = n < len(p)
		return n, err
	}
	if l.dry {
		return 0, errAgain
	}
	l.p = p
	err := l.raw.Read(l.try)
	l.p = nil
	if err != nil {
		return 0, err
	}
	if l.err == syscall.EAGAIN {
		l.dry = true
		return 0, errAgain
	}
	if l.err != nil && l.err != io.EOF {
		return 0, os.NewSyscallError("read", l.err)
	}
	l.dry = l.n < len(p)
	return l.n, l.err
}

func (l *link) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.batch == nil {
		return l.tcp.Write(p)
	}
	if len(p) > len(l.batch)-l.fill {
		if err := l.flush(); err != nil {
			return 0, err
		}
		if len(p) > len(l.batch) {
			return l.tcp.Write(p)
		}
	}
	l.fill += copy(l.batch[l.fill:], p)
	return len(p), nil
}

// gather holds back what is written until send.
func (l *link) gather() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batch, l.fill = getBuffer(), 0
}

func (l *link) send() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	err := l.flush()
	putBuffer(l.batch)
	l.batch = nil
	return err
}

// flush writes what was held back. l.mu is held.
func (l *link) flush() error {
	if l.fill == 0 {
		return nil
	}
	_, err := l.tcp.Write(l.batch[:l.fill])
	l.fill = 0
	return err
}

func (l *link) Close() error         { return l.tcp.Close() }
func (l *link) LocalAddr() net.Addr  { return l.tcp.LocalAddr() }
func (l *link) RemoteAddr() net.Addr { return l.tcp.RemoteAddr() }

// TLS sets a deadline for each close_notify. Ours are set on the socket itself,
// and the sweeper sees a write that takes long: two timers less for each call.
func (l *link) SetDeadline(time.Time) error      { return nil }
func (l *link) SetReadDeadline(time.Time) error  { return nil }
func (l *link) SetWriteDeadline(time.Time) error { return nil }
