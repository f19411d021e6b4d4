package cluster

import (
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// kind says what a hint carries. Values are on the wire.
type kind uint8

const (
	kindStatus       kind = 1
	kindObservations kind = 2
)

// A hint is sent in parts that fit a gossip packet; each is signed by itself.
//
// Form 1: version (1) | kind (1) | origin (16) | boot (uvarint) | sequence
// (uvarint) | part (1) | parts (1) | payload (rest) | signature (64). The
// signature is Ed25519 (RFC 8032) over hintDomain, the cluster ID and all that
// precedes it, so that a hint of one cluster means nothing in another.
const (
	hintVersion = 1
	hintDomain  = "vpnlb-hint-1"
	hintHead    = 1 + 1 + 16
	maxPart     = 1000                                 // payload bytes: with all headers below the 1400 of a packet
	maxParts    = (MaxPayload + maxPart - 1) / maxPart // 9
	maxHint     = hintHead + 2*binary.MaxVarintLen64 + 2 + maxPart + ed25519.SignatureSize
)

var errMalformed = errors.New("not a hint of a known form")

// part is one signed part of a hint. Its slices alias what it was parsed from.
type part struct {
	kind      kind
	origin    state.NodeID
	order     order
	part      int // 0..parts-1
	parts     int
	payload   []byte
	signed    []byte // what the signature covers, after domain and cluster
	raw       []byte
	signature []byte
}

// order orders the hints of one origin and kind.
type order struct{ boot, sequence uint64 }

func (o order) after(p order) bool {
	return o.boot > p.boot || o.boot == p.boot && o.sequence > p.sequence
}

// parsePart reads a part without judging its signature.
func parsePart(raw []byte) (part, error) {
	var p part
	if len(raw) < hintHead+ed25519.SignatureSize || len(raw) > maxHint || raw[0] != hintVersion {
		return p, errMalformed
	}
	p.raw = raw
	p.kind = kind(raw[1])
	if p.kind != kindStatus && p.kind != kindObservations {
		return p, errMalformed
	}
	copy(p.origin[:], raw[2:])
	p.signed = raw[:len(raw)-ed25519.SignatureSize]
	p.signature = raw[len(p.signed):]
	r := reader{b: p.signed[hintHead:]}
	p.order.boot = r.uvarint()
	p.order.sequence = r.uvarint()
	p.part, p.parts = int(r.byte()), int(r.byte())
	p.payload = r.b
	switch {
	case r.bad, p.order.sequence == 0,
		p.parts < 1 || p.parts > maxParts || p.part >= p.parts,
		len(p.payload) > maxPart,
		p.part < p.parts-1 && len(p.payload) != maxPart: // so that every hint has one way to be cut
		return part{}, errMalformed
	}
	return p, nil
}

// verify checks the signature of a part.
func (p part) verify(cluster state.ClusterID, key ed25519.PublicKey) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, covered(cluster, p.signed), p.signature)
}

func covered(cluster state.ClusterID, signed []byte) []byte {
	b := make([]byte, 0, len(hintDomain)+len(cluster)+len(signed))
	b = append(b, hintDomain...)
	b = append(b, cluster[:]...)
	return append(b, signed...)
}

// makeParts signs a payload.
func makeParts(cluster state.ClusterID, origin state.NodeID, key ed25519.PrivateKey, k kind, o order, payload []byte) [][]byte {
	parts := max(1, (len(payload)+maxPart-1)/maxPart)
	out := make([][]byte, 0, parts)
	for i := range parts {
		chunk := payload[i*maxPart : min(len(payload), (i+1)*maxPart)]
		b := make([]byte, 0, maxHint)
		b = append(b, hintVersion, byte(k))
		b = append(b, origin[:]...)
		b = binary.AppendUvarint(b, o.boot)
		b = binary.AppendUvarint(b, o.sequence)
		b = append(b, byte(i), byte(parts))
		b = append(b, chunk...)
		out = append(out, append(b, ed25519.Sign(key, covered(cluster, b))...))
	}
	return out
}

// A bundle carries parts where there is room for many: push/pull, RPC.
//
// Form 1: version (1), then for each part: age in milliseconds (uvarint) |
// length (uvarint) | part. The age is what the sender admits and is not signed:
// it can only make a hint older.
const bundleVersion = 1

func appendBundle(b []byte, raw []byte, age time.Duration) []byte {
	b = binary.AppendUvarint(b, uint64(max(0, age.Milliseconds())))
	b = binary.AppendUvarint(b, uint64(len(raw)))
	return append(b, raw...)
}

// readBundle calls each for every part of a bundle.
func readBundle(b []byte, each func(raw []byte, age time.Duration)) error {
	if len(b) == 0 {
		return nil
	}
	if len(b) > MaxBundle {
		return fmt.Errorf("bundle of %d bytes is larger than %d", len(b), MaxBundle)
	}
	if b[0] != bundleVersion {
		return fmt.Errorf("bundle has form %d, not %d", b[0], bundleVersion)
	}
	r := reader{b: b[1:]}
	for len(r.b) > 0 {
		ms := r.uvarint()
		raw := r.take(r.uvarint())
		if r.bad {
			return errors.New("bundle is cut short")
		}
		each(raw, time.Duration(min(ms, 1<<31))*time.Millisecond)
	}
	return nil
}

// reader takes values off a byte slice; bad stays set after the first failure.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) byte() byte {
	if len(r.b) == 0 {
		r.bad = true
		return 0
	}
	c := r.b[0]
	r.b = r.b[1:]
	return c
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

// count reads a count and refuses more than limit.
func (r *reader) count(limit int) int {
	n := r.uvarint()
	if n > uint64(limit) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(n)
}

// bounded reads a number and refuses more than limit.
func (r *reader) bounded(limit uint64) uint64 {
	n := r.uvarint()
	if n > limit {
		r.bad, r.b = true, nil
		return 0
	}
	return n
}
