package model

import (
	"encoding/binary"
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// quote is the packet that an ICMP error is about. Places are in the bytes of the
// outer IP packet.
type quote struct {
	src, dst netip.Addr
	protocol uint8
	later    bool   // a later fragment: no ports
	ip       int    // where its IP header is
	l4       int    // where its UDP or TCP header is
	from, to uint16 // its ports; 0: not quoted
}

// quote reads an ICMP error: RFC 792, destination unreachable, time exceeded,
// parameter problem; RFC 4443, types 1 to 4. False: it is none, or quotes too little.
func (p *packet) quote() (quote, bool) {
	if p.broken || p.fragment() {
		return quote{}, false
	}
	b, q := p.payload, quote{ip: p.at + icmpLen}
	switch {
	case !p.v6 && p.protocol == protoICMP && len(b) >= icmpLen+ipv4Len && (b[0] == 3 || b[0] == 11 || b[0] == 12):
		if !q.read4(b[icmpLen:]) {
			return quote{}, false
		}
	case p.v6 && p.protocol == protoICMPv6 && len(b) >= icmpLen+ipv6Len && b[0] >= 1 && b[0] <= 4:
		if !q.read6(b[icmpLen:]) {
			return quote{}, false
		}
	default:
		return quote{}, false
	}
	if ports := b[min(len(b), q.l4-p.at):]; !q.later && len(ports) >= 4 {
		q.from, q.to = port(ports), port(ports[2:])
	}
	return q, true
}

func (q *quote) read4(ip []byte) bool {
	header := int(ip[0]&0x0f) * 4
	if ip[0]>>4 != 4 || header < ipv4Len {
		return false
	}
	q.src, q.dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	q.protocol, q.later, q.l4 = ip[9], binary.BigEndian.Uint16(ip[6:])&0x1fff != 0, q.ip+header
	return true
}

// read6 knows one extension header, a fragment header directly behind the fixed one.
func (q *quote) read6(ip []byte) bool {
	if ip[0]>>4 != 6 {
		return false
	}
	q.src, q.dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	q.protocol, q.l4 = ip[6], q.ip+ipv6Len
	if q.protocol != protoFragment {
		return true
	}
	if len(ip) < ipv6Len+fragmentLen {
		return false
	}
	q.protocol, q.later = ip[40], binary.BigEndian.Uint16(ip[42:])&0xfff8 != 0
	q.l4 += fragmentLen
	return true
}

// class is the service that the quoted packet belongs to, by its port on the
// server's side; 0: none of ours.
func (q *quote) class(serverPort uint16, vip *table.VIP) table.Class {
	class := classOf(q.protocol, vip)
	if q.later || q.protocol == protoESP ||
		class == table.IKE && servicePort(serverPort) || class == table.TCP && serverPort == portTLS {
		return class
	}
	return 0
}

// rewrite puts addr into the quote as well and mends what sums are quoted, then
// the ICMP sum for all of it. ip is the whole outer packet, its address not yet
// rewritten.
func (q *quote) rewrite(p *packet, ip []byte, w *way) {
	icmp := sumField(ip, p.at+2)
	quoted := ip[q.ip:]
	at := addressPlace(p.v6, !w.source)
	if p.v6 { // the pseudo-header is in the sum
		icmp.change(ip[addressPlace(true, w.source):][:16], w.addr.AsSlice())
	}
	now := w.addr.AsSlice()
	old := append([]byte(nil), quoted[at:at+len(now)]...)
	copy(quoted[at:], now)
	icmp.change(old, now)
	if !p.v6 {
		header := sumField(quoted, 10)
		header.change(old, now)
		header.put(&icmp)
	}
	place := map[uint8]int{protoUDP: 6, protoTCP: 16}[q.protocol]
	if place != 0 && !q.later && q.l4+place+2 <= p.total {
		sum := sumField(ip, q.l4+place)
		if q.protocol == protoTCP || sum.value != 0 {
			sum.change(old, now)
			if q.protocol == protoUDP && sum.value == 0 {
				sum.value = 0xffff
			}
			sum.put(&icmp)
		}
	}
	icmp.put(nil)
}

// addressPlace is where an address is in the IP header.
func addressPlace(v6, source bool) int {
	switch {
	case v6 && source:
		return 8
	case v6:
		return 24
	case source:
		return 12
	}
	return 16
}
