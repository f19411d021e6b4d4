package sstppeer

import (
	"crypto/hmac"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"hash"
	"slices"
)

// Crypto binding ([MS-SSTP] 2.2.6, 2.2.7, 3.2.5.2): a client proves by a key of
// its login which certificate it saw, so that nobody can stand between.

// Hash protocols, a bit mask in a request, one bit in an answer.
const (
	hashSHA1   = 1
	hashSHA256 = 2

	nonceSize        = 32
	bindingSize      = 4 + nonceSize + 32 + 32 // bytes of the attribute's value
	callConnectedLen = 112                     // bytes of the whole packet
	macStart         = callConnectedLen - 32   // in the packet
	cmkSeed          = "SSTP inner method derived CMK"
)

// bindingRequest is the attribute of Call Connect Ack.
func bindingRequest(protocols byte, nonce [nonceSize]byte) attribute {
	return attribute{id: attrBindingReq, value: append([]byte{0, 0, 0, protocols}, nonce[:]...)}
}

// binding is what a client says in Call Connected. With SHA-1 hash and MAC
// take 20 bytes each, zeros behind.
type binding struct {
	protocol byte
	nonce    [nonceSize]byte
	hash     [32]byte
	mac      [32]byte
}

func (b binding) encode() attribute {
	v := []byte{0, 0, 0, b.protocol}
	return attribute{id: attrBinding, value: slices.Concat(v, b.nonce[:], b.hash[:], b.mac[:])}
}

func parseBinding(v []byte) (b binding, ok bool) {
	if len(v) != bindingSize {
		return b, false
	}
	b.protocol = v[3]
	v = v[4:]
	copy(b.nonce[:], v)
	copy(b.hash[:], v[nonceSize:])
	copy(b.mac[:], v[nonceSize+32:])
	return b, true
}

// certHash gives a certificate's hash in the form of one hash protocol.
func certHash(protocol byte, der []byte) (out [32]byte) {
	if protocol == hashSHA1 {
		h := sha1.Sum(der)
		copy(out[:], h[:])
		return out
	}
	return sha256.Sum256(der)
}

// compoundMAC signs a whole Call Connected packet, whose MAC field counts as
// zeros ([MS-SSTP] 3.2.5.2.3, 3.2.5.2.4).
func compoundMAC(protocol byte, authKey, packet []byte) (out [32]byte) {
	newHash, size := func() hash.Hash { return sha256.New() }, uint16(sha256.Size)
	if protocol == hashSHA1 {
		newHash, size = func() hash.Hash { return sha1.New() }, sha1.Size
	}
	// PRF+ of one round: seed, length in little endian, counter.
	seed := binary.LittleEndian.AppendUint16([]byte(cmkSeed), size)
	cmk := keyed(newHash, authKey, append(seed, 1))
	signed := slices.Clone(packet)
	clear(signed[macStart:])
	copy(out[:], keyed(newHash, cmk, signed))
	return out
}

func keyed(newHash func() hash.Hash, key, text []byte) []byte {
	m := hmac.New(newHash, key)
	m.Write(text)
	return m.Sum(nil)
}

// Reasons why a binding is refused, as statistics call them.
const (
	reasonNonce    = "nonce"
	reasonHash     = "certificate_hash"
	reasonMAC      = "compound_mac"
	reasonProtocol = "hash_protocol"
	reasonLength   = "binding_length"
)

// judge checks a binding against what the server knows; "": it holds. The hash
// is judged last: with it alone wrong, all else was in order.
func (b binding) judge(nonce [nonceSize]byte, protocols byte, authKey, packet []byte, trusted func(protocol byte, hash [32]byte) bool) string {
	switch {
	case b.protocol != hashSHA1 && b.protocol != hashSHA256, b.protocol&protocols == 0:
		return reasonProtocol
	case !hmac.Equal(b.nonce[:], nonce[:]):
		return reasonNonce
	}
	mac := compoundMAC(b.protocol, authKey, packet)
	switch {
	case !hmac.Equal(mac[:], b.mac[:]):
		return reasonMAC
	case !trusted(b.protocol, b.hash):
		return reasonHash
	}
	return ""
}
