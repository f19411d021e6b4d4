package ike

import "encoding/binary"

// Builders of datagrams for tests, the laboratory's clients and probes. They
// make what a forwarder sees; nothing in them is encrypted.

// Message is a header followed by a body, with the version and the length filled
// in (RFC 7296, section 3.1) where they are 0.
func Message(h Header, body []byte) []byte {
	if h.Version == 0 {
		h.Version = MajorVersion << 4
	}
	if h.Length == 0 {
		h.Length = uint32(HeaderLen + len(body))
	}
	return append(h.Append(make([]byte, 0, HeaderLen+len(body))), body...)
}

// Marked puts the non-ESP marker before a message (RFC 3948, section 2.2).
func Marked(message []byte) []byte {
	return append(make([]byte, MarkerLen, MarkerLen+len(message)), message...)
}

// KeepaliveDatagram is the payload of a NAT keepalive (RFC 3948, section 2.3).
func KeepaliveDatagram() []byte { return []byte{0xff} }

// ESPDatagram is an ESP packet as it travels in UDP or by itself (RFC 4303,
// section 2): SPI, sequence number, and a body that stands for the rest.
func ESPDatagram(spi, sequence uint32, body []byte) []byte {
	b := binary.BigEndian.AppendUint32(make([]byte, 0, 8+len(body)), spi)
	return append(binary.BigEndian.AppendUint32(b, sequence), body...)
}

// ProtectedBody is a body that starts with an SK or SKF payload's generic header
// (RFC 7296, sections 3.2 and 3.14) around size bytes. The header before it must
// name the payload in NextPayload; first is the payload inside.
func ProtectedBody(first Payload, size int) []byte {
	b := make([]byte, 4+size)
	b[0] = byte(first)
	binary.BigEndian.PutUint16(b[2:4], uint16(len(b)))
	return b
}

// NotifyBody is one notify payload without an SPI (RFC 7296, section 3.10).
func NotifyBody(kind uint16, data []byte) []byte {
	b := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(b[2:4], uint16(8+len(data)))
	binary.BigEndian.PutUint16(b[6:8], kind)
	return append(b, data...)
}
