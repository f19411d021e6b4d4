package sstp

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
)

// end is one side of a relay. One goroutine receives, one sends.
type end interface {
	// receive waits for bytes without holding a buffer, and returns the bytes in
	// one, to be given back by putBuffer. Bytes may come with an error; io.EOF:
	// the peer will send no more.
	receive() (*buffer, int, error)
	send(p []byte) error
	// shut tells the peer that no more is sent; last: the connection is closed next.
	shut(last bool) error
	socket() *net.TCPConn
	io.Closer
}

// plainEnd is a TCP connection.
type plainEnd struct {
	tcp *net.TCPConn
	raw syscall.RawConn
	out sender
	b   *buffer
	n   int
	err error
	try func(fd uintptr) bool
}

func newPlainEnd(tcp *net.TCPConn) (*plainEnd, error) {
	raw, err := tcp.SyscallConn()
	if err != nil {
		return nil, err
	}
	e := &plainEnd{tcp: tcp, raw: raw}
	if err := e.out.init(tcp); err != nil {
		return nil, err
	}
	e.try = func(fd uintptr) bool {
		e.b = getBuffer()
		if e.n, e.err = readFD(fd, e.b[:pieceBytes]); e.n > 0 {
			return true
		}
		putBuffer(e.b)
		e.b = nil
		return e.err != syscall.EAGAIN // else wait, without the buffer
	}
	return e, nil
}

func (e *plainEnd) receive() (*buffer, int, error) {
	if err := e.raw.Read(e.try); err != nil {
		return nil, 0, err
	}
	b, err := e.b, e.err
	e.b = nil
	if err != nil && err != io.EOF {
		err = os.NewSyscallError("read", err)
	}
	return b, e.n, err
}

func (e *plainEnd) send(p []byte) error {
	_, err := e.out.Write(p)
	return err
}

func (e *plainEnd) shut(last bool) error {
	if last { // closing says the same
		return nil
	}
	return e.tcp.CloseWrite()
}

func (e *plainEnd) socket() *net.TCPConn { return e.tcp }
func (e *plainEnd) Close() error         { return e.tcp.Close() }

// tlsEnd is a TLS connection over a link.
type tlsEnd struct {
	tls  *tls.Conn
	link *link
	dry  bool // TLS has nothing left to give
}

// receive waits below TLS, and then takes all records that are there.
func (e *tlsEnd) receive() (*buffer, int, error) {
	e.link.nowait = true
	for {
		if e.dry {
			if err := e.link.fill(); err != nil {
				return nil, 0, err
			}
		}
		b := getBuffer()
		n := 0
		var err error
		for err == nil && n < pieceBytes {
			var more int
			more, err = e.tls.Read(b[n:pieceBytes])
			n += more
		}
		e.dry = errors.Is(err, errAgain)
		if e.dry {
			err = nil
		}
		if n > 0 {
			return b, n, err
		}
		putBuffer(b)
		if err != nil {
			return nil, 0, err
		}
	}
}

const maxRecord = 16 << 10 // plaintext, RFC 8446 5.1

func (e *tlsEnd) send(p []byte) error {
	if len(p) <= maxRecord { // one record is one write anyway
		_, err := e.tls.Write(p)
		return err
	}
	e.link.gather()
	_, err := e.tls.Write(p)
	return errors.Join(err, e.link.send())
}

// shut sends close_notify, then FIN: the two say the same (RFC 8446 6.1).
func (e *tlsEnd) shut(last bool) error {
	err := e.tls.CloseWrite()
	if last || err != nil {
		return err
	}
	return e.link.tcp.CloseWrite()
}

func (e *tlsEnd) socket() *net.TCPConn { return e.link.tcp }

// Close tells nothing to the peer: what was to be told, shut told.
func (e *tlsEnd) Close() error { return e.link.tcp.Close() }
