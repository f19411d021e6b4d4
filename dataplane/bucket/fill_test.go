package bucket

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// overflowed is where the records of a full table are.
type overflowed struct{ second, stash int }

// spread is how client keys are chosen. A million IPv4 keys need more than the
// ranges for tests; nothing is ever sent to them.
type spread struct {
	name string
	key  func(i int, rng *rand.Rand) table.Key
}

func spreads(f Family) []spread {
	sequential := func(i int, _ *rand.Rand) table.Key {
		k := client(f, i)
		if f == IPv4 { // client wraps after a /15
			k.Client[12], k.Client[13] = byte(198+i>>24), byte(18+i>>16)
		}
		return k
	}
	return []spread{
		{"sequential", sequential},
		{"random", func(_ int, rng *rand.Rand) table.Key {
			k := sequential(0, nil)
			for at := 12 - 8*int(f/6); at < 16; at++ {
				k.Client[at] = byte(rng.Uint32())
			}
			return k
		}},
		{"both classes", func(i int, _ *rand.Rand) table.Key {
			k := sequential(i/2, nil)
			k.Class = table.Class(1 + i%2)
			return k
		}},
	}
}

// filled puts records into a table until there are so many.
func filled(t testing.TB, f Family, records, buckets, stash int, s spread) (*bed, overflowed) {
	t.Helper()
	b := newBed(t, f, buckets, stash)
	rng := rand.New(rand.NewPCG(5, 5))
	for i := 0; b.Len() < records; i++ {
		if err := b.Put(entry(s.key(i, rng), table.Slot(1+i%20))); errors.Is(err, ErrFull) {
			t.Fatalf("full at %d", i)
		} else if err != nil {
			t.Fatal(err)
		}
	}
	o := overflowed{stash: len(b.stash.m)}
	for i := range b.n {
		o.second += int(b.overflow(i) & overflowMax)
	}
	return b, o
}

// A full table needs few second looks and a small part of a stash of 4096.
func TestFillOfAMillion(t *testing.T) {
	const records = 1_000_000 / slowdown
	families(t, func(t *testing.T, f Family) {
		for _, s := range spreads(f) {
			b, o := filled(t, f, records, int(Buckets(records, f)), 1<<20, s)
			t.Logf("%s: %d second, %d stash, %.1f bytes a record", s.name, o.second, o.stash, float64(len(b.mem))/records)
			if o.stash > int(StashCapacity(records))*3/4 || o.second > records/18 {
				t.Errorf("%s: %d in the second bucket, %d in the stash", s.name, o.second, o.stash)
			}
		}
	})
}

// The choice of fill: go test -bench Fill -benchtime 1x
func BenchmarkFill(b *testing.B) {
	const records = 1_000_000
	for _, f := range []Family{IPv4, IPv6} {
		for _, percent := range []int{25, 30, 35, 40, 45, 50} {
			for _, s := range spreads(f) {
				b.Run(fmt.Sprintf("IPv%d/%d/%s", f, percent, s.name), func(b *testing.B) {
					for range b.N {
						tab, o := filled(b, f, records, records*100/percent/f.ways(), 1<<20, s)
						b.ReportMetric(float64(o.second), "second")
						b.ReportMetric(float64(o.stash), "stash")
						b.ReportMetric(float64(len(tab.mem))/records, "B/record")
					}
				})
			}
		}
	}
}
