package state

// Format is the highest command format that this version understands: what
// Member.Format says of a node that runs it.
//
//	1  the first
//	2  DSR backends, SourceLimit; IPv6 VIPs and pass-through of TCP 443, which
//	   older versions agree on but do not forward
//	3  certificates, ports and transparency of SSTP; VIPs whose TLS ends on the
//	   nodes, which older versions agree on but do not serve
const Format = 3

// Format is the lowest format that can hold this spec: a node that knows less
// cannot read its snapshot and is not admitted.
func (s *Spec) Format() uint16 {
	format := uint16(1)
	if s.Settings.SourceLimit != 0 {
		format = 2
	}
	for i := range s.VIPs {
		if v := (PutVIP{VIP: s.VIPs[i]}); v.kind() == KindPutVIPSSTP {
			return 3
		}
	}
	for i := range s.Backends {
		switch (PutBackend{Backend: s.Backends[i]}).kind() {
		case KindPutBackendSSTP:
			return 3
		case KindPutBackendMode:
			format = 2
		}
	}
	return format
}

// FormatOf is the lowest format whose nodes can apply a command and do what it
// asks for. A leader proposes only what LowestFormat allows: the entry of a kind
// that a member does not know would park it.
func FormatOf(c Command) uint16 {
	switch c := c.(type) {
	case PutVIP:
		switch {
		case c.kind() == KindPutVIPSSTP, c.VIP.SSTP.Ends():
			return 3
		case c.VIP.SSTP == SSTPPassthrough || c.VIP.Addr.Is6():
			return 2
		}
	case PutBackend:
		switch c.kind() {
		case KindPutBackendSSTP:
			return 3
		case KindPutBackendMode:
			return 2
		}
	case RemoveCertificate:
		if c.Secret {
			return 3
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
