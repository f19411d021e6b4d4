package health

import (
	"encoding/binary"
	"slices"
	"strings"
)

// The proposals of a probe (RFC 7296, section 3.3). They cover every policy that
// Set-VpnServerConfiguration can give a Windows server: seven ciphers, four hashes
// and six groups, 168 combinations. A hash stands for the PRF, and for the
// integrity algorithm where the cipher does not authenticate by itself.

// Transform types and numbers (RFC 7296, section 3.3.2, and the IANA registry
// "IKEv2 Parameters").
const (
	transformENCR  = 1
	transformPRF   = 2
	transformINTEG = 3
	transformKE    = 4

	encrDES  = 2
	encr3DES = 3
	encrCBC  = 12 // AES
	encrGCM  = 20 // AES, 16-octet ICV, RFC 5282
	prfMD5   = 1
	prfSHA1  = 2
	prf256   = 5
	prf384   = 6
	prf512   = 7
	authMD5  = 1
	auth96   = 2 // SHA-1
	auth256  = 12
	auth384  = 13
	auth512  = 14
	modp768  = 1
	modp1024 = 2
	modp2048 = 14
	modp3072 = 15
	modp4096 = 16
	ecp256   = 19
	ecp384   = 20
	ecp521   = 21
	modp24   = 24 // 2048 bits with a 256-bit subgroup, RFC 5114
)

type cipher struct {
	name     string
	id, bits uint16 // bits 0: no key length attribute
}

// aead reports whether the cipher authenticates by itself; it then goes without an
// integrity transform (RFC 5282, section 8).
func (c cipher) aead() bool { return c.id == encrGCM }

type hash struct {
	name       string
	prf, integ uint16
}

type group struct {
	name string
	id   uint16
}

// The values that a Windows server may have; then those that other servers use,
// which only the compact form offers.
var (
	windowsCiphers = []cipher{{"aes256", encrCBC, 256}, {"aes192", encrCBC, 192}, {"aes128", encrCBC, 128},
		{"aes256gcm16", encrGCM, 256}, {"aes128gcm16", encrGCM, 128}, {"3des", encr3DES, 0}, {"des", encrDES, 0}}
	windowsHashes = []hash{{"sha256", prf256, auth256}, {"sha384", prf384, auth384}, {"sha1", prfSHA1, auth96}, {"md5", prfMD5, authMD5}}
	windowsGroups = []group{{"modp2048", modp2048}, {"modp1024", modp1024}, {"ecp256", ecp256}, {"ecp384", ecp384},
		{"modp2048s256", modp24}, {"modp768", modp768}}

	otherCiphers = []cipher{{"aes192gcm16", encrGCM, 192}}
	otherHashes  = []hash{{"sha512", prf512, auth512}}
	otherGroups  = []group{{"modp3072", modp3072}, {"modp4096", modp4096}, {"ecp521", ecp521}}
)

// proposal is one way to protect an IKE SA, or several: the responder takes one
// of each list (RFC 7296, section 3.3).
type proposal struct {
	ciphers []cipher // with and without aead are never mixed
	hashes  []hash
	groups  []group
}

// offers are the forms of a probe. The first offers everything at once, in two
// proposals with many transforms each, as RFC 7296 allows. A server that chooses
// nothing of it is asked with the others too: single combinations, one proposal
// each, which a server that reads one transform of a kind understands. What a server
// chooses from stays in use for it.
var offers = makeOffers()

// nextOffer is what to offer a server that chose nothing of offer: everything, and
// in between the single ones in turn, so that a server whose policy comes back is
// known by the next probe but one. single is where the turn is.
func nextOffer(offer int, single *int) int {
	if offer != 0 {
		return 0
	}
	*single = *single%(len(offers)-1) + 1
	return *single
}

// combinationsInOffer keeps a probe with a cookie (72 bytes) and the largest wrong
// group below 1400 bytes: a probe is never fragmented.
const combinationsInOffer = 24

func makeOffers() [][]proposal {
	ciphers, hashes, groups := slices.Concat(windowsCiphers, otherCiphers), slices.Concat(windowsHashes, otherHashes), slices.Concat(windowsGroups, otherGroups)
	plain := slices.DeleteFunc(slices.Clone(ciphers), cipher.aead)
	aead := slices.DeleteFunc(slices.Clone(ciphers), func(c cipher) bool { return !c.aead() })
	all := [][]proposal{{{plain, hashes, groups}, {aead, hashes, groups}}}
	var single []proposal
	for _, g := range windowsGroups {
		for _, h := range windowsHashes {
			for _, c := range windowsCiphers {
				single = append(single, proposal{[]cipher{c}, []hash{h}, []group{g}})
			}
		}
	}
	return slices.AppendSeq(all, slices.Chunk(single, combinationsInOffer))
}

// OfferedNames says what the probes offer, for hints.
func OfferedNames() string {
	var ciphers, hashes, groups []string
	for _, c := range slices.Concat(windowsCiphers, otherCiphers) {
		ciphers = append(ciphers, c.name)
	}
	for _, h := range slices.Concat(windowsHashes, otherHashes) {
		hashes = append(hashes, h.name)
	}
	for _, g := range slices.Concat(windowsGroups, otherGroups) {
		groups = append(groups, g.name)
	}
	return "one of " + strings.Join(ciphers, ", ") + "; with one of " + strings.Join(hashes, ", ") + "; and one of " + strings.Join(groups, ", ")
}

// appendSA appends the SA payload (RFC 7296, section 3.3).
func appendSA(b []byte, next byte, offer []proposal) []byte {
	start := len(b)
	b = append(b, next, 0, 0, 0)
	for i, p := range offer {
		more := byte(2) // "2 (more)", section 3.3.1
		if i == len(offer)-1 {
			more = 0
		}
		at := len(b)
		b = append(b, more, 0, 0, 0, byte(i+1), 1, 0, byte(p.transforms())) // protocol 1 = IKE, no SPI
		b = p.appendTransforms(b)
		binary.BigEndian.PutUint16(b[at+2:], uint16(len(b)-at))
	}
	binary.BigEndian.PutUint16(b[start+2:], uint16(len(b)-start))
	return b
}

func (p proposal) aead() bool { return p.ciphers[0].aead() }

func (p proposal) transforms() int {
	n := len(p.ciphers) + len(p.hashes) + len(p.groups)
	if !p.aead() {
		n += len(p.hashes)
	}
	return n
}

func (p proposal) appendTransforms(b []byte) []byte {
	for _, c := range p.ciphers {
		b = appendTransform(b, transformENCR, c.id, c.bits, true)
	}
	for _, h := range p.hashes {
		b = appendTransform(b, transformPRF, h.prf, 0, true)
	}
	for _, h := range p.hashes {
		if !p.aead() {
			b = appendTransform(b, transformINTEG, h.integ, 0, true)
		}
	}
	for i, g := range p.groups {
		b = appendTransform(b, transformKE, g.id, 0, i < len(p.groups)-1)
	}
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
