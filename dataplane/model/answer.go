package model

import (
	"encoding/binary"
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// maxQuote is how much of a packet an answer quotes, in bytes.
const maxQuote = 512

// expired answers a packet whose TTL is used up, or drops it.
func expired(d Decision, p *packet, w *way, t *Tables) Decision {
	if !answerable(p, w, t) {
		return d.end(table.DropTTL)
	}
	d.Reason = table.AnswerExpired
	if p.v6 {
		return d.answer(p, w.vip, 3, 0, 0)
	}
	return d.answer(p, w.vip, 11, 0, 0)
}

// tooBig answers a packet larger than the next hop's MTU, or drops it.
func tooBig(d Decision, p *packet, w *way, t *Tables) Decision {
	if !answerable(p, w, t) {
		return d.end(table.DropTooBig)
	}
	d.Reason = table.AnswerTooBig
	if p.v6 {
		return d.answer(p, w.vip, 2, 0, w.hop.MTU)
	}
	return d.answer(p, w.vip, 3, 4, w.hop.MTU) // RFC 1191: the upper half is 0
}

// answerable reports whether there may be an ICMP error about the packet (RFC
// 1122, section 3.2.2; RFC 4443, section 2.4), and a way to send it. The rate is
// asked last: it counts.
func answerable(p *packet, w *way, t *Tables) bool {
	return w.quote == nil && (p.v6 || !p.later()) && mayHear(p.src) && p.link.in.CanTransmit &&
		(t.env.Answers == nil || t.env.Answers())
}

// mayHear reports whether an address may be one host's.
func mayHear(a netip.Addr) bool {
	if a.Is4() {
		first := a.As4()[0]
		return first != 0 && first != 127 && first < 224
	}
	return !a.IsUnspecified() && a != netip.IPv6Loopback() && a.As16()[0] != 0xff
}

// answer sends an ICMP error from the VIP back to where the frame came from. rest
// are the header's last four bytes.
func (d Decision) answer(p *packet, vip netip.Addr, kind, code uint8, rest uint32) Decision {
	quoted := p.ip()[:min(p.total, maxQuote)&^3]
	icmp := make([]byte, icmpLen, icmpLen+len(quoted))
	icmp[0], icmp[1] = kind, code
	binary.BigEndian.PutUint32(icmp[4:], rest)
	icmp = append(icmp, quoted...)

	var header []byte
	src, dst := vip.AsSlice(), p.src.AsSlice()
	sum := sumOf(icmp)
	if p.v6 {
		header = make([]byte, ipv6Len)
		header[0] = 6 << 4
		binary.BigEndian.PutUint16(header[4:], uint16(len(icmp)))
		header[6], header[7] = protoICMPv6, 64
		sum += pseudoSum(src, dst, protoICMPv6, len(icmp))
	} else {
		header = make([]byte, ipv4Len)
		header[0] = 4<<4 | 5
		binary.BigEndian.PutUint16(header[2:], uint16(ipv4Len+len(icmp)))
		header[6] = 0x40 // do not fragment
		header[8], header[9] = 64, protoICMP
	}
	copy(header[addressPlace(p.v6, true):], src)
	copy(header[addressPlace(p.v6, false):], dst)
	if !p.v6 {
		binary.BigEndian.PutUint16(header[10:], ^fold(sumOf(header)))
	}
	binary.BigEndian.PutUint16(icmp[2:], ^fold(sum))

	out := make([]byte, 0, p.link.header+len(header)+len(icmp))
	out = append(append(out, p.frame[6:12]...), p.frame[0:6]...)
	out = append(out, p.frame[12:p.link.header]...) // tag and ethertype
	d.Out = append(append(out, header...), icmp...)
	d.Verdict, d.Interface = Forward, p.link.ifindex
	return d
}
