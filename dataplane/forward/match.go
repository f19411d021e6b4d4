package forward

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// family is what the rules need to know of IPv4 or IPv6.
type family struct {
	number              byte   // NFPROTO_*
	source, destination uint32 // offsets in the IP header
	size                uint32 // bytes of an address
	icmp                byte   // protocol
	icmpErrors          []byte // types that quote a packet; the others ask or answer
}

var (
	// RFC 791, section 3.1; RFC 792: destination unreachable, time exceeded,
	// parameter problem.
	ipv4 = family{number: unix.NFPROTO_IPV4, source: 12, destination: 16, size: 4, icmp: unix.IPPROTO_ICMP, icmpErrors: []byte{3, 11, 12}}
	// RFC 8200, section 3; RFC 4443, section 2.1: as before, and packet too big.
	ipv6 = family{number: unix.NFPROTO_IPV6, source: 8, destination: 24, size: 16, icmp: unix.IPPROTO_ICMPV6, icmpErrors: []byte{1, 2, 3, 4}}
)

// is matches packets of the family.
func (f family) is() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{f.number}},
	}
}

// load puts the address at offset into register 1.
func (f family) load(offset uint32) []expr.Any {
	return []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: f.size}}
}

// to matches destinations in a prefix.
func (f family) to(p netip.Prefix) []expr.Any {
	mask := make([]byte, f.size)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return append(f.load(f.destination),
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: f.size, Mask: mask, Xor: make([]byte, f.size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()})
}

// laterFragment: the fragment offset is not 0. Such a packet has no ports; its
// protocol is known in both families.
func (f family) laterFragment() []expr.Any {
	const ip4Offset, ip6Offset = 6, 2 // RFC 791, section 3.1; RFC 8200, section 4.5
	var load expr.Any = &expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: ip4Offset, Len: 2}
	mask := []byte{0x1f, 0xff}
	if f.number == unix.NFPROTO_IPV6 {
		load = &expr.Exthdr{DestRegister: 1, Type: unix.IPPROTO_FRAGMENT, Offset: ip6Offset, Len: 2, Op: expr.ExthdrOpIpv6}
		mask = []byte{0xff, 0xf8}
	}
	return []expr.Any{load,
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: mask, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
	}
}

func inSet(s *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID}}
}

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func from(iface string) []expr.Any { return named(expr.MetaKeyIIFNAME, expr.CmpOpEq, iface) }

func notFrom(iface string) []expr.Any { return named(expr.MetaKeyIIFNAME, expr.CmpOpNeq, iface) }

func by(iface string) []expr.Any { return named(expr.MetaKeyOIFNAME, expr.CmpOpEq, iface) }

// named compares the name of an interface of the packet.
func named(key expr.MetaKey, op expr.CmpOp, iface string) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: interfaceName(iface)},
	}
}

// interfaceName is a name as registers hold it.
func interfaceName(iface string) []byte {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, iface)
	return name
}

// protocol is that of the last header: behind IPv6 extension headers, too.
func protocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

// Offsets of the ports in UDP and TCP (RFC 768, RFC 9293 section 3.1).
const sourcePort, destinationPort = 0, 2

// port is that of one side. A later fragment has none and does not match.
func port(side uint32, n uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: side, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(n >> 8), byte(n)}},
	}
}

func icmpType(kind byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{kind}},
	}
}
