package health

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Listen opens the prober's UDP socket on a local address, port 0 for any
// ephemeral one (never 500 or 4500, which belong to IKE itself). It asks the
// kernel for ICMP errors (ip(7), IP_RECVERR), so that a refusal is known at
// once and by destination although the socket is not connected.
func Listen(local netip.AddrPort) (net.PacketConn, error) {
	network, level, option := "udp4", unix.IPPROTO_IP, unix.IP_RECVERR
	if local.Addr().Is6() {
		network, level, option = "udp6", unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if cerr := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), level, option, 1) }); cerr != nil {
			return cerr
		}
		return err
	}}
	conn, err := lc.ListenPacket(context.Background(), network, local.String())
	if err != nil {
		return nil, fmt.Errorf("open probe socket: %w", err)
	}
	return &errorQueueConn{UDPConn: conn.(*net.UDPConn)}, nil
}

// errorQueueConn is a UDP socket that reads its error queue.
type errorQueueConn struct {
	*net.UDPConn
	mu sync.Mutex // one reader of the queue at a time
}

// WriteTo sends again when what failed was not this datagram but an ICMP error
// of an earlier one, which the kernel hands to the next call.
func (c *errorQueueConn) WriteTo(b []byte, to net.Addr) (int, error) {
	n, err := c.UDPConn.WriteTo(b, to)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EHOSTUNREACH) {
		n, err = c.UDPConn.WriteTo(b, to)
	}
	return n, err
}

// maxQueued bounds one reading of the error queue.
const maxQueued = 2 * MaxTargets

// Refused implements Refuser.
func (c *errorQueueConn) Refused() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	var all []netip.AddrPort
	_ = raw.Control(func(fd uintptr) {
		var data [1]byte
		var oob [512]byte
		for range maxQueued {
			_, oobn, _, to, err := unix.Recvmsg(int(fd), data[:], oob[:], unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return
			}
			if ap := destination(to); ap.IsValid() && fromICMP(oob[:oobn]) {
				all = append(all, ap)
			}
		}
	})
	return all
}

func destination(sa unix.Sockaddr) netip.AddrPort {
	switch s := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(s.Addr), uint16(s.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(s.Addr), uint16(s.Port))
	}
	return netip.AddrPort{}
}

// fromICMP reports whether an ICMP unreachable caused a queued error: struct
// sock_extended_err, whose fifth byte is the origin and sixth the type.
func fromICMP(oob []byte) bool {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return false
	}
	for _, m := range msgs {
		if len(m.Data) < 8 {
			continue
		}
		origin, kind, code := m.Data[4], m.Data[5], m.Data[6]
		switch origin {
		case unix.SO_EE_ORIGIN_LOCAL: // no neighbour: EHOSTUNREACH of our own kernel
			return true
		case unix.SO_EE_ORIGIN_ICMP: // RFC 792: type 3; code 4 is path MTU discovery
			return kind == 3 && code != 4
		case unix.SO_EE_ORIGIN_ICMP6: // RFC 4443: type 1
			return kind == 1
		}
	}
	return false
}
