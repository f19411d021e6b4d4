package dataplane

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Multipliers of the affinity table's hash (package bucket).
const hashMix1, hashMix2 = uint64(0xbf58476d1ce4e5b9), uint64(0x94d049bb133111eb)

// inverse of an odd number, modulo 2^64, by Newton's method.
func inverse(a uint64) uint64 {
	x := a
	for range 6 {
		x *= 2 - a*x
	}
	return x
}

// unshift undoes x ^= x >> n.
func unshift(x uint64, n int) uint64 {
	out := x
	for s := n; s < 64; s += n {
		out = x ^ out>>n
	}
	return out
}

// clientWithHash makes an IPv6 client key whose hash is x: which decides its buckets
// and its tag. All with the same x have all of these in common.
func clientWithHash(x, hi, seed uint64) table.Key {
	x = unshift(x, 31) * inverse(hashMix2)
	x = unshift(x, 27) * inverse(hashMix1)
	x = unshift(x, 30)
	first := hi ^ seed
	lo := x ^ (first^first>>30)*hashMix1
	k := table.Key{Class: table.IKE}
	binary.LittleEndian.PutUint64(k.Client[:], hi)
	binary.LittleEndian.PutUint64(k.Client[8:], lo)
	return k
}

// newPlane6 knows its IPv6 clients by all their bits.
func newPlane6(t *testing.T) (p *Plane, send func(table.Key) table.Reason) {
	p, _ = newSmallPlane(t)
	set, err := fixture.Set("farm6")
	if err != nil {
		t.Fatal(err)
	}
	for i := range set.VIPs {
		set.VIPs[i].ClientBits = 128
	}
	mustResync(t, p, set, nil)
	for _, b := range set.Backends {
		putSlotHop(t, p, uint32(b.Slot), bpf.PlaneNextHop{Expires: 1 << 62, Mtu: 1500, Ifindex: 1,
			Serial: p.control.words().NextHopSerial, Flags: flagTransmit, Destination: words(b.Addr), Vip: b.VIP})
	}
	frame := buildFrame(t, "eth router > outside | ip6 client6 > vip6 | udp 4500 > 4500 | esp size=100")
	leg := p.InterfaceIndex("leg")
	return p, func(k table.Key) table.Reason {
		t.Helper()
		before := allCounts(t, p)
		copy(frame[22:], k.Client[:])
		run(t, p.coll.Programs["vpnlb"], frame, leg)
		after := allCounts(t, p)
		for r := range table.ReasonCount {
			if after.Reasons[r].Packets != before.Reasons[r].Packets {
				return r
			}
		}
		t.Fatal("not counted")
		return 0
	}
}

// Clients of a bucket whose tags are the same are found by the program, in whatever
// ways they are, and so is one whose tag is that of an empty way: 0.
func TestClientsWithTheSameTagAreFound(t *testing.T) {
	p, send := newPlane6(t)
	seed := p.meta.AffinitySeed
	const hi = 0x0000_0100_b80d_0120 // 2001:db8:0:..., little endian
	place := uint64(1)
	for i := range 5 {
		for j := i + 1; j < 5; j++ {
			place++
			t.Run(fmt.Sprintf("ways %d and %d", i, j), func(t *testing.T) {
				x := place << 56 // another bucket each time
				var twins []table.Key
				for way := range 5 {
					k := clientWithHash(x+uint64(way)+1, hi, seed)
					if way == i || way == j {
						k = clientWithHash(x, hi+uint64(way)<<56, seed)
						twins = append(twins, k)
					}
					if err := p.affinities.put(table.Entry{Key: k, Slot: 7, State: table.Confirmed}); err != nil {
						t.Fatal(err)
					}
				}
				for _, k := range twins {
					if r := send(k); r != table.ForwardAffinity {
						t.Errorf("client %x: %s", k.Client, r)
					}
				}
				if r := send(clientWithHash(x, hi+9<<56, seed)); r != table.ForwardMaglev {
					t.Errorf("a third one with that tag: %s", r)
				}
			})
		}
	}
	t.Run("tag of nobody", func(t *testing.T) {
		x := 7 * inverse(hashMix1) // times the multiplier: 7, whose upper half is the tag 0
		k := clientWithHash(x, hi, seed)
		for _, e := range []table.Key{clientWithHash(x^1, hi, seed), clientWithHash(x^2, hi, seed), k} {
			if err := p.affinities.put(table.Entry{Key: e, Slot: 7, State: table.Confirmed}); err != nil {
				t.Fatal(err)
			}
		}
		if r := send(k); r != table.ForwardAffinity {
			t.Errorf("client %x: %s", k.Client, r)
		}
	})
}
