package bucket

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// benchTable is a full table, and its entries in another order than they came.
func benchTable(b *testing.B, f func(b *testing.B, tab *bed, entries []table.Entry)) {
	for _, family := range []Family{IPv4, IPv6} {
		for _, n := range []int{100_000, 1_000_000} {
			b.Run(fmt.Sprintf("IPv%d/%d", family, n), func(b *testing.B) {
				tab, _ := filled(b, family, n, int(Buckets(uint32(n), family)), n, spreads(family)[1])
				var entries []table.Entry
				for r := range tab.All() {
					entries = append(entries, r.Entry)
				}
				rand.New(rand.NewPCG(1, 1)).Shuffle(n, func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
				b.ReportAllocs()
				b.ResetTimer()
				f(b, tab, entries)
			})
		}
	}
}

func BenchmarkLookup(b *testing.B) {
	benchTable(b, func(b *testing.B, tab *bed, entries []table.Entry) {
		for i := range b.N {
			if _, ok, _ := tab.Lookup(entries[i%len(entries)].Key); !ok {
				b.Fatal("gone")
			}
		}
	})
}

func BenchmarkPutChange(b *testing.B) {
	benchTable(b, func(b *testing.B, tab *bed, entries []table.Entry) {
		for i := range b.N {
			e := &entries[i%len(entries)]
			e.Slot = e.Slot%200 + 1
			if err := tab.Put(*e); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// Remove, and put again.
func BenchmarkRemovePut(b *testing.B) {
	benchTable(b, func(b *testing.B, tab *bed, entries []table.Entry) {
		for i := range b.N {
			e := entries[i%len(entries)]
			if err := tab.Remove(e.Key); err != nil {
				b.Fatal(err)
			}
			if err := tab.Put(e); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkResyncUnchanged(b *testing.B) {
	benchTable(b, func(b *testing.B, tab *bed, entries []table.Entry) {
		for range b.N {
			if stale, err := tab.Resync(slices.Values(entries)); err != nil || len(stale) != 0 {
				b.Fatal(err, len(stale))
			}
		}
	})
}

// All of an empty table.
func BenchmarkResyncNew(b *testing.B) {
	benchTable(b, func(b *testing.B, tab *bed, entries []table.Entry) {
		for range b.N {
			b.StopTimer()
			clear(tab.words)
			clear(tab.stash.m)
			tab.reopen(b, tab.family)
			b.StartTimer()
			if _, err := tab.Resync(slices.Values(entries)); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkNew(b *testing.B) {
	benchTable(b, func(b *testing.B, tab *bed, _ []table.Entry) {
		for range b.N {
			tab.reopen(b, tab.family)
		}
	})
}

// Every record had a packet of its server since the last sweep.
func BenchmarkSweepAllHeard(b *testing.B) {
	benchTable(b, func(b *testing.B, tab *bed, _ []table.Entry) {
		for range b.N {
			b.StopTimer()
			for at, w := range tab.occupied() {
				tab.words[at] = w&recordBits | heardBit | 100<<tickShift
			}
			b.StartTimer()
			if err := tab.Sweep(100, 5, func([]Seen) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}

func BenchmarkSweepQuiet(b *testing.B) {
	benchTable(b, func(b *testing.B, tab *bed, _ []table.Entry) {
		for range b.N {
			if err := tab.Sweep(100, 5, func([]Seen) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
