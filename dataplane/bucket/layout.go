package bucket

import (
	"fmt"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Family is the address family of a table.
type Family uint8

// Families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// Layout of one bucket, in 8-byte words. The program is compiled with the same
// numbers.
//
//	IPv4,  64 bytes: way[7], overflow
//	IPv6, 128 bytes: way[5], overflow, key[5] of two words each
const (
	ways4     = 7
	stride4   = 8
	overflow4 = 7

	ways6     = 5
	stride6   = 16
	overflow6 = 5
	keys6     = 6
)

// Fields of a way's word.
const (
	matchBits  = 0xffffffff
	slotShift  = 32
	slotBits   = 0xff << slotShift
	stateShift = 40
	stateBits  = 0x3 << stateShift
	classShift = 42
	classBit   = 1 << classShift
	zeroBits   = 0x1f << 43
	tickShift  = 48
	tickBits   = TickMask << tickShift
	heardBit   = 1 << 63

	// recordBits are user space's half, the rest is the program's.
	recordBits = 1<<tickShift - 1
	// wantBits must be equal for a word to be a client's.
	wantBits = matchBits | classBit
)

// Fields of the overflow word, and the most that one field counts.
const (
	secondOne   = 1
	stashOne    = 1 << 16
	overflowMax = 0xffff
)

// ways is how many records a bucket of the family holds.
func (f Family) ways() int {
	if f == IPv6 {
		return ways6
	}
	return ways4
}

// stride is the size of a bucket in words.
func (f Family) stride() int {
	if f == IPv6 {
		return stride6
	}
	return stride4
}

func (f Family) overflow() int {
	if f == IPv6 {
		return overflow6
	}
	return overflow4
}

// BucketBytes is the size of one bucket, the value size of the kernel's array.
func (f Family) BucketBytes() int { return f.stride() * 8 }

// Fill, in percent of all ways at full capacity. Denser saves memory and sends
// more records to their second bucket (a second cache miss for the packet) and
// to the stash (a kernel hash lookup); DESIGN.md has the figures.
const (
	fill4 = 35
	fill6 = 35
)

// Buckets gives the number of buckets for a capacity in records.
func Buckets(capacity uint32, f Family) uint32 {
	perBucket := uint64(ways4 * fill4)
	if f == IPv6 {
		perBucket = ways6 * fill6
	}
	n := (uint64(capacity)*100 + perBucket - 1) / perBucket
	return uint32(max(n, 2))
}

// Capacity is what a number of buckets is meant for: the inverse of Buckets.
func Capacity(buckets uint32, f Family) uint32 {
	perBucket := uint64(ways4 * fill4)
	if f == IPv6 {
		perBucket = ways6 * fill6
	}
	return uint32(uint64(buckets) * perBucket / 100)
}

// keyIndex gives where the key of an IPv6 word is.
func keyIndex(at int) int {
	way := at % stride6
	return at - way + keys6 + 2*way
}

// StashCapacity gives what the stash of a table for a capacity should hold. It
// is for the worst case, every client with a record of each class: at the fills
// above 0.07 % (IPv4) and 0.3 % (IPv6) of the records are stashed then.
func StashCapacity(capacity uint32) uint32 { return max(capacity/200, 1024) }

// pack gives user space's half of a word.
func pack(want uint64, slot table.Slot, state table.Confirmation) uint64 {
	return want | uint64(slot)<<slotShift | uint64(state)<<stateShift
}

func slotOf(w uint64) table.Slot          { return table.Slot(w >> slotShift & 0xff) }
func stateOf(w uint64) table.Confirmation { return table.Confirmation(w >> stateShift & 3) }
func classOf(w uint64) table.Class        { return table.Class(w>>classShift&1) + 1 }
func tickOf(w uint64) uint16              { return uint16(w >> tickShift & TickMask) }

// sound reports whether a word that is not empty can have been written by Put.
func sound(w uint64) bool { return w&zeroBits == 0 && w&stateBits != 0 }

// check refuses an entry that has no word.
func check(e table.Entry) error {
	switch {
	case e.Class < 1 || e.Class > table.Classes:
		return fmt.Errorf("put affinity entry: class %d is none", e.Class)
	case e.Slot < 1 || e.Slot > table.MaxSlots:
		return fmt.Errorf("put affinity entry: slot %d is not of 1..%d", e.Slot, table.MaxSlots)
	case e.State < table.EarnedSK || e.State > table.Confirmed:
		return fmt.Errorf("put affinity entry: state %d is none", e.State)
	}
	return nil
}
