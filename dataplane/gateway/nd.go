package gateway

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// Neighbour Discovery on Ethernet for IPv6 (RFC 4861; on Ethernet: RFC 2464).
const (
	etherIPv6   = 0x86dd
	ip6Len      = 40
	protoICMP6  = 58
	ndHops      = 255 // RFC 4861, section 7.1: anything less came through a router
	ndSolicit   = 135 // section 4.3
	ndAdvertise = 136 // section 4.4
	ndLen       = 24  // either message without its options
	ndOptionLen = 8   // a link-layer address option for Ethernet (section 4.6.1, RFC 2464, section 6)

	optSource = 1 // source link-layer address
	optTarget = 2 // target link-layer address

	// Flags of an advertisement (section 4.4).
	ndRouter    = 0x80
	ndSolicited = 0x40
	ndOverride  = 0x20
)

// allNodes hears unsolicited advertisements (section 7.2.6).
var (
	allNodes    = netip.MustParseAddr("ff02::1")
	allNodesMAC = groupMAC(allNodes)
)

// groupMAC is a multicast address on Ethernet (RFC 2464, section 7).
func groupMAC(group netip.Addr) [6]byte {
	b := group.As16()
	return [6]byte{0x33, 0x33, b[12], b[13], b[14], b[15]}
}

// solicitedNode is the group that every holder of addr is in (RFC 4291, section 2.7.1).
func solicitedNode(addr netip.Addr) netip.Addr {
	b := addr.As16()
	return netip.AddrFrom16([16]byte{0: 0xff, 1: 0x02, 11: 0x01, 12: 0xff, 13: b[13], 14: b[14], 15: b[15]})
}

// solicitation asks who has target (section 7.2.2), with the interface's own
// link-local address as its source. The option must be there (section 4.3).
func solicitation(own [6]byte, source, target netip.Addr) []byte {
	return ndFrame(ndSolicit, 0, own, source, solicitedNode(target), target, optSource)
}

// advertisement tells everybody, unasked, that target is here, on a router, and
// that caches shall believe it though they know better (section 7.2.6). Without
// the router flag a host would take the address off its routers (section 7.2.5).
func advertisement(own [6]byte, source, target netip.Addr) []byte {
	return ndFrame(ndAdvertise, ndRouter|ndOverride, own, source, allNodes, target, optTarget)
}

func ndFrame(kind, flags byte, own [6]byte, source, dst, target netip.Addr, option byte) []byte {
	to := groupMAC(dst)
	b := make([]byte, 0, etherLen+ip6Len+ndLen+ndOptionLen)
	b = append(b, to[:]...)
	b = append(b, own[:]...)
	b = binary.BigEndian.AppendUint16(b, etherIPv6)
	b = append(b, 0x60, 0, 0, 0, 0, ndLen+ndOptionLen, protoICMP6, ndHops)
	s, d, t := source.As16(), dst.As16(), target.As16()
	b = append(b, s[:]...)
	b = append(b, d[:]...)
	b = append(b, kind, 0, 0, 0, flags, 0, 0, 0)
	b = append(b, t[:]...)
	b = append(b, option, 1) // length in units of 8 bytes
	b = append(b, own[:]...)
	message := b[etherLen+ip6Len:]
	binary.BigEndian.PutUint16(message[2:], icmp6Sum(b[etherLen:], message))
	return b
}

// icmp6Sum is the checksum over the pseudo-header and the message (RFC 4443,
// section 2.3; RFC 8200, section 8.1). Over a message with its checksum in it
// the result is 0 where that is right.
func icmp6Sum(ip, message []byte) uint16 {
	total := uint64(len(message)) + protoICMP6
	add := func(b []byte) {
		for ; len(b) >= 2; b = b[2:] {
			total += uint64(binary.BigEndian.Uint16(b))
		}
		if len(b) == 1 {
			total += uint64(b[0]) << 8
		}
	}
	add(ip[8:40]) // both addresses
	add(message)
	for total>>16 != 0 {
		total = total&0xffff + total>>16
	}
	return ^uint16(total)
}

// parseAdvertisement takes who has an address from a valid advertisement, asked
// for or not (RFC 4861, section 7.1.2). Extension headers are not expected: none
// is needed, and fragments are forbidden (RFC 6980).
func parseAdvertisement(frame []byte, own [6]byte) (SegmentAnswer, bool) {
	if len(frame) < etherLen+ip6Len+ndLen || binary.BigEndian.Uint16(frame[12:]) != etherIPv6 {
		return SegmentAnswer{}, false
	}
	ip := frame[etherLen:]
	length := int(binary.BigEndian.Uint16(ip[4:]))
	if ip[0]>>4 != 6 || ip[6] != protoICMP6 || ip[7] != ndHops || length < ndLen || length > len(ip)-ip6Len {
		return SegmentAnswer{}, false
	}
	m := ip[ip6Len : ip6Len+length] // without the padding of the frame
	if m[0] != ndAdvertise || m[1] != 0 || icmp6Sum(ip, m) != 0 {
		return SegmentAnswer{}, false
	}
	a := SegmentAnswer{Addr: netip.AddrFrom16([16]byte(m[8:24])), MAC: [6]byte(frame[6:12])}
	dst := netip.AddrFrom16([16]byte(ip[24:40]))
	if a.Addr.IsMulticast() || a.Addr.IsUnspecified() || a.Addr.Is4In6() || dst.IsMulticast() && m[4]&ndSolicited != 0 {
		return SegmentAnswer{}, false
	}
	// An answer to a unicast question may come without the option: then the
	// frame's sender has it (section 4.4).
	for o := m[ndLen:]; len(o) > 0; {
		if len(o) < 2 || o[1] == 0 || int(o[1])*8 > len(o) {
			return SegmentAnswer{}, false
		}
		if o[0] == optTarget && o[1] == 1 {
			a.MAC = [6]byte(o[2:8])
		}
		o = o[int(o[1])*8:]
	}
	if a.MAC == own {
		return SegmentAnswer{}, false
	}
	return a, true
}

// advertisementsOnly is a socket filter (classic BPF): of all IPv6 frames the
// kernel copies only advertisements, so that the traffic of the servers costs
// this socket nothing.
func advertisementsOnly() []unix.SockFilter {
	const (
		load = unix.BPF_LD | unix.BPF_B | unix.BPF_ABS
		test = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		give = unix.BPF_RET | unix.BPF_K
	)
	return []unix.SockFilter{
		{Code: load, K: etherLen + 6},
		{Code: test, K: protoICMP6, Jf: 5},
		{Code: load, K: etherLen + 7},
		{Code: test, K: ndHops, Jf: 3},
		{Code: load, K: etherLen + ip6Len},
		{Code: test, K: ndAdvertise, Jf: 1},
		{Code: give, K: frameMax},
		{Code: give, K: 0},
	}
}
