package peer

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"

	"golang.org/x/sys/unix"
)

const (
	ipHeaderLen  = 20
	udpHeaderLen = 8
	tcpHeaderLen = 20
	protoICMP    = 1
	protoTCP     = 6
	protoUDP     = 17
	protoESP     = 50
	initialTTL   = 64
)

// piece is where a payload lies in a datagram that is sent in fragments.
type piece struct {
	id     uint32 // of the datagram; IPv4 uses the low half
	offset int    // bytes, a multiple of 8
	more   bool
}

func (p piece) whole() bool { return p.offset == 0 && !p.more }

// rawSender sends packets of either family with headers of its own making.
type rawSender struct{ four, six int }

func newRawSender() (*rawSender, error) {
	four, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		return nil, fmt.Errorf("open raw socket: %w", err)
	}
	// IPPROTO_RAW means that the header is ours, in IPv6 too.
	six, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
	if err != nil {
		six = -1 // a lab without IPv6
	}
	return &rawSender{four, six}, nil
}

func (r *rawSender) close() {
	unix.Close(r.four)
	if r.six >= 0 {
		unix.Close(r.six)
	}
}

// send sends what ipPacket made. A full queue is what a flood runs into: no error.
func (r *rawSender) send(to netip.Addr, b []byte) error {
	var err error
	if to.Is4() {
		err = unix.Sendto(r.four, b, 0, &unix.SockaddrInet4{Addr: to.As4()})
	} else {
		err = unix.Sendto(r.six, b, 0, &unix.SockaddrInet6{Addr: to.As16()})
	}
	if err != nil && err != unix.ENOBUFS {
		return fmt.Errorf("send raw packet to %s: %w", to, err)
	}
	return nil
}

// ipPacket puts an IP header in front of a payload, in IPv6 with a fragment
// header where it is a piece. The kernel fills in the IPv4 header's sum.
func ipPacket(from, to netip.Addr, proto uint8, p piece, payload []byte) []byte {
	if from.Is4() {
		b := make([]byte, ipHeaderLen, ipHeaderLen+len(payload))
		b = append(b, payload...)
		b[0] = 0x45
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
		binary.BigEndian.PutUint16(b[4:], uint16(p.id))
		flags := uint16(p.offset / 8)
		if p.more {
			flags |= 0x2000
		}
		binary.BigEndian.PutUint16(b[6:], flags)
		b[8], b[9] = initialTTL, proto
		copy(b[12:], from.AsSlice())
		copy(b[16:], to.AsSlice())
		return b
	}
	b := make([]byte, ip6HeaderLen, ip6HeaderLen+ip6FragmentLen+len(payload))
	b[0], b[6], b[7] = 0x60, proto, initialTTL
	copy(b[8:], from.AsSlice())
	copy(b[24:], to.AsSlice())
	if !p.whole() {
		b[6] = nextHeaderFragment6
		b = append(b, proto, 0)
		flags := uint16(p.offset)
		if p.more {
			flags |= 1
		}
		b = binary.BigEndian.AppendUint16(b, flags)
		b = binary.BigEndian.AppendUint32(b, p.id)
	}
	b = append(b, payload...)
	binary.BigEndian.PutUint16(b[4:], uint16(len(b)-ip6HeaderLen))
	return b
}

// datagram is a UDP header with its sum, and a payload.
func datagram(from, to netip.AddrPort, payload []byte) []byte {
	b := make([]byte, udpHeaderLen, udpHeaderLen+len(payload))
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint16(b[4:], uint16(udpHeaderLen+len(payload)))
	b = append(b, payload...)
	c := transportSum(from.Addr(), to.Addr(), protoUDP, b)
	if c == 0 {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], c)
	return b
}

// transportSum is the checksum over the pseudo-header and b (RFC 768, RFC 8200 8.1).
func transportSum(from, to netip.Addr, proto uint8, b []byte) uint16 {
	sum := onesSum(from.AsSlice(), uint32(proto)+uint32(len(b)))
	return ^fold(onesSum(b, onesSum(to.AsSlice(), sum)))
}

// syn is a TCP segment that opens a connection.
func syn(from, to netip.AddrPort) []byte {
	b := make([]byte, tcpHeaderLen)
	binary.BigEndian.PutUint16(b, from.Port())
	binary.BigEndian.PutUint16(b[2:], to.Port())
	binary.BigEndian.PutUint32(b[4:], rand.Uint32())
	b[12], b[13] = tcpHeaderLen/4<<4, 0x02
	binary.BigEndian.PutUint16(b[14:], 64240)
	binary.BigEndian.PutUint16(b[16:], transportSum(from.Addr(), to.Addr(), protoTCP, b))
	return b
}

// tooBig is an ICMP error that says so about a packet of which quoted is the
// beginning (RFC 1191, RFC 4443 3.2).
func tooBig(from, to netip.Addr, mtu int, quoted []byte) (proto uint8, b []byte) {
	b = make([]byte, icmpHeaderLen, icmpHeaderLen+len(quoted))
	b = append(b, quoted...)
	if from.Is4() {
		b[0], b[1] = icmpUnreachable, codeFragNeeded
		binary.BigEndian.PutUint16(b[6:], uint16(mtu))
		binary.BigEndian.PutUint16(b[2:], ^fold(onesSum(b, 0)))
		return protoICMP, b
	}
	b[0] = icmp6TooBig
	binary.BigEndian.PutUint32(b[4:], uint32(mtu))
	binary.BigEndian.PutUint16(b[2:], transportSum(from, to, nextHeaderICMP6, b))
	return nextHeaderICMP6, b
}

// headerSum fills in the sum of an IPv4 header that no kernel will touch: a
// quoted one.
func headerSum(b []byte) []byte {
	if b[0]>>4 == 4 {
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^fold(onesSum(b[:ipHeaderLen], 0)))
	}
	return b
}

// randomIn draws an address of a prefix.
func randomIn(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < 8*len(b); i++ {
		if rand.Uint32()&1 != 0 {
			b[i/8] |= 0x80 >> (i % 8)
		}
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}

// randomPort avoids the well-known ones.
func randomPort() uint16 { return uint16(1024 + rand.IntN(60000)) }

func onesSum(b []byte, sum uint32) uint32 {
	for ; len(b) >= 2; b = b[2:] {
		sum += uint32(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	return sum
}

func fold(sum uint32) uint16 {
	for sum>>16 != 0 {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}
