package model

import (
	"encoding/binary"
	"net/netip"
)

// addresses4 reads what RFC 791's header says by itself.
func (p *packet) addresses4(ip []byte) bool {
	p.src, p.dst = netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	p.protocol, p.id = ip[9], uint32(binary.BigEndian.Uint16(ip[4:]))
	flags := binary.BigEndian.Uint16(ip[6:])
	p.more, p.offset = flags&0x2000 != 0, int(flags&0x1fff)*8
	return true
}

func (p *packet) measure4(ip []byte) bool {
	header, total := int(ip[0]&0x0f)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if header < ipv4Len || total < header || total > len(ip) {
		return false
	}
	p.total, p.at, p.payload = total, header, ip[header:total]
	return true
}
