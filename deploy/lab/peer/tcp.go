package peer

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
)

// The TCP service has the shape of SSTP (MS-SSTP 3.1.4.1): TLS, one request with
// a method of its own and a length that never ends, then records both ways.
const (
	tcpPort     = 443
	sstpPath    = "/sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/"
	sstpLength  = "18446744073709551615" // 2^64-1: a stream without end
	maxHead     = 8 << 10                // bytes of a request or its answer
	maxHeadLine = 64                     // lines
)

// record is what travels after the handshake, numbered.
type record struct {
	seq    uint64
	server uint16 // in an echo: who echoed
}

const recordLen = 32

var recordMark = [4]byte{'v', 'l', 't', 'r'}

func (r record) encode() []byte {
	b := make([]byte, recordLen)
	copy(b, recordMark[:])
	binary.BigEndian.PutUint16(b[4:], r.server)
	binary.BigEndian.PutUint64(b[8:], r.seq)
	return b
}

var errNoRecord = errors.New("not a record")

func readRecord(in io.Reader) (record, error) {
	var b [recordLen]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return record{}, err
	}
	if [4]byte(b[:4]) != recordMark {
		return record{}, errNoRecord
	}
	return record{seq: binary.BigEndian.Uint64(b[8:]), server: binary.BigEndian.Uint16(b[4:])}, nil
}

// duplexRequest opens the stream.
func duplexRequest(host string) string {
	return fmt.Sprintf("SSTP_DUPLEX_POST %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %s\r\n\r\n", sstpPath, host, sstpLength)
}

// answer is the server's word on a request: like RRAS it shows an unknown
// caller of its path 401, and lets the tunnel's method in.
func answer(requestLine string) (head string, stream bool) {
	f := strings.Fields(requestLine)
	if len(f) != 3 || !strings.EqualFold(f[1], sstpPath) {
		return "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false
	}
	if f[0] != "SSTP_DUPLEX_POST" {
		return "HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", false
	}
	return "HTTP/1.1 200\r\nContent-Length: " + sstpLength + "\r\n\r\n", true
}

// readHead reads lines up to an empty one and returns the first.
func readHead(in *bufio.Reader) (first string, err error) {
	size := 0
	for n := range maxHeadLine {
		line, err := in.ReadString('\n')
		if err != nil {
			return "", err
		}
		if size += len(line); size > maxHead {
			break
		}
		line = strings.TrimRight(line, "\r\n")
		switch {
		case n == 0:
			first = line
		case line == "":
			return first, nil
		}
	}
	return "", errors.New("head too long")
}
