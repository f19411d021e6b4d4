package sstppeer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// Framing of [MS-SSTP] 2.2.1: version 1.0, C bit, 12 bits of length.
const (
	version    = 0x10
	flagC      = 0x01
	headerSize = 4 // bytes, of a packet and of an attribute alike
	maxPacket  = 0x0fff
)

// kind is a message type ([MS-SSTP] 2.2.2).
type kind uint16

const (
	callConnectRequest kind = 1
	callConnectAck     kind = 2
	callConnectNak     kind = 3
	callConnected      kind = 4
	callAbort          kind = 5
	callDisconnect     kind = 6
	callDisconnectAck  kind = 7
	echoRequest        kind = 8
	echoResponse       kind = 9
)

// Attributes ([MS-SSTP] 2.2.4), and the values of them that occur here.
const (
	attrProtocol   = 1
	attrStatus     = 2
	attrBinding    = 3
	attrBindingReq = 4

	protocolPPP = 1
)

// status says what was wrong with an attribute ([MS-SSTP] 2.2.8).
type status uint32

const (
	statusInvalidLength  status = 3
	statusNotSupported   status = 4 // the value: a wrong hash, nonce or MAC
	statusUnaccepted     status = 5 // a message that this state does not take
	statusInvalidFrame   status = 7
	statusNegotiation    status = 8 // took too long
	statusMissing        status = 10
	statusInfoValueStart        = 8 // bytes of a status attribute's value before the refused value
)

// attribute is one attribute of a control message.
type attribute struct {
	id    byte
	value []byte
}

// message is a control message.
type message struct {
	kind  kind
	attrs []attribute
}

// attr gives the value of the first attribute of that kind.
func (m message) attr(id byte) ([]byte, bool) {
	for _, a := range m.attrs {
		if a.id == id {
			return a.value, true
		}
	}
	return nil, false
}

// encode makes the packet.
func (m message) encode() []byte {
	b := []byte{version, flagC, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(m.kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.attrs)))
	for _, a := range m.attrs {
		b = append(b, 0, a.id)
		b = binary.BigEndian.AppendUint16(b, uint16(headerSize+len(a.value)))
		b = append(b, a.value...)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	return b
}

// appendData appends a data packet: a PPP frame with address and control field.
func appendData(b []byte, protocol uint16, body []byte) []byte {
	n := headerSize + 4 + len(body)
	b = append(b, version, 0, byte(n>>8), byte(n), pppAddress, pppControl, byte(protocol>>8), byte(protocol))
	return append(b, body...)
}

// packet is one packet as it was read.
type packet struct {
	raw     []byte // all of it, header included; valid until the next read
	control bool
}

func (p packet) body() []byte { return p.raw[headerSize:] }

// errFraming ends a connection without a word ([MS-SSTP] 3.1.5.1).
var errFraming = errors.New("not an SSTP packet")

// readPacket reads one packet into buf, which holds the largest.
func readPacket(r io.Reader, buf *[maxPacket]byte) (packet, error) {
	if _, err := io.ReadFull(r, buf[:headerSize]); err != nil {
		return packet{}, err
	}
	n := int(binary.BigEndian.Uint16(buf[2:]) & 0x0fff)
	if buf[0] != version || n < headerSize {
		return packet{}, fmt.Errorf("%w: % x", errFraming, buf[:headerSize])
	}
	if _, err := io.ReadFull(r, buf[headerSize:n]); err != nil {
		return packet{}, err
	}
	return packet{raw: buf[:n], control: buf[1]&flagC != 0}, nil
}

// parseMessage reads a control packet. Its values share the packet's memory.
func parseMessage(p packet) (message, error) {
	b := p.body()
	if len(b) < 4 {
		return message{}, fmt.Errorf("control message of %d bytes", len(p.raw))
	}
	m := message{kind: kind(binary.BigEndian.Uint16(b))}
	n := int(binary.BigEndian.Uint16(b[2:]))
	b = b[4:]
	for range n {
		if len(b) < headerSize {
			return m, fmt.Errorf("message %d ends within its %d attributes", m.kind, n)
		}
		size := int(binary.BigEndian.Uint16(b[2:]) & 0x0fff)
		if size < headerSize || size > len(b) {
			return m, fmt.Errorf("message %d has an attribute of %d bytes, %d are left", m.kind, size, len(b))
		}
		m.attrs = append(m.attrs, attribute{id: b[1], value: b[headerSize:size]})
		b = b[size:]
	}
	if len(b) > 0 {
		return m, fmt.Errorf("message %d has %d bytes behind its attributes", m.kind, len(b))
	}
	return m, nil
}

// statusInfo says what is wrong with which attribute.
func statusInfo(attr byte, s status) attribute {
	v := make([]byte, statusInfoValueStart)
	v[3] = attr
	binary.BigEndian.PutUint32(v[4:], uint32(s))
	return attribute{id: attrStatus, value: v}
}

// statusOf reads the first status of a Call Abort; ok false: it has none.
func statusOf(m message) (attr byte, s status, ok bool) {
	v, ok := m.attr(attrStatus)
	if !ok || len(v) < statusInfoValueStart {
		return 0, 0, false
	}
	return v[3], status(binary.BigEndian.Uint32(v[4:])), true
}
