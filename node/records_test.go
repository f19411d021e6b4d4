package node

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// A list in pages is the whole list, in order, whatever the length of a page.
func TestAffinityPages(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var all []state.Affinity
	for i := range 300 {
		text := fmt.Sprintf("198.18.%d.%d", i/250, 1+i%250)
		if i%3 == 0 {
			text = fmt.Sprintf("2001:db8:%x::", i)
		}
		a := state.Affinity{Key: keyOf(text), Backend: state.BackendID(1 + i%2)}
		all = append(all, a)
		if i%5 == 0 { // the client's other service
			a.Class = state.ClassTCP
			all = append(all, a)
		}
	}
	rng.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	order := func(a, b state.Affinity) int { return placeOf(&a).compare(placeOf(&b)) }
	for _, only := range []state.BackendID{0, 2} {
		want := slices.DeleteFunc(slices.Clone(all), func(a state.Affinity) bool { return only != 0 && a.Backend != only })
		slices.SortFunc(want, order)
		for _, limit := range []int{1, 7, 100, len(want) - 1, len(want), len(want) + 1, 1000} {
			var got []state.Affinity
			ask := page{limit: limit, only: only}
			for pages := 1; ; pages++ {
				part, total, more := ask.take(slices.Values(all))
				got = append(got, part...)
				if total != len(want) || len(part) > limit || cap(part) > 4*limit+8 {
					t.Fatalf("limit %d: %d of %d records on a page, room for %d", limit, len(part), total, cap(part))
				}
				if !more {
					if pages > len(want)/limit+1 {
						t.Errorf("limit %d: %d pages", limit, pages)
					}
					break
				}
				next, err := parsePlace(placeOf(&part[len(part)-1]).String())
				if err != nil {
					t.Fatal(err)
				}
				ask.after = next
			}
			if !slices.EqualFunc(got, want, func(a, b state.Affinity) bool { return a.Key == b.Key }) {
				t.Errorf("limit %d: %d records of %d, or in another order", limit, len(got), len(want))
			}
		}
	}
	for _, bad := range []string{"198.18.0.1", "198.18.0.1,esp", "nobody,ike", ","} {
		if _, err := parsePlace(bad); err == nil {
			t.Errorf("%q was taken for a place", bad)
		}
	}
}

// What is seen here counts where it is later than what was agreed.
func TestSeen(t *testing.T) {
	a := state.Affinity{Key: keyOf("198.18.0.1"), Seen: state.Time(100 * time.Second)}
	for what, c := range map[string]struct {
		here func(table.Key) (time.Duration, bool)
		want time.Duration
	}{
		"no data plane":   {nil, 169 * time.Second},
		"nothing here":    {func(table.Key) (time.Duration, bool) { return 0, false }, 169 * time.Second},
		"packets here":    {func(table.Key) (time.Duration, bool) { return time.Second, true }, time.Second},
		"older ones here": {func(table.Key) (time.Duration, bool) { return time.Hour, true }, 169 * time.Second},
		"of its very key": {func(k table.Key) (time.Duration, bool) { return 2 * time.Second, k == tableKey(a.Key) }, 2 * time.Second},
	} {
		tell := teller{spec: &state.Spec{}, now: state.Time(269 * time.Second), here: c.here}
		got := tell.answer(a)
		if got.Seen != ago(c.want) || got.SeenSeconds != c.want.Seconds() || got.Client != netip.MustParseAddr("198.18.0.1") {
			t.Errorf("%s: %+v, want %s", what, got, c.want)
		}
	}
}
