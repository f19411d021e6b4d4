package sstp

import "testing"

// Memory is given back once after a rush of handshakes, not in the midst of one, and
// not for the few that come all day.
func TestRushIsOver(t *testing.T) {
	var r rush
	tick, all := int64(0), uint64(0)
	pass := func(ticks int, perTick uint64) (over int) {
		for range ticks {
			tick++
			all += perTick
			if r.over(all, tick) {
				over++
			}
		}
		return over
	}
	for _, step := range []struct {
		name    string
		ticks   int
		perTick uint64
		want    int
	}{
		{"nothing yet", 100, 0, 0},
		{"a rush", 10, 500, 0},
		{"it is just over", calmTicks - 1, 0, 0},
		{"calm", 30, 2, 1},
		{"another rush, soon", 5, 500, 0},
		{"not twice within a minute", trimTicks - 30 - 5 - 2, 0, 0},
		{"then", 10, 0, 1},
		{"a few all day, each minute at most", 1000, 2, 1000 * 2 / rushHandshakes},
	} {
		if got := pass(step.ticks, step.perTick); got != step.want {
			t.Errorf("%s: %d times, want %d", step.name, got, step.want)
		}
	}
}
