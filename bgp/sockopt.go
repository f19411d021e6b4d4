package bgp

import (
	"context"
	"fmt"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// checkSocketProtection tries every protection that the configuration asks for
// on sockets of its own, before anything is dialled. The library only warns
// when an option fails on its listener, and such a session never comes up.
func checkSocketProtection(cfg *Config) error {
	for i := range cfg.Neighbours {
		n := &cfg.Neighbours[i]
		if n.Password == "" && !n.TTLSecurity {
			continue
		}
		if err := checkDialSocket(n); err != nil {
			return fmt.Errorf("%w: neighbour %s: %w", ErrSocketOption, n.Address, err)
		}
		if cfg.ListenPort <= 0 {
			continue
		}
		if err := checkListenSocket(n); err != nil {
			return fmt.Errorf("%w: listener for neighbour %s: %w (an MPTCP socket refuses it: GODEBUG=multipathtcp=0)",
				ErrSocketOption, n.Address, err)
		}
	}
	return nil
}

func checkDialSocket(n *Neighbour) error {
	family := unix.AF_INET6
	if n.Address.Is4() {
		family = unix.AF_INET
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(fd)
	return protect(fd, n)
}

// checkListenSocket opens a listener the way the library does: with the
// standard library's default, which is MPTCP unless it is switched off.
func checkListenSocket(n *Neighbour) error {
	network, host := "tcp6", "[::1]:0"
	if n.Address.Is4() {
		network, host = "tcp4", "127.0.0.1:0"
	}
	var lc net.ListenConfig
	l, err := lc.Listen(context.Background(), network, host)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	defer l.Close()
	raw, err := l.(*net.TCPListener).SyscallConn()
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	var failure error
	if err := raw.Control(func(fd uintptr) { failure = protect(int(fd), n) }); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	return failure
}

func protect(fd int, n *Neighbour) error {
	if n.Password != "" {
		if err := unix.SetsockoptTCPMD5Sig(fd, unix.IPPROTO_TCP, unix.TCP_MD5SIG, md5Option(n.Address, n.Password)); err != nil {
			return fmt.Errorf("set TCP MD5 key (RFC 2385): %w", err)
		}
	}
	if !n.TTLSecurity {
		return nil
	}
	level, ttl, minTTL := unix.IPPROTO_IP, unix.IP_TTL, unix.IP_MINTTL
	if n.Address.Is6() {
		level, ttl, minTTL = unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, unix.IPV6_MINHOPCOUNT
	}
	for _, opt := range [...]int{ttl, minTTL} {
		if err := unix.SetsockoptInt(fd, level, opt, 255); err != nil {
			return fmt.Errorf("set hop limit (RFC 5082): %w", err)
		}
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
