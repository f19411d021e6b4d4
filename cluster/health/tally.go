package health

import (
	"math"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Facts is what the leader judges by.
type Facts struct {
	Spec      *state.Spec
	Now       state.Time    // cluster time as the leader counts it
	Office    time.Duration // since this node took office
	Observers []Observer    // this node's own observation included, those that are old too
	// Listening is for how long this process has taken observations: of members
	// that were not heard in it, nothing is known of the time before.
	Listening time.Duration
	// Lagging counts live members that have not applied Spec.Generation yet: a
	// verdict up waits for them, one generation at a time. Members silent for
	// longer than Settings.Demote + 2 s do not count.
	Lagging int
}

// Reason says why a verdict is proposed, or why not.
type Reason string

// Reasons. The first three come with a command.
const (
	ReasonUp          Reason = "majority_up"
	ReasonDown        Reason = "majority_down"
	ReasonVoid        Reason = "down_and_quiet"
	HeldAgreed        Reason = "as_committed"           // nothing to change
	HeldNoMajority    Reason = "no_majority"            // of the committed members with a data plane
	HeldOneObserver   Reason = "one_observer"           // down needs two where there are two
	HeldWindow        Reason = "no_full_window"         // too soon after an election
	HeldDwell         Reason = "dwell"                  // too soon after it came up
	HeldReturnTraffic Reason = "return_traffic"         // its packets veto a lone or borderline down
	HeldPanic         Reason = "panic_return_traffic"   // most of the pool seems down, this one still carries traffic
	HeldUnseen        Reason = "panic_not_unanimous"    // most of the pool seems down, nothing can be seen of this one, and not all who are heard miss it
	HeldNeverEmpty    Reason = "panic_last_server"      // nothing would be left in the table
	HeldGeneration    Reason = "generation_not_applied" // up waits until the last change is everywhere
	HeldVoidAge       Reason = "down_not_long_enough"   // to void
	HeldVoidTraffic   Reason = "void_return_traffic"    // its packets were counted lately
	HeldVoidAlone     Reason = "void_nobody_else"       // no other backend takes the clients
	HeldVoidUnheard   Reason = "void_no_majority"       // too few members tell whether they were
	reasonNone        Reason = ""
)

// Decision is what the tally says of one class of one backend.
type Decision struct {
	Backend state.BackendID
	Class   state.Class
	Reason  Reason
	Command state.Command // SetHealth or VoidBackend; nil: nothing to propose
	Votes   Votes
}

// Votes are the fresh opinions a decision rests on.
type Votes struct {
	Members  int // committed members with a data plane: the denominator
	Fresh    int // of these, with a fresh observation of this backend
	Up       int
	Down     int
	Neutral  int
	Returned bool // a fresh observer counted its packets within VetoWindow
}

// Windows of the tally, each with its reason.
const (
	// ObservationFresh bounds the age by local receipt: what is older says
	// nothing about now.
	ObservationFresh = 3 * time.Second
	// VetoWindow is how recent a server's packets must be to veto a borderline
	// down. A server that died has been silent for this long when the third
	// miss is in, so the veto does not delay its verdict.
	VetoWindow = 3 * time.Second
	// PanicWindow is longer: most of a pool dying at once is rarer than a
	// probe path that broke, and a quiet tunnel sends a packet every few seconds.
	PanicWindow = 10 * time.Second
)

// failingMisses in a row make a server count for the panic rule before it is
// down: when a probe path breaks, servers do not reach their third miss at the
// same time, and the first must not fall because the others are a second late.
const failingMisses = 2

// Decide judges every class of every backend of which anything is known. It is
// pure. The order is that of the spec's backends, then classes.
func Decide(f Facts) []Decision {
	t := &tally{Facts: f}
	for i := range f.Spec.Members {
		if f.Spec.Members[i].Role == state.RoleNode {
			t.members++
		}
	}
	if t.members == 0 {
		return nil
	}
	t.window = t.fullWindow()
	for _, c := range state.Classes {
		for i := range f.Spec.Backends {
			t.judge(&f.Spec.Backends[i], c)
		}
	}
	t.panic()
	out := make([]Decision, 0, len(t.cases))
	for i := range f.Spec.Backends {
		for _, c := range t.cases {
			if c.backend == &f.Spec.Backends[i] {
				out = append(out, c.decision())
			}
		}
	}
	return out
}

// tally is one run of Decide.
type tally struct {
	Facts
	members int
	window  bool
	cases   []*verdictCase
}

// verdictCase is one class of one backend on its way to a decision.
type verdictCase struct {
	backend *state.Backend
	class   state.Class
	votes   Votes
	to      state.Verdict // proposed; VerdictUnknown: none
	void    bool
	reason  Reason
	unseen  bool // there is no passive evidence of it
	carried bool // a fresh observer counted its packets within PanicWindow
	failing int  // fresh observers that see it down or on its way there
}

func (c *verdictCase) health() state.Health { return c.backend.Health[c.class-1] }

func (c *verdictCase) decision() Decision {
	d := Decision{Backend: c.backend.ID, Class: c.class, Reason: c.reason, Votes: c.votes}
	switch {
	case c.to != state.VerdictUnknown:
		d.Command = state.SetHealth{Backend: c.backend.ID, Class: c.class, Verdict: c.to, Previous: c.health().Index}
	case c.void:
		d.Command = state.VoidBackend{Backend: c.backend.ID, Class: c.class, Previous: c.health().Index}
	}
	return d
}

func (t *tally) majority() int { return t.members/2 + 1 }

// member reports whether an observer counts: committed, with a data plane.
func (t *tally) member(id state.NodeID) bool { return observes(t.Spec, id) }

func observes(s *state.Spec, id state.NodeID) bool {
	for i := range s.Members {
		if s.Members[i].ID == id {
			return s.Members[i].Role == state.RoleNode
		}
	}
	return false
}

// fullWindow reports whether a majority was heard, in this office, for as long
// as a down opinion takes to form.
func (t *tally) fullWindow() bool {
	timing := TimingOf(&t.Spec.Settings)
	need := time.Duration(timing.DownAfter) * timing.Interval
	n := 0
	for _, o := range t.Observers {
		if t.member(o.Member) && o.Age <= ObservationFresh && o.Heard >= need {
			n++
		}
	}
	return t.Office >= need && n >= t.majority()
}

// unseen reports whether the return path can carry no sign of life of a class
// of a backend: replies of a DSR server bypass the nodes, and what is counted of
// the others is IKE's. Silence then says nothing.
func unseen(b *state.Backend, c state.Class) bool {
	return b.Mode == state.ModeDSR || c == state.ClassTCP
}

// of is the timing of a class as it is where there is no doubt: nodes take turns to
// probe IKE, and SSTP is checked every SSTPInterval.
func (t Timing) of(c state.Class) Timing {
	if c == state.ClassTCP {
		t.Interval = max(t.Interval, SSTPInterval)
	} else {
		t.Interval *= maxRound
	}
	return t
}

// fresh reports whether a record still says something about now: it was
// received lately, and its probes were not stuck at the sender.
func fresh(o Observer, s Seen, t Timing) bool {
	return o.Age <= ObservationFresh && s.Age <= ObservationFresh+t.Interval+t.Timeout
}

// judge makes the case of one class of one backend, without regard to its pool.
func (t *tally) judge(b *state.Backend, class state.Class) {
	c := &verdictCase{backend: b, class: class, unseen: unseen(b, class), votes: Votes{Members: t.members}}
	t.count(c)
	h := c.health()
	if c.votes.Fresh == 0 && h.Verdict == state.VerdictUnknown {
		return
	}
	t.cases = append(t.cases, c)
	v := c.votes
	switch {
	case v.Up >= t.majority() && h.Verdict != state.VerdictUp:
		c.to, c.reason = state.VerdictUp, ReasonUp
	case v.Down >= t.majority() && h.Verdict != state.VerdictDown:
		c.to, c.reason = state.VerdictDown, ReasonDown
	case v.Up >= t.majority() || v.Down >= t.majority():
		c.reason = HeldAgreed
	default:
		c.reason = HeldNoMajority
	}
	if r := t.hold(c); r != reasonNone {
		c.to, c.reason = state.VerdictUnknown, r
	}
	if c.to == state.VerdictUnknown && h.Verdict == state.VerdictDown && h.Voided == 0 && !b.Purged && b.Mode != state.ModeDSR {
		t.judgeVoid(c)
	}
}

// count fills the votes.
func (t *tally) count(c *verdictCase) {
	timing := TimingOf(&t.Spec.Settings).of(c.class)
	for _, o := range t.Observers {
		s, ok := o.Observation.Of(c.backend.ID, c.class)
		if !ok || !t.member(o.Member) || !fresh(o, s, timing) {
			continue
		}
		c.votes.Fresh++
		switch s.Opinion {
		case OpinionUp:
			c.votes.Up++
		case OpinionDown:
			c.votes.Down++
		case OpinionNeutral:
			c.votes.Neutral++
		}
		if s.Opinion == OpinionDown || s.Misses >= min(failingMisses, timing.DownAfter) {
			c.failing++
		}
		if c.unseen {
			continue
		}
		c.votes.Returned = c.votes.Returned || s.Returned && s.Quiet+o.Age <= VetoWindow
		c.carried = c.carried || s.Returned && s.Quiet+o.Age <= PanicWindow
	}
}

// quiet is for how long no member has counted a packet of the server, as far as
// all of them together know. With one gateway its owner alone sees the packets,
// and may be the member that fell silent: so what it said last counts too, and
// grows older from there.
func (t *tally) quiet(c *verdictCase) time.Duration {
	quiet := time.Duration(math.MaxInt64)
	for i := range t.Spec.Members {
		if m := &t.Spec.Members[i]; m.Role == state.RoleNode {
			quiet = min(quiet, t.quietAt(m.ID, c))
		}
	}
	return quiet
}

func (t *tally) quietAt(id state.NodeID, c *verdictCase) time.Duration {
	for _, o := range t.Observers {
		if o.Member != id {
			continue
		}
		if s, ok := o.Observation.Of(c.backend.ID, c.class); ok {
			return s.Quiet + o.Age
		}
		return max(o.Age, o.Heard) // it does not know the server, for so long at least
	}
	return t.Listening
}

// hold names what speaks against the verdict that the votes ask for.
func (t *tally) hold(c *verdictCase) Reason {
	v, h := c.votes, c.health()
	switch c.to {
	case state.VerdictUp:
		switch {
		case !t.window:
			return HeldWindow
		case t.Lagging > 0:
			return HeldGeneration
		}
	case state.VerdictDown:
		switch {
		case !t.window:
			return HeldWindow
		case t.members >= 2 && v.Down < 2:
			return HeldOneObserver
		case h.Verdict == state.VerdictUp && t.Now.Sub(h.UpSince) < t.Spec.Settings.UpDwell:
			return HeldDwell
		case v.Returned && (v.Down < v.Fresh || t.members == 1):
			return HeldReturnTraffic
		}
	}
	return reasonNone
}

// judgeVoid decides whether the entries of a server that is down are void: on
// cluster time, and only if no member counted its packets for as long.
func (t *tally) judgeVoid(c *verdictCase) {
	after := t.Spec.Settings.VoidAfter
	switch {
	case t.Now.Sub(c.health().Since) < after:
		if c.reason == HeldAgreed {
			c.reason = HeldVoidAge
		}
	case !t.Spec.MayVoid(c.backend, c.class, t.Now):
		c.reason = HeldVoidAlone
	case !t.window || c.votes.Fresh < t.majority():
		c.reason = HeldVoidUnheard
	case !c.unseen && t.quiet(c) < min(after, maxQuiet):
		c.reason = HeldVoidTraffic
	default:
		c.void, c.reason = true, ReasonVoid
	}
}

// maxQuiet is the longest silence that an observation can express.
const maxQuiet = 0xffff * quietUnit
