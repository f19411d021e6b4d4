package health

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
)

// The probe is an IKE_SA_INIT request (RFC 7296, section 1.2) whose proposals a
// sane server accepts and whose KE payload is of a group in none of them. The
// responder must reject it with INVALID_KE_PAYLOAD naming the group it wants
// (sections 1.2 and 3.10.1) and keeps no state for it: that proves a policy. COOKIE
// (section 2.6) comes before a policy is looked for: the probe repeats the request
// once with the cookie, and the answer to that counts. Neither leaves a half-open SA.

// Numbers of RFC 7296: payloads (section 3.2), exchange types and flags
// (section 3.1), notify types (section 3.10.1), transforms (section 3.3.2).
const (
	payloadNone   = 0
	payloadSA     = 33
	payloadKE     = 34
	payloadNonce  = 40
	payloadNotify = 41

	exchangeSAInit = 34
	version2       = 0x20
	flagInitiator  = 0x08
	flagResponse   = 0x20

	notifyInvalidMajorVersion = 5
	notifyInvalidSyntax       = 7
	notifyNoProposalChosen    = 14
	notifyInvalidKE           = 17
	notifyCookie              = 16390
)

const (
	headerSize = 28 // RFC 7296, section 3.1
	markerSize = 4  // non-ESP marker, RFC 3948, section 2.2
	nonceSize  = 32 // RFC 7296, section 2.10 asks for at least half the PRF's key
	maxAnswer  = 4096
	maxCookie  = 64 // RFC 7296, section 2.6
)

// wrongGroup is a key exchange method that is in none of the proposals.
type wrongGroup struct {
	number uint16
	size   int // bytes of its public value
}

// wrongGroups are tried in turn: when a server takes one all the same, or
// calls it malformed, the next probe uses the next. Curve25519 (RFC 8031) comes
// first because any 32 bytes are a valid public value, as with Curve448 (RFC 8031);
// the others are MODP groups (RFC 3526 and RFC 5114), whose value only has to be
// below the prime.
var wrongGroups = [...]wrongGroup{{31, 32}, {5, 192}, {32, 56}, {22, 128}}

// form is how a probe looks: indexes into offers and wrongGroups.
type form struct{ offer, group int }

// spi is the initiator's SPI of one probe: fresh and random for each, which
// makes it the secret that ties an answer to its question.
type spi [8]byte

func newSPI() spi {
	var s spi
	for s == (spi{}) { // RFC 7296, section 3.1: must not be zero
		rand.Read(s[:])
	}
	return s
}

// appendProbe appends one request. marker prefixes the non-ESP marker of port
// 4500.
func appendProbe(b []byte, id spi, f form, marker bool) []byte {
	return appendInit(b, id, offers[f.offer], wrongGroups[f.group], marker)
}

// appendInit appends an IKE_SA_INIT request whose KE payload is of group g.
func appendInit(b []byte, id spi, offer []proposal, g wrongGroup, marker bool) []byte {
	if marker {
		b = append(b, 0, 0, 0, 0)
	}
	start := len(b)
	b = append(b, id[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // responder's SPI
	b = append(b, payloadSA, version2, exchangeSAInit, flagInitiator)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // message ID 0, length below
	b = appendSA(b, payloadKE, offer)
	b = append(b, payloadNonce, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(8+g.size))
	b = binary.BigEndian.AppendUint16(b, g.number) // RFC 7296, section 3.4
	b = append(b, 0, 0)
	at := len(b)
	b = append(b, make([]byte, g.size)...)
	rand.Read(b[at:])
	b[at] &= 0x7f // below every MODP prime, all of which begin with 64 one bits
	b = append(b, payloadNone, 0)
	b = binary.BigEndian.AppendUint16(b, 4+nonceSize) // RFC 7296, section 3.9
	at = len(b)
	b = append(b, make([]byte, nonceSize)...)
	rand.Read(b[at:])
	binary.BigEndian.PutUint32(b[start+24:], uint32(len(b)-start))
	return b
}

// withCookie repeats a request as the responder asked: unchanged but for the COOKIE
// notification, which comes first (RFC 7296, section 2.6).
func withCookie(request, cookie []byte, marker bool) []byte {
	start := 0
	if marker {
		start = markerSize
	}
	at := start + headerSize
	b := make([]byte, 0, len(request)+8+len(cookie))
	b = append(b, request[:at]...)
	b = append(b, request[start+16], 0) // the payload that came first comes next
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(cookie)))
	b = append(b, 0, 0) // no protocol, no SPI (section 3.10)
	b = binary.BigEndian.AppendUint16(b, notifyCookie)
	b = append(append(b, cookie...), request[at:]...)
	b[start+16] = payloadNotify
	binary.BigEndian.PutUint32(b[start+24:], uint32(len(b)-start))
	return b
}

