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
	tcp  *net.TCPConn
	raw  syscall.RawConn
	turn *turn // of the handshake; nil: no gate is asked

	// Reading: the one goroutine that reads. Once the relay runs, TLS gets its bytes
	// from a buffer: one system call reads many records.
	nowait   bool
	in       *buffer // what fill read; nil: TLS has had it all
	from, to int     // what of it TLS has still to get
	eof      bool
	err      error
	try      func(fd uintptr) bool

	// Writing: by the goroutine that writes, and by the one that reads when TLS
	// answers a key update.
	mu    sync.Mutex
	out   sender
	batch *buffer
	held  int
}

func newLink(tcp *net.TCPConn) (*link, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &link{tcp: tcp, raw: raw}
	if err := l.out.init(tcp); err != nil {
		return nil, err
	}
	l.try = func(fd uintptr) bool {
		b := getBuffer()
		n, err := readFD(fd, b[:pieceBytes])
		if n > 0 {
			l.in, l.from, l.to, l.err = b, 0, n, nil
			return true
		}
		putBuffer(b)
		l.err = err
		return err != syscall.EAGAIN // else wait, without the buffer
	}
	return l, nil
}

// errAgain says that there is nothing to read now. Being temporary it leaves
// the state of TLS as it is: the next read goes on in the same record.
var errAgain net.Error = again{}

type again struct{}

func (again) Error() string   { return "nothing to read yet" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

// Read gives TLS what fill read, or says that there is no more now. Before the
// relay runs it waits.
func (l *link) Read(p []byte) (int, error) {
	switch {
	case l.turn != nil:
		return l.turn.read(l.raw, p)
	case !l.nowait:
		return l.tcp.Read(p)
	}
	if l.in == nil {
		if l.eof {
			return 0, io.EOF
		}
		return 0, errAgain
	}
	n := copy(p, l.in[l.from:l.to])
	if l.from += n; l.from == l.to {
		putBuffer(l.in)
		l.in = nil
	}
	return n, nil
}

// fill waits for bytes without holding a buffer.
func (l *link) fill() error {
	if err := l.raw.Read(l.try); err != nil {
		return err
	}
	if l.err == io.EOF { // TLS knows whether it came in the midst of a record
		l.eof = true
		return nil
	}
	return os.NewSyscallError("read", l.err)
}

func (l *link) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.turn != nil:
		return l.turn.write(&l.out, p)
	case l.batch == nil:
		return l.out.Write(p)
	}
	if len(p) > len(l.batch)-l.held {
		if err := l.flush(); err != nil {
			return 0, err
		}
		if len(p) > len(l.batch) {
			return l.out.Write(p)
		}
	}
	l.held += copy(l.batch[l.held:], p)
	return len(p), nil
}

// gather holds back what is written until send.
func (l *link) gather() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.batch, l.held = getBuffer(), 0
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
	if l.held == 0 {
		return nil
	}
	_, err := l.out.Write(l.batch[:l.held])
	l.held = 0
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
