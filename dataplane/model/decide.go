package model

import (
	"encoding/binary"
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Verdict is what becomes of a frame.
type Verdict uint8

// Verdicts.
const (
	Drop    Verdict = iota + 1
	Pass            // to the kernel, as Out
	Forward         // out of Interface, as Out: XDP_TX where it came from there, else a redirect
)

// String names the verdict.
func (v Verdict) String() string {
	switch v {
	case Drop:
		return "drop"
	case Pass:
		return "pass"
	case Forward:
		return "forward"
	}
	return "invalid"
}

// Decision is what becomes of a frame and what is to be remembered of it.
type Decision struct {
	Verdict   Verdict
	Reason    table.Reason
	Interface uint32     // of Forward: the exit
	Out       []byte     // the frame as it leaves; nil when dropped. Never the caller's slice
	Slot      table.Slot // the server chosen, or the server that sent it; 0 none

	// Proof is what a return packet proves, whether or not there is anything to
	// learn: a sign that the server lives.
	Proof table.Confirmation
	// Evidence is what to write into pending; nil: nothing to learn.
	Evidence *table.Evidence
	// ClientTick and ServerTick: the client's record was used by a packet of his,
	// or of the recorded server.
	ClientTick, ServerTick bool
	// Note is for the later pieces of a fragmented return datagram.
	Note *FragmentNote
}

const (
	ethernetLen = 14
	ipv4Len     = 20
	udpLen      = 8
	icmpLen     = 8

	etherIPv4 = 0x0800
	protoICMP = 1
	protoUDP  = 17
	protoESP  = 50
)

// packet is an IPv4 packet to or from something of ours, its lengths checked.
type packet struct {
	frame    []byte // the whole, for rewriting
	in       Interface
	src, dst netip.Addr
	protocol uint8
	id       uint16
	offset   uint16 // in bytes; 0: first piece or whole
	more     bool
	payload  []byte // of IP, without what the frame holds after it
}

// fragment reports whether the packet is a piece of a datagram.
func (p *packet) fragment() bool { return p.more || p.offset != 0 }

// later reports whether it is not the first piece.
func (p *packet) later() bool { return p.offset != 0 }

func (p *packet) fragmentKey() FragmentKey {
	return FragmentKey{Source: p.src, Destination: p.dst, ID: p.id, Protocol: p.protocol}
}

// Decide says what becomes of a frame that came in on an interface. It changes
// nothing, neither frame nor tables.
func Decide(frame []byte, ifindex uint32, t *Tables) Decision {
	d := decide(frame, ifindex, t)
	if d.Verdict == Pass && d.Out == nil {
		d.Out = append([]byte(nil), frame...)
	}
	return d
}

func decide(frame []byte, ifindex uint32, t *Tables) Decision {
	in, known := t.interfaces[ifindex]
	switch {
	case len(frame) < ethernetLen:
		return pass(table.PassOther)
	case !known || [6]byte(frame[:6]) != in.MAC:
		return pass(table.PassForeignMAC)
	case binary.BigEndian.Uint16(frame[12:]) != etherIPv4:
		return pass(table.PassNotIP)
	}
	ip := frame[ethernetLen:]
	if len(ip) < ipv4Len || ip[0]>>4 != 4 {
		return pass(table.PassOther)
	}
	p := packet{frame: frame, in: in, protocol: ip[9], id: binary.BigEndian.Uint16(ip[4:]),
		src: netip.AddrFrom4([4]byte(ip[12:16])), dst: netip.AddrFrom4([4]byte(ip[16:20]))}
	flags := binary.BigEndian.Uint16(ip[6:])
	p.more, p.offset = flags&0x2000 != 0, flags&0x1fff*8

	vip, from := t.vips[p.dst], t.byAddr[p.src]
	if vip == nil && from == nil {
		return pass(table.PassOther)
	}
	header, total := int(ip[0]&0x0f)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < ipv4Len || total < header || total > len(ip) {
		return drop(table.DropMalformed)
	}
	p.payload = ip[header:total]
	switch {
	case vip != nil && from != nil:
		return drop(table.DropHairpin)
	case vip != nil:
		return inbound(&p, vip, t)
	}
	return outbound(&p, from, t)
}

func pass(r table.Reason) Decision { return Decision{Verdict: Pass, Reason: r} }
func drop(r table.Reason) Decision { return Decision{Verdict: Drop, Reason: r} }

// quotes reports whether an ICMP error (RFC 792: destination unreachable, time
// exceeded, parameter problem) quotes ESP, or UDP of a service port, of addr: from
// it, or to it. Ports that were not quoted do not match.
func (p *packet) quotes(addr netip.Addr, from bool) bool {
	b := p.payload
	if p.protocol != protoICMP || len(b) < icmpLen+ipv4Len || b[0] != 3 && b[0] != 11 && b[0] != 12 {
		return false
	}
	ip := b[icmpLen:]
	header := int(ip[0]&0x0f) * 4
	if ip[0]>>4 != 4 || header < ipv4Len {
		return false
	}
	address, port := ip[16:20], header+2
	if from {
		address, port = ip[12:16], header
	}
	if netip.AddrFrom4([4]byte(address)) != addr {
		return false
	}
	if ip[9] == protoESP {
		return true
	}
	if ip[9] != protoUDP || binary.BigEndian.Uint16(ip[6:])&0x1fff != 0 || len(ip) < header+4 {
		return false
	}
	return servicePort(binary.BigEndian.Uint16(ip[port:]))
}
