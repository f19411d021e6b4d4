package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

const (
	etherLen    = 14
	frameMax    = 2048 // bytes read of a frame; neither protocol needs more than an MTU of 1500
	answerQueue = 256  // answers waiting for the Keeper; more are dropped, they come again
)

// packetSocket sends and reads whole Ethernet frames of one protocol.
type packetSocket struct {
	file  *os.File
	name  string
	index int
	mac   [6]byte
}

// openPacket opens a packet socket (packet(7)) on an Ethernet interface, in the
// network namespace of the calling thread. filter, if any, is what the kernel
// hands over at all; groups are multicast addresses that the interface has to
// let in. It needs CAP_NET_RAW.
func openPacket(name string, protocol uint16, filter []unix.SockFilter, groups ...[6]byte) (*packetSocket, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	if len(link.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s is not Ethernet", name)
	}
	// Protocol 0 until bound: nothing of other interfaces, and nothing that the
	// filter has not seen, gets into the queue.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := prepare(fd, link.Index, protocol, filter, groups); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("%w (interface %s)", err, name)
	}
	return &packetSocket{file: os.NewFile(uintptr(fd), "packets of "+name), name: name, index: link.Index,
		mac: [6]byte(link.HardwareAddr)}, nil
}

func prepare(fd, index int, protocol uint16, filter []unix.SockFilter, groups [][6]byte) error {
	if len(filter) > 0 {
		prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &prog); err != nil {
			return fmt.Errorf("attach filter to packet socket: %w", err)
		}
	}
	for _, g := range groups {
		m := unix.PacketMreq{Ifindex: int32(index), Type: unix.PACKET_MR_MULTICAST, Alen: 6}
		copy(m.Address[:], g[:])
		if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
			return fmt.Errorf("join multicast group: %w", err)
		}
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(protocol), Ifindex: index}); err != nil {
		return fmt.Errorf("bind packet socket: %w", err)
	}
	return nil
}

// networkOrder gives a number whose memory is v in network byte order.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// MAC is the interface's own.
func (s *packetSocket) MAC() [6]byte { return s.mac }

// Check asks the kernel what the socket is bound to (packet(7)): nothing, once
// the interface is gone, even if one of its name was made again; and with which
// MAC.
func (s *packetSocket) Check() error {
	conn, err := s.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("look at the packet socket: %w", err)
	}
	var sa unix.Sockaddr
	if cerr := conn.Control(func(fd uintptr) { sa, err = unix.Getsockname(int(fd)) }); cerr != nil || err != nil {
		return fmt.Errorf("look at the packet socket: %w", errors.Join(cerr, err))
	}
	at, ok := sa.(*unix.SockaddrLinklayer)
	switch {
	case !ok || at.Ifindex != s.index:
		return fmt.Errorf("interface %s is gone or was made again", s.name)
	case [6]byte(at.Addr[:6]) != s.mac:
		return fmt.Errorf("interface %s has another MAC now", s.name)
	}
	return nil
}

// read hands what parse makes of each frame to out, until ctx ends or the
// socket fails, and closes the socket. Answers that nobody fetches are dropped.
func (s *packetSocket) read(ctx context.Context, parse func(frame []byte, own [6]byte) (SegmentAnswer, bool), out chan<- SegmentAnswer) error {
	stop := context.AfterFunc(ctx, func() { s.file.Close() })
	defer stop()
	frame := make([]byte, frameMax)
	for {
		n, err := s.file.Read(frame)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENETDOWN): // the interface went down; it may come back
			continue
		case err != nil:
			s.file.Close()
			return err
		}
		if a, ok := parse(frame[:n], s.mac); ok {
			select {
			case out <- a:
			default:
			}
		}
	}
}

func (s *packetSocket) send(frame []byte) error {
	_, err := s.file.Write(frame)
	return err
}
