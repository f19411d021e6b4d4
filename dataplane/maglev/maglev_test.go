package maglev

import (
	"encoding/binary"
	"flag"
	"fmt"
	"math"
	"math/bits"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares got with testdata/name. These files are the agreement between
// versions: change them only together with the hash's or the table's name.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := "testdata/" + name
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("differs from %s", path)
	}
}

func testKey(n uint64) (key [16]byte) {
	binary.LittleEndian.PutUint64(key[0:], n*0x0123456789abcdef)
	binary.LittleEndian.PutUint64(key[8:], n*0xfedcba9876543211)
	return key
}

func mapped(a, b, c, d byte) [16]byte {
	return [16]byte{10: 0xff, 11: 0xff, 12: a, 13: b, 14: c, 15: d}
}

func TestHashIsGolden(t *testing.T) {
	var out strings.Builder
	clients := [][16]byte{mapped(0, 0, 0, 0), mapped(203, 0, 113, 7), mapped(203, 0, 113, 8), mapped(255, 255, 255, 255),
		{0x20, 0x01, 0x0d, 0xb8}, {0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 1}, {}}
	for k := range uint64(3) {
		for c := table.Class(1); c <= table.Classes; c++ {
			for _, client := range clients {
				h := Hash(testKey(k), c, client)
				fmt.Fprintf(&out, "key %x class %d client %x: %016x, %d of 65537\n", testKey(k), c, client, h, Index(h, 65537))
			}
		}
	}
	golden(t, "hash.golden", out.String())
}

func TestHash4IsHash(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 10000 {
		key, addr := testKey(rng.Uint64()), [4]byte{}
		binary.LittleEndian.PutUint32(addr[:], rng.Uint32())
		class := table.Class(1 + rng.IntN(2))
		want := Hash(key, class, mapped(addr[0], addr[1], addr[2], addr[3]))
		if got := Hash4(key, Seed(key, class), addr); got != want {
			t.Fatalf("key %x addr %v: %x, want %x", key, addr, got, want)
		}
	}
}

// Every bit of the client and of the key flips every bit of the upper half with a
// chance near one half.
func TestHashAvalanche(t *testing.T) {
	const samples = 4000
	rng := rand.New(rand.NewPCG(2, 2))
	flips := func(name string, bitsOf int, hash func(base uint64, flip int) (uint64, uint64)) {
		for flip := range bitsOf {
			var count [32]int
			for range samples {
				a, b := hash(rng.Uint64(), flip)
				for d := (a ^ b) >> 32; d != 0; d &= d - 1 {
					count[bits.TrailingZeros64(d)]++
				}
			}
			for bit, n := range count { // 5 sigma of 4000 fair coins is 158
				if math.Abs(float64(n)-samples/2) > 170 {
					t.Errorf("%s bit %d flips bit %d %d times of %d", name, flip, bit, n, samples)
				}
			}
		}
	}
	key := testKey(7)
	flips("address", 32, func(base uint64, flip int) (uint64, uint64) {
		client := mapped(byte(base), byte(base>>8), byte(base>>16), byte(base>>24))
		other := client
		other[12+flip/8] ^= 1 << (flip % 8)
		return Hash(key, table.IKE, client), Hash(key, table.IKE, other)
	})
	flips("prefix", 64, func(base uint64, flip int) (uint64, uint64) {
		var client [16]byte
		binary.BigEndian.PutUint64(client[:], base)
		other := client
		other[flip/8] ^= 1 << (flip % 8)
		return Hash(key, table.IKE, client), Hash(key, table.IKE, other)
	})
	flips("key", 128, func(base uint64, flip int) (uint64, uint64) {
		k := testKey(base)
		other := k
		other[flip/8] ^= 1 << (flip % 8)
		return Hash(k, table.IKE, mapped(203, 0, 113, 7)), Hash(other, table.IKE, mapped(203, 0, 113, 7))
	})
}

// chiSquare of counts against an even share; for n cells its mean is n-1, its
// deviation sqrt(2(n-1)).
func chiSquare(counts []int) float64 {
	total := 0
	for _, c := range counts {
		total += c
	}
	even, x := float64(total)/float64(len(counts)), 0.0
	for _, c := range counts {
		x += (float64(c) - even) * (float64(c) - even) / even
	}
	return x
}

// The clients of one /16, consecutive addresses, spread evenly, under many keys.
func TestHashSpreadsAPrefix(t *testing.T) {
	const cells = 251
	bad := 0
	for k := range uint64(20) {
		counts := make([]int, cells)
		for i := range 1 << 16 {
			counts[Index(Hash(testKey(k+1), table.IKE, mapped(198, 18, byte(i>>8), byte(i))), cells)]++
		}
		x, deviation := chiSquare(counts), math.Sqrt(2*(cells-1))
		if math.Abs(x-(cells-1)) > 4*deviation {
			bad++
			t.Logf("key %d: chi square %.0f", k, x)
		}
	}
	if bad > 1 {
		t.Errorf("%d of 20 keys spread a /16 unevenly", bad)
	}
}

