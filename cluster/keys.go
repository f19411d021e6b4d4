package cluster

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
)

// Rotation of the gossip key: AddKey everywhere, UseKey everywhere, RemoveKey. A
// node never adds and uses a key in one step: nodes that do not know it yet would
// be cut off. The caller says when; what it goes by is in DESIGN.md, Keys.

// keySize selects AES-256.
const keySize = 32

// NewKey draws a gossip key.
func NewKey() []byte {
	k := make([]byte, keySize)
	rand.Read(k) // never fails (crypto/rand, Go 1.24)
	return k
}

// KeyID names a key without telling it.
func KeyID(key []byte) string {
	sum := sha256.Sum256(append([]byte("vpnlb-gossip-key\x00"), key...))
	return hex.EncodeToString(sum[:6])
}

func checkKey(key []byte) error {
	if len(key) != keySize {
		return fmt.Errorf("gossip key of %d bytes, not %d", len(key), keySize)
	}
	return nil
}

// AddKey makes a key known: packets under it are understood. A known key is no
// error.
func (m *Membership) AddKey(key []byte) error {
	if err := checkKey(key); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.knowsKey(key) && len(m.ring.GetKeys()) >= MaxKeys {
		return fmt.Errorf("add gossip key: %d keys are known already", MaxKeys)
	}
	if err := m.ring.AddKey(bytes.Clone(key)); err != nil {
		return fmt.Errorf("add gossip key: %w", err)
	}
	return nil
}

// UseKey encrypts with a known key from now on.
func (m *Membership) UseKey(key []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.ring.UseKey(key); err != nil {
		return fmt.Errorf("use gossip key %s: %w", KeyID(key), err)
	}
	return nil
}

// RemoveKey forgets a key that is not in use. An unknown key is no error.
func (m *Membership) RemoveKey(key []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if bytes.Equal(key, m.ring.GetPrimaryKey()) {
		return errors.New("remove gossip key: it is in use")
	}
	if !m.knowsKey(key) {
		return nil
	}
	if err := m.ring.RemoveKey(key); err != nil {
		return fmt.Errorf("remove gossip key %s: %w", KeyID(key), err)
	}
	return nil
}

// KeyIDs names the known keys by KeyID, the one in use first.
func (m *Membership) KeyIDs() []string {
	var out []string
	for _, k := range m.ring.GetKeys() { // the library keeps the one in use first
		out = append(out, KeyID(k))
	}
	return out
}

func (m *Membership) knowsKey(key []byte) bool {
	for _, k := range m.ring.GetKeys() {
		if bytes.Equal(k, key) {
			return true
		}
	}
	return false
}
