package state

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"time"
)

// ErrUnknown is what Apply and the decoders wrap when an entry was written by
// a newer binary (unknown format or kind): the node parks, nothing is skipped.
var ErrUnknown = errors.New("written by a newer version")

// Numbers of the encoded forms; one byte before everything else. A new form
// gets a new number, and an old binary answers ErrUnknown.
const (
	formatBatch     = 1
	formatEnvelopes = 1
	formatOutcomes  = 1
)

// Writing: append to a slice, as in encoding/binary. Integers are minimal
// uvarints (signed ones as their two's complement: they are never negative in
// practice), identifiers and hashes are raw, strings and lists have a uvarint
// length before them.

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendBytes(b, s []byte) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendDuration(b []byte, d time.Duration) []byte { return binary.AppendUvarint(b, uint64(d)) }

// appendAddr: 0 for none, else 4 or 6 and the bytes. Zones do not travel.
func appendAddr(b []byte, a netip.Addr) []byte {
	switch {
	case !a.IsValid():
		return append(b, 0)
	case a.Is4():
		v := a.As4()
		return append(append(b, 4), v[:]...)
	}
	v := a.As16()
	return append(append(b, 6), v[:]...)
}

// appendPrefix: address and length; 255 for an invalid length.
func appendPrefix(b []byte, p netip.Prefix) []byte {
	return append(appendAddr(b, p.Addr()), byte(p.Bits()))
}

// reader takes values off the front of a slice. The first fault sticks; after
// it every value is zero. A strict reader (everything that comes from a peer)
// refuses lengths above the named limits; for what is committed already only
// the length of the input counts, and Apply judges the limits: a command that
// is too long must not park a cluster.
type reader struct {
	b      []byte
	strict bool
	err    error
}

var errShort = errors.New("input ends too early")

func (r *reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.b = nil
}

