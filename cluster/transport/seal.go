package transport

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
)

// Sealed form 1: version (1 byte) | salt (16) | nonce (12) | AES-256-GCM
// ciphertext and tag. It is in the log: never change it, add a version.
const (
	sealVersion = 1
	sealSalt    = 16
	sealNonce   = 12
	sealInfo    = "vpnlb-seal-1"
)

// ErrSealed means that a sealed value does not open: another cluster secret,
// another name, or damage. Which one cannot be told.
var ErrSealed = errors.New("sealed value does not open with this cluster secret and name")

// NewSecret draws a cluster secret.
func NewSecret() [32]byte {
	var s [32]byte
	rand.Read(s[:]) // never fails (crypto/rand, Go 1.24)
	return s
}

// Seal encrypts a value for the log. The name is authenticated with it, so that
// one secret cannot be put in another's place. Every value has a key of its
// own: HKDF (RFC 5869) of the cluster secret and a random salt.
func Seal(secret [32]byte, name string, plain []byte) ([]byte, error) {
	out := make([]byte, 1+sealSalt+sealNonce, 1+sealSalt+sealNonce+len(plain)+16)
	out[0] = sealVersion
	rand.Read(out[1:])
	aead, err := sealCipher(secret, out[1:1+sealSalt])
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", name, err)
	}
	return aead.Seal(out, out[1+sealSalt:], plain, sealData(name)), nil
}

// Open decrypts what Seal made under the same secret and name.
func Open(secret [32]byte, name string, sealed []byte) ([]byte, error) {
	if len(sealed) < 1+sealSalt+sealNonce+16 {
		return nil, fmt.Errorf("open %s: %w", name, ErrSealed)
	}
	if sealed[0] != sealVersion {
		return nil, fmt.Errorf("open %s: sealed form %d is not known to this version", name, sealed[0])
	}
	aead, err := sealCipher(secret, sealed[1:1+sealSalt])
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, err)
	}
	nonce := sealed[1+sealSalt : 1+sealSalt+sealNonce]
	plain, err := aead.Open(nil, nonce, sealed[1+sealSalt+sealNonce:], sealData(name))
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", name, ErrSealed)
	}
	return plain, nil
}

func sealCipher(secret [32]byte, salt []byte) (cipher.AEAD, error) {
	key, err := hkdf.Key(sha256.New, secret[:], salt, sealInfo, 32)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

func sealData(name string) []byte { return []byte(sealInfo + "\x00" + name) }
