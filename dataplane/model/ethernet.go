package model

import (
	"encoding/binary"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

const (
	ethernetLen = 14
	tagLen      = 4

	etherIPv4    = 0x0800
	etherIPv6    = 0x86dd
	etherVLAN    = 0x8100 // IEEE 802.1Q, the customer's tag
	etherService = 0x88a8 // the provider's tag
)

// link is how a frame came in.
type link struct {
	ifindex   uint32    // of the physical interface, where an answer leaves: of a bond's member the bond
	in        Interface // or the VLAN device on it
	ethertype uint16    // behind the tag
	header    int       // bytes before the IP header
}

// arrive reads the Ethernet header and the tag. A reason that is not 0: the frame
// is the kernel's.
func (t *Tables) arrive(frame []byte, ifindex uint32) (link, table.Reason) {
	if len(frame) < ethernetLen {
		return link{}, table.PassOther
	}
	in, known := t.interfaces[ifindex]
	if !known {
		return link{}, table.PassForeignMAC
	}
	l := link{ifindex: in.top(), in: in, ethertype: binary.BigEndian.Uint16(frame[12:]), header: ethernetLen}
	if service := l.ethertype == etherService; service || l.ethertype == etherVLAN {
		if len(frame) < ethernetLen+tagLen {
			return link{}, table.PassNotIP
		}
		id := binary.BigEndian.Uint16(frame[14:]) & 0x0fff
		if id != 0 { // 0 is a priority and no VLAN
			if l.in, known = t.vlans[vlanKey{in.top(), id, service}]; !known {
				return link{}, table.PassNotIP
			}
		}
		l.ethertype, l.header = binary.BigEndian.Uint16(frame[16:]), ethernetLen+tagLen
	}
	switch {
	case [6]byte(frame[:6]) != l.in.MAC:
		return link{}, table.PassForeignMAC
	case l.ethertype != etherIPv4 && l.ethertype != etherIPv6:
		return link{}, table.PassNotIP
	}
	return l, 0
}

// leave puts a packet, with what the frame held after it, into a frame for a next
// hop. It gives the index of the physical interface.
func leave(ip []byte, l link, hop Hop, exit Interface) ([]byte, uint32) {
	out := make([]byte, 0, ethernetLen+tagLen+len(ip))
	out = append(append(out, hop.MAC[:]...), hop.SourceMAC[:]...)
	ifindex := exit.top()
	if exit.Parent != 0 {
		tag := uint16(etherVLAN)
		if exit.Service {
			tag = etherService
		}
		out = binary.BigEndian.AppendUint16(out, tag)
		out = binary.BigEndian.AppendUint16(out, exit.VLAN)
		ifindex = exit.Parent
	}
	out = binary.BigEndian.AppendUint16(out, l.ethertype)
	return append(out, ip...), ifindex
}
