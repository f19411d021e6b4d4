package model

import (
	"encoding/binary"
)

// rewrite puts the way's address into ip, a copy of the packet, and mends the sums.
// passed: the kernel gets it. False: a partial sum that nobody will complete.
func (p *packet) rewrite(ip []byte, w *way, passed bool) bool {
	if !p.rewriteTransport(ip, w, passed) {
		return false
	}
	if w.dsr {
		return true
	}
	if w.quote != nil {
		w.quote.rewrite(p, ip, w)
	}
	now := w.addr.AsSlice()
	address := ip[addressPlace(p.v6, w.source):][:len(now)]
	if !p.v6 {
		sum := sumField(ip, 10)
		sum.change(address, now)
		sum.put(nil)
	}
	copy(address, now)
	return true
}

// rewriteTransport mends the sum of UDP or TCP, if the packet holds one.
func (p *packet) rewriteTransport(ip []byte, w *way, passed bool) bool {
	var sum field
	switch {
	case p.later():
		return true
	case p.protocol == protoUDP && len(p.payload) >= udpLen:
		if sum = sumField(ip, p.at+6); sum.value == 0 { // no checksum, RFC 768
			return true
		}
	case p.protocol == protoTCP && len(p.payload) >= 18:
		sum = sumField(ip, p.at+16)
	default:
		return true
	}
	now := w.addr.AsSlice()
	old := ip[addressPlace(p.v6, w.source):][:len(now)]
	partial := p.partial(sum.value)
	marked := passed || p.link.in.Generic // somebody will complete a partial sum
	switch {
	case partial && !marked && !p.v6 && p.protocol == protoUDP:
		sum.value = 0
	case partial && !marked:
		return false
	case w.dsr:
		return true
	case partial: // who completes it must find the new pseudo-header's sum
		sum.value = ^change(^sum.value, old, now)
	default:
		sum.change(old, now)
		if sum.value == 0 && p.protocol == protoUDP {
			sum.value = 0xffff
		}
	}
	sum.put(nil)
	return true
}

// partial reports whether a sum is only that of the pseudo-header, folded and not
// complemented: what a driver leaves for its device to complete.
func (p *packet) partial(sum uint16) bool {
	length := len(p.payload)
	switch {
	case !p.link.in.Partial, p.protocol == protoTCP && p.fragment():
		return false
	case p.protocol == protoUDP:
		length = int(binary.BigEndian.Uint16(p.payload[4:]))
	}
	pseudo := pseudoSum(p.src.AsSlice(), p.dst.AsSlice(), p.protocol, length)
	return sum == fold(pseudo) && !p.adds(pseudo, length)
}

// sumLimit is how much of a packet is added up to tell whether its sum is right.
const sumLimit = 10240

// adds reports whether a whole packet's sum is right, with that of the pseudo-header:
// one complete sum in 65536 looks partial by chance.
func (p *packet) adds(pseudo uint64, length int) bool {
	if p.fragment() || length != len(p.payload) || length > sumLimit {
		return false
	}
	return fold(pseudo+sumOf(p.payload)) == 0xffff
}

// takeTTL takes one off the TTL, or off the hop limit.
func (p *packet) takeTTL(ip []byte) {
	if p.v6 {
		ip[7]--
		return
	}
	old := [2]byte{ip[8], ip[9]}
	ip[8]--
	sum := sumField(ip, 10)
	sum.change(old[:], ip[8:10])
	sum.put(nil)
}
