package bucket

import (
	"net/netip"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Values computed apart from this package; the program's hash is tested with
// the same ones.
func TestHashGolden(t *testing.T) {
	for _, c := range []struct {
		addr          string
		seed          uint64
		n             uint32
		first, second uint32
		match         uint64
	}{
		{"192.0.2.1", 0x0, 2, 1, 0, 0x10200c0},
		{"192.0.2.1", 0x123456789abcdef, 408164, 332048, 26868, 0x10200c0},
		{"198.51.100.255", 0x123456789abcdef, 408164, 269590, 117073, 0xff6433c6},
		{"203.0.113.7", 0xfedcba9876543210, 3, 1, 0, 0x77100cb},
		{"198.18.255.1", 0xffffffffffffffff, 4294967295, 3977389826, 1727957381, 0x1ff12c6},
		{"2001:db8::", 0x0, 2, 1, 0, 0xe43eb7b5},
		{"2001:db8:0:1::", 0x123456789abcdef, 571429, 426054, 257887, 0x8ab4b7b5},
		{"2001:db8::1:2:3:4", 0x123456789abcdef, 571429, 1931, 219170, 0x77d578b9},
		{"2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", 0xffffffffffffffff, 4294967295, 3943077427, 3784940493, 0x35530c94},
	} {
		addr := netip.MustParseAddr(c.addr)
		tab := &Table{family: IPv4, n: c.n, seed: c.seed}
		if addr.Is6() {
			tab.family = IPv6
		}
		s, ok := tab.spotOf(table.Key{Client: addr.As16(), Class: table.IKE})
		if !ok || s.first != c.first || s.second != c.second || s.want != c.match {
			t.Errorf("%s: buckets %d, %d, match %#x, %v", c.addr, s.first, s.second, s.want, ok)
		}
	}
}

func TestChoicesDiffer(t *testing.T) {
	for _, n := range []uint32{2, 3, 5, 8, 1<<32 - 1} {
		for i := range uint64(20000) {
			x := finish(i)
			if i%4 == 0 {
				x = x>>32 | x>>32<<32
			}
			if first, second := choices(x, n); first == second || first >= n || second >= n {
				t.Fatalf("%#x of %d: buckets %d, %d", x, n, first, second)
			}
		}
	}
}

// Tags of IPv6 clients in a row must not repeat more than chance has it.
func TestTagsSpread(t *testing.T) {
	const n = 1 << 20
	seen := make(map[uint32]int, n)
	var low [1 << 12]int
	for i := range n {
		tab := Table{family: IPv6, n: 4, seed: testSeed}
		s, _ := tab.spotOf(client(IPv6, i))
		seen[uint32(s.want)]++
		low[s.want&(1<<12-1)]++
	}
	if pairs := n - len(seen); pairs > 200 { // 128 expected
		t.Errorf("%d tags came twice", pairs)
	}
	for v, count := range low {
		if count < 150 || count > 380 { // 256 expected, deviation 16
			t.Errorf("the low 12 bits are %#x %d times", v, count)
		}
	}
}
