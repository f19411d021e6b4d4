package health

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"strings"
)

// The probe is an IKE_SA_INIT request (RFC 7296, section 1.2) whose proposals a
// sane server accepts and whose KE payload is of a group in none of them. The
// responder must reject it with INVALID_KE_PAYLOAD naming the group it wants
// (sections 1.2 and 3.10.1) and keeps no state for it; with COOKIE (section
// 2.6) it asks for proof before it does anything. Both prove that a policy is
// loaded, and neither leaves a half-open SA.

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

	transformENCR  = 1
	transformPRF   = 2
	transformINTEG = 3
	transformKE    = 4

	encr3DES = 3
	encrCBC  = 12
	encrGCM  = 20 // 16-octet ICV, RFC 5282
	prfSHA1  = 2
	prf256   = 5
	prf384   = 6
	prf512   = 7
	auth96   = 2
	auth256  = 12
	auth384  = 13
	auth512  = 14
	modp1024 = 2
	modp2048 = 14
	modp4096 = 16
	ecp256   = 19
	ecp384   = 20
	ecp521   = 21
	modp24   = 24 // 2048 bits with a 256-bit subgroup, RFC 5114
)

const (
	headerSize = 28 // RFC 7296, section 3.1
	markerSize = 4  // non-ESP marker, RFC 3948, section 2.2
	nonceSize  = 32 // RFC 7296, section 2.10 asks for at least half the PRF's key
	maxAnswer  = 4096
)

// proposal is one way to protect an IKE SA. Each is sent on its own rather than
// as one proposal with many transforms, because that is what clients send.
type proposal struct {
	name                string
	encr, bits          uint16 // bits 0: no key length attribute
	prf, integ, keGroup uint16
}

// proposals covers the defaults of Windows servers, the common hardened set and
// what other servers accept. The names are what Hint prints.
var proposals = [...]proposal{
	{"aes256-sha1-modp1024", encrCBC, 256, prfSHA1, auth96, modp1024}, // Windows default
	{"aes256-sha256-modp1024", encrCBC, 256, prf256, auth256, modp1024},
	{"aes256-sha384-modp1024", encrCBC, 256, prf384, auth384, modp1024},
	{"3des-sha1-modp1024", encr3DES, 0, prfSHA1, auth96, modp1024},
	{"aes128-sha1-modp2048", encrCBC, 128, prfSHA1, auth96, modp2048},
	{"aes128-sha256-modp2048", encrCBC, 128, prf256, auth256, modp2048},
	{"aes256-sha256-modp2048", encrCBC, 256, prf256, auth256, modp2048},
	{"aes256-sha384-modp2048", encrCBC, 256, prf384, auth384, modp2048},
	{"aes256-sha512-modp4096", encrCBC, 256, prf512, auth512, modp4096},
	{"aes128gcm16-prfsha256-modp2048", encrGCM, 128, prf256, 0, modp2048},
	{"aes256gcm16-prfsha256-modp2048", encrGCM, 256, prf256, 0, modp2048},
	{"aes256gcm16-prfsha384-modp2048", encrGCM, 256, prf384, 0, modp2048},
	{"aes256-sha256-modp2048s256", encrCBC, 256, prf256, auth256, modp24},
	{"aes128-sha256-ecp256", encrCBC, 128, prf256, auth256, ecp256},
	{"aes256-sha256-ecp256", encrCBC, 256, prf256, auth256, ecp256},
	{"aes128gcm16-prfsha256-ecp256", encrGCM, 128, prf256, 0, ecp256},
	{"aes256-sha384-ecp384", encrCBC, 256, prf384, auth384, ecp384},
	{"aes256gcm16-prfsha384-ecp384", encrGCM, 256, prf384, 0, ecp384},
	{"aes256-sha512-ecp521", encrCBC, 256, prf512, auth512, ecp521},
}

// ProposalNames lists the probed proposals, for hints.
func ProposalNames() string {
	names := make([]string, len(proposals))
	for i, p := range proposals {
		names[i] = p.name
	}
	return strings.Join(names, ", ")
}

// wrongGroup is a key exchange method that is in none of the proposals.
type wrongGroup struct {
	number uint16
	size   int // bytes of its public value
}

// wrongGroups are tried in turn: when a server takes one all the same, or
// calls it malformed, the next probe uses the next. Curve25519 (RFC 8031) comes
// first because any 32 bytes are a valid public value; the others are MODP
// groups (RFC 3526 and RFC 2409), whose value only has to be below the prime.
var wrongGroups = [...]wrongGroup{{31, 32}, {5, 192}, {15, 384}, {1, 96}}

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
// 4500. group indexes wrongGroups and wraps.
func appendProbe(b []byte, id spi, group int, marker bool) []byte {
	if marker {
		b = append(b, 0, 0, 0, 0)
	}
	start := len(b)
	b = append(b, id[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // responder's SPI
	b = append(b, payloadSA, version2, exchangeSAInit, flagInitiator)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // message ID 0, length below
	b = appendSA(b, payloadKE)
	g := wrongGroups[group%len(wrongGroups)]
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

// appendSA appends the SA payload (RFC 7296, section 3.3).
func appendSA(b []byte, next byte) []byte {
	start := len(b)
	b = append(b, next, 0, 0, 0)
	for i, p := range proposals {
		more := byte(2) // "2 (more)", section 3.3.1
		if i == len(proposals)-1 {
			more = 0
		}
		transforms := byte(4)
		if p.integ == 0 { // AEAD ciphers have none (RFC 5282, section 8)
			transforms = 3
		}
		at := len(b)
		b = append(b, more, 0, 0, 0, byte(i+1), 1, 0, transforms) // protocol 1 = IKE, no SPI
		b = appendTransform(b, transformENCR, p.encr, p.bits, true)
		b = appendTransform(b, transformPRF, p.prf, 0, true)
		if p.integ != 0 {
			b = appendTransform(b, transformINTEG, p.integ, 0, true)
		}
		b = appendTransform(b, transformKE, p.keGroup, 0, false)
		binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at))
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

// appendTransform appends one transform (RFC 7296, section 3.3.2); bits is the
// key length attribute (section 3.3.5), 0 leaves it out.
func appendTransform(b []byte, kind byte, id, bits uint16, more bool) []byte {
	last, size := byte(0), uint16(8)
	if more {
		last = 3 // "3 (more)"
	}
	if bits != 0 {
		size = 12
	}
	b = append(b, last, 0)
	b = binary.BigEndian.AppendUint16(b, size)
	b = append(b, kind, 0)
	b = binary.BigEndian.AppendUint16(b, id)
	if bits != 0 {
		b = append(b, 0x80, 14) // short form attribute, type 14
		b = binary.BigEndian.AppendUint16(b, bits)
	}
	return b
}

// answer is what a responder said.
type answer struct {
	id    spi
	note  Note
	group uint16 // with NoteInvalidKE the one it wants, with NoteAccepted the one it took
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
			if len(data) >= 1 && len(data) <= 64 { // section 2.6
				a.note = NoteCookie
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
