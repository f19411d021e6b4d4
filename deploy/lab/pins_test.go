package lab

import "testing"

func TestTouchedPins(t *testing.T) {
	before := map[string]pin{"plane_meta_v4": {id: 7}, "link_eth0": {id: 3, program: 40, tag: "ab"}, "offloads_eth0": {target: "x"}}
	with := func(name string, p pin) map[string]pin {
		now := map[string]pin{name: p}
		for n, p := range before {
			if _, ok := now[n]; !ok {
				now[n] = p
			}
		}
		if p == (pin{}) {
			delete(now, name)
		}
		return now
	}
	for name, c := range map[string]struct {
		now              map[string]pin
		strict, replaced int // how many pins are touched
	}{
		"nothing":                     {before, 0, 0},
		"a map made anew":             {with("plane_meta_v4", pin{id: 8}), 1, 1},
		"a map gone":                  {with("plane_meta_v4", pin{}), 1, 1},
		"a new map":                   {with("more_v4", pin{id: 9}), 1, 1},
		"another link":                {with("link_eth0", pin{id: 4, program: 40, tag: "ab"}), 1, 1},
		"the program again":           {with("link_eth0", pin{id: 3, program: 41, tag: "ab"}), 1, 0},
		"another program":             {with("link_eth0", pin{id: 3, program: 41, tag: "cd"}), 1, 1},
		"offloads remembered anew":    {with("offloads_eth0", pin{target: "y"}), 1, 1},
		"a map in the place of a map": {with("plane_meta_v4", pin{id: 7, kind: 2}), 1, 1},
	} {
		if s, r := touched(before, c.now, false), touched(before, c.now, true); len(s) != c.strict || len(r) != c.replaced {
			t.Errorf("%s: %q and %q, want %d and %d", name, s, r, c.strict, c.replaced)
		}
	}
}

// A flood that does not come to the nodes proves nothing.
func TestFloodMustArrive(t *testing.T) {
	before := map[string]int64{"forward_maglev": 50, "drop_malformed": 3}
	for name, c := range map[string]struct {
		after map[string]int64
		pass  bool
	}{
		"all of it":            {map[string]int64{"forward_maglev": 50 + 870, "drop_malformed": 3 + 130}, true},
		"nothing":              {before, false},
		"one family":           {map[string]int64{"forward_maglev": 50 + 435, "drop_malformed": 3 + 65}, false},
		"garbage alone":        {map[string]int64{"forward_maglev": 50, "drop_malformed": 3 + 1000}, false},
		"known clients' share": {map[string]int64{"forward_maglev": 50, "forward_affinity": 5000, "drop_malformed": 3}, false},
	} {
		d := &drill{l: &Lab{out: t.Output()}, res: Result{Pass: true}}
		if d.arrived(1000, before, c.after); d.res.Pass != c.pass {
			t.Errorf("%s: passed %t", name, d.res.Pass)
		}
	}
}
