package sstp

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// readFD reads once from a descriptor that does not block; EAGAIN is an error of
// its own, the end is io.EOF. The runtime is not told of the system call, as it
// is of those that may block: its monitor would give the processor to another
// thread in the midst of a short call, and wake every 20 us to do so. That was
// 10 percent of what a lone packet costs.
func readFD(fd uintptr, p []byte) (int, error) {
	for {
		n, _, err := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch {
		case err == syscall.EINTR:
			continue
		case err != 0:
			return 0, err
		case n == 0:
			return 0, io.EOF
		}
		return int(n), nil
	}
}

// sender writes to a connection, as readFD reads. One goroutine uses it.
type sender struct {
	raw syscall.RawConn
	p   []byte
	err error
	try func(fd uintptr) bool
}

func (s *sender) init(tcp *net.TCPConn) (err error) {
	s.raw, err = tcp.SyscallConn()
	s.try = func(fd uintptr) bool {
		for len(s.p) > 0 {
			n, _, err := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(&s.p[0])), uintptr(len(s.p)))
			switch err {
			case 0:
				s.p = s.p[n:]
			case syscall.EINTR:
			case syscall.EAGAIN:
				return false
			default:
				s.err = os.NewSyscallError("write", err)
				return true
			}
		}
		return true
	}
	return err
}

func (s *sender) Write(p []byte) (int, error) {
	return s.write(p, s.raw.Write)
}

// write tries until it is done, or until the caller's way to wait gives up.
func (s *sender) write(p []byte, until func(try func(fd uintptr) bool) error) (int, error) {
	s.p, s.err = p, nil
	err := until(s.try)
	n := len(p) - len(s.p)
	s.p = nil
	if err == nil {
		err = s.err
	}
	return n, err
}
