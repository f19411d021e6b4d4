package model

import (
	"encoding/binary"
	"net/netip"
)

const (
	ipv4Len     = 20
	ipv6Len     = 40
	udpLen      = 8
	tcpLen      = 20
	icmpLen     = 8
	fragmentLen = 8 // of IPv6's fragment header

	tcpSYN = 2 // flags, RFC 9293, section 3.1
	tcpRST = 4
)

// Protocols, and next headers of IPv6.
const (
	protoHopByHop    = 0
	protoICMP        = 1
	protoTCP         = 6
	protoUDP         = 17
	protoFragment    = 44
	protoESP         = 50
	protoICMPv6      = 58
	protoDestination = 60
)

// packet is an IP packet in a frame.
type packet struct {
	frame []byte // the whole, for rewriting
	link  link   // how it came in
	v6    bool

	src, dst netip.Addr
	total    int // bytes of the IP packet; what the frame holds after it is padding
	protocol uint8
	id       uint32
	offset   int // in bytes; 0: first piece or whole
	more     bool
	broken   bool   // extension headers that are cut off, doubled or too many
	at       int    // where payload starts, from the IP header
	payload  []byte // behind all headers of IP
}

// newPacket reads the fixed IP header. False: it is none.
func newPacket(frame []byte, l link) (packet, bool) {
	p := packet{frame: frame, link: l}
	ip := p.ip()
	switch l.ethertype {
	case etherIPv4:
		return p, len(ip) >= ipv4Len && ip[0]>>4 == 4 && p.addresses4(ip)
	case etherIPv6:
		p.v6 = true
		return p, len(ip) >= ipv6Len && ip[0]>>4 == 6 && p.addresses6(ip)
	}
	return p, false
}

// ip is the frame from the IP header on, padding included.
func (p *packet) ip() []byte { return p.frame[p.link.header:] }

// measure finds the packet's end and its payload. False: the lengths do not add up.
func (p *packet) measure() bool {
	if p.v6 {
		return p.measure6(p.ip())
	}
	return p.measure4(p.ip())
}

// fragment reports whether the packet is a piece of a datagram.
func (p *packet) fragment() bool { return p.more || p.offset != 0 }

// later reports whether it is not the first piece.
func (p *packet) later() bool { return p.offset != 0 }

// badPiece reports whether no honest sender makes such a piece of a datagram.
func (p *packet) badPiece() bool {
	n := len(p.payload)
	return p.fragment() && (p.more && n%8 != 0 || n == 0 || p.offset+n > 65535)
}

func (p *packet) fragmentKey() FragmentKey {
	return FragmentKey{Source: p.src, Destination: p.dst, ID: p.id, Protocol: p.protocol}
}

// ttl is the TTL or the hop limit.
func (p *packet) ttl() uint8 {
	if p.v6 {
		return p.ip()[7]
	}
	return p.ip()[8]
}

// mayFragment reports whether a router may break the packet up.
func (p *packet) mayFragment() bool { return !p.v6 && p.ip()[6]&0x40 == 0 }

func port(b []byte) uint16 { return binary.BigEndian.Uint16(b) }
