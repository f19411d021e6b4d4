package ike

import (
	"encoding/binary"
	"errors"
)

// Server-side UDP ports.
const (
	Port    = 500  // RFC 7296, section 2
	NATPort = 4500 // RFC 3948: IKE after a marker, ESP, keepalives
)

// Sizes in bytes.
const (
	HeaderLen = 28 // RFC 7296, section 3.1
	MarkerLen = 4  // RFC 3948, section 2.2: four zero bytes
	// MinESPLen is the least payload of port 4500 that counts as ESP evidence:
	// SPI, sequence number, and the 12 bytes any authenticated packet adds to
	// them (RFC 4303, section 2). Less can be had from a server without an SA.
	MinESPLen = 20
)

// MajorVersion is the only one forwarded (RFC 7296, section 3.1).
const MajorVersion = 2

// Exchange is an exchange type (RFC 7296, section 3.1; IANA "IKEv2 Exchange Types").
type Exchange uint8

// Exchange types.
const (
	SAInit        Exchange = 34 // RFC 7296
	Auth          Exchange = 35 // RFC 7296
	CreateChildSA Exchange = 36 // RFC 7296
	Informational Exchange = 37 // RFC 7296
	SessionResume Exchange = 38 // RFC 5723
	Intermediate  Exchange = 43 // RFC 9242
	FollowupKE    Exchange = 44 // RFC 9370
)

// Opening reports whether a server that knows nothing of the client may receive
// this exchange. Only those that need an established IKE SA are not: a client in
// the middle of a handshake (Auth, Intermediate) is still opening, because its
// messages may travel on another flow than the first one and so past another node.
func (e Exchange) Opening() bool {
	return e != CreateChildSA && e != Informational && e != FollowupKE
}

// Payload is a payload type (RFC 7296, section 3.2; RFC 7383, section 2.5).
type Payload uint8

// Payload types.
const (
	NoPayload         Payload = 0
	SecurityAssoc     Payload = 33
	KeyExchange       Payload = 34
	Nonce             Payload = 40
	Notify            Payload = 41
	VendorID          Payload = 43
	Encrypted         Payload = 46 // SK
	EncryptedFragment Payload = 53 // SKF, RFC 7383
)

// Protected reports whether the message's content is encrypted and authenticated.
func (p Payload) Protected() bool { return p == Encrypted || p == EncryptedFragment }

// Flags of the header (RFC 7296, section 3.1).
type Flags uint8

// Flags.
const (
	FlagInitiator Flags = 0x08 // from the original initiator of the IKE SA
	FlagVersion   Flags = 0x10
	FlagResponse  Flags = 0x20
)

// Header is the fixed header of a message (RFC 7296, section 3.1).
type Header struct {
	InitiatorSPI uint64
	ResponderSPI uint64 // 0 in the first request
	NextPayload  Payload
	Version      uint8 // major in the upper half
	Exchange     Exchange
	Flags        Flags
	MessageID    uint32
	Length       uint32 // of the whole message with this header, before IP fragmentation
}

// ErrShort says that the header is not complete.
var ErrShort = errors.New("ike header is not complete")

// ParseHeader reads the header at the start of b. It judges nothing: neither the
// version nor the length, which cannot be compared in an IP fragment.
func ParseHeader(b []byte) (Header, error) {
	if len(b) < HeaderLen {
		return Header{}, ErrShort
	}
	return Header{
		InitiatorSPI: binary.BigEndian.Uint64(b[0:8]),
		ResponderSPI: binary.BigEndian.Uint64(b[8:16]),
		NextPayload:  Payload(b[16]),
		Version:      b[17],
		Exchange:     Exchange(b[18]),
		Flags:        Flags(b[19]),
		MessageID:    binary.BigEndian.Uint32(b[20:24]),
		Length:       binary.BigEndian.Uint32(b[24:28]),
	}, nil
}

// Append appends the header's 28 bytes to b.
func (h Header) Append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, h.InitiatorSPI)
	b = binary.BigEndian.AppendUint64(b, h.ResponderSPI)
	b = append(b, byte(h.NextPayload), h.Version, byte(h.Exchange), byte(h.Flags))
	b = binary.BigEndian.AppendUint32(b, h.MessageID)
	return binary.BigEndian.AppendUint32(b, h.Length)
}

// Major is the major version.
func (h Header) Major() uint8 { return h.Version >> 4 }

// Response reports the R flag.
func (h Header) Response() bool { return h.Flags&FlagResponse != 0 }
