package peer

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
)

// IKE header and payload numbers (RFC 7296 3.1, 3.2).
const (
	ikeHeaderLen = 28
	ikeVersion2  = 0x20

	exchangeSAInit        = 34
	exchangeAuth          = 35
	exchangeInformational = 37

	flagInitiator = 0x08
	flagResponse  = 0x20

	payloadNone   = 0
	payloadSA     = 33
	payloadKE     = 34
	payloadIDi    = 35
	payloadNonce  = 40
	payloadNotify = 41
	payloadSK     = 46

	notifyNoProposal   = 14
	notifyInvalidKE    = 17
	notifyNATSource    = 16388
	notifyNATDest      = 16389
	transformDH        = 4
	groupMODP2048      = 14
	groupMODP2048Bytes = 256
)

// marker is the non-ESP marker before IKE on port 4500 (RFC 3948 2.2).
var marker = [4]byte{}

// keepalive is the one byte of a NAT keepalive (RFC 3948 2.3).
var keepalive = []byte{0xff}

// header is the IKE header (RFC 7296 3.1).
type header struct {
	spiI, spiR uint64
	next       uint8
	exchange   uint8
	flags      uint8
	messageID  uint32
	length     uint32
}

// parseHeader reads the header at the start of b. ok is false if b is no
// IKEv2 message whose length is that of b.
func parseHeader(b []byte) (h header, ok bool) {
	if len(b) < ikeHeaderLen || b[17]>>4 != 2 {
		return h, false
	}
	h = header{
		spiI: binary.BigEndian.Uint64(b), spiR: binary.BigEndian.Uint64(b[8:]),
		next: b[16], exchange: b[18], flags: b[19],
		messageID: binary.BigEndian.Uint32(b[20:]), length: binary.BigEndian.Uint32(b[24:]),
	}
	return h, int(h.length) == len(b)
}

// message returns a whole IKE message: h with the length filled in, and body.
func message(h header, body []byte) []byte {
	b := make([]byte, ikeHeaderLen, ikeHeaderLen+len(body))
	binary.BigEndian.PutUint64(b, h.spiI)
	binary.BigEndian.PutUint64(b[8:], h.spiR)
	b[16], b[17], b[18], b[19] = h.next, ikeVersion2, h.exchange, h.flags
	binary.BigEndian.PutUint32(b[20:], h.messageID)
	binary.BigEndian.PutUint32(b[24:], uint32(ikeHeaderLen+len(body)))
	return append(b, body...)
}

// appendPayload adds one payload with its generic header (RFC 7296 3.2).
func appendPayload(b []byte, next uint8, content []byte) []byte {
	b = append(b, next, 0)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(content)))
	return append(b, content...)
}

// proposalIKE is one IKE proposal: AES-CBC-256, PRF and integrity by
// SHA-2-256, group 14 (RFC 7296 3.3).
func proposalIKE() []byte {
	tr := func(last bool, kind uint8, id uint16, attr ...byte) []byte {
		more := uint8(3)
		if last {
			more = 0
		}
		b := []byte{more, 0, 0, uint8(8 + len(attr)), kind, 0}
		return append(binary.BigEndian.AppendUint16(b, id), attr...)
	}
	var t []byte
	t = append(t, tr(false, 1, 12, 0x80, 14, 1, 0)...) // key length 256
	t = append(t, tr(false, 2, 5)...)
	t = append(t, tr(false, 3, 12)...)
	t = append(t, tr(true, transformDH, groupMODP2048)...)
	b := []byte{0, 0, 0, uint8(8 + len(t)), 1, 1, 0, 4}
	return append(b, t...)
}

// notify is the content of a notify payload without SPI (RFC 7296 3.10).
func notify(kind uint16, data []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{0, 0}, kind)
	return append(b, data...)
}

// saInit returns an IKE_SA_INIT request or response (RFC 7296 1.2).
func saInit(spiI, spiR uint64, flags uint8) []byte {
	ke := binary.BigEndian.AppendUint16(nil, groupMODP2048)
	ke = append(ke, 0, 0)
	ke = append(ke, random(groupMODP2048Bytes)...)
	b := appendPayload(nil, payloadKE, proposalIKE())
	b = appendPayload(b, payloadNonce, ke)
	b = appendPayload(b, payloadNotify, random(32))
	b = appendPayload(b, payloadNotify, notify(notifyNATSource, random(20)))
	b = appendPayload(b, payloadNone, notify(notifyNATDest, random(20)))
	return message(header{spiI: spiI, spiR: spiR, next: payloadSA, exchange: exchangeSAInit, flags: flags}, b)
}

// saInitError answers h with one unprotected notify and no responder SPI
// (RFC 7296 1.2, 1.3: no state is kept).
func saInitError(h header, kind uint16, data []byte) []byte {
	b := appendPayload(nil, payloadNone, notify(kind, data))
	return message(header{spiI: h.spiI, next: payloadNotify, exchange: exchangeSAInit, flags: flagResponse}, b)
}

// groups finds, in the payloads of an IKE_SA_INIT request, the groups that its
// proposals offer and the group of its KE payload.
func groups(next uint8, b []byte) (offered []uint16, ke uint16) {
	for next != payloadNone && len(b) >= 4 {
		n := int(binary.BigEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return offered, ke
		}
		switch content := b[4:n]; next {
		case payloadSA:
			offered = offeredGroups(content)
		case payloadKE:
			if len(content) >= 2 {
				ke = binary.BigEndian.Uint16(content)
			}
		}
		next, b = b[0], b[n:]
	}
	return offered, ke
}