func (r *reader) uint8() uint8 {
	if len(r.b) < 1 {
		r.fail(errShort)
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) bool() bool {
	v := r.uint8()
	if v > 1 {
		r.fail(fmt.Errorf("%d is no boolean", v))
	}
	return v == 1
}

// uint reads a minimal uvarint of at most max.
func (r *reader) uint(max uint64) uint64 {
	if len(r.b) > 0 && r.b[0] < 0x80 && uint64(r.b[0]) <= max {
		v := r.b[0]
		r.b = r.b[1:]
		return uint64(v)
	}
	v, n := binary.Uvarint(r.b)
	switch {
	case n == 0:
		r.fail(errShort)
		return 0
	case n < 0 || v > max:
		r.fail(fmt.Errorf("number is larger than %d", max))
		return 0
	case n > 1 && r.b[n-1] == 0:
		r.fail(errors.New("number is not in its shortest form"))
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint64() uint64          { return r.uint(math.MaxUint64) }
func (r *reader) uint32() uint32          { return uint32(r.uint(math.MaxUint32)) }
func (r *reader) uint16() uint16          { return uint16(r.uint(math.MaxUint16)) }
func (r *reader) time() Time              { return Time(r.uint64()) }
func (r *reader) duration() time.Duration { return time.Duration(r.uint64()) }

func (r *reader) raw(n int) []byte {
	if len(r.b) < n {
		r.fail(errShort)
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) id() (id [16]byte) {
	copy(id[:], r.raw(16))
	return id
}

func (r *reader) hash() (h [32]byte) {
	copy(h[:], r.raw(32))
	return h
}

// count reads the length of a list whose elements take at least size bytes.
func (r *reader) count(what string, limit, size int) int {
	n := r.uint64()
	if r.strict && n > uint64(limit) {
		r.fail(fmt.Errorf("%d %s are more than %d", n, what, limit))
		return 0
	}
	if n > uint64(len(r.b)/size) {
		r.fail(errShort)
		return 0
	}
	return int(n)
}

func (r *reader) string(what string, limit int) string {
	return string(r.raw(r.count("bytes of "+what, limit, 1)))
}

func (r *reader) bytes(what string, limit int) []byte {
	n := r.count("bytes of "+what, limit, 1)
	if n == 0 {
		return nil
	}
	return append([]byte(nil), r.raw(n)...)
}

func (r *reader) addr() netip.Addr {
	switch form := r.uint8(); form {
	case 0:
		return netip.Addr{}
	case 4:
		if v := r.raw(4); len(v) == 4 {
			return netip.AddrFrom4([4]byte(v))
		}
	case 6:
		return netip.AddrFrom16(r.id())
	default:
		r.fail(fmt.Errorf("%d is no form of an address", form))
	}
	return netip.Addr{}
}

func (r *reader) prefix() netip.Prefix {
	a, bits := r.addr(), r.uint8()
	if bits == 255 {
		return netip.PrefixFrom(a, -1)
	}
	p := netip.PrefixFrom(a, int(bits))
	if !p.IsValid() {
		r.fail(fmt.Errorf("%d is no length of a prefix of %v", bits, a))
	}
	return p
}

// list reads a count and as many elements.
func list[T any](r *reader, what string, limit, size int, element func(*reader) T) []T {
	n := r.count(what, limit, size)
	if n == 0 {
		return nil
	}
	all := make([]T, 0, n)
	for range n {
		all = append(all, element(r))
		if r.err != nil {
			return nil
		}
	}
	return all
}

// format checks the first byte.
func (r *reader) format(what string, known uint8) {
	if v := r.uint8(); r.err == nil && v != known {
		r.fail(fmt.Errorf("%s of format %d: %w", what, v, ErrUnknown))
	}
}

// end gives the sticky fault, or says that something is left.
func (r *reader) end(what string) error {
	if r.err == nil && len(r.b) > 0 {
		r.fail(fmt.Errorf("%d bytes are left over", len(r.b)))
	}
	if r.err != nil {
		return fmt.Errorf("decode %s: %w", what, r.err)
	}
	return nil
}

// EncodeBatch gives the data of a log entry.
func EncodeBatch(b Batch) []byte {
	out := append(make([]byte, 0, 64), formatBatch)
	out = binary.AppendUvarint(out, uint64(b.Stamp))
	return appendEnvelopes(out, b.Envelopes)
}

// DecodeBatch reads what EncodeBatch wrote, and refuses what breaks a limit.
func DecodeBatch(data []byte) (Batch, error) { return decodeBatch(data, true) }

func decodeBatch(data []byte, strict bool) (Batch, error) {
	r := &reader{b: data, strict: strict}
	var b Batch
	r.format("batch", formatBatch)
	b.Stamp = r.time()
	b.Envelopes = r.envelopes()
	if err := r.end("batch"); err != nil {
		return Batch{}, err
	}
	return b, nil
}

// EncodeEnvelopes gives the body of a forwarded proposal.
func EncodeEnvelopes(e []Envelope) []byte {
	return appendEnvelopes(append(make([]byte, 0, 64), formatEnvelopes), e)
}

// DecodeEnvelopes reads what EncodeEnvelopes wrote, and refuses what breaks a limit.
func DecodeEnvelopes(data []byte) ([]Envelope, error) {
	r := &reader{b: data, strict: true}
	r.format("envelopes", formatEnvelopes)
	e := r.envelopes()
	if err := r.end("envelopes"); err != nil {
		return nil, err
	}
	return e, nil
}

func appendEnvelopes(b []byte, all []Envelope) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for i := range all {
		e := &all[i]
		b = append(b, e.Origin[:]...)
		b = binary.AppendUvarint(b, e.Boot)
		b = binary.AppendUvarint(b, e.Sequence)
		b = appendCommand(b, e.Command)
	}
	return b
}

// sizeEnvelope is the least an envelope takes: origin, boot, sequence, kind.
const sizeEnvelope = 16 + 1 + 1 + 1

func (r *reader) envelopes() []Envelope {
	return list(r, "envelopes", math.MaxInt32, sizeEnvelope, func(r *reader) Envelope {
		return Envelope{Origin: r.id(), Boot: r.uint64(), Sequence: r.uint64(), Command: r.command()}
	})
}

// EncodeOutcomes gives the answer to a forwarded proposal.
func EncodeOutcomes(all []Outcome) []byte {
	b := append(make([]byte, 0, 64), formatOutcomes)
	b = binary.AppendUvarint(b, uint64(len(all)))
	for i := range all {
		b = appendOutcome(b, &all[i])
	}
	return b
}

// DecodeOutcomes reads what EncodeOutcomes wrote, and refuses what breaks a limit.
func DecodeOutcomes(data []byte) ([]Outcome, error) {
	r := &reader{b: data, strict: true}
	r.format("outcomes", formatOutcomes)
	all := list(r, "outcomes", math.MaxInt32, sizeOutcome, (*reader).outcome)
	if err := r.end("outcomes"); err != nil {
		return nil, err
	}
	return all, nil
}

// sizeOutcome is the least an outcome takes: code, index, ID, no detail, no learns.
const sizeOutcome = 5

// appendOutcome: four learn results share a byte, the first in the low bits.
func appendOutcome(b []byte, o *Outcome) []byte {
	b = append(b, byte(o.Code))
	b = binary.AppendUvarint(b, o.Index)
	b = binary.AppendUvarint(b, o.ID)
	b = appendString(b, o.Detail)
	b = binary.AppendUvarint(b, uint64(len(o.Learns)))
	for i := 0; i < len(o.Learns); i += 4 {
		var v byte
		for j, l := range o.Learns[i:min(i+4, len(o.Learns))] {
			v |= byte(l&3) << (2 * j)
		}
		b = append(b, v)
	}
	return b
}

func (r *reader) outcome() Outcome {
	o := Outcome{Code: Code(r.uint8()), Index: r.uint64(), ID: r.uint64(), Detail: r.string("detail", MaxDetail)}
	n := int(r.uint(math.MaxInt32))
	if r.strict && n > MaxBatch {
		r.fail(fmt.Errorf("%d learn results are more than %d", n, MaxBatch))
	}
	packed := r.raw((n + 3) / 4)
	if r.err != nil || n == 0 {
		return o
	}
	if n%4 != 0 && packed[len(packed)-1]>>(2*(n%4)) != 0 {
		r.fail(errors.New("bits after the last learn result are set"))
		return o
	}
	o.Learns = make([]LearnResult, n)
	for i := range o.Learns {
		o.Learns[i] = LearnResult(packed[i/4] >> (2 * (i % 4)) & 3)
	}
	return o
}

// Check reports whether a command keeps the limits of its encoded form. A
// proposer asks before it encodes; Apply judges everything else.
func Check(c Command) error {
	if c == nil {
		return errors.New("check command: there is none")
	}
	if in, ok := c.(Init); ok && in.Settings.SourceLimit != 0 {
		return errors.New("check command: init has no source limit, set it afterwards")
	}
	r := &reader{b: appendCommand(nil, c), strict: true}
	r.command()
	if r.end("command") != nil {
		return fmt.Errorf("%s: %w", strings.TrimPrefix(fmt.Sprintf("%T", c), "state."), r.err)
	}
	return nil
}
