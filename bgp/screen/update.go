package screen

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// Path attributes that hold a next hop.
const (
	attrNextHop = 3  // RFC 4271, section 5.1.3
	attrMPReach = 14 // RFC 4760, section 3
	flagLong    = 0x10
)

var errUpdate = errors.New("the BGP library wrote an UPDATE that the screen cannot read")

// SetNextHops writes the session's next hops into an UPDATE of the library, in
// place: the library knows only the loopback addresses of its side. A route of a
// family without a next hop is an error; so is whatever is not understood.
func SetNextHops(m []byte, hop4, hop6 netip.Addr) error {
	b := m[headerLen:]
	withdrawn := int(binary.BigEndian.Uint16(b))
	if len(b) < withdrawn+4 {
		return errUpdate
	}
	b = b[2+withdrawn:]
	n := int(binary.BigEndian.Uint16(b))
	if len(b)-2 < n {
		return errUpdate
	}
	for b = b[2 : 2+n]; len(b) > 0; {
		if len(b) < 3 {
			return errUpdate
		}
		kind, head, size := b[1], 3, int(b[2])
		if b[0]&flagLong != 0 {
			if len(b) < 4 {
				return errUpdate
			}
			head, size = 4, int(binary.BigEndian.Uint16(b[2:]))
		}
		if len(b)-head < size {
			return errUpdate
		}
		if err := setNextHop(kind, b[head:head+size], hop4, hop6); err != nil {
			return err
		}
		b = b[head+size:]
	}
	return nil
}

func setNextHop(kind byte, v []byte, hop4, hop6 netip.Addr) error {
	switch kind {
	case attrNextHop:
		if len(v) != 4 || !hop4.Is4() {
			return fmt.Errorf("%w: NEXT_HOP of %d bytes, next hop %s", errUpdate, len(v), hop4)
		}
		h := hop4.As4()
		copy(v, h[:])
	case attrMPReach:
		if len(v) < 21 || binary.BigEndian.Uint16(v) != IPv6.AFI || v[2] != IPv6.SAFI || v[3] != 16 || !hop6.Is6() {
			return fmt.Errorf("%w: MP_REACH_NLRI of %d bytes, next hop %s", errUpdate, len(v), hop6)
		}
		h := hop6.As16()
		copy(v[4:], h[:])
	}
	return nil
}
