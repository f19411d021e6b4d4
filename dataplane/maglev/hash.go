package maglev

import (
	"encoding/binary"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// HashName names the hash of this package; status and the cluster spec show it.
const HashName = "vpnlb-hash-1"

const (
	mixA     = 0xbf58476d1ce4e5b9
	mixB     = 0x94d049bb133111eb
	classMul = 0x9e3779b97f4a7c15
	// mappedLow is the low half of the second word of ::ffff:a.b.c.d: the
	// bytes 00 00 ff ff, little endian.
	mappedLow = 0xffff0000
)

func mix(x uint64) uint64 {
	x ^= x >> 30
	x *= mixA
	x ^= x >> 27
	x *= mixB
	return x ^ x>>31
}

// Hash is "vpnlb-hash-1" of a client's 16-byte key (IPv4 mapped) in one class.
func Hash(key [16]byte, class table.Class, client [16]byte) uint64 {
	k0 := binary.LittleEndian.Uint64(key[0:8])
	k1 := binary.LittleEndian.Uint64(key[8:16])
	w0 := binary.LittleEndian.Uint64(client[0:8])
	w1 := binary.LittleEndian.Uint64(client[8:16])
	h := mix(w0 ^ k0 ^ uint64(class)*classMul)
	h = mix(h ^ w1)
	return mix(h + k1)
}

// Seed is the first step of Hash for every IPv4 client of a class: a constant
// that a loader may put beside the key.
func Seed(key [16]byte, class table.Class) uint64 {
	return mix(binary.LittleEndian.Uint64(key[0:8]) ^ uint64(class)*classMul)
}

// ClassKey is what the first word of every IPv6 client is mixed with in a class.
func ClassKey(key [16]byte, class table.Class) uint64 {
	return binary.LittleEndian.Uint64(key[0:8]) ^ uint64(class)*classMul
}

// Hash4 is Hash of an IPv4 client, in the two steps the packet program takes.
func Hash4(key [16]byte, seed uint64, addr [4]byte) uint64 {
	w1 := uint64(binary.LittleEndian.Uint32(addr[:]))<<32 | mappedLow
	return mix(mix(seed^w1) + binary.LittleEndian.Uint64(key[8:16]))
}

// Index scales the upper half of a hash to a table of the given size, by
// multiply and shift: no division in the packet program.
func Index(hash uint64, size uint32) uint32 {
	return uint32((hash >> 32) * uint64(size) >> 32)
}

// Pick looks a client up in a table made by Build; 0 = the table is empty.
func Pick(slots []table.Slot, key [16]byte, class table.Class, client [16]byte) table.Slot {
	if len(slots) == 0 {
		return 0
	}
	return slots[Index(Hash(key, class, client), uint32(len(slots)))]
}
