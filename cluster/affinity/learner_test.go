package affinity

import (
	"context"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

func learning(t *testing.T, body func(a *agreement, l *Learner, plane *answers)) {
	t.Helper()
	bubble(t, func(ctx context.Context, a *agreement, run func(func(context.Context) error)) {
		plane := &answers{}
		l, err := NewLearner(LearnerDeps{View: func() View { return a.View() }, Proposer: a, Answer: plane.take})
		if err != nil {
			t.Fatal(err)
		}
		run(l.Run)
		body(a, l, plane)
	})
}

func evidence(i int, slot, saw table.Slot, level table.Confirmation, opening bool) table.Evidence {
	return table.Evidence{Key: key(i), Slot: slot, Saw: saw, Level: level, Opening: opening}
}

func want(t *testing.T, plane *answers, i int, as ...table.Answer) {
	t.Helper()
	if got := plane.of(i); !slices.Equal(got, as) {
		t.Errorf("client %d: answers %v, want %v", i, got, as)
	}
}

func TestLearnerInsertsAndRaises(t *testing.T) {
	learning(t, func(a *agreement, l *Learner, plane *answers) {
		l.Offer([]table.Evidence{evidence(1, 2, 0, table.EarnedSK, true)})
		time.Sleep(2 * Linger)
		a.holds(1, 2)
		want(t, plane, 1, table.Stored)
		l.Offer([]table.Evidence{evidence(1, 2, 2, table.Confirmed, false)})
		time.Sleep(2 * Linger)
		if r, _ := a.record(1); r.State != state.Confirmed {
			t.Errorf("state %d", r.State)
		}
		want(t, plane, 1, table.Stored, table.Stored)
		n := len(commandsOf[state.Learn](a))
		l.Offer([]table.Evidence{evidence(1, 2, 2, table.EarnedAuth, false)})
		time.Sleep(2 * Linger)
		want(t, plane, 1, table.Stored, table.Stored, table.Stored)
		if len(commandsOf[state.Learn](a)) != n {
			t.Error("proposed what is agreed already")
		}
	})
}

func TestLearnerFirstWriteWins(t *testing.T) {
	learning(t, func(a *agreement, l *Learner, plane *answers) {
		a.must(state.Learn{Records: []state.Learned{{Key: state.Key{Client: client(1), Class: state.ClassIKE}, Backend: 1, State: state.Confirmed}}})
		l.Offer([]table.Evidence{evidence(1, 2, 0, table.Confirmed, true)})
		time.Sleep(2 * Linger)
		a.holds(1, 1)
		want(t, plane, 1, table.Superseded)
	})
}

// TestLearnerReplaces: only by an opening, only what the program saw, and only
// when the recorded server may not take it.
func TestLearnerReplaces(t *testing.T) {
	for _, c := range []struct {
		name    string
		down    bool
		e       table.Evidence
		answer  table.Answer
		backend state.BackendID
	}{
		{"opening, server down", true, evidence(1, 2, 1, table.EarnedSK, true), table.Stored, 2},
		{"no opening", true, evidence(1, 2, 1, table.Confirmed, false), table.Superseded, 1},
		{"server up", false, evidence(1, 2, 1, table.EarnedSK, true), table.Refused, 1},
		{"saw another record", true, evidence(1, 2, 3, table.EarnedSK, true), table.Superseded, 1},
		{"saw a slot nobody has", true, evidence(1, 2, 99, table.EarnedSK, true), table.Superseded, 1},
		{"from a slot nobody has", true, evidence(1, 99, 1, table.EarnedSK, true), table.Superseded, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			learning(t, func(a *agreement, l *Learner, plane *answers) {
				a.must(state.Learn{Records: []state.Learned{{Key: state.Key{Client: client(1), Class: state.ClassIKE}, Backend: 1, State: state.Confirmed}}})
				if c.down {
					time.Sleep(time.Minute)
					a.verdict(1, state.VerdictDown)
				}
				l.Offer([]table.Evidence{c.e})
				time.Sleep(2 * Linger)
				a.holds(1, c.backend)
				want(t, plane, 1, c.answer)
			})
		})
	}
}

// TestLearnerStaleView: the record moved between the view and the log.
func TestLearnerStaleView(t *testing.T) {
	learning(t, func(a *agreement, l *Learner, plane *answers) {
		k := state.Key{Client: client(1), Class: state.ClassIKE}
		a.must(state.Learn{Records: []state.Learned{{Key: k, Backend: 1, State: state.Confirmed}}})
		time.Sleep(time.Minute)
		a.verdict(1, state.VerdictDown)
		old := a.View()
		r, _ := a.record(1)
		a.must(state.Learn{Records: []state.Learned{{Key: k, Backend: 3, State: state.EarnedSK, Opening: true, Replaces: r.Index}}})
		a.set(func() { a.lagging = old })
		l.Offer([]table.Evidence{evidence(1, 2, 1, table.EarnedSK, true)})
		time.Sleep(2 * Linger)
		want(t, plane, 1, table.Superseded)
		a.set(func() { a.lagging = nil })
		a.holds(1, 3)
	})
}

