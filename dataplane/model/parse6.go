package model

import (
	"encoding/binary"
	"net/netip"
)

// maxExtensions is how many extension headers are walked over.
const maxExtensions = 6

// addresses6 reads what RFC 8200's fixed header says by itself.
func (p *packet) addresses6(ip []byte) bool {
	p.src, p.dst = netip.AddrFrom16([16]byte(ip[8:24])), netip.AddrFrom16([16]byte(ip[24:40]))
	p.protocol = ip[6]
	return true
}

func (p *packet) measure6(ip []byte) bool {
	p.total = ipv6Len + int(binary.BigEndian.Uint16(ip[4:]))
	if p.total > len(ip) {
		return false
	}
	p.walk(ip[:p.total])
	return true
}

// walk goes over the extension headers (RFC 8200, section 4) to the protocol.
func (p *packet) walk(ip []byte) {
	p.at = ipv6Len
	fragmented := false
	for n := 0; p.protocol == protoHopByHop || p.protocol == protoDestination || p.protocol == protoFragment; n++ {
		rest := ip[p.at:]
		if n == maxExtensions || len(rest) < 8 || p.protocol == protoFragment && fragmented {
			p.broken = true
			return
		}
		length := fragmentLen
		if p.protocol == protoFragment {
			fragmented = true
			field := binary.BigEndian.Uint16(rest[2:])
			p.offset, p.more, p.id = int(field&0xfff8), field&1 != 0, binary.BigEndian.Uint32(rest[4:])
		} else {
			length = (int(rest[1]) + 1) * 8
		}
		if length > len(rest) {
			p.broken = true
			return
		}
		p.protocol = rest[0]
		p.at += length
		if p.later() {
			break
		}
	}
	p.payload = ip[p.at:]
}
