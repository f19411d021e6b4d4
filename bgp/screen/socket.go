package screen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrSocketOption: MD5 or TTL protection could not be set up. A session without it
// would be open to any host, or never come up: fatal, never a warning.
var ErrSocketOption = errors.New("socket protection cannot be set up")

// control returns what a dialler does to its socket before it connects.
func (n *Neighbour) control(external bool) func(string, string, syscall.RawConn) error {
	return func(_, _ string, raw syscall.RawConn) error {
		return onSocket(raw, func(fd int) error { return n.protect(fd, external) })
	}
}

func onSocket(raw syscall.RawConn, set func(fd int) error) error {
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = set(int(fd)) }); err != nil {
		return err
	}
	return failure
}

// protect sets key and hop limits on the socket of one session.
func (n *Neighbour) protect(fd int, external bool) error {
	if n.Password != "" {
		if err := setKey(fd, n.Address, n.Password); err != nil {
			return err
		}
	}
	return n.setHopLimit(fd, external)
}

// setHopLimit: 255 both ways with GTSM (RFC 5082), otherwise 1 to an eBGP router
// unless it may be further away.
func (n *Neighbour) setHopLimit(fd int, external bool) error {
	level, ttl, minTTL := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_MINTTL
	if n.Address.Is6() {
		level, ttl, minTTL = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MINHOPCOUNT
	}
	hops := 0
	switch {
	case n.TTLSecurity:
		hops = 255
		if err := unix.SetsockoptInt(fd, level, minTTL, hops); err != nil {
			return fmt.Errorf("%w: set least hop limit (RFC 5082): %w", ErrSocketOption, os.NewSyscallError("setsockopt", err))
		}
	case n.MultihopTTL > 0:
		hops = n.MultihopTTL
	case external:
		hops = 1
	default:
		return nil
	}
	if err := unix.SetsockoptInt(fd, level, ttl, hops); err != nil {
		return fmt.Errorf("%w: set hop limit: %w", ErrSocketOption, os.NewSyscallError("setsockopt", err))
	}
	return nil
}

func setKey(fd int, a netip.Addr, key string) error {
	if err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, md5Option(a, key)); err != nil {
		return fmt.Errorf("%w: set TCP MD5 key (RFC 2385) for %s: %w", ErrSocketOption, a, os.NewSyscallError("setsockopt", err))
	}
	return nil
}

// check tries every protection on a socket that is never connected.
func (n *Neighbour) check(external bool) error {
	family := unix.AF_INET6
	if n.Address.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	return n.protect(fd, external)
}

// listen opens a plain TCP listener: MPTCP, Go's default, refuses keys. keyed are
// the neighbours whose key it must ask for.
func listen(ctx context.Context, a netip.Addr, port int, keyed []Neighbour) (*net.TCPListener, error) {
	network := "tcp6"
	if a.Is4() {
		network = "tcp4"
	}
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		return onSocket(raw, func(fd int) error { return listenerOptions(fd, a, keyed) })
	}}
	lc.SetMultipathTCP(false)
	l, err := lc.Listen(ctx, network, net.JoinHostPort(a.String(), strconv.Itoa(port)))
	if err != nil {
		return nil, err
	}
	return l.(*net.TCPListener), nil
}

func listenerOptions(fd int, a netip.Addr, keyed []Neighbour) error {
	guarded := false
	for i := range keyed {
		n := &keyed[i]
		if n.Address.Is4() != a.Is4() {
			continue
		}
		guarded = guarded || n.TTLSecurity
		if n.Password == "" {
			continue
		}
		if err := setKey(fd, n.Address, n.Password); err != nil {
			return err
		}
	}
	if !guarded {
		return nil
	}
	// The SYN-ACK leaves before there is a socket of the session to set it on.
	level, ttl := unix.IPPROTO_IP, unix.IP_TTL
	if a.Is6() {
		level, ttl = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS
	}
	if err := unix.SetsockoptInt(fd, level, ttl, 255); err != nil {
		return fmt.Errorf("%w: set hop limit of the listener: %w", ErrSocketOption, os.NewSyscallError("setsockopt", err))
	}
	return nil
}

func md5Option(a netip.Addr, key string) *unix.TCPMD5Sig {
	o := &unix.TCPMD5Sig{Keylen: uint16(len(key))}
	copy(o.Key[:], key)
	if a.Is4() {
		o.Addr.Family = unix.AF_INET
		b := a.As4()
		copy(o.Addr.Data[2:], b[:]) // sockaddr_in: port, address
		return o
	}
	o.Addr.Family = unix.AF_INET6
	b := a.As16()
	copy(o.Addr.Data[6:], b[:]) // sockaddr_in6: port, flow, address
	return o
}

func addressOf(a net.Addr) netip.Addr {
	if t, ok := a.(*net.TCPAddr); ok {
		return t.AddrPort().Addr().Unmap().WithZone("")
	}
	return netip.Addr{}
}