// Under another key, or in the other class, a client's place says nothing.
func TestHashKeysAreIndependent(t *testing.T) {
	const side = 16
	for _, c := range []struct {
		name   string
		key    [16]byte
		class  table.Class
		otherK [16]byte
		otherC table.Class
	}{
		{"key", testKey(1), table.IKE, testKey(2), table.IKE},
		{"one bit of the key", [16]byte{}, table.IKE, [16]byte{1}, table.IKE},
		{"one bit of the second half", [16]byte{}, table.IKE, [16]byte{15: 0x80}, table.IKE},
		{"class", testKey(1), table.IKE, testKey(1), table.TCP},
	} {
		counts := make([]int, side*side)
		for i := range 1 << 16 {
			client := mapped(198, 18, byte(i>>8), byte(i))
			a, b := Index(Hash(c.key, c.class, client), side), Index(Hash(c.otherK, c.otherC, client), side)
			counts[a*side+b]++
		}
		if x := chiSquare(counts); x > 255+5*math.Sqrt(2*255) {
			t.Errorf("%s: chi square %.0f of 256 cells", c.name, x)
		}
	}
}

func pool(weights ...uint16) []Backend {
	var out []Backend
	for i, w := range weights {
		out = append(out, Backend{ID: uint32(i + 1), Slot: table.Slot(i + 1), Weight: w})
	}
	return out
}

func shares(slots []table.Slot) map[table.Slot]int {
	n := map[table.Slot]int{}
	for _, s := range slots {
		n[s]++
	}
	return n
}

func moved(a, b []table.Slot) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func TestTablesAreGolden(t *testing.T) {
	for name, c := range map[string]struct {
		size uint32
		pool []Backend
	}{
		"table-251-even.golden":     {251, pool(100, 100, 100)},
		"table-251-weighted.golden": {251, pool(10, 20, 70)},
		"table-13-many.golden":      {13, pool(1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1)},
		"table-65537.golden":        {65537, pool(100, 50, 25, 25)},
	} {
		var out strings.Builder
		for i, s := range Build(testKey(1), c.size, c.pool) {
			if i > 0 && i%32 == 0 {
				out.WriteByte('\n')
			}
			fmt.Fprintf(&out, "%d ", s)
		}
		golden(t, name, out.String()+"\n")
	}
}

func TestBalance(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	for range 20 {
		var weights []uint16
		total := 0
		for range 1 + rng.IntN(20) {
			w := uint16(1 + rng.IntN(200))
			weights = append(weights, w)
			total += int(w)
		}
		n := shares(Build(testKey(rng.Uint64()), DefaultSize, pool(weights...)))
		for i, w := range weights {
			want := float64(DefaultSize) * float64(w) / float64(total)
			// one turn at most is missing or too many, with rounding
			if got := float64(n[table.Slot(i+1)]); math.Abs(got-want) > 2+want/100 {
				t.Errorf("weights %v: slot %d has %.0f places, want %.0f", weights, i+1, got, want)
			}
		}
	}
}

func TestExtremeWeightsEnd(t *testing.T) {
	n := shares(Build(testKey(1), DefaultSize, pool(1, 65535)))
	if n[1] < 1 || n[1] > 2 {
		t.Errorf("a weight of 1 beside 65535 has %d places", n[1])
	}
	weights := make([]uint16, table.MaxSlots)
	for i := range weights {
		weights[i] = 1
	}
	weights[0] = 65535
	if n := shares(Build(testKey(1), DefaultSize, pool(weights...))); n[0] != 0 || n[1] < DefaultSize*99/100 {
		t.Errorf("the heavy one has %d places", n[1])
	}
}

func TestMinimalDisruption(t *testing.T) {
	all := pool(100, 100, 100, 100, 100, 100, 100, 100)
	before := Build(testKey(1), DefaultSize, all)
	without := Build(testKey(1), DefaultSize, all[:7])
	gone := shares(before)[8]
	extra := 0
	for i := range before {
		if before[i] != 8 && before[i] != without[i] {
			extra++
		}
	}
	if extra > DefaultSize/20 {
		t.Errorf("without one of eight (%d places) %d other places change", gone, extra)
	}
	if back := Build(testKey(1), DefaultSize, all); moved(before, back) != 0 {
		t.Error("a server that comes back does not get its places")
	}
	lighter := slices.Clone(all)
	lighter[3].Weight = 90
	if n := moved(before, Build(testKey(1), DefaultSize, lighter)); n > DefaultSize/10 {
		t.Errorf("a tenth less weight of one moves %d of %d places", n, DefaultSize)
	}
}

