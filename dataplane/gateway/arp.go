package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// ARP on Ethernet for IPv4 (RFC 826).
const (
	arpRequest  = 1
	arpReply    = 2
	arpLen      = 28
	etherLen    = 14
	etherARP    = 0x0806
	answerQueue = 256 // answers waiting for the Keeper; more are dropped, they come again
)

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ARPSegment speaks ARP through a packet socket, in the network namespace of the
// thread that opened it.
type ARPSegment struct {
	file    *os.File
	name    string
	index   int
	mac     [6]byte
	answers chan SegmentAnswer
}

// OpenSegment opens a packet socket for ARP on an Ethernet interface. It needs
// CAP_NET_RAW.
func OpenSegment(name string) (*ARPSegment, error) {
	link, err := net.InterfaceByName(name)
	if err != nil {
		return nil, fmt.Errorf("find interface %s: %w", name, err)
	}
	if len(link.HardwareAddr) != 6 {
		return nil, fmt.Errorf("interface %s is not Ethernet", name)
	}
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(networkOrder(etherARP)))
	if err != nil {
		return nil, fmt.Errorf("open packet socket: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: networkOrder(etherARP), Ifindex: link.Index}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind packet socket to %s: %w", name, err)
	}
	return &ARPSegment{file: os.NewFile(uintptr(fd), "arp "+name), name: name, index: link.Index, mac: [6]byte(link.HardwareAddr),
		answers: make(chan SegmentAnswer, answerQueue)}, nil
}

// networkOrder gives a number whose memory is v in network byte order.
func networkOrder(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// MAC is the interface's own.
func (s *ARPSegment) MAC() [6]byte { return s.mac }

// Check asks the kernel what the socket is bound to (packet(7)): nothing, once
// the interface is gone, even if one of its name was made again; and with which
// MAC.
func (s *ARPSegment) Check() error {
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

// Answers delivers replies, and announcements of others.
func (s *ARPSegment) Answers() <-chan SegmentAnswer { return s.answers }

// Run reads until ctx ends, and closes the socket.
func (s *ARPSegment) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { s.file.Close() })
	defer stop()
	frame := make([]byte, 256)
	for {
		n, err := s.file.Read(frame)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENETDOWN): // the interface went down; it may come back
			continue
		case err != nil:
			s.file.Close()
			return fmt.Errorf("read ARP: %w", err)
		}
		if a, ok := parseARP(frame[:n], s.mac); ok {
			select {
			case s.answers <- a:
			default:
			}
		}
	}
}

// parseARP takes the sender of any ARP packet that names an address of its own:
// replies, and announcements, which are requests or replies for the sender itself
// (RFC 5227, section 3). Requests for something else are left alone.
func parseARP(frame []byte, own [6]byte) (SegmentAnswer, bool) {
	if len(frame) < etherLen+arpLen || binary.BigEndian.Uint16(frame[12:]) != etherARP {
		return SegmentAnswer{}, false
	}
	p := frame[etherLen:]
	if binary.BigEndian.Uint16(p) != 1 || binary.BigEndian.Uint16(p[2:]) != 0x0800 || p[4] != 6 || p[5] != 4 {
		return SegmentAnswer{}, false
	}
	a := SegmentAnswer{Addr: netip.AddrFrom4([4]byte(p[14:18])), MAC: [6]byte(p[8:14])}
	target := netip.AddrFrom4([4]byte(p[24:28]))
	op := binary.BigEndian.Uint16(p[6:])
	says := op == arpReply || op == arpRequest && target == a.Addr
	return a, says && !a.Addr.IsUnspecified() && a.MAC != own
}

// arpFrame is one ARP packet from us to everybody.
func arpFrame(op uint16, own [6]byte, sender netip.Addr, targetMAC [6]byte, target netip.Addr) []byte {
	b := make([]byte, 0, etherLen+arpLen)
	b = append(b, broadcast[:]...)
	b = append(b, own[:]...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, own[:]...)
	s, t := sender.As4(), target.As4()
	b = append(b, s[:]...)
	b = append(b, targetMAC[:]...)
	return append(b, t[:]...)
}

// Announce sends a gratuitous request and a gratuitous reply: stacks differ in
// which of the two they believe.
func (s *ARPSegment) Announce(addr netip.Addr) error {
	if !addr.Is4() {
		return fmt.Errorf("announce %v: only IPv4 has ARP", addr)
	}
	return errors.Join(
		s.send(arpFrame(arpRequest, s.mac, addr, [6]byte{}, addr)),
		s.send(arpFrame(arpReply, s.mac, addr, broadcast, addr)))
}

// Ask sends a probe (RFC 5227, section 1.1): its sender address is 0, so that no
// cache learns anything from it.
func (s *ARPSegment) Ask(addr netip.Addr) error {
	if !addr.Is4() {
		return fmt.Errorf("ask for %v: only IPv4 has ARP", addr)
	}
	return s.send(arpFrame(arpRequest, s.mac, netip.IPv4Unspecified(), [6]byte{}, addr))
}

func (s *ARPSegment) send(frame []byte) error {
	if _, err := s.file.Write(frame); err != nil {
		return fmt.Errorf("send ARP: %w", err)
	}
	return nil
}
