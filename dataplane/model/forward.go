package model

import (
	"encoding/binary"
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// forward takes a packet whose fate is decided to its next hop. source: the source
// address is rewritten to addr, else the destination.
func forward(d Decision, p *packet, reason table.Reason, addr netip.Addr, source bool, hop Hop, t *Tables) Decision {
	d.Verdict = Drop
	ip := p.frame[ethernetLen:]
	total := uint32(binary.BigEndian.Uint16(ip[2:]))
	switch {
	case ip[8] <= 1:
		d.Reason = table.DropTTL
		return d
	case hop.State == NoRoute:
		d.Reason = table.DropNoRoute
		return d
	case hop.MTU != 0 && total > hop.MTU:
		d.Reason = table.DropTooBig
		return d
	}
	d.Verdict, d.Reason = Pass, reason
	d.Out = append([]byte(nil), p.frame...)
	switch {
	case hop.State == NoNeighbour:
		d.Reason = table.PassNoNeighbour
	case !t.interfaces[hop.Interface].CanTransmit:
		d.Reason = table.PassCannotTransmit
	}
	blocked := d.Reason != reason
	p.rewrite(d.Out[ethernetLen:], addr, source, blocked)
	if blocked {
		return d
	}
	takeTTL(d.Out[ethernetLen:])
	copy(d.Out[0:6], hop.MAC[:])
	copy(d.Out[6:12], hop.SourceMAC[:])
	d.Verdict, d.Interface = Forward, hop.Interface
	return d
}

// rewrite puts addr into the IP packet out, a copy of p's, and mends the sums.
// blocked: the kernel gets it.
func (p *packet) rewrite(out []byte, addr netip.Addr, source, blocked bool) {
	at := 16
	if source {
		at = 12
	}
	old, now := [4]byte(out[at:at+4]), addr.As4()
	if p.protocol == protoUDP && !p.later() {
		header := int(out[0]&0x0f) * 4
		p.rewriteUDP(out[header:], old, now, blocked)
	}
	copy(out[at:], now[:])
	sum := change(binary.BigEndian.Uint16(out[10:]), old[:], now[:])
	binary.BigEndian.PutUint16(out[10:], sum)
}

func (p *packet) rewriteUDP(udp []byte, old, now [4]byte, blocked bool) {
	sum := binary.BigEndian.Uint16(udp[6:])
	partial := sum != 0 && p.in.Partial && sum == p.pseudoSum(binary.BigEndian.Uint16(udp[4:]))
	switch {
	case sum == 0: // no checksum, RFC 768
		return
	case partial && blocked: // the kernel completes it, and must find the new pseudo-header's sum
		sum = ^change(^sum, old[:], now[:])
	case partial:
		sum = 0
	default:
		if sum = change(sum, old[:], now[:]); sum == 0 {
			sum = 0xffff
		}
	}
	binary.BigEndian.PutUint16(udp[6:], sum)
}

// pseudoSum is the folded sum of the UDP pseudo-header (RFC 768), not
// complemented: what a driver leaves for its device to complete.
func (p *packet) pseudoSum(length uint16) uint16 {
	src, dst := p.src.As4(), p.dst.As4()
	return fold(sumOf(src[:]) + sumOf(dst[:]) + protoUDP + uint64(length))
}

// takeTTL takes one off the TTL.
func takeTTL(ip []byte) {
	old := [2]byte{ip[8], ip[9]}
	ip[8]--
	sum := change(binary.BigEndian.Uint16(ip[10:]), old[:], ip[8:10])
	binary.BigEndian.PutUint16(ip[10:], sum)
}

// change is RFC 1624, equation 3: HC' = ~(~HC + ~m + m').
func change(sum uint16, old, now []byte) uint16 {
	total := uint64(^sum)
	for i := 0; i < len(old); i += 2 {
		total += uint64(^binary.BigEndian.Uint16(old[i:])) + uint64(binary.BigEndian.Uint16(now[i:]))
	}
	return ^fold(total)
}

func sumOf(b []byte) uint64 {
	var total uint64
	for i := 0; i < len(b); i += 2 {
		total += uint64(binary.BigEndian.Uint16(b[i:]))
	}
	return total
}

func fold(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
