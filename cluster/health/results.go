package health

import (
	"slices"
	"time"
)

// result adds the result of a question to its port and renews the opinion. p.mu is
// held.
func (p *Prober) result(t *target, asked *question, a answer, now time.Time) {
	i := asked.port
	q := &t.ports[i]
	p.forget(q, asked)
	switch {
	case a.note == NoteNoProposal && q.policy:
		a.note = NotePolicyGone
	case a.note == NoteCookie && !q.policy:
		a.note = NoteCookieAlone
	}
	if a.note.Result() == ResultAnswer {
		p.outdate(q, asked, now)
	}
	q.rtt, q.at, q.note = now.Sub(asked.asked), now, a.note
	q.count(a.note.Result(), asked, now)
	p.metrics.results.WithLabelValues(a.note.String()).Inc()
	if a.note == NoteInvalidKE {
		q.group, q.policy = a.group, true
	}
	t.reform(asked.form, a.note)
	runs := make([]run, len(t.ports))
	for j := range t.ports {
		runs[j] = t.ports[j].run
	}
	was := t.opinion
	if t.opinion = t.damped.update(runs, p.timing); t.opinion != was {
		p.log.Info("opinion changed", "backend", uint32(t.Backend), "addr", t.Addr, "port", probedPorts[i],
			"from", was.String(), "to", t.opinion.String(), "note", a.note.String())
		poke(p.changed)
	}
	began := q.run.misses == 1 || q.run.answers == 1 && t.opinion != OpinionUp
	if q.run.misses > 0 {
		p.raise(t, now)
	}
	t.calm()
	if began {
		poke(p.changed) // the other members should ask, too
	}
	poke(p.wake)
}

// count adds one result to the runs of a port.
func (q *portState) count(res Result, asked *question, now time.Time) {
	q.run.add(res)
	switch res {
	case ResultAnswer:
		q.sure, q.missed = bump(q.sure), missRun{}
	case ResultMiss:
		q.sure = 0
		if q.run.misses == 1 {
			q.missed = missRun{since: now}
		}
		q.missed.before, q.missed.asked = q.missed.asked, asked.asked
	default:
		q.sure, q.missed = 0, missRun{}
	}
}

// outdate ends the questions that were asked before one that is answered: they count
// as missed before it, not after. p.mu is held.
func (p *Prober) outdate(q *portState, answered *question, now time.Time) {
	for len(q.open) > 0 && q.open[0].asked.Before(answered.asked) {
		q.count(ResultMiss, q.open[0], now)
		p.metrics.results.WithLabelValues(NoteSilent.String()).Inc()
		p.forget(q, q.open[0])
	}
}

// forget drops a question. p.mu is held.
func (p *Prober) forget(q *portState, asked *question) {
	delete(p.asked, asked.id)
	q.open = slices.DeleteFunc(q.open, func(o *question) bool { return o == asked })
}

// reform takes the next form of the probe after an answer that the form of the
// question may have caused. The other port's answer to the same form changes nothing more.
func (t *target) reform(asked form, note Note) {
	if asked != t.form {
		return
	}
	switch note {
	case NoteNoProposal, NotePolicyGone:
		t.form.offer = nextOffer(asked.offer, &t.single)
	case NoteAccepted, NoteInvalidSyntax:
		t.form.group = (t.form.group + 1) % len(wrongGroups)
		for i := range t.ports { // another probe: what was known is of the old one
			t.ports[i].policy = false
		}
	}
}
