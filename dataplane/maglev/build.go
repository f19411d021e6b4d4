package maglev

import (
	"crypto/sha256"
	"encoding/binary"
	"slices"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Table sizes. A size must be a prime, because every backend walks the table in
// steps of its own and must meet every place.
const (
	// DefaultSize is the size where the spec names none: 65537 places keep the
	// shares of 255 backends within about a percent of their weights.
	DefaultSize = 65537
	// MaxSize bounds what Build accepts: 20 MB of places is a typing error.
	MaxSize = 10_000_019
)

// permutationName separates the permutations from every other use of the key.
const permutationName = "vpnlb-maglev-1"

// Backend is one candidate of a pool.
type Backend struct {
	// ID gives the permutation. It is never reused, while a Slot may be, so
	// that a client's place does not depend on the order servers were added in.
	ID     uint32
	Slot   table.Slot // what the table's places hold
	Weight uint16     // 0: not in the table
}

// ValidSize reports whether size may be a table's size: a prime up to MaxSize.
func ValidSize(size uint32) bool {
	if size < 2 || size > MaxSize {
		return false
	}
	for d := uint32(2); d*d <= size; d++ {
		if size%d == 0 {
			return false
		}
	}
	return true
}

// walker is one backend's walk through the table.
type walker struct {
	slot        table.Slot
	weight      uint32
	credit      uint32
	place, skip uint32
	id          uint32
}

// Build fills a table of size places for one pool (the backends of a VIP that
// may take unknown clients of a class). The result depends on key, size and the
// set of (ID, Weight) only: not on the order of the backends, and on slots only
// in that they are what is written down. Without a usable backend all places
// are 0. A size that is not valid gives nil, which Pick reads as empty.
//
// The filling is Maglev's (Eisenbud and others, NSDI 2016, section 3.4):
// backends take turns, by ID; at its turn a backend takes the next free place
// of its own permutation. Weights skip turns: in each round a backend earns
// weight/(largest weight) of a turn, so a backend of half the weight plays every
// second round. The largest always plays, so there are at most size rounds of at
// most 255 backends each, whatever the weights are.
func Build(key [16]byte, size uint32, backends []Backend) []table.Slot {
	if !ValidSize(size) {
		return nil
	}
	slots := make([]table.Slot, size)
	walkers, largest := walkersOf(key, size, backends)
	if len(walkers) == 0 {
		return slots
	}
	for left := size; ; {
		for i := range walkers {
			w := &walkers[i]
			w.credit += w.weight
			if w.credit < largest {
				continue
			}
			w.credit -= largest
			for slots[w.place] != 0 {
				w.step(size)
			}
			slots[w.place] = w.slot
			w.step(size)
			if left--; left == 0 {
				return slots
			}
		}
	}
}

func (w *walker) step(size uint32) {
	w.place += w.skip // below 2*MaxSize: no overflow
	if w.place >= size {
		w.place -= size
	}
}

// walkersOf leaves out what cannot be chosen and sorts by ID.
func walkersOf(key [16]byte, size uint32, backends []Backend) ([]walker, uint32) {
	walkers := make([]walker, 0, len(backends))
	var largest uint32
	for _, b := range backends {
		if b.Weight == 0 || b.Slot == 0 {
			continue
		}
		w := walker{id: b.ID, slot: b.Slot, weight: uint32(b.Weight)}
		w.place, w.skip = permutation(key, size, b.ID)
		walkers = append(walkers, w)
		largest = max(largest, w.weight)
	}
	slices.SortFunc(walkers, func(a, b walker) int {
		if a.id != b.id {
			return int(int64(a.id) - int64(b.id))
		}
		return int(a.slot) - int(b.slot)
	})
	return walkers, largest
}

// permutation gives where a backend starts and the step of its walk. It is not
// the client hash: a server's place must tell nothing about a client's. The
// table is built seldom, so a cryptographic hash costs nothing that matters.
func permutation(key [16]byte, size, id uint32) (offset, skip uint32) {
	in := make([]byte, 0, 64)
	in = append(in, permutationName...)
	in = append(in, key[:]...)
	in = binary.BigEndian.AppendUint32(in, id)
	sum := sha256.Sum256(in)
	offset = uint32(binary.BigEndian.Uint64(sum[0:8]) % uint64(size))
	skip = uint32(binary.BigEndian.Uint64(sum[8:16])%uint64(size-1)) + 1
	return offset, skip
}
