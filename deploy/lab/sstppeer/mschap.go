package sstppeer

import (
	"crypto/des"
	"crypto/hmac"
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"
	"unicode/utf16"

	//lint:ignore SA1019 MS-CHAPv2 is made of it (RFC 2759 8.3)
	"golang.org/x/crypto/md4"
)

// Sizes of MS-CHAPv2 (RFC 2759 3, 4).
const (
	challengeSize  = 16 // bytes, of either side
	ntResponseSize = 24
	chapValueSize  = 49 // peer challenge, 8 reserved, NT response, flags
	sessionKeySize = 16 // of MPPE with 128 bits
)

// credentials are what one login was made with.
type credentials struct {
	user, password string
	authChallenge  [challengeSize]byte // of the server
	peerChallenge  [challengeSize]byte // of the client
}

// passwordHash is NtPasswordHash (RFC 2759 8.3).
func passwordHash(password string) []byte {
	h := md4.New()
	for _, c := range utf16.Encode([]rune(password)) {
		h.Write([]byte{byte(c), byte(c >> 8)})
	}
	return h.Sum(nil)
}

// passwordHashHash is HashNtPasswordHash (RFC 2759 8.4).
func passwordHashHash(password string) []byte {
	h := md4.New()
	h.Write(passwordHash(password))
	return h.Sum(nil)
}

func sha1Of(parts ...[]byte) []byte {
	h := sha1.New()
	for _, p := range parts {
		h.Write(p)
	}
	return h.Sum(nil)
}

// challenge is ChallengeHash (RFC 2759 8.2). The domain before a user's name
// is no part of it (RFC 2759 4).
func (c credentials) challenge() []byte {
	name := c.user[strings.LastIndexByte(c.user, '\\')+1:]
	return sha1Of(c.peerChallenge[:], c.authChallenge[:], []byte(name))[:8]
}

// ntResponse is GenerateNTResponse (RFC 2759 8.1): the challenge under three
// DES keys made of the password's hash and five zeros.
func (c credentials) ntResponse() (out [ntResponseSize]byte) {
	keys := append(passwordHash(c.password), make([]byte, 5)...)
	challenge := c.challenge()
	for i := range 3 {
		block, err := des.NewCipher(spread(keys[7*i : 7*i+7]))
		if err != nil {
			panic(fmt.Sprintf("DES refuses a key of 8 bytes: %v", err))
		}
		block.Encrypt(out[8*i:], challenge)
	}
	return out
}

// spread makes a DES key of 56 bits: seven to a byte, the parity is not looked at.
func spread(k []byte) []byte {
	var bits uint64
	for _, b := range k {
		bits = bits<<8 | uint64(b)
	}
	out := make([]byte, 8)
	for i := range out {
		out[i] = byte(bits>>(49-7*i)) << 1
	}
	return out
}

// Constants of RFC 2759 8.7.
const (
	magicSigning = "Magic server to client signing constant"
	magicPad     = "Pad to make it do more than one iteration"
)

// authenticator is GenerateAuthenticatorResponse (RFC 2759 8.7): the proof that
// the server knows the password too.
func (c credentials) authenticator(nt [ntResponseSize]byte) string {
	digest := sha1Of(passwordHashHash(c.password), nt[:], []byte(magicSigning))
	return "S=" + strings.ToUpper(hex.EncodeToString(sha1Of(digest, c.challenge(), []byte(magicPad))))
}

// proves reports whether a success message carries the right proof.
func (c credentials) proves(nt [ntResponseSize]byte, message string) bool {
	got, _, _ := strings.Cut(message, " ")
	return hmac.Equal([]byte(got), []byte(c.authenticator(nt)))
}

// Constants of RFC 3079 3.4.
const (
	magicMaster  = "This is the MPPE Master Key"
	magicSend    = "On the client side, this is the send key; on the server side, it is the receive key."
	magicReceive = "On the client side, this is the receive key; on the server side, it is the send key."
)

// masterKey is GetMasterKey (RFC 3079 3.4).
func (c credentials) masterKey(nt [ntResponseSize]byte) []byte {
	return sha1Of(passwordHashHash(c.password), nt[:], []byte(magicMaster))[:sessionKeySize]
}

// startKey is GetAsymmetricStartKey (RFC 3079 3.4).
func startKey(master []byte, magic string) []byte {
	return sha1Of(master, make([]byte, 40), []byte(magic), slices.Repeat([]byte{0xf2}, 40))[:sessionKeySize]
}

// authKey is the higher layer authentication key of crypto binding ([MS-SSTP]
// 3.2.5.2.2): the client's send key, then its receive key.
func (c credentials) authKey(nt [ntResponseSize]byte) []byte {
	master := c.masterKey(nt)
	return append(startKey(master, magicSend), startKey(master, magicReceive)...)
}