// answer is what a responder said.
type answer struct {
	id    spi
	note  Note
	group uint16 // with NoteInvalidKE the one it wants, with NoteAccepted the one it took
	// cookie is what to repeat, with NoteCookie: at most maxCookie bytes of the datagram.
	cookie []byte
}

var errNotAnswer = errors.New("not an answer to a probe")

// parseAnswer reads a datagram that claims to answer a probe. Anything that is
// not a well-formed IKEv2 response to a first IKE_SA_INIT is an error: it
// proves nothing, not even that the server is there.
func parseAnswer(b []byte, marker bool) (answer, error) {
	var a answer
	if marker {
		if len(b) < markerSize || binary.BigEndian.Uint32(b) != 0 {
			return a, errNotAnswer
		}
		b = b[markerSize:]
	}
	if len(b) < headerSize || len(b) > maxAnswer || int(binary.BigEndian.Uint32(b[24:])) != len(b) {
		return a, errNotAnswer
	}
	// Section 3.1: a response, sent by the original responder, to message 0.
	// Section 2.5: INVALID_MAJOR_VERSION comes with the responder's own version.
	flags, next := b[19], b[16]
	if b[17]>>4 != 2 || b[18] != exchangeSAInit || flags&flagResponse == 0 || flags&flagInitiator != 0 ||
		binary.BigEndian.Uint32(b[20:]) != 0 {
		return a, errNotAnswer
	}
	copy(a.id[:], b)
	if a.id == (spi{}) {
		return a, errNotAnswer
	}
	a.note = NoteOther
	err := eachPayload(next, b[headerSize:], func(kind byte, body []byte) { a.take(kind, body) })
	return a, err
}

// eachPayload walks the payload chain (RFC 7296, section 3.2).
func eachPayload(next byte, b []byte, f func(kind byte, body []byte)) error {
	for next != payloadNone {
		if len(b) < 4 {
			return errNotAnswer
		}
		size := int(binary.BigEndian.Uint16(b[2:]))
		if size < 4 || size > len(b) {
			return errNotAnswer
		}
		f(next, b[4:size])
		next, b = b[0], b[size:]
	}
	if len(b) != 0 {
		return errNotAnswer
	}
	return nil
}

// take lets one payload of the answer decide its note. The first error notify
// or COOKIE decides; a KE payload means that the server went ahead.
func (a *answer) take(kind byte, body []byte) {
	if a.note != NoteOther {
		return
	}
	switch kind {
	case payloadKE:
		if len(body) >= 4 {
			a.note, a.group = NoteAccepted, binary.BigEndian.Uint16(body)
		}
	case payloadNotify:
		// Section 3.10: protocol, SPI size, type, SPI, data.
		if len(body) < 4 || len(body) < 4+int(body[1]) {
			return
		}
		data := body[4+int(body[1]):]
		switch binary.BigEndian.Uint16(body[2:]) {
		case notifyInvalidKE:
			if len(data) == 2 { // section 1.2: the accepted group
				a.note, a.group = NoteInvalidKE, binary.BigEndian.Uint16(data)
			}
		case notifyCookie:
			if len(data) >= 1 && len(data) <= maxCookie {
				a.note, a.cookie = NoteCookie, data
			}
		case notifyNoProposalChosen:
			a.note = NoteNoProposal
		case notifyInvalidSyntax:
			a.note = NoteInvalidSyntax
		case notifyInvalidMajorVersion:
			a.note = NoteInvalidVersion
		}
	}
}
