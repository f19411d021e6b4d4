package health

import (
	"slices"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// world is a readable way to write Facts: n members, and servers with a verdict
// and the opinions of the members on it.
type world struct {
	members int
	witness int // of the members, the last ones
	servers []server
	office  time.Duration // default: an hour
	heard   time.Duration // default: an hour
	age     map[int]time.Duration
	lagging int
	edit    func(f *Facts)
}

type server struct {
	verdict  state.Verdict
	seen     string // one letter a member: u up, f up but missed twice, d down, n neutral, ? unknown, - no observation
	returned string // one letter a member: y within VetoWindow, l within PanicWindow, anything else no
	quiet    time.Duration
	admin    state.AdminState // default: enabled
	noWeight bool
	up       time.Duration // how long up; default an hour
	down     time.Duration // since the verdict; default a minute
	voided   bool
	vip      state.VIPID // default 1
}

const now = state.Time(100 * time.Hour)

func node(i int) state.NodeID { return state.NodeID{15: byte(i + 1)} }

func (w world) facts() Facts {
	s := &state.Spec{Settings: state.DefaultSettings(), VIPs: []state.VIP{{ID: 1}, {ID: 2}}, Now: now}
	f := Facts{Spec: s, Now: now, Office: orHour(w.office), Lagging: w.lagging, Listening: time.Hour}
	for i := range w.members {
		m := state.Member{ID: node(i), Role: state.RoleNode}
		if i >= w.members-w.witness {
			m.Role = state.RoleWitness
		}
		s.Members = append(s.Members, m)
		f.Observers = append(f.Observers, Observer{Member: m.ID, Age: w.age[i], Heard: orHour(w.heard)})
	}
	for i, v := range w.servers {
		b := state.Backend{ID: state.BackendID(i + 1), VIP: max(v.vip, 1), Admin: state.AdminEnabled, Weight: 100, Slot: state.Slot(i + 1)}
		if v.admin != 0 {
			b.Admin = v.admin
		}
		if v.noWeight {
			b.Weight = 0
		}
		h := state.Health{Verdict: v.verdict, Index: uint64(100 + i), Since: now.Add(-time.Minute), UpSince: now.Add(-orHour(v.up))}
		if v.down != 0 {
			h.Since = now.Add(-v.down)
		}
		if v.voided {
			h.Voided = 77
		}
		b.Health[state.ClassIKE-1] = h
		s.Backends = append(s.Backends, b)
		for m, c := range v.seen {
			op, ok := map[rune]Opinion{'u': OpinionUp, 'd': OpinionDown, 'n': OpinionNeutral, '?': OpinionUnknown, 'f': OpinionUp}[c]
			if !ok || m >= w.members {
				continue
			}
			r := Seen{Backend: b.ID, Class: state.ClassIKE, Opinion: op, Quiet: time.Hour}
			switch c {
			case 'd':
				r.Misses, r.Missed = 9, ReachAfter
			case 'f':
				r.Misses = 2
			}
			if v.quiet != 0 {
				r.Quiet = v.quiet
			}
			if m < len(v.returned) {
				switch v.returned[m] {
				case 'y':
					r.Returned, r.Quiet = true, time.Second
				case 'l':
					r.Returned, r.Quiet = true, 8*time.Second
				}
			}
			f.Observers[m].Observation.Seen = append(f.Observers[m].Observation.Seen, r)
		}
	}
	if w.edit != nil {
		w.edit(&f)
	}
	return f
}

func orHour(d time.Duration) time.Duration {
	if d == 0 {
		return time.Hour
	}
	return d
}

const (
	unknown = state.VerdictUnknown
	up      = state.VerdictUp
	down    = state.VerdictDown
)

func TestDecide(t *testing.T) {
	one := func(v state.Verdict, seen string) []server {
		return []server{{verdict: v, seen: seen}, {verdict: up, seen: "uuuuu"}}
	}
	for _, c := range []struct {
		name string
		w    world
		want []Reason
	}{
		{"first verdict", world{members: 3, servers: []server{{seen: "uuu"}}}, []Reason{ReasonUp}},
		{"first verdict down", world{members: 3, servers: one(unknown, "ddd")}, []Reason{ReasonDown, HeldAgreed}},
		{"nothing known", world{members: 3, servers: []server{{seen: "---"}}}, nil},
		{"no opinion yet", world{members: 3, servers: []server{{seen: "???"}}}, []Reason{HeldNoMajority}},
		{"all agree up", world{members: 3, servers: []server{{verdict: up, seen: "uuu"}}}, []Reason{HeldAgreed}},
		{"dead", world{members: 3, servers: one(up, "ddd")}, []Reason{ReasonDown, HeldAgreed}},
		{"back", world{members: 3, servers: one(down, "uuu")}, []Reason{ReasonUp, HeldAgreed}},

		{"majority of three", world{members: 3, servers: one(up, "ddu")}, []Reason{ReasonDown, HeldAgreed}},
		{"minority of three", world{members: 3, servers: one(up, "duu")}, []Reason{HeldAgreed, HeldAgreed}},
		{"one each and a neutral", world{members: 3, servers: one(up, "dun")}, []Reason{HeldNoMajority, HeldAgreed}},
		{"neutral all over", world{members: 3, servers: one(up, "nnn")}, []Reason{HeldNoMajority, HeldAgreed}},
		{"neutral leaves a down as it is", world{members: 3, servers: one(down, "nnn")}, []Reason{HeldNoMajority, HeldAgreed}},
		{"half of four", world{members: 4, servers: one(up, "dduu")}, []Reason{HeldNoMajority, HeldAgreed}},
		{"denominator is the committed members", world{members: 5, servers: []server{{verdict: up, seen: "dd---"}, {verdict: up, seen: "uuu--"}}},
			[]Reason{HeldNoMajority, HeldAgreed}},
		{"three of five while two are dead", world{members: 5, servers: []server{{verdict: up, seen: "ddd--"}, {verdict: up, seen: "uuu--"}}},
			[]Reason{ReasonDown, HeldAgreed}},
		{"witnesses have no vote", world{members: 3, witness: 1, servers: one(up, "dud")}, []Reason{HeldNoMajority, HeldAgreed}},
		{"nor are they in the denominator", world{members: 4, witness: 1, servers: one(up, "ddu")}, []Reason{ReasonDown, HeldAgreed}},

		{"two members, one sees it down", world{members: 2, servers: one(up, "du")}, []Reason{HeldNoMajority, HeldAgreed}},
		{"two members, the other silent", world{members: 2, servers: []server{{verdict: up, seen: "d-"}, {verdict: up, seen: "u-"}}},
			[]Reason{HeldNoMajority, HeldNoMajority}},
		{"two members, both", world{members: 2, servers: one(up, "dd")}, []Reason{ReasonDown, HeldAgreed}},
		{"one member alone", world{members: 1, servers: one(up, "d")}, []Reason{ReasonDown, HeldAgreed}},
		{"one member alone, up", world{members: 1, servers: one(unknown, "u")}, []Reason{ReasonUp, HeldAgreed}},

		{"stale by receipt", world{members: 3, age: map[int]time.Duration{0: 3100 * time.Millisecond, 1: 4 * time.Second}, servers: one(up, "ddd")},
			[]Reason{HeldNoMajority, HeldNoMajority}},
		{"new leader", world{members: 3, office: 2 * time.Second, servers: one(up, "ddd")}, []Reason{HeldWindow, HeldAgreed}},
		{"new leader, up", world{members: 3, office: 2 * time.Second, servers: one(down, "uuu")}, []Reason{HeldWindow, HeldAgreed}},
		{"majority not heard for long", world{members: 3, heard: time.Second, servers: one(up, "ddd")}, []Reason{HeldWindow, HeldAgreed}},
		{"minority not heard for long", world{members: 3, servers: one(up, "ddd"), edit: func(f *Facts) { f.Observers[2].Heard = 0 }},
			[]Reason{ReasonDown, HeldAgreed}},
		{"dwell", world{members: 3, servers: []server{{verdict: up, up: 9 * time.Second, seen: "ddd"}, {verdict: up, seen: "uuu"}}},
			[]Reason{HeldDwell, HeldAgreed}},
		{"dwell over", world{members: 3, servers: []server{{verdict: up, up: 10 * time.Second, seen: "ddd"}, {verdict: up, seen: "uuu"}}},
			[]Reason{ReasonDown, HeldAgreed}},
		{"no dwell before the first down", world{members: 3, servers: []server{{up: time.Second, seen: "ddd"}, {verdict: up, seen: "uuu"}}},
			[]Reason{ReasonDown, HeldAgreed}},
		{"up waits for the generation", world{members: 3, lagging: 1, servers: one(down, "uuu")}, []Reason{HeldGeneration, HeldAgreed}},
		{"down does not", world{members: 3, lagging: 1, servers: one(up, "ddd")}, []Reason{ReasonDown, HeldAgreed}},

		{"traffic vetoes a borderline down", world{members: 3, servers: []server{{verdict: up, seen: "ddu", returned: "--y"}, {verdict: up, seen: "uuu"}}},
			[]Reason{HeldReturnTraffic, HeldAgreed}},
		{"traffic vetoes a lone down", world{members: 1, servers: []server{{verdict: up, seen: "d", returned: "y"}, {verdict: up, seen: "u"}}},
			[]Reason{HeldReturnTraffic, HeldAgreed}},
		{"old traffic does not", world{members: 1, servers: []server{{verdict: up, seen: "d", returned: "l"}, {verdict: up, seen: "u"}}},
			[]Reason{ReasonDown, HeldAgreed}},
		{"nor against all", world{members: 3, servers: []server{{verdict: up, seen: "ddd", returned: "yyy"}, {verdict: up, seen: "uuu"}}},
			[]Reason{ReasonDown, HeldAgreed}},
	} {
		t.Run(c.name, func(t *testing.T) { check(t, c.w.facts(), c.want) })
	}
}

func check(t *testing.T, f Facts, want []Reason) {
	t.Helper()
	ds := Decide(f)
	var got []Reason
	for _, d := range ds {
		got = append(got, d.Reason)
		b, _ := f.Spec.BackendByID(d.Backend)
		h := b.Health[d.Class-1]
		switch cmd := d.Command.(type) {
		case nil:
			if d.Reason == ReasonUp || d.Reason == ReasonDown || d.Reason == ReasonVoid {
				t.Errorf("%s without a command", d.Reason)
			}
		case state.SetHealth:
			right := cmd.Verdict == up && d.Reason == ReasonUp || cmd.Verdict == down && d.Reason == ReasonDown
			if !right || cmd.Previous != h.Index || cmd.Backend != b.ID || cmd.Class != d.Class {
				t.Errorf("%s: %+v", d.Reason, cmd)
			}
		case state.VoidBackend:
			if d.Reason != ReasonVoid || cmd.Previous != h.Index || cmd.Backend != b.ID || cmd.Class != d.Class {
				t.Errorf("%s: %+v", d.Reason, cmd)
			}
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDecidePanic(t *testing.T) {
	dead := server{verdict: up, seen: "ddd"}
	carrying := server{verdict: up, seen: "ddd", returned: "--l"}
	fine := server{verdict: up, seen: "uuu"}
	gone := server{verdict: down, seen: "ddd"}
	failing := server{verdict: up, seen: "fff"}
	with := func(s server, f func(*server)) server { f(&s); return s }
	for _, c := range []struct {
		name    string
		servers []server
		want    []Reason
	}{
		{"half of a pool may go", []server{dead, dead, fine, fine}, []Reason{ReasonDown, ReasonDown, HeldAgreed, HeldAgreed}},
		{"half, though one carries", []server{dead, carrying, fine, fine}, []Reason{ReasonDown, ReasonDown, HeldAgreed, HeldAgreed}},
		{"two of three really dead", []server{dead, dead, fine}, []Reason{ReasonDown, ReasonDown, HeldAgreed}},
		{"second of three, later", []server{gone, dead, fine}, []Reason{HeldVoidAge, ReasonDown, HeldAgreed}},
		{"two of three, one carries", []server{dead, carrying, fine}, []Reason{ReasonDown, HeldPanic, HeldAgreed}},
		{"probe network cut under load", []server{carrying, carrying, carrying}, []Reason{HeldPanic, HeldPanic, HeldPanic}},
		{"one of them silent", []server{carrying, dead, carrying}, []Reason{HeldPanic, ReasonDown, HeldPanic}},
		{"probe network cut at night", []server{dead, dead, dead}, []Reason{HeldNeverEmpty, HeldNeverEmpty, HeldNeverEmpty}},
		{"last one standing", []server{gone, gone, dead}, []Reason{HeldVoidAge, HeldVoidAge, HeldNeverEmpty}},
		{"last one, another comes back", []server{gone, with(gone, func(s *server) { s.seen = "uuu" }), dead}, []Reason{HeldVoidAge, ReasonUp, ReasonDown}},
		{"a server alone", []server{dead}, []Reason{HeldNeverEmpty}},
		{"a drained one does not fill the table", []server{dead, with(fine, func(s *server) { s.admin = state.AdminDrain })}, []Reason{HeldNeverEmpty, HeldAgreed}},
		{"nor one without weight", []server{dead, with(fine, func(s *server) { s.noWeight = true })}, []Reason{HeldNeverEmpty, HeldAgreed}},
		{"an unknown one does", []server{dead, with(fine, func(s *server) { s.verdict = unknown; s.seen = "nnn" })}, []Reason{ReasonDown, HeldNoMajority}},
		{"an offline one counts for nothing", []server{dead, fine, with(dead, func(s *server) { s.admin = state.AdminOffline }),
			with(carrying, func(s *server) { s.admin = state.AdminOffline })}, []Reason{ReasonDown, HeldAgreed, ReasonDown, ReasonDown}},
		{"the first to fall while the others are a miss away", []server{carrying, failing, failing}, []Reason{HeldPanic, HeldAgreed, HeldAgreed}},
		{"the same at night", []server{dead, failing, failing}, []Reason{HeldNeverEmpty, HeldAgreed, HeldAgreed}},
		{"one of the others is fine", []server{dead, failing, fine, fine}, []Reason{ReasonDown, HeldAgreed, HeldAgreed, HeldAgreed}},
		{"pools are apart", []server{with(carrying, func(s *server) { s.vip = 1 }), with(fine, func(s *server) { s.vip = 2 }), with(fine, func(s *server) { s.vip = 2 })},
			[]Reason{HeldPanic, HeldAgreed, HeldAgreed}},
	} {
		t.Run(c.name, func(t *testing.T) { check(t, world{members: 3, servers: c.servers}.facts(), c.want) })
	}
}

func TestDecideVoid(t *testing.T) {
	fine := server{verdict: up, seen: "uuu"}
	gone := server{verdict: down, seen: "ddd", down: 2 * time.Minute}
	with := func(f func(*server)) server { s := gone; f(&s); return s }
	for _, c := range []struct {
		name string
		s    server
		edit func(*Facts)
		want Reason
	}{
		{"after 120 s", gone, nil, ReasonVoid},
		{"not before", with(func(s *server) { s.down = 119 * time.Second }), nil, HeldVoidAge},
		{"once", with(func(s *server) { s.voided = true }), nil, HeldAgreed},
		{"removed ones too", with(func(s *server) { s.admin = state.AdminRemoved }), nil, ReasonVoid},
		{"purged ones are void already", gone, func(f *Facts) { f.Spec.Backends[0].Purged = true }, HeldAgreed},
		{"a member counted its packets", with(func(s *server) { s.returned = "--l" }), nil, HeldVoidTraffic},
		{"a member has not counted for long enough", gone, func(f *Facts) { f.Observers[1].Observation.Seen[0].Quiet = time.Minute }, HeldVoidTraffic},
		{"a minority is silent", gone, func(f *Facts) { f.Observers[2].Age = time.Minute }, ReasonVoid},
		{"a minority is silent that counted its packets just before", with(func(s *server) { s.returned = "--y" }),
			func(f *Facts) { f.Observers[2].Age = 3100 * time.Millisecond }, HeldVoidTraffic},
		{"and nearly 120 s later", with(func(s *server) { s.returned = "--y" }),
			func(f *Facts) { f.Observers[2].Age = 118 * time.Second }, HeldVoidTraffic},
		{"and later", with(func(s *server) { s.returned = "--y" }),
			func(f *Facts) { f.Observers[2].Age = 119 * time.Second }, ReasonVoid},
		{"a minority was never heard", gone, func(f *Facts) { f.Observers = f.Observers[:2] }, ReasonVoid},
		{"a minority was never heard, nor anybody for 120 s", gone,
			func(f *Facts) { f.Observers, f.Listening = f.Observers[:2], 119*time.Second }, HeldVoidTraffic},
		{"a member has just started and names no server", with(func(s *server) { s.seen = "dd-" }),
			func(f *Facts) { f.Observers[2].Heard = time.Second }, HeldVoidTraffic},
		{"a member has long named no such server", with(func(s *server) { s.seen = "dd-" }), nil, ReasonVoid},
		{"somebody who is no member any more counted its packets", with(func(s *server) { s.returned = "--y" }),
			func(f *Facts) { f.Spec.Members = f.Spec.Members[:2] }, ReasonVoid},
		{"a majority is silent", with(func(s *server) { s.seen = "d--" }), nil, HeldVoidUnheard},
		{"new leader", gone, func(f *Facts) { f.Office = time.Second }, HeldVoidUnheard},
		{"it is coming back", with(func(s *server) { s.seen = "uuu" }), nil, ReasonUp},
		{"silence longer than an observation can say", with(func(s *server) { s.quiet, s.down = maxQuiet, 3*time.Hour }),
			func(f *Facts) { f.Spec.Settings.VoidAfter = 2 * time.Hour }, ReasonVoid},
	} {
		t.Run(c.name, func(t *testing.T) {
			check(t, world{members: 3, servers: []server{c.s, fine}, edit: c.edit}.facts(), []Reason{c.want, HeldAgreed})
		})
	}
}

// lately makes the first member miss the first server for a second, its last question
// but one asked so long ago, and the second member's answer so old.
func lately(before, answer time.Duration) func(*Facts) {
	return func(f *Facts) {
		own, other := &f.Observers[0].Observation.Seen[0], &f.Observers[1].Observation.Seen[0]
		own.Missed, own.Before = time.Second, before
		other.Answers, other.Age = 1, answer
	}
}

func TestReach(t *testing.T) {
	fine := server{verdict: up, seen: "uuu"}
	alone := server{verdict: up, seen: "duu"} // the first member is this node
	for _, c := range []struct {
		name    string
		w       world
		want    ReachReason
		settled bool
	}{
		{"all", world{members: 3, servers: []server{fine, fine}}, ReachAll, true},
		{"misses one alone", world{members: 3, servers: []server{alone, fine}}, ReachSome, true},
		{"two of three miss it", world{members: 3, servers: []server{{verdict: up, seen: "ddu"}, fine}}, ReachSome, true},
		{"all miss it", world{members: 3, servers: []server{{verdict: up, seen: "ddd"}, fine}}, ReachShared, true},
		{"misses all alone", world{members: 3, servers: []server{alone, alone}}, ReachNone, true},
		{"everybody misses all", world{members: 3, servers: []server{{verdict: up, seen: "ddd"}, {verdict: up, seen: "ddd"}}}, ReachShared, true},
		{"misses all, hears nobody", world{members: 3, servers: []server{alone, alone}, age: map[int]time.Duration{1: time.Minute, 2: time.Minute}}, ReachCutOff, true},
		{"misses all, hears one that misses all", world{members: 3, servers: []server{{verdict: up, seen: "ddu"}}, age: map[int]time.Duration{2: time.Minute}}, ReachShared, true},
		{"misses one, hears nobody", world{members: 3, servers: []server{alone, fine}, age: map[int]time.Duration{1: time.Minute, 2: time.Minute}}, ReachShared, true},
		{"misses all, the others never heard", world{members: 3, servers: []server{alone}, edit: func(f *Facts) { f.Observers = f.Observers[:1] }}, ReachCutOff, true},
		{"misses all, the only other one is a witness", world{members: 2, witness: 1, servers: []server{alone}}, ReachShared, true},
		{"hears nobody, none up", world{members: 3, servers: []server{{verdict: down, seen: "ddd"}}, age: map[int]time.Duration{1: time.Minute, 2: time.Minute}}, ReachNoUp, true},
		{"hears nobody, reaches all", world{members: 3, servers: []server{fine, fine}, age: map[int]time.Duration{1: time.Minute, 2: time.Minute}}, ReachAll, true},
		{"single node", world{members: 1, servers: []server{{verdict: up, seen: "d"}, {verdict: up, seen: "u"}}}, ReachShared, true},
		{"not probed yet", world{members: 3, servers: []server{{verdict: up, seen: "?uu"}, fine}}, ReachPending, false},
		{"an answer is enough to begin with", world{members: 3, servers: []server{{verdict: up, seen: "?uu"}, fine}, edit: func(f *Facts) { f.Observers[0].Observation.Seen[0].Answers = 1 }}, ReachAll, true},
		{"a miss is not", world{members: 3, servers: []server{{verdict: up, seen: "?uu"}, fine}, edit: func(f *Facts) { f.Observers[0].Observation.Seen[0].Misses = 2 }}, ReachPending, false},
		{"no observation of its own", world{members: 3, servers: []server{{verdict: up, seen: "-uu"}}}, ReachPending, false},
		{"verdict down is not its fault", world{members: 3, servers: []server{{verdict: down, seen: "duu"}, fine}}, ReachAll, true},
		{"offline does not matter", world{members: 3, servers: []server{{verdict: up, seen: "duu", admin: state.AdminOffline}, fine}}, ReachAll, true},
		{"draining does", world{members: 3, servers: []server{{verdict: up, seen: "duu", admin: state.AdminDrain}, fine}}, ReachSome, true},
		{"none up", world{members: 3, servers: []server{{verdict: down, seen: "ddd"}}}, ReachNoUp, true},
		{"a neutral answer is an answer", world{members: 3, servers: []server{{verdict: up, seen: "nuu"}}}, ReachAll, true},
		{"too short", world{members: 3, servers: []server{alone, fine}, edit: lately(0, 0)}, ReachAll, true},
		{"another answered since", world{members: 3, servers: []server{alone, fine}, edit: lately(1600*time.Millisecond, time.Second)}, ReachSome, true},
		{"another answered before", world{members: 3, servers: []server{alone, fine}, edit: lately(1600*time.Millisecond, 1500*time.Millisecond)}, ReachAll, true},
		{"the others begin to miss it", world{members: 3, servers: []server{{verdict: up, seen: "dff"}, fine}}, ReachShared, true},
		{"one of them does not", world{members: 3, servers: []server{{verdict: up, seen: "dfu"}, fine}}, ReachSome, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := c.w.facts()
			r := Reach(ReachFacts{Spec: f.Spec, Self: node(0), Observers: f.Observers})
			doubts := c.want == ReachSome || c.want == ReachNone || c.want == ReachCutOff
			if r.Reason != c.want || r.Doubts != doubts || r.CutOff != (c.want == ReachCutOff) || r.None != (c.want == ReachNone) || r.Settled != c.settled {
				t.Errorf("got %+v, want %s", r, c.want)
			}
		})
	}
}
