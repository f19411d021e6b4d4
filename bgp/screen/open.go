package screen

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"
)

// Family is an address family (RFC 4760).
type Family struct {
	AFI  uint16
	SAFI uint8
}

// The families that a session may carry.
var (
	IPv4 = Family{1, 1}
	IPv6 = Family{2, 1}
)

// Open is what an OPEN message says, as far as the screen passes it on.
type Open struct {
	AS       uint32
	Hold     time.Duration
	ID       netip.Addr
	Families []Family // IPv4 and IPv6 unicast alone; IPv4 where the sender names none
	Refresh  bool     // RFC 2918
	FourByte bool     // RFC 6793
}

// Expect is what the router must say.
type Expect struct {
	LocalAS, RemoteAS uint32
	LocalID           netip.Addr
}

const (
	asTrans = 23456 // RFC 6793

	capMultiprotocol = 1
	capRefresh       = 2
	capFourByteAS    = 65

	paramCapabilities = 2
	extendedLength    = 255 // RFC 9072

	// minHold is the shortest hold time (RFC 4271, section 4.2). The RFC also allows
	// 0, no hold timer: such a session outlives its router, so it is refused.
	minHold = 3 * time.Second
)

// ParseOpen reads an OPEN message of at least 29 bytes, as Read returns it.
func ParseOpen(m []byte) (Open, error) {
	b := m[headerLen:]
	if b[0] != 4 {
		return Open{}, fault(codeOpen, 1, []byte{0, 4}, "OPEN with version %d: BGP-4 is required", b[0])
	}
	short := uint32(binary.BigEndian.Uint16(b[1:]))
	o := Open{AS: short, Hold: time.Duration(binary.BigEndian.Uint16(b[3:])) * time.Second, ID: netip.AddrFrom4([4]byte(b[5:9]))}
	params, wide, err := parameters(b[9:])
	if err != nil {
		return Open{}, err
	}
	caps := capabilities{open: &o}
	for len(params) > 0 {
		var kind byte
		var value []byte
		if kind, value, params, err = nextParameter(params, wide); err != nil {
			return Open{}, err
		}
		if kind != paramCapabilities {
			return Open{}, fault(codeOpen, 4, nil, "OPEN with the unknown optional parameter %d", kind)
		}
		if err := caps.read(value); err != nil {
			return Open{}, err
		}
	}
	if !caps.multiprotocol {
		o.Families = []Family{IPv4} // RFC 4760, section 8
	}
	if o.FourByte && short != o.AS && short != asTrans {
		return Open{}, fault(codeOpen, 2, nil, "OPEN with two AS numbers: %d and %d", short, o.AS)
	}
	return o, nil
}

func malformed(what string) error { return fault(codeOpen, 0, nil, "malformed OPEN: %s", what) }

// parameters returns the optional parameters, and whether their lengths have two
// bytes (RFC 9072).
func parameters(b []byte) (params []byte, wide bool, err error) {
	n, rest := int(b[0]), b[1:]
	if n > 0 && len(rest) >= 3 && b[0] == extendedLength && rest[0] == extendedLength {
		n, rest, wide = int(binary.BigEndian.Uint16(rest[1:])), rest[3:], true
	}
	if n != len(rest) {
		return nil, false, malformed("the length of the optional parameters is not that of the message")
	}
	return rest, wide, nil
}

func nextParameter(b []byte, wide bool) (kind byte, value, rest []byte, err error) {
	head := 2
	if wide {
		head = 3
	}
	if len(b) < head {
		return 0, nil, nil, malformed("an optional parameter is cut off")
	}
	n := int(b[1])
	if wide {
		n = int(binary.BigEndian.Uint16(b[1:]))
	}
	if len(b)-head < n {
		return 0, nil, nil, malformed("an optional parameter is longer than the message")
	}
	return b[0], b[head : head+n], b[head+n:], nil
}

// capabilities gathers what the capabilities of one OPEN say (RFC 5492).
type capabilities struct {
	open          *Open
	multiprotocol bool
}

func (c *capabilities) read(b []byte) error {
	for len(b) > 0 {
		if len(b) < 2 || len(b)-2 < int(b[1]) {
			return malformed("a capability is longer than its parameter")
		}
		code, value := b[0], b[2:2+int(b[1])]
		b = b[2+int(b[1]):]
		if err := c.take(code, value); err != nil {
			return err
		}
	}
	return nil
}

// take reads one capability. One that the screen does not know is not an error.
func (c *capabilities) take(code byte, v []byte) error {
	size, known := map[byte]int{capMultiprotocol: 4, capRefresh: 0, capFourByteAS: 4}[code]
	if !known {
		return nil
	}
	if len(v) != size {
		return malformed("a capability has the wrong length")
	}
	switch code {
	case capRefresh:
		c.open.Refresh = true
	case capFourByteAS:
		as := binary.BigEndian.Uint32(v)
		if c.open.FourByte && as != c.open.AS {
			return malformed("two capabilities name two AS numbers")
		}
		c.open.FourByte, c.open.AS = true, as
	case capMultiprotocol:
		c.multiprotocol = true
		f := Family{binary.BigEndian.Uint16(v), v[3]}
		if (f == IPv4 || f == IPv6) && !slices.Contains(c.open.Families, f) {
			c.open.Families = append(c.open.Families, f)
		}
	}
	return nil
}

// Check judges what a router said (RFC 4271, section 6.2).
func (o *Open) Check(e *Expect) error {
	switch {
	case o.AS != e.RemoteAS:
		return fault(codeOpen, 2, nil, "the router says AS %d, the configuration AS %d: correct one of them", o.AS, e.RemoteAS)
	case o.ID.IsUnspecified():
		return fault(codeOpen, 3, nil, "the router's BGP identifier is 0.0.0.0: give it a router ID")
	case o.ID == e.LocalID && e.LocalAS == e.RemoteAS:
		return fault(codeOpen, 3, nil, "the router has this node's BGP identifier %s: give one of them another", o.ID)
	case o.Hold < minHold:
		return fault(codeOpen, 6, nil, "the router asks for a hold time of %s: configure 3 s or more there", o.Hold)
	case len(o.Families) == 0:
		return fault(codeOpen, 7, nil, "the router offers neither IPv4 nor IPv6 unicast: activate one of them for this node")
	}
	return nil
}

// write makes an OPEN message of what was understood, and of nothing else.
func (o *Open) write() []byte {
	var caps []byte
	for _, f := range o.Families {
		caps = append(caps, capMultiprotocol, 4, byte(f.AFI>>8), byte(f.AFI), 0, f.SAFI)
	}
	if o.Refresh {
		caps = append(caps, capRefresh, 0)
	}
	short := o.AS
	if o.FourByte {
		caps = binary.BigEndian.AppendUint32(append(caps, capFourByteAS, 4), o.AS)
		if o.AS > 0xffff {
			short = asTrans
		}
	}
	hold := uint16(o.Hold / time.Second)
	id := o.ID.As4()
	body := []byte{4, byte(short >> 8), byte(short), byte(hold >> 8), byte(hold), id[0], id[1], id[2], id[3]}
	body = append(body, byte(2+len(caps)), paramCapabilities, byte(len(caps)))
	return message(TypeOpen, append(body, caps...)...)
}
