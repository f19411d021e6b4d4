package peer

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

const socketBuffer = 4 << 20 // bytes: a burst of every client at once

// listenUDP opens an unconnected UDP socket on a. Unconnected on purpose: on
// veth a connected socket's own hash travels with the packet and stands in for
// the hash of its addresses. Datagrams larger than the MTU are fragmented by
// the kernel (no DF bit).
func listenUDP(ctx context.Context, a netip.AddrPort, buffer int) (*net.UDPConn, error) {
	lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var serr error
		err := c.Control(func(fd uintptr) {
			serr = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			if serr == nil && buffer > 0 {
				serr = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer)
			}
		})
		if err != nil {
			return err
		}
		return serr
	}}
	pc, err := lc.ListenPacket(ctx, "udp4", a.String())
	if err != nil {
		return nil, fmt.Errorf("listen on UDP %s: %w", a, err)
	}
	return pc.(*net.UDPConn), nil
}
