package state

import (
	"bytes"
	"io"
	"testing"
)

// filled gives a machine with n confirmed records.
func filled(b testing.TB, n int) *rig {
	r := newRig(b)
	ids := r.farm(1, 20)
	for i := 0; i < n; i += MaxBatch {
		records := make([]Learned, min(MaxBatch, n-i))
		for j := range records {
			records[j] = Learned{Key: client4(uint32(i + j)), Backend: ids[(i+j)%len(ids)], State: Confirmed}
		}
		r.ok(Learn{Records: records})
	}
	if got := r.m.View().Len(); got != n {
		b.Fatalf("%d records, want %d", got, n)
	}
	return r
}

func BenchmarkLearn(b *testing.B) {
	for _, shared := range []bool{false, true} {
		name := "plain"
		if shared {
			name = "view-each-entry"
		}
		b.Run(name, func(b *testing.B) {
			r := filled(b, 500_000)
			ids := r.spec().Backends
			next := uint32(500_000)
			b.ReportAllocs()
			for b.Loop() {
				records := make([]Learned, MaxBatch)
				for j := range records {
					records[j] = Learned{Key: client4(next), Backend: ids[j%len(ids)].ID, State: Confirmed}
					next++
				}
				r.ok(Learn{Records: records})
				if shared {
					r.m.View()
				}
				if next > 1_500_000 {
					b.StopTimer()
					r, next = filled(b, 500_000), 500_000
					b.StartTimer()
				}
			}
			b.ReportMetric(float64(b.N)*MaxBatch/b.Elapsed().Seconds(), "learns/s")
		})
	}
}

func BenchmarkTouch(b *testing.B) {
	r := filled(b, 500_000)
	var records []Touched
	for a := range r.m.View().Affinities() {
		if len(records) == MaxBatch {
			break
		}
		records = append(records, Touched{Key: a.Key, Index: a.Index, Heard: true})
	}
	b.ReportAllocs()
	for b.Loop() {
		r.after(2 * 1e9)
		r.ok(Touch{Records: records})
	}
	b.ReportMetric(float64(b.N)*MaxBatch/b.Elapsed().Seconds(), "touches/s")
}

func BenchmarkSnapshotMillion(b *testing.B) {
	r := filled(b, 1_000_000)
	v := r.m.View()
	for b.Loop() {
		n, err := v.WriteTo(io.Discard)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(n)
	}
}

func BenchmarkRestoreMillion(b *testing.B) {
	data := filled(b, 1_000_000).snapshot()
	m := NewMachine()
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if err := m.Restore(bytes.NewReader(data)); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkExpiredMillion(b *testing.B) {
	r := filled(b, 1_000_000)
	v := r.m.View()
	for b.Loop() {
		if len(v.Expired(v.Spec().Now, 10)) != 0 {
			b.Fatal("expired")
		}
	}
}
