package health

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"
)

// The call of SSTP ([MS-SSTP], section 4.1): the server's HTTP layer answers 200
// only while it has a free port, which a HEAD cannot show, and its SSTP service
// answers Call Connect Request with Call Connect Ack. There we hang up: nobody
// logs in, so it proves no authentication and no certificate hash.

// Messages and attributes of [MS-SSTP], sections 2.2.2 to 2.2.15.
const (
	sstpVersion = 0x10
	sstpControl = 0x01 // the C bit

	callConnectAck    = 2
	callConnectNak    = 3
	callAbort         = 5
	callDisconnectAck = 7

	attributeStatus  = 2
	attributeBinding = 4 // Crypto Binding Request

	packetHead    = 4                  // version, C bit, length
	messageHead   = packetHead + 4     // message type, number of attributes
	attributeHead = 4                  // reserved, ID, length
	bindingBytes  = attributeHead + 36 // reserved (3), hash bitmask (1), nonce (32)
	statusBytes   = attributeHead + 8  // reserved (3), attribute (1), status (4), then perhaps a value
	lengthMask    = 0x0fff             // of all lengths: the upper bits are reserved

	hashSHA1, hashSHA256 = 1, 2 // bits of the hash bitmask
)

// callRequest is Call Connect Request (2.2.9) for PPP; callDisconnect is Call
// Disconnect (2.2.14) with a Status Info attribute that names no error.
var (
	callRequest    = []byte{sstpVersion, sstpControl, 0, 14, 0, 1, 0, 1, 0, 1, 0, 6, 0, 1}
	callDisconnect = []byte{sstpVersion, sstpControl, 0, 20, 0, 6, 0, 1, 0, attributeStatus, 0, statusBytes, 0, 0, 0, 0, 0, 0, 0, 0}
)

const (
	// callLength is the Content-Length of both heads: 2^64-1, section 3.2.4.1.
	callLength = "18446744073709551615"
	callUp     = "HTTP/1.1 200"

	// callTimeout bounds a call up to the Ack. Clients wait 60 s for the 200; a
	// server that takes a sixth of that for nothing but two answers is ill.
	callTimeout = 10 * time.Second
	// farewell bounds the wait for Call Disconnect Acknowledge: it proves
	// nothing, but a server that sent it has given its port back.
	farewell = time.Second
	// maxCallBytes are read in one call, and maxPackets of them while waiting for
	// the farewell: a server begins PPP at once, so data packets come first.
	maxCallBytes = 16 << 10
	maxPackets   = 16
)

var errTooMuch = fmt.Errorf("more than %d bytes", maxCallBytes)

// callSSTP makes one call and hangs up, until ctx ends. An error means that this
// node could not ask: then it knows nothing.
func callSSTP(ctx context.Context, dial Dial, local, server netip.Addr, check SSTPCheck) (verdictSSTP, error) {
	conn, v, err := open(ctx, dial, local, server, check)
	if conn == nil {
		return v, err
	}
	defer conn.Close()
	_, err = fmt.Fprintf(conn, "SSTP_DUPLEX_POST %s HTTP/1.1\r\nContent-Length: %s\r\nHost: %s\r\nSSTPCORRELATIONID: {%s}\r\n\r\n",
		sstpPath, callLength, hostOf(server), correlation())
	if err != nil {
		return verdictSSTP{NoteCallSilent, words(err)}, nil
	}
	in := newCallReader(conn)
	v = converse(in, conn)
	if v.note == NoteCall {
		hangUp(conn, in)
	}
	return v, nil
}

// converse takes a call up to the Ack, after the request head was sent.
func converse(in *callReader, out io.Writer) verdictSSTP {
	if v := in.head(); v.note != NoteNone {
		return v
	}
	if _, err := out.Write(callRequest); err != nil {
		return verdictSSTP{NoteCallSilent, words(err)}
	}
	packet, err := in.packet()
	if err != nil {
		return brokenOr(err)
	}
	return judgeCall(packet)
}

// hangUp ends the call as a client does, so that the server frees its port.
func hangUp(conn *link, in *callReader) {
	conn.SetDeadline(time.Now().Add(farewell))
	if _, err := conn.Write(callDisconnect); err != nil {
		return
	}
	for range maxPackets {
		p, err := in.packet()
		if err != nil || p[1]&sstpControl != 0 && messageType(p) == callDisconnectAck {
			return
		}
	}
}

// correlation is a fresh random GUID: servers write it beside their events.
func correlation() string {
	var g [16]byte
	rand.Read(g[:])
	g[6], g[8] = g[6]&0x0f|0x40, g[8]&0x3f|0x80 // RFC 9562, section 5.4
	return strings.ToUpper(fmt.Sprintf("%x-%x-%x-%x-%x", g[:4], g[4:6], g[6:8], g[8:10], g[10:]))
}

