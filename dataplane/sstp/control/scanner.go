package control

// Scanner cuts the bytes of one direction into packets, however reads cut them.
// The zero value is ready. One goroutine uses it.
type Scanner struct {
	skip  int // bytes left of a packet that is not looked at
	carry []byte
	head  [headerBytes]byte // backs carry until it is known what the packet is
}

// Scan goes on with p, up to the end of the next control message or of p. It
// returns the message's first MaxBytes if it is complete (they are valid until
// the next Scan), what of p is left, and how many data packets began. An error
// is final.
func (s *Scanner) Scan(p []byte) (message, rest []byte, data int, err error) {
	for {
		if s.skip > 0 {
			n := min(s.skip, len(p))
			s.skip -= n
			p = p[n:]
		}
		if len(p) == 0 {
			return nil, nil, data, nil
		}
		b := p
		if len(s.carry) > 0 || len(p) < headerBytes {
			if b, p = s.gather(p, headerBytes); b == nil {
				return nil, nil, data, nil
			}
		}
		size, control, err := packet(b)
		if err != nil {
			return nil, nil, data, err
		}
		if !control {
			data++
			s.pass(&p, size)
			continue
		}
		want := min(size, MaxBytes)
		if len(s.carry) > 0 || len(p) < want {
			if b, p = s.gather(p, want); b == nil {
				return nil, nil, data, nil
			}
			s.carry, s.skip = nil, size-want
			return b, p, data, nil
		}
		s.skip = size - want
		return p[:want], p[want:], data, nil
	}
}

// pass leaves a data packet whose header was read, in p or in carry, behind.
func (s *Scanner) pass(p *[]byte, size int) {
	if len(s.carry) > 0 {
		s.carry, s.skip = nil, size-headerBytes
		return
	}
	n := min(size, len(*p))
	s.skip, *p = size-n, (*p)[n:]
}

// gather moves bytes of p to carry until it has want, and returns it then.
func (s *Scanner) gather(p []byte, want int) (b, rest []byte) {
	if s.carry == nil {
		s.carry = s.head[:0]
	}
	if want > cap(s.carry) {
		s.carry = append(make([]byte, 0, want), s.carry...)
	}
	n := min(max(want-len(s.carry), 0), len(p))
	s.carry = append(s.carry, p[:n]...)
	if len(s.carry) < want {
		return nil, nil
	}
	return s.carry, p[n:]
}
