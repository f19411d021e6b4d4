package model

import "encoding/binary"

// field is a checksum in a packet.
type field struct {
	bytes []byte // its two
	value uint16
}

func sumField(b []byte, at int) field {
	return field{b[at : at+2], binary.BigEndian.Uint16(b[at:])}
}

// change takes old out of the sum and now into it.
func (f *field) change(old, now []byte) { f.value = change(f.value, old, now) }

// put writes the value; around is a sum that covers this one, nil: none.
func (f *field) put(around *field) {
	old := [2]byte(f.bytes)
	binary.BigEndian.PutUint16(f.bytes, f.value)
	if around != nil {
		around.change(old[:], f.bytes)
	}
}

// change is RFC 1624, equation 3: HC' = ~(~HC + ~m + m').
func change(sum uint16, old, now []byte) uint16 {
	total := uint64(^sum)
	for i := 0; i < len(old); i += 2 {
		total += uint64(^binary.BigEndian.Uint16(old[i:])) + uint64(binary.BigEndian.Uint16(now[i:]))
	}
	return ^fold(total)
}

// sumOf adds 16-bit words; an odd last byte is the upper half of one.
func sumOf(b []byte) uint64 {
	var total uint64
	for ; len(b) >= 2; b = b[2:] {
		total += uint64(binary.BigEndian.Uint16(b))
	}
	if len(b) == 1 {
		total += uint64(b[0]) << 8
	}
	return total
}

func fold(sum uint64) uint16 {
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}

// pseudoSum is the sum of the pseudo-header (RFC 768, RFC 9293, RFC 8200 section
// 8.1): that of both families is the same, because zeros do not count.
func pseudoSum(src, dst []byte, protocol uint8, length int) uint64 {
	return sumOf(src) + sumOf(dst) + uint64(protocol) + uint64(length)
}
