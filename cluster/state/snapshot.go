package state

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
)

// A snapshot is: magic and format (8 bytes), the length of the head (8), the
// head (everything but records), the number of records (8), the records in
// the order of shards and places, CRC-32C of all that (4). Fixed integers are
// little endian. It is canonical: equal states give equal bytes. Its format is
// the lowest that can hold the state (Spec.Format): a member of an older
// version is sent nothing that it cannot read.
const (
	snapshotMagic = "vpnlbst"

	bufferSize = 256 << 10 // bytes written or read at once
	maxRecord  = 1 + 16 + 4 + 8 + 4 + 4 + 4 + 1

	flagRecordState    = 4 // shift: confirmation, 2 bits
	flagRecordProposer = 1 << 6
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// sink buffers, sums and counts what is written.
type sink struct {
	w   io.Writer
	buf []byte
	crc uint32
	n   int64
	err error
}

func (s *sink) flush() {
	s.crc = crc32.Update(s.crc, castagnoli, s.buf)
	if s.err == nil {
		var n int
		n, s.err = s.w.Write(s.buf)
		s.n += int64(n)
	}
	s.buf = s.buf[:0]
}

// WriteTo writes the snapshot: the same bytes on all replicas at one index.
func (v *View) WriteTo(w io.Writer) (int64, error) {
	s := &sink{w: w, buf: make([]byte, 0, bufferSize)}
	s.buf = append(append(s.buf, snapshotMagic...), byte(v.spec.Format()))
	head := v.appendHead(nil)
	s.buf = binary.LittleEndian.AppendUint64(s.buf, uint64(len(head)))
	s.flush()
	for chunk := range slices.Chunk(head, bufferSize) {
		s.buf = append(s.buf, chunk...)
		s.flush()
	}
	s.buf = binary.LittleEndian.AppendUint64(s.buf, uint64(v.records.count))
	v.records.each(func(r *record) bool {
		if len(s.buf)+maxRecord > cap(s.buf) {
			s.flush()
		}
		s.buf = appendRecord(s.buf, r)
		return s.err == nil
	})
	s.flush()
	s.buf = binary.LittleEndian.AppendUint32(s.buf, s.crc)
	s.flush()
	if s.err != nil {
		return s.n, fmt.Errorf("write snapshot: %w", s.err)
	}
	return s.n, nil
}

func appendRecord(b []byte, r *record) []byte {
	flags := byte(r.class) | byte(r.state)<<flagRecordState
	if r.proposer != 0 {
		flags |= flagRecordProposer
	}
	switch {
	case r.high == 0 && r.low>>32 == 0xffff:
		b = append(b, flags|formIPv4<<2)
		b = binary.BigEndian.AppendUint32(b, uint32(r.low))
	case r.low == 0:
		b = append(b, flags|formUpper<<2)
		b = binary.BigEndian.AppendUint64(b, r.high)
	default:
		b = append(b, flags|formWhole<<2)
		b = binary.BigEndian.AppendUint64(b, r.high)
		b = binary.BigEndian.AppendUint64(b, r.low)
	}
	b = binary.LittleEndian.AppendUint32(b, uint32(r.backend))
	b = binary.LittleEndian.AppendUint64(b, r.index)
	b = binary.LittleEndian.AppendUint32(b, r.since)
	b = binary.LittleEndian.AppendUint32(b, r.seen)
	b = binary.LittleEndian.AppendUint32(b, r.heard)
	if r.proposer != 0 {
		b = append(b, r.proposer)
	}
	return b
}

// source buffers and sums what is read.
type source struct {
	r          io.Reader
	buf        []byte
	start, end int // unread part of buf
	summed     int // up to here in crc
	crc        uint32
}

// take gives the next n bytes, valid until the next call; n <= bufferSize.
func (s *source) take(n int) ([]byte, error) {
	if s.end-s.start < n {
		s.sum()
		copy(s.buf, s.buf[s.start:s.end])
		s.start, s.end, s.summed = 0, s.end-s.start, 0
		more, err := io.ReadAtLeast(s.r, s.buf[s.end:], n-s.end)
		s.end += more
		if err != nil {
			return nil, errShort
		}
	}
	s.start += n
	return s.buf[s.start-n : s.start], nil
}

func (s *source) sum() {
	s.crc = crc32.Update(s.crc, castagnoli, s.buf[s.summed:s.start])
	s.summed = s.start
}

func (s *source) uint64() (uint64, error) {
	b, err := s.take(8)
	if err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(b), nil
}

// Restore replaces everything by a snapshot, or nothing if there is an error.
func (m *Machine) Restore(r io.Reader) error {
	c, err := readSnapshot(r)
	if err != nil {
		return fmt.Errorf("restore snapshot: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.core = c
	m.published, m.view = false, nil
	return nil
}

func readSnapshot(r io.Reader) (core, error) {
	s := &source{r: r, buf: make([]byte, bufferSize)}
	magic, err := s.take(len(snapshotMagic) + 1)
	if err != nil {
		return core{}, err
	}
	if string(magic[:len(snapshotMagic)]) != snapshotMagic {
		return core{}, errors.New("this is no snapshot")
	}
	format := uint16(magic[len(snapshotMagic)])
	if format < 1 || format > Format {
		return core{}, fmt.Errorf("snapshot of format %d: %w", format, ErrUnknown)
	}
	head, err := s.head()
	if err != nil {
		return core{}, err
	}
	c, err := decodeHead(head, format)
	if err != nil {
		return core{}, err
	}
	if err := c.readRecords(s); err != nil {
		return core{}, err
	}
	s.sum()
	want := s.crc
	trailer, err := s.take(4)
	if err != nil {
		return core{}, err
	}
	if got := binary.LittleEndian.Uint32(trailer); got != want {
		return core{}, fmt.Errorf("checksum is %08x, not %08x", want, got)
	}
	if _, err := s.take(1); err == nil {
		return core{}, errors.New("something follows the checksum")
	}
	c.spec.Affinities = c.records.count
	if err := c.checkFilled(); err != nil {
		return core{}, err
	}
	c.marks = c.spec.marks()
	return c, nil
}

// head reads the head piece by piece: memory grows with what arrives, not with
// the length it claims.
func (s *source) head() ([]byte, error) {
	n, err := s.uint64()
	if err != nil {
		return nil, err
	}
	var head bytes.Buffer
	for n > 0 {
		piece := min(n, bufferSize)
		b, err := s.take(int(piece))
		if err != nil {
			return nil, err
		}
		head.Write(b)
		n -= piece
	}
	return head.Bytes(), nil
}

// readRecords fills shards, entry counts and budgets. Records come in order,
// so each shard is built once, in its final size.
func (c *core) readRecords(s *source) error {
	count, err := s.uint64()
	if err != nil {
		return err
	}
	if count > MaxAffinity {
		return fmt.Errorf("%d records are more than %d", count, MaxAffinity)
	}
	var scratch []record
	var last place
	lastNumber := -1
	flush := func() {
		if lastNumber >= 0 {
			c.records.own(lastNumber, 0).records = slices.Clone(scratch)
		}
		scratch = scratch[:0]
	}
	for range count {
		r, err := s.record()
		if err != nil {
			return err
		}
		p := r.place()
		number := c.records.number(&p)
		if number < lastNumber || number == lastNumber && last.compare(&p) >= 0 {
			return errors.New("records are out of order")
		}
		if number != lastNumber {
			flush()
			lastNumber = number
		}
		last = p
		if err := c.adopt(&r); err != nil {
			return err
		}
		scratch = append(scratch, r)
	}
	flush()
	c.records.count = int(count)
	return nil
}

func (s *source) record() (r record, err error) {
	b, err := s.take(1)
	if err != nil {
		return r, err
	}
	flags := b[0]
	r.class = Class(flags & 3)
	r.state = Confirmation(flags >> flagRecordState & 3)
	form, owned := flags>>2&3, flags&flagRecordProposer != 0
	size := 24
	switch form {
	case formIPv4:
		size += 4
	case formUpper:
		size += 8
	default:
		size += 16
	}
	if owned {
		size++
	}
	if b, err = s.take(size); err != nil {
		return r, err
	}
	switch form {
	case formIPv4:
		r.low, b = 0xffff<<32|uint64(binary.BigEndian.Uint32(b)), b[4:]
	case formUpper:
		r.high, b = binary.BigEndian.Uint64(b), b[8:]
	default:
		r.high, r.low, b = binary.BigEndian.Uint64(b), binary.BigEndian.Uint64(b[8:]), b[16:]
	}
	ipv4 := r.high == 0 && r.low>>32 == 0xffff
	upper := !ipv4 && r.low == 0
	if form > formWhole || ipv4 != (form == formIPv4) || upper != (form == formUpper) || flags>>7 != 0 ||
		r.class < 1 || int(r.class) > len(Classes) || r.state == 0 || owned != (r.state != Confirmed) {
		return r, fmt.Errorf("%#02x are no flags of a record", flags)
	}
	r.backend = BackendID(binary.LittleEndian.Uint32(b))
	r.index = binary.LittleEndian.Uint64(b[4:])
	r.since = binary.LittleEndian.Uint32(b[12:])
	r.seen = binary.LittleEndian.Uint32(b[16:])
	r.heard = binary.LittleEndian.Uint32(b[20:])
	if owned {
		r.proposer = b[24]
	}
	return r, nil
}

// checkFilled refuses what no command leads to. Between its bounds Filled may be
// either: that is why it is in the snapshot.
func (c *core) checkFilled() error {
	for _, b := range c.spec.Backends { // copies
		told := b.Filled
		if b.fill(); b.Filled != told {
			return fmt.Errorf("backend %d with %d of %d records is told to be filled: %t", b.ID, b.Entries[ClassIKE-1], b.Limit, told)
		}
	}
	return nil
}

// adopt counts a restored record.
func (c *core) adopt(r *record) error {
	at := c.spec.backendAt(r.backend)
	if at < 0 {
		return fmt.Errorf("a record names backend %d, which is not there", r.backend)
	}
	c.spec.Backends[at].Entries[r.class-1]++
	if r.state == Confirmed {
		return nil
	}
	if r.proposer == 0 || int(r.proposer) > len(c.proposers) {
		return fmt.Errorf("a record names proposer %d, which is not there", r.proposer)
	}
	c.proposers[r.proposer-1].unconfirmed++
	p := r.place()
	c.prefixes[p.prefix()]++
	return nil
}