// callReader reads what a server says in a call, maxCallBytes at most.
type callReader struct {
	limit *io.LimitedReader
	*bufio.Reader
}

func newCallReader(r io.Reader) *callReader {
	limit := &io.LimitedReader{R: r, N: maxCallBytes}
	return &callReader{limit, bufio.NewReaderSize(limit, maxStatusLine)}
}

// cut tells the end of our patience from that of the connection.
func (r *callReader) cut(err error) error {
	if r.limit.N <= 0 && (errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
		return errTooMuch
	}
	return err
}

// line reads a line without its end.
func (r *callReader) line() (string, error) {
	b, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		return "", errNoLine
	case err != nil:
		return "", r.cut(err)
	}
	return strings.TrimSuffix(string(b[:len(b)-1]), "\r"), nil
}

// head reads the response head: NoteNone where the call may go on.
func (r *callReader) head() verdictSSTP {
	status, err := r.line()
	switch {
	case err != nil:
		return brokenOr(err)
	case status != callUp && !strings.HasPrefix(status, callUp+" "):
		return verdictSSTP{NoteCallRefused, clip(status)}
	}
	length := ""
	for {
		line, err := r.line()
		if err != nil {
			return brokenOr(err)
		}
		if line == "" {
			break
		}
		if name, value, ok := strings.Cut(line, ":"); ok && strings.EqualFold(name, "Content-Length") {
			length = strings.TrimSpace(value)
		}
	}
	if length != callLength {
		return verdictSSTP{NoteCallBroken, clip("Content-Length " + length)}
	}
	return verdictSSTP{}
}

var errNoPacket = errors.New("no packet of SSTP")

// packet reads one packet of SSTP whole (section 2.2.1). It is at least as long
// as its kind demands, and 4095 bytes at most.
func (r *callReader) packet() ([]byte, error) {
	var head [packetHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, r.cut(err)
	}
	size, least := int(binary.BigEndian.Uint16(head[2:])&lengthMask), packetHead
	if head[1]&sstpControl != 0 {
		least = messageHead
	}
	if head[0] != sstpVersion || size < least {
		return nil, fmt.Errorf("%w: %x", errNoPacket, head)
	}
	p := make([]byte, size)
	copy(p, head[:])
	if _, err := io.ReadFull(r, p[packetHead:]); err != nil {
		return nil, r.cut(err)
	}
	return p, nil
}

func messageType(p []byte) uint16 { return binary.BigEndian.Uint16(p[packetHead:]) }

// judgeCall says what the first packet of a server means.
func judgeCall(p []byte) verdictSSTP {
	if p[1]&sstpControl == 0 {
		return verdictSSTP{NoteCallBroken, "a data packet"}
	}
	kind, count := messageType(p), binary.BigEndian.Uint16(p[packetHead+2:])
	attributes := p[messageHead:]
	switch kind {
	case callConnectAck: // 2.2.11: one attribute, Crypto Binding Request
		if count != 1 || len(attributes) != bindingBytes || attributes[1] != attributeBinding ||
			binary.BigEndian.Uint16(attributes[2:])&lengthMask != bindingBytes || attributes[7]&(hashSHA1|hashSHA256) == 0 {
			return verdictSSTP{NoteCallBroken, "Call Connect Ack without a Crypto Binding Request"}
		}
		return verdictSSTP{note: NoteCall}
	case callConnectNak:
		return verdictSSTP{NoteCallNak, "Call Connect Nak" + statusOf(attributes)}
	case callAbort:
		return verdictSSTP{NoteCallNak, "Call Abort" + statusOf(attributes)}
	}
	return verdictSSTP{NoteCallBroken, fmt.Sprintf("message type %d", kind)}
}

// statusOf words the first attribute if it is Status Info (section 2.2.8).
func statusOf(attributes []byte) string {
	if len(attributes) < statusBytes || attributes[1] != attributeStatus {
		return ""
	}
	return fmt.Sprintf(", status %d of attribute %d", binary.BigEndian.Uint32(attributes[8:]), attributes[7])
}

// brokenOr tells an answer that is none from one that did not come, or not whole.
func brokenOr(err error) verdictSSTP {
	for _, broken := range []error{errNoLine, errTooMuch, errNoPacket} {
		if errors.Is(err, broken) {
			return verdictSSTP{NoteCallBroken, clip(err.Error())}
		}
	}
	return verdictSSTP{NoteCallSilent, words(err)}
}