func TestOrderAndSlotsDoNotMatter(t *testing.T) {
	a := pool(10, 20, 30, 40, 50)
	want := Build(testKey(1), 251, a)
	b := slices.Clone(a)
	slices.Reverse(b)
	if got := Build(testKey(1), 251, b); !slices.Equal(got, want) {
		t.Error("the order of the backends matters")
	}
	for i := range b {
		b[i].Slot += 100
	}
	for i, s := range Build(testKey(1), 251, b) {
		if s != want[i]+100 {
			t.Fatal("the slots matter")
		}
	}
	if n := moved(want, Build(testKey(2), 251, a)); n < 251/2 {
		t.Errorf("another key moves %d places only", n)
	}
}

func TestBuildCorners(t *testing.T) {
	for _, size := range []uint32{0, 1, 4, 250, 65536, MaxSize + 2, math.MaxUint32} {
		if Build(testKey(1), size, pool(1)) != nil {
			t.Errorf("size %d was taken", size)
		}
	}
	for _, size := range []uint32{2, 3, 7} {
		if got := shares(Build(testKey(1), size, pool(1))); got[1] != int(size) {
			t.Errorf("size %d, one backend: %v", size, got)
		}
	}
	empty := Build(testKey(1), 7, []Backend{{ID: 1, Slot: 1}, {ID: 2, Weight: 1}})
	if got := shares(empty); got[0] != 7 {
		t.Errorf("backends of no weight or no slot: %v", got)
	}
	if Pick(empty, testKey(1), table.IKE, mapped(198, 18, 3, 4)) != 0 || Pick(nil, testKey(1), table.IKE, mapped(198, 18, 3, 4)) != 0 {
		t.Error("an empty table gives a server")
	}
	for _, h := range []uint64{0, math.MaxUint64} {
		if i := Index(h, 7); i != uint32(6*(h>>63)) {
			t.Errorf("Index(%x, 7) = %d", h, i)
		}
	}
}

// naive is Build as the paper has it: whole permutations, and turns counted with
// fractions of the largest weight.
func naive(key [16]byte, size uint32, backends []Backend) []table.Slot {
	slots := make([]table.Slot, size)
	backends = slices.Clone(backends)
	slices.SortFunc(backends, func(a, b Backend) int { return int(a.ID) - int(b.ID) })
	var largest uint64
	orders := make([][]uint32, len(backends))
	for i, b := range backends {
		largest = max(largest, uint64(b.Weight))
		offset, skip := permutation(key, size, b.ID)
		for j := range size {
			orders[i] = append(orders[i], uint32((uint64(offset)+uint64(j)*uint64(skip))%uint64(size)))
		}
	}
	for left, round := size, uint64(1); left > 0; round++ {
		for i, b := range backends {
			if left == 0 || round*uint64(b.Weight)/largest == (round-1)*uint64(b.Weight)/largest {
				continue
			}
			at := slices.IndexFunc(orders[i], func(p uint32) bool { return slots[p] == 0 })
			slots[orders[i][at]] = b.Slot
			left--
		}
	}
	return slots
}

func TestBuildIsNaive(t *testing.T) {
	rng := rand.New(rand.NewPCG(4, 4))
	for range 50 {
		var weights []uint16
		for range 1 + rng.IntN(12) {
			weights = append(weights, uint16(1+rng.IntN(50)))
		}
		key := testKey(rng.Uint64())
		if !slices.Equal(Build(key, 251, pool(weights...)), naive(key, 251, pool(weights...))) {
			t.Fatalf("weights %v differ", weights)
		}
	}
}

func BenchmarkHash(b *testing.B) {
	key, client := testKey(1), mapped(203, 0, 113, 7)
	var sum uint64
	for i := range b.N {
		client[15] = byte(i)
		sum += Hash(key, table.IKE, client)
	}
	if sum == 0 {
		b.Log(sum)
	}
}

func BenchmarkHash4(b *testing.B) {
	key := testKey(1)
	seed, addr := Seed(key, table.IKE), [4]byte{203, 0, 113, 7}
	var sum uint64
	for i := range b.N {
		addr[3] = byte(i)
		sum += Hash4(key, seed, addr)
	}
	if sum == 0 {
		b.Log(sum)
	}
}

func BenchmarkBuild(b *testing.B) {
	for _, n := range []int{2, 20, 255} {
		weights := make([]uint16, n)
		for i := range weights {
			weights[i] = 100
		}
		backends := pool(weights...)
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			for range b.N {
				Build(testKey(1), DefaultSize, backends)
			}
		})
	}
}
