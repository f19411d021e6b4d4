package health

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Servers log each probe as a refused negotiation, so the nodes take turns: the
// cluster asks each port of a server once per interval. A doubt makes every node ask
// at once.

// Times of the pace.
const (
	// maxRound bounds the time between two turns of a node, in intervals: only a
	// node's own probes show whether the node itself reaches a server. Larger
	// clusters ask more often than once per interval for that reason.
	maxRound = 3
	// maxSkipped is how long a node may let its turns pass because it sees the
	// server's protected IKE answers to clients.
	maxSkipped = 10 * time.Second
	// sureAnswers in a row of each port end an alarm.
	sureAnswers = 3
	// maxOpen bounds the questions of one port that wait for an answer.
	maxOpen = 8
	// minUnanswered packets of clients in a row without one of the server are a doubt,
	// once the first of them is older than unansweredAfter. Keepalives get no answer,
	// and come every 20 s from each client.
	minUnanswered   = 3
	unansweredAfter = time.Second
	// unansweredAgain bounds how often that raises an alarm: the keepalives of many idle
	// tunnels look like it, too.
	unansweredAgain = time.Minute
	// raiseAllAgain bounds how often a doubt about one server becomes one about all: a
	// path that loses a packet now and then must not fill the servers' logs.
	raiseAllAgain = 10 * time.Second
	// answeredBefore is how lately this node must have seen the server's packets for
	// their absence to mean anything: those of most servers pass another node.
	answeredBefore = 10 * time.Second
)

// Turn is a node's part in the probes of one server.
type Turn struct {
	Slot uint64
	Mine bool // the slot is this node's
	// Round is the time between two slots of this node.
	Round time.Duration
	// Missed and Answered tell what the last probes of other members met. A member
	// that has just begun to miss the server gives an alarm.
	Missed   []state.NodeID
	Answered bool
	// Unanswered tells that some member sees clients' packets without an answer.
	Unanswered bool
	// Protected is how long ago this node saw a protected IKE answer of the server to a
	// client; negative: never.
	Protected time.Duration
}

// TurnFacts is what a node's part in the probes is judged by.
type TurnFacts struct {
	Spec       *state.Spec
	Self       state.NodeID
	Now        state.Time // cluster time, as well as this node knows it
	Observers  []Observer
	Unanswered map[state.BackendID]bool // this node's own view, or another's word
	Returns    *Returns                 // nil: none
}

// Turns gives this node's part in the probes of each server. It is pure. Members
// that are not heard have no turn: each slot is of a member that is there, as far as
// this node knows.
func Turns(targets []Target, f TurnFacts) map[state.BackendID]Turn {
	interval := TimingOf(&f.Spec.Settings).Interval
	members := f.live()
	round := min(max(len(members), 1), maxRound)
	rank := slices.Index(members, f.Self)
	turns := make(map[state.BackendID]Turn, len(targets))
	for _, t := range targets {
		slot := deepSlot(f.Now, interval, t.Backend)
		turn := Turn{Slot: slot, Round: time.Duration(round) * interval, Unanswered: f.Unanswered[t.Backend],
			Mine: rank < 0 || (uint64(t.Backend)+slot)%uint64(round) == uint64(rank%round), Protected: -1}
		if f.Returns != nil {
			turn.Protected = f.Returns.protected(t.Backend)
		}
		turns[t.Backend] = turn
	}
	for _, o := range f.Observers {
		if o.Member == f.Self || o.Age > ObservationFresh || !observes(f.Spec, o.Member) {
			continue
		}
		for _, s := range o.Observation.Seen {
			turn, ok := turns[s.Backend]
			if !ok || s.Class != state.ClassIKE {
				continue
			}
			if s.Misses > 0 {
				turn.Missed = append(turn.Missed, o.Member)
			}
			turn.Answered = turn.Answered || s.Answers > 0
			turns[s.Backend] = turn
		}
	}
	return turns
}

// live lists the members with a data plane that are heard, this one included.
func (f *TurnFacts) live() []state.NodeID {
	var members []state.NodeID
	for i := range f.Spec.Members {
		m := &f.Spec.Members[i]
		heard := m.ID == f.Self || slices.ContainsFunc(f.Observers, func(o Observer) bool {
			return o.Member == m.ID && o.Age <= ObservationFresh
		})
		if m.Role == state.RoleNode && heard {
			members = append(members, m.ID)
		}
	}
	slices.SortFunc(members, func(a, b state.NodeID) int { return bytes.Compare(a[:], b[:]) })
	return members
}

// pace is where a target is in its turns.
type pace struct {
	turn       Turn
	told       time.Time             // when turn was; zero: never, then the node asks every interval
	unanswered time.Time             // of the last alarm because of unanswered packets
	missing    map[state.NodeID]bool // the members that turn says miss the server
	alarm      bool                  // ask every half interval, until sureAnswers
}

