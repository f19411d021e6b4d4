package bucket

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// The program reads exactly this.
func TestLayout4(t *testing.T) {
	b := newBed(t, IPv4, 2, 1)
	k := client(IPv4, 0x10203) // 198.19.2.3
	k.Class = table.TCP
	if err := b.Put(table.Entry{Key: k, Slot: 0xab, State: 2}); err != nil {
		t.Fatal(err)
	}
	s, _ := b.spotOf(k)
	got := b.mem[s.first*64 : s.first*64+64]
	want := make([]byte, 64)
	copy(want, []byte{198, 19, 2, 3, 0xab, 0b110, 0, 0})
	if !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
	b.setTick(t, k, 0x1234, true)
	if got := binary.LittleEndian.Uint16(got[6:]); got != 0x9234 {
		t.Errorf("tick half %#x", got)
	}
}

func TestLayout6(t *testing.T) {
	b := newBed(t, IPv6, 2, 1)
	k := client(IPv6, 0x1020304)
	k.Client[15] = 7
	if err := b.Put(table.Entry{Key: k, Slot: 0xab, State: 2}); err != nil {
		t.Fatal(err)
	}
	s, _ := b.spotOf(k)
	got := b.mem[s.first*128 : s.first*128+128]
	want := make([]byte, 128)
	binary.LittleEndian.PutUint32(want, tagOf(hash6(s.hi, s.lo, testSeed)))
	want[4], want[5] = 0xab, 0b010
	copy(want[48:], k.Client[:])
	if !bytes.Equal(got, want) {
		t.Errorf("%x, want %x", got, want)
	}
}

func TestBuckets(t *testing.T) {
	for _, f := range []Family{IPv4, IPv6} {
		for _, capacity := range []uint32{0, 1, 100, 1_000_000, 1<<32 - 1} {
			n := Buckets(capacity, f)
			if fill := float64(capacity) / float64(n) / float64(f.ways()); n < 2 || fill > 0.35 || capacity > 1000 && fill < 0.349 {
				t.Errorf("family %d, capacity %d: %d buckets, fill %f", f, capacity, n, fill)
			}
		}
	}
}
