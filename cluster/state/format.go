package state

// Format is the highest command format that this version understands: what
// Member.Format says of a node that runs it.
//
//	1  the first
//	2  DSR backends, SourceLimit; IPv6 VIPs and pass-through of TCP 443, which
//	   older versions agree on but do not forward
const Format = 2

// Format is the lowest format that can hold this spec: a node that knows less
// cannot read its snapshot and is not admitted.
func (s *Spec) Format() uint16 {
	if s.Settings.SourceLimit != 0 {
		return 2
	}
	for i := range s.Backends {
		if s.Backends[i].Mode != ModeDNAT {
			return 2
		}
	}
	return 1
}

// FormatOf is the lowest format whose nodes can apply a command and do what it
// asks for. A leader proposes only what LowestFormat allows: the entry of a kind
// that a member does not know would park it.
func FormatOf(c Command) uint16 {
	switch c := c.(type) {
	case PutVIP:
		if c.VIP.SSTP == SSTPPassthrough || c.VIP.Addr.Is6() {
			return 2
		}
	case PutBackend:
		if c.Backend.Mode != ModeDNAT {
			return 2
		}
	case SetSettings:
		if c.Settings.SourceLimit != 0 {
			return 2
		}
	}
	return 1
}

// LowestFormat is the member that understands least, and what it understands.
func (s *Spec) LowestFormat() (*Member, uint16) {
	var lowest *Member
	for i := range s.Members {
		if n := &s.Members[i]; lowest == nil || n.Format < lowest.Format {
			lowest = n
		}
	}
	if lowest == nil {
		return nil, 0
	}
	return lowest, lowest.Format
}