// SetTurns tells the prober its part in the probes, as Turns gives it.
// Level-triggered: call it several times per interval. What is not told asks
// every interval.
func (p *Prober) SetTurns(turns map[state.BackendID]Turn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	due := false
	for _, t := range p.targets {
		turn, ok := turns[t.Backend]
		if !ok {
			t.pace.told = time.Time{}
			continue
		}
		doubt := turn.Unanswered && !t.pace.turn.Unanswered && now.Sub(t.pace.unanswered) >= unansweredAgain
		if doubt {
			t.pace.unanswered = now
		}
		missing := make(map[state.NodeID]bool, len(turn.Missed))
		for _, id := range turn.Missed {
			missing[id] = true
			doubt = doubt || !t.pace.missing[id]
		}
		t.pace.turn, t.pace.told, t.pace.missing = turn, now, missing
		if doubt {
			p.raise(t, now)
		}
		for i := range t.ports {
			due = due || !now.Before(p.nextAsk(t, i, now))
		}
	}
	if due {
		poke(p.wake)
	}
}

// raise begins an alarm about a server, and about all others if there was none
// lately: if the path of probes breaks, servers must not seem to die one after the
// other. p.mu is held.
func (p *Prober) raise(t *target, now time.Time) {
	if !t.raise() || now.Sub(p.raised) < raiseAllAgain {
		return
	}
	p.raised = now
	for _, other := range p.targets {
		other.raise()
	}
}

// raise begins an alarm, with a question at once, about a server that is thought to
// be up: there is nothing to be afraid of at another.
func (t *target) raise() bool {
	if t.opinion != OpinionUp || t.pace.alarm {
		return false
	}
	t.pace.alarm = true
	for i := range t.ports {
		t.ports[i].sure, t.ports[i].soon = 0, true
	}
	return true
}

// calm ends the alarm when there are enough answers, or an opinion.
func (t *target) calm() {
	sure := true
	for i := range t.ports {
		sure = sure && t.ports[i].sure >= sureAnswers
	}
	if sure || t.opinion != OpinionUp {
		t.pace.alarm = false
	}
}

// settled reports whether the last results are what the opinion says. Then the
// node asks in its turn alone; else it asks every interval.
func (t *target) settled(timing Timing) bool {
	up, down, neutral := true, false, false
	for i := range t.ports {
		r := t.ports[i].run
		up = up && r.answers > 0
		down = down || r.misses >= timing.DownAfter
		neutral = neutral || r.neutrals >= timing.DownAfter
	}
	switch t.opinion {
	case OpinionUp:
		return up
	case OpinionDown:
		return down && !t.pace.turn.Answered
	case OpinionNeutral:
		return neutral && !t.pace.turn.Answered
	}
	return false
}

// nextAsk is when to ask a port again, as far as is known now. p.mu is held.
func (p *Prober) nextAsk(t *target, i int, now time.Time) time.Time {
	q := &t.ports[i]
	half := max(p.timing.Interval/2, minInterval)
	far := now.Add(p.timing.Interval)
	switch {
	case q.asked.IsZero():
		return q.first
	case len(q.open) >= maxOpen:
		return far
	case q.soon:
		return q.asked.Add(minInterval)
	case t.pace.alarm, t.opinion == OpinionUp && len(q.open) > 0:
		return q.asked.Add(half) // an answer this late is likely a miss
	case len(q.open) > 0:
		return far // its timeout comes first
	case t.pace.told.IsZero() || now.Sub(t.pace.told) > p.timing.Interval || !t.settled(p.timing):
		wait := p.timing.Interval - q.early
		if q.note == NoteSilent {
			wait = min(wait, p.timing.Timeout) // it has cost a whole timeout already
		}
		return q.asked.Add(wait)
	}
	return p.nextTurn(t, q, now)
}

// nextTurn is when to ask in this node's turn. The slot is skipped while protected IKE
// answers of the server are never an interval apart: each proves what a probe would.
// The slot counts for as long as it lasts, so a server that falls silent after a
// skipped turn is asked within it.
func (p *Prober) nextTurn(t *target, q *portState, now time.Time) time.Time {
	turn, interval := &t.pace.turn, p.timing.Interval
	if turn.Protected >= 0 && t.opinion == OpinionUp {
		seen := t.pace.told.Add(-turn.Protected)
		if now.Sub(seen) < interval {
			if seen.After(q.at) {
				q.at = seen // as good as an answer, and as old as the packet
			}
			return q.asked.Add(maxSkipped)
		}
	}
	if turn.Mine && q.took != turn.Slot {
		return now
	}
	return q.asked.Add(turn.Round + interval) // cluster time has jumped, or members come and go
}

// ask draws a question. p.mu is held.
func (p *Prober) ask(t *target, i int, now time.Time) probeDue {
	q := &t.ports[i]
	q.asked, q.soon, q.took = now, false, t.pace.turn.Slot
	q.early = rand.N(p.timing.Interval / 10) // earlier only, so that a verdict is never later than promised
	asked := &question{id: newSPI(), backend: t.Backend, port: i, form: t.form, asked: now}
	asked.request = appendProbe(nil, asked.id, t.form, probedPorts[i] == 4500)
	q.open = append(q.open, asked)
	p.asked[asked.id] = asked
	return probeDue{id: asked.id, to: netip.AddrPortFrom(t.Addr, probedPorts[i]), data: asked.request}
}
