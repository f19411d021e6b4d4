package peer

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	socketBuffer = 4 << 20 // bytes: a burst of every client at once
	maxDatagram  = 65535   // bytes
)

// listenUDP opens an unconnected UDP socket on a. Unconnected on purpose: on
// veth a connected socket's own hash travels with the packet and stands in for
// the hash of its addresses. Datagrams larger than the MTU are fragmented by
// the kernel (IPv4: no DF bit). An IPv6 address need not be configured, only
// local.
func listenUDP(ctx context.Context, a netip.AddrPort, buffer int) (*net.UDPConn, error) {
	six := a.Addr().Is6()
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			if six {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_FREEBIND, 1)
			} else {
				serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			}
			if serr == nil && buffer > 0 {
				serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
			}
		})
		if err != nil {
			return err
		}
		return serr
	}}
	network := "udp4"
	if six {
		network = "udp6"
	}
	pc, err := lc.ListenPacket(ctx, network, a.String())
	if err != nil {
		return nil, fmt.Errorf("listen on UDP %s: %w", a, err)
	}
	return pc.(*net.UDPConn), nil
}

// honourPathMTU makes an IPv4 socket set DF on what fits the path's MTU as the
// kernel knows it, and fragment the rest, as most systems do; or never set it.
// IPv6 knows nothing else (RFC 8200 4.5).
func honourPathMTU(c *net.UDPConn, on bool) error {
	if c.LocalAddr().(*net.UDPAddr).IP.To4() == nil {
		return nil
	}
	value := unix.IP_PMTUDISC_DONT
	if on {
		value = unix.IP_PMTUDISC_WANT
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = raw.Control(func(fd uintptr) {
		serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, value)
	})
	if err != nil {
		return err
	}
	return serr
}

// localOf is the address that a socket is bound to.
func localOf(c *net.UDPConn) netip.AddrPort {
	a := c.LocalAddr().(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// foreign counts datagrams that came to a client from anybody but the address it
// had written to. Whatever NAT or firewall is on the way would have dropped them:
// they are no answers.
type foreign struct{ n atomic.Int64 }

// heard reports whether from is the address that was written to, and counts if not.
func (f *foreign) heard(from, want netip.AddrPort) bool {
	if netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) == want {
		return true
	}
	f.n.Add(1)
	return false
}

// err is the end of an errand that was answered from elsewhere.
func (f *foreign) err() error {
	if n := f.n.Load(); n > 0 {
		return fmt.Errorf("%d replies came from another address than the VIP's", n)
	}
	return nil
}

// keyBits6 is the part of an IPv6 address that names a client.
const keyBits6 = 64

// Key names the client behind an address: the address, or the first one of its
// /64 (RFC 8981: a host changes the rest as it likes).
func Key(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if a.Is4() {
		return a
	}
	return netip.PrefixFrom(a, keyBits6).Masked().Addr().Next()
}