func offeredGroups(sa []byte) (out []uint16) {
	for len(sa) >= 8 {
		n := int(binary.BigEndian.Uint16(sa[2:]))
		if n < 8 || n > len(sa) || 8+int(sa[6]) > n {
			return out
		}
		for t := sa[8+int(sa[6]) : n]; len(t) >= 8; {
			tn := int(binary.BigEndian.Uint16(t[2:]))
			if tn < 8 || tn > len(t) {
				break
			}
			if t[4] == transformDH {
				out = append(out, binary.BigEndian.Uint16(t[6:]))
			}
			t = t[tn:]
		}
		sa = sa[n:]
	}
	return out
}

// secret is what an SK payload of these peers carries, in the clear: which
// round of the login this is, and the ESP SPI the sender wants to receive by.
type secret struct {
	round, rounds uint8
	spi           uint32
	server        uint16 // the responder's number; 0 from a client
}

const (
	skIVLen  = 16 // AES-CBC
	skICVLen = 16 // HMAC-SHA2-256-128
	skFixed  = 16 // length of an encoded secret
)

// skMessage returns a message whose only payload is SK (RFC 7296 3.14), padded
// so that the message is at least size bytes long.
func skMessage(h header, s secret, size int) []byte {
	content := random(skIVLen)
	content = append(content, 'v', 'l', 'a', 'b', s.round, s.rounds)
	content = binary.BigEndian.AppendUint32(content, s.spi)
	content = binary.BigEndian.AppendUint16(content, s.server)
	content = append(content, 0, 0, 0, 0)
	if pad := size - ikeHeaderLen - 4 - len(content) - skICVLen; pad > 0 {
		content = append(content, random(pad)...)
	}
	content = append(content, random(skICVLen)...)
	h.next = payloadSK
	first := uint8(payloadIDi)
	if h.exchange == exchangeInformational {
		first = payloadNone
	}
	return message(h, appendPayload(nil, first, content))
}

// openSK reads the secret of a message that skMessage made.
func openSK(h header, b []byte) (s secret, ok bool) {
	c := b[ikeHeaderLen:]
	if h.next != payloadSK || len(c) < 4+skIVLen+skFixed+skICVLen || int(binary.BigEndian.Uint16(c[2:])) != len(c) {
		return s, false
	}
	c = c[4+skIVLen:]
	if string(c[:4]) != "vlab" {
		return s, false
	}
	return secret{round: c[4], rounds: c[5], spi: binary.BigEndian.Uint32(c[6:]), server: binary.BigEndian.Uint16(c[10:])}, true
}

// data is a numbered packet of a client, or its echo, as ESP in UDP (RFC 3948
// 2.1): SPI, sequence number, then what would be encrypted.
type data struct {
	spi    uint32
	seq    uint64 // the client's own number; ESP carries its low half
	server uint16 // in an echo: who echoed
	want   uint16 // bytes that the echo shall have; 0: dataLen
}

const (
	dataLen   = 96 // like a small tunnelled packet
	dataFixed = 20 // bytes that mean something
)

// encode gives a packet of size bytes, at least dataLen.
func (d data) encode(size int) []byte {
	b := make([]byte, max(size, dataLen))
	binary.BigEndian.PutUint32(b, d.spi)
	binary.BigEndian.PutUint32(b[4:], uint32(d.seq))
	binary.BigEndian.PutUint64(b[8:], d.seq)
	binary.BigEndian.PutUint16(b[16:], d.server)
	binary.BigEndian.PutUint16(b[18:], d.want)
	return b
}

// encodeFor gives a packet whose IPv6 checksum does not look unfinished. One of
// 65536 complete sums equals that of the pseudo-header, which is what a virtual
// device leaves for others to finish; a balancer on such a device has to drop it.
// That is chance, and no drill is to be judged by it.
func (d data) encodeFor(from, to netip.AddrPort, size int) []byte {
	b := d.encode(size)
	for to.Addr().Is6() && looksUnfinished(from, to, b) {
		b[dataFixed]++
	}
	return b
}

func looksUnfinished(from, to netip.AddrPort, payload []byte) bool {
	u := datagram(from, to, payload)
	pseudo := onesSum(from.Addr().AsSlice(), protoUDP+uint32(len(u)))
	return binary.BigEndian.Uint16(u[6:]) == fold(onesSum(to.Addr().AsSlice(), pseudo))
}

func parseData(b []byte) (d data, ok bool) {
	if len(b) < dataLen {
		return d, false
	}
	return data{
		spi: binary.BigEndian.Uint32(b), seq: binary.BigEndian.Uint64(b[8:]),
		server: binary.BigEndian.Uint16(b[16:]), want: binary.BigEndian.Uint16(b[18:]),
	}, true
}

// onPort4500 puts the non-ESP marker in front of an IKE message.
func onPort4500(m []byte) []byte { return append(marker[:len(marker):len(marker)], m...) }

func random(n int) []byte {
	b := make([]byte, n)
	rand.Read(b) // never fails (crypto/rand, Go 1.24)
	return b
}

func randomSPI() uint64 { return binary.BigEndian.Uint64(random(8)) | 1 }

// randomESPSPI avoids 0 (the marker) and 1..255, which are reserved (RFC 4303 2.1).
func randomESPSPI() uint32 { return binary.BigEndian.Uint32(random(4)) | 0x100 }
