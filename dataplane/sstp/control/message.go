// Package control follows the packets of an SSTP connection as they pass
// ([MS-SSTP] 2.2): it cuts the stream at packet borders, skips data packets by
// their length, and reads the few control messages.
//
// It only reads, copies nothing but a control message that two reads share, and
// holds constant memory. A stream that it cannot follow turns it off; whether
// the bytes pass is not its concern.
package control

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Type of a control message, [MS-SSTP] 2.2.2.
type Type uint16

const (
	ConnectRequest Type = 1
	ConnectAck     Type = 2
	ConnectNak     Type = 3
	Connected      Type = 4
	Abort          Type = 5
	Disconnect     Type = 6
	DisconnectAck  Type = 7
	EchoRequest    Type = 8
	EchoResponse   Type = 9
)

// Attributes, [MS-SSTP] 2.2.4.
const (
	attrStatusInfo           = 2
	attrCryptoBinding        = 3
	attrCryptoBindingRequest = 4
)

// Hash protocols, the bits of [MS-SSTP] 2.2.6.
const (
	HashSHA1   = 1
	HashSHA256 = 2
)

const (
	headerBytes = 4
	messageHead = headerBytes + 4 // with type and number of attributes
	version     = 0x10
	controlBit  = 0x01
	lengthMask  = 0x0fff // the upper four bits are reserved and ignored

	// MaxBytes of a control message are looked at. Call Connected, the longest
	// that matters, has 112; a Nak may repeat what it refuses, which does not.
	MaxBytes = 256
)

// Message is what of a control message matters here.
type Message struct {
	Type Type
	// HashProtocol is the bit mask that an Ack offers, or the one bit that
	// Connected uses; 0: not given.
	HashProtocol uint8
	// Hash is the certificate's, of Connected: 32 bytes of SHA-256, or 20 of
	// SHA-1 and zeros. HasHash false: none.
	Hash    [32]byte
	HasHash bool
	// Status of the first STATUS_INFO, and the attribute it is about.
	Status          Status
	StatusAttribute uint8
	HasStatus       bool
}

// Status is a code of STATUS_INFO, [MS-SSTP] 2.2.7.
type Status uint32

var statusNames = [...]string{
	"no error", "duplicate attribute", "unrecognized attribute", "invalid attribute value length", "value not supported",
	"unaccepted frame received", "retry count exceeded", "invalid frame received", "negotiation timeout",
	"attribute not supported in message", "required attribute missing", "status info not supported in message",
}

func (s Status) String() string {
	if int64(s) < int64(len(statusNames)) {
		return statusNames[s]
	}
	return fmt.Sprintf("status %#x", uint32(s))
}

// errMalformed: this is no SSTP, or the follower lost its place.
var errMalformed = errors.New("malformed sstp packet")

// packet reads the header of a packet.
func packet(b []byte) (size int, control bool, err error) {
	size = int(binary.BigEndian.Uint16(b[2:]) & lengthMask)
	control = b[1]&controlBit != 0
	if b[0] != version || size < headerBytes || control && size < messageHead {
		return 0, false, errMalformed
	}
	return size, control, nil
}

// Parse reads a control message from its packet header on: all of it, or its
// first MaxBytes.
func Parse(b []byte) (Message, error) {
	if len(b) < messageHead {
		return Message{}, errMalformed
	}
	size, control, err := packet(b)
	if err != nil || !control || len(b) != min(size, MaxBytes) {
		return Message{}, errMalformed
	}
	m := Message{Type: Type(binary.BigEndian.Uint16(b[4:]))}
	left := int(binary.BigEndian.Uint16(b[6:]))
	for at := messageHead; left > 0; left-- {
		if size-at < headerBytes {
			return Message{}, errMalformed
		}
		if len(b)-at < headerBytes { // behind what is looked at
			break
		}
		length := int(binary.BigEndian.Uint16(b[at+2:]) & lengthMask)
		if length < headerBytes || length > size-at {
			return Message{}, errMalformed
		}
		if at+length > len(b) {
			break
		}
		m.attribute(b[at+1], b[at+headerBytes:at+length])
		at += length
	}
	return m, nil
}

// attribute takes one that it knows, if it has the size of the specification.
func (m *Message) attribute(id byte, value []byte) {
	switch {
	case id == attrStatusInfo && len(value) >= 8 && !m.HasStatus:
		m.Status, m.StatusAttribute, m.HasStatus = Status(binary.BigEndian.Uint32(value[4:])), value[3], true
	case id == attrCryptoBinding && len(value) == 100 && m.Type == Connected:
		m.HashProtocol, m.HasHash = value[3], true
		copy(m.Hash[:], value[36:68])
	case id == attrCryptoBindingRequest && len(value) == 36 && m.Type == ConnectAck:
		m.HashProtocol = value[3]
	}
}
