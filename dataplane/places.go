package dataplane

import (
	"encoding/binary"
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
)

// Destinations fall into 65536 places: IPv4 by the first 16 bits, IPv6 by a hash
// of the first 32, with one place for all of fc00::/7 (RFC 4193). A bit for each says
// whether the program must look closer at what goes there. Most clients are
// elsewhere, and then a reply costs no look into a trie and shares its next hop
// with the others. It is the same function as destination_place in bpf/outbound.h.

const (
	localPlace = 0 // of fc00::/7; others may fall there too
	placeMul   = 0x9e3779b1
)

// placeBits are the bits of one family.
type placeBits struct{ bpf.PlanePlaces }

func (p *placeBits) set(place uint32) { p.Word[place>>6] |= 1 << (place & 63) }

// setAll says that every destination must be looked at.
func (p *placeBits) setAll() {
	for i := range p.Word {
		p.Word[i] = ^uint64(0)
	}
}

// add sets the bits of all places that a prefix reaches into. A short IPv6 prefix
// reaches everywhere.
func (p *placeBits) add(prefix netip.Prefix) {
	prefix = prefix.Masked()
	if prefix.Addr().Is4() {
		b := prefix.Addr().As4()
		first := uint32(binary.BigEndian.Uint16(b[:]))
		for i := range uint32(1) << max(16-prefix.Bits(), 0) {
			p.set(first + i)
		}
		return
	}
	b := prefix.Addr().As16()
	switch {
	case b[0]&0xfe == 0xfc && prefix.Bits() >= 7:
		p.set(localPlace)
	case prefix.Bits() < 32:
		p.setAll()
	default:
		p.set(binary.LittleEndian.Uint32(b[:]) * placeMul >> 16)
	}
}