// TestLearnerVoid: entries of a server that was voided count as absent.
func TestLearnerVoid(t *testing.T) {
	learning(t, func(a *agreement, l *Learner, plane *answers) {
		a.must(state.Learn{Records: []state.Learned{{Key: state.Key{Client: client(1), Class: state.ClassIKE}, Backend: 1, State: state.Confirmed}}})
		time.Sleep(time.Minute)
		a.verdict(1, state.VerdictDown)
		time.Sleep(3 * time.Minute)
		b, _ := a.View().Spec().BackendByID(1)
		a.must(state.VoidBackend{Backend: 1, Class: state.ClassIKE, Previous: b.Health[0].Index})
		l.Offer([]table.Evidence{evidence(1, 2, 0, table.EarnedSK, false)})
		time.Sleep(2 * Linger)
		a.holds(1, 2)
		want(t, plane, 1, table.Stored)
	})
}

// TestLearnerSurvivesNoLeader: nothing is answered, nothing is lost, and the
// pace of trying is bounded.
func TestLearnerSurvivesNoLeader(t *testing.T) {
	learning(t, func(a *agreement, l *Learner, plane *answers) {
		a.set(func() { a.fails = true })
		for i := range 30 {
			l.Offer([]table.Evidence{evidence(i, 1, 0, table.EarnedAuth, true)})
			time.Sleep(time.Second)
		}
		if plane.len() != 0 || l.Pending() != 30 {
			t.Errorf("%d answered, %d pending", plane.len(), l.Pending())
		}
		if n := len(commandsOf[state.Learn](a)); n < 20 || n > 60 {
			t.Errorf("%d attempts in 30 s", n)
		}
		a.set(func() { a.fails = false })
		time.Sleep(3 * time.Second)
		for i := range 30 {
			want(t, plane, i, table.Stored)
		}
		if l.Pending() != 0 {
			t.Errorf("%d pending", l.Pending())
		}
	})
}

func TestLearnerBatches(t *testing.T) {
	learning(t, func(a *agreement, l *Learner, plane *answers) {
		a.must(settings(a, func(s *state.Settings) { s.NodeBudget, s.PrefixBudget = 100000, 100000 }))
		a.set(func() { a.delay = 20 * time.Millisecond })
		const clients = 5000
		for range 5 { // the plane offers everything again at each poll
			var batch []table.Evidence
			for i := range clients {
				batch = append(batch, evidence(i, table.Slot(1+i%3), 0, table.EarnedAuth, true))
			}
			if plane.len() == 0 {
				l.Offer(batch)
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Second)
		if plane.len() != clients {
			t.Errorf("%d of %d answered", plane.len(), clients)
		}
		learns := commandsOf[state.Learn](a)
		records := 0
		for _, c := range learns {
			records += len(c.Records)
			if len(c.Records) > MaxBatchLearn {
				t.Errorf("a batch of %d", len(c.Records))
			}
		}
		if records != clients || len(learns) > clients/MaxBatchLearn+2 {
			t.Errorf("%d records in %d commands", records, len(learns))
		}
		if took := a.calls[len(a.calls)-1].at.Sub(a.calls[0].at); took > 100*time.Millisecond {
			t.Errorf("took %v: proposals do not overlap", took)
		}
	})
}

func settings(a *agreement, f func(*state.Settings)) state.Command {
	s := a.View().Spec().Settings
	v := s.Version
	f(&s)
	return state.SetSettings{Settings: s, Expect: v}
}

func TestLearnerQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newAgreement(t)
		l, err := NewLearner(LearnerDeps{View: func() View { return a.View() }, Proposer: a, Answer: (&answers{}).take})
		if err != nil {
			t.Fatal(err)
		}
		var batch []table.Evidence
		for i := range MaxPending + 100 {
			e := evidence(i, 1, 0, table.EarnedSK, true)
			e.Client[0] = byte(i >> 16)
			batch = append(batch, e)
		}
		l.Offer(batch)
		l.Offer(batch)
		if l.Pending() != MaxPending || len(l.queue) != MaxPending {
			t.Errorf("%d pending, %d queued", l.Pending(), len(l.queue))
		}
	})
}

func TestAnswersOf(t *testing.T) {
	ok := func(rs ...state.LearnResult) []state.Outcome { return []state.Outcome{{Code: state.OK, Learns: rs}} }
	for _, c := range []struct {
		name string
		out  []state.Outcome
		want []table.Answer // nil: try again
	}{
		{"each", ok(state.LearnStored, state.LearnSuperseded, state.LearnRefused), []table.Answer{table.Stored, table.Superseded, table.Refused}},
		{"unknown result", ok(0, 1, 1), []table.Answer{table.Refused, table.Stored, table.Stored}},
		{"full", []state.Outcome{{Code: state.Full}}, []table.Answer{table.Refused, table.Refused, table.Refused}},
		{"too old", []state.Outcome{{Code: state.TooOld}}, nil},
		{"too few", ok(state.LearnStored), nil},
		{"none", nil, nil},
	} {
		got, err := answersOf(c.out, nil, 3)
		if (err != nil) != (c.want == nil) || !slices.Equal(got, c.want) {
			t.Errorf("%s: got %v, %v", c.name, got, err)
		}
	}
}
