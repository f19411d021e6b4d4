package boltstore

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"time"

	hraft "github.com/hashicorp/raft"
)

// Records are written for ever: a new layout takes a new format number.
//
//	log record:    crc32c u32 | format u8 | type u8 | term u64 | index u64 |
//	               appended i64 (Unix ns, 0 none) | extensions length u32 | extensions | data
//	stable record: crc32c u32 | value        (the CRC covers the key and the value)
//
// Integers are big endian; the CRC of a log record covers all that follows it.
const (
	formatLog = 1
	logHeader = 4 + 1 + 1 + 8 + 8 + 8 + 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func indexKey(i uint64) []byte { return binary.BigEndian.AppendUint64(nil, i) }

func encodeLog(l *hraft.Log) []byte {
	b := make([]byte, 4, logHeader+len(l.Extensions)+len(l.Data))
	b = append(b, formatLog, byte(l.Type))
	b = binary.BigEndian.AppendUint64(b, l.Term)
	b = binary.BigEndian.AppendUint64(b, l.Index)
	var at int64
	if !l.AppendedAt.IsZero() {
		at = l.AppendedAt.UnixNano()
	}
	b = binary.BigEndian.AppendUint64(b, uint64(at))
	b = binary.BigEndian.AppendUint32(b, uint32(len(l.Extensions)))
	b = append(b, l.Extensions...)
	b = append(b, l.Data...)
	binary.BigEndian.PutUint32(b, crc32.Checksum(b[4:], castagnoli))
	return b
}

// decodeLog copies out of b, which may be a page of the memory map.
func decodeLog(index uint64, b []byte, l *hraft.Log) error {
	if len(b) < logHeader {
		return corruptf("log entry %d has %d bytes", index, len(b))
	}
	if crc32.Checksum(b[4:], castagnoli) != binary.BigEndian.Uint32(b) {
		return corruptf("log entry %d has a wrong checksum", index)
	}
	if b[4] != formatLog {
		return fmt.Errorf("log entry %d has format %d, this program knows %d", index, b[4], formatLog)
	}
	if got := binary.BigEndian.Uint64(b[14:]); got != index {
		return corruptf("log entry %d says it is entry %d", index, got)
	}
	ext := int64(binary.BigEndian.Uint32(b[30:]))
	if ext > int64(len(b)-logHeader) {
		return corruptf("log entry %d has extensions of %d bytes", index, ext)
	}
	*l = hraft.Log{
		Index: index,
		Term:  binary.BigEndian.Uint64(b[6:]),
		Type:  hraft.LogType(b[5]),
	}
	if at := int64(binary.BigEndian.Uint64(b[22:])); at != 0 {
		l.AppendedAt = time.Unix(0, at)
	}
	rest := b[logHeader:]
	if ext > 0 {
		l.Extensions = append([]byte(nil), rest[:ext]...)
	}
	l.Data = append([]byte(nil), rest[ext:]...)
	return nil
}

func encodeStable(key, val []byte) []byte {
	b := make([]byte, 4, 4+len(val))
	binary.BigEndian.PutUint32(b, stableSum(key, val))
	return append(b, val...)
}

func decodeStable(key, b []byte) ([]byte, error) {
	if len(b) < 4 || binary.BigEndian.Uint32(b) != stableSum(key, b[4:]) {
		return nil, corruptf("value of %q has a wrong checksum", key)
	}
	return append([]byte{}, b[4:]...), nil
}

func stableSum(key, val []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, val)
}

// CorruptError says that the file, or a record in it, is not what was written.
type CorruptError struct{ Detail string }

// Error implements error.
func (e *CorruptError) Error() string { return "corrupt store: " + e.Detail }

func corruptf(format string, args ...any) error {
	return &CorruptError{Detail: fmt.Sprintf(format, args...)}
}
