package health

import (
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// dsr makes all servers of a world DSR ones.
func dsr(f *Facts) {
	for i := range f.Spec.Backends {
		f.Spec.Backends[i].Mode = state.ModeDSR
	}
}

// tcp makes a world of IKE one of TCP 443, of VIPs that pass it through.
func tcp(f *Facts) {
	for i := range f.Spec.VIPs {
		f.Spec.VIPs[i].SSTP = state.SSTPPassthrough
	}
	for i := range f.Spec.Backends {
		h := &f.Spec.Backends[i].Health
		h[1], h[0] = h[0], state.Health{}
	}
	for _, o := range f.Observers {
		for i := range o.Observation.Seen {
			o.Observation.Seen[i].Class = state.ClassTCP
		}
	}
}

// Where nothing can be seen, neither silence nor packets of another service
// count for or against a server.
func TestDecideUnseen(t *testing.T) {
	dead, fine := server{verdict: up, seen: "ddd"}, server{verdict: up, seen: "uuu"}
	most := server{verdict: up, seen: "ddu"}
	for _, c := range []struct {
		name string
		w    world
		want []Reason
	}{
		{"one dead", world{members: 3, servers: []server{dead, fine, fine}}, []Reason{ReasonDown, HeldAgreed, HeldAgreed}},
		{"borderline, one of many", world{members: 3, servers: []server{most, fine, fine}}, []Reason{ReasonDown, HeldAgreed, HeldAgreed}},
		{"packets do not veto", world{members: 3, servers: []server{{verdict: up, seen: "ddu", returned: "yyy"}, fine, fine}}, []Reason{ReasonDown, HeldAgreed, HeldAgreed}},
		{"most dead, all agree", world{members: 3, servers: []server{dead, dead, fine}}, []Reason{ReasonDown, ReasonDown, HeldAgreed}},
		{"most dead, packets of theirs count for nothing", world{members: 3, servers: []server{{verdict: up, seen: "ddd", returned: "yyy"}, {verdict: up, seen: "ddd", returned: "yyy"}, fine}},
			[]Reason{ReasonDown, ReasonDown, HeldAgreed}},
		{"most dead, one member reaches them", world{members: 3, servers: []server{most, most, fine}}, []Reason{HeldUnseen, HeldUnseen, HeldAgreed}},
		{"most dead, one member is dead too", world{members: 3, servers: []server{{verdict: up, seen: "dd-"}, {verdict: up, seen: "dd-"}, {verdict: up, seen: "uu-"}}},
			[]Reason{ReasonDown, ReasonDown, HeldAgreed}},
		{"all dead", world{members: 3, servers: []server{dead, dead}}, []Reason{HeldNeverEmpty, HeldNeverEmpty}},
		{"all about to be", world{members: 3, servers: []server{dead, {verdict: up, seen: "fff"}}}, []Reason{HeldNeverEmpty, HeldAgreed}},
		{"a member alone", world{members: 1, servers: []server{{verdict: up, seen: "d", returned: "y"}, {verdict: up, seen: "u"}}}, []Reason{ReasonDown, HeldAgreed}},
	} {
		for name, as := range map[string]func(*Facts){"dsr": dsr, "tcp": tcp, "both": func(f *Facts) { dsr(f); tcp(f) }} {
			t.Run(c.name+"/"+name, func(t *testing.T) {
				w := c.w
				w.edit = as
				check(t, w.facts(), c.want)
			})
		}
	}
}

func TestVoidUnseen(t *testing.T) {
	w := world{members: 3, servers: []server{{verdict: down, down: 3 * time.Minute, seen: "ddd", quiet: time.Second}, {verdict: up, seen: "uuu"}}}
	w.edit = dsr
	check(t, w.facts(), []Reason{HeldAgreed, HeldAgreed}) // a verdict down has voided them
	w.edit = tcp
	check(t, w.facts(), []Reason{ReasonVoid, HeldAgreed}) // packets of IKE keep no record of TCP
	w.edit = nil
	check(t, w.facts(), []Reason{HeldVoidTraffic, HeldAgreed})
}

// A check of SSTP every five seconds is no stale one.
func TestFreshSSTP(t *testing.T) {
	at := func(age time.Duration, as func(*Facts)) world {
		return world{members: 3, servers: []server{{verdict: down, seen: "uuu"}, {verdict: up, seen: "uuu"}}, edit: func(f *Facts) {
			as(f)
			for _, o := range f.Observers {
				o.Observation.Seen[0].Age = age
			}
		}}
	}
	check(t, at(6*time.Second, tcp).facts(), []Reason{ReasonUp, HeldAgreed})
	check(t, at(10*time.Second, tcp).facts(), []Reason{HeldNoMajority, HeldAgreed})
	check(t, at(8*time.Second, func(*Facts) {}).facts(), []Reason{HeldNoMajority, HeldAgreed}) // of IKE: 3 s, three intervals, a timeout
}

// Verdicts of the classes of one server do not touch each other.
func TestClassesApart(t *testing.T) {
	f := world{members: 3, servers: []server{{verdict: up, seen: "uuu"}, {verdict: up, seen: "uuu"}}, edit: func(f *Facts) {
		f.Spec.VIPs[0].SSTP = state.SSTPPassthrough
		for i := range f.Spec.Backends {
			f.Spec.Backends[i].Health[1] = f.Spec.Backends[i].Health[0]
		}
		for m := range f.Observers {
			var all []Seen
			for _, s := range f.Observers[m].Observation.Seen {
				t := s
				t.Class = state.ClassTCP
				if s.Backend == 1 {
					t.Opinion, t.Misses = OpinionDown, 3
				}
				all = append(all, s, t)
			}
			f.Observers[m].Observation.Seen = all
		}
	}}.facts()
	for _, d := range Decide(f) {
		want := HeldAgreed
		if d.Backend == 1 && d.Class == state.ClassTCP {
			want = ReasonDown
		}
		if d.Reason != want {
			t.Errorf("backend %d %v: %s", d.Backend, d.Class, d.Reason)
		}
	}
}
