package health

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// callRetry is how often a node repeats its call of a server whose calls it has
// found to fail: seldom, because some of them may take a port all the same.
const callRetry = 30 * time.Second

// callState is what this node's own calls of a server met.
type callState struct {
	slot   uint64    // of the last turn taken
	asked  time.Time // zero: none under way
	began  time.Time // when the last one with a result was asked; zero: none yet
	at     time.Time // of that result
	next   time.Time // not before; zero: no matter
	doubt  time.Time // since when another member's fail; zero: they do not
	turn   bool      // slot mine is this node's
	mine   uint64
	misses uint8     // in a row
	since  time.Time // of the first of them
	note   Note
	detail string
	rtt    time.Duration
}

// SetCalls tells the prober its part in the calls, as Calls gives it.
// Level-triggered: call it at least once a second.
func (p *Prober) SetCalls(calls map[state.BackendID]Call) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	due := false
	for _, t := range p.targets {
		if t.sstp == nil {
			continue
		}
		c, part := &t.sstp.call, calls[t.Backend]
		c.turn, c.mine, c.doubt = part.Turn, part.Slot, time.Time{}
		if part.Failing {
			c.doubt = now.Add(-part.Since)
		}
		due = due || t.sstp.callDue(now)
	}
	if due {
		poke(p.wake)
	}
}

// callDue reports whether to make a call: because it is this node's turn, because
// its own calls fail, or because another member's have failed since this node last
// asked. Never while the check itself is missed: that says enough.
func (s *sstpState) callDue(now time.Time) bool {
	c := &s.call
	if s.check.Deep <= 0 || !c.asked.IsZero() || s.run.answers == 0 || now.Before(c.next) {
		return false
	}
	return c.misses > 0 || c.turn && c.mine != c.slot || c.doubt.After(c.began)
}

// dueCalls lists the calls whose time has come, and tells when to come back if
// that is before next. p.mu is held.
func (p *Prober) dueCalls(now, next time.Time) ([]sstpDue, time.Time) {
	var out []sstpDue
	for _, t := range p.targets {
		s := t.sstp
		if s == nil {
			continue
		}
		c := &s.call
		if s.callDue(now) {
			c.asked = now
			if c.turn {
				c.slot = c.mine
			}
			out = append(out, sstpDue{t, s, s.check})
		} else if c.next.After(now) && c.next.Before(next) {
			next = c.next
		}
	}
	return out, next
}

// makeCalls makes the due calls, each in a goroutine that ends soon after
// callTimeout: at most one for each target.
func (p *Prober) makeCalls(ctx context.Context, due []sstpDue, checks *sync.WaitGroup) {
	for _, d := range due {
		checks.Go(func() {
			limited, cancel := context.WithTimeout(ctx, callTimeout)
			defer cancel()
			v, err := callSSTP(limited, p.dial, p.local(d.target.Addr), d.target.Addr, d.check)
			if ctx.Err() == nil {
				p.settleCall(d, v, err)
			}
		})
	}
}

// settleCall takes the result of a call, unless its target is gone or something
// else is asked of it by now.
func (p *Prober) settleCall(d sstpDue, v verdictSSTP, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, s, c := d.target, d.state, &d.state.call
	if p.targets[t.Backend] != t || t.sstp != s {
		return
	}
	defer poke(p.wake)
	now := time.Now()
	asked := c.asked
	c.asked = time.Time{}
	if s.check != d.check {
		return
	}
	if err != nil { // this node cannot ask: it knows nothing
		c.next = now.Add(callRetry)
		p.metrics.unopened.Inc()
		p.log.Warn("sstp call not made", "backend", uint32(t.Backend), "addr", t.Addr, "err", err)
		return
	}
	was, failed := c.note, c.misses > 0
	c.began, c.at, c.rtt, c.note, c.detail = asked, now, now.Sub(asked), v.note, v.detail
	p.metrics.calls.WithLabelValues(v.note.String()).Inc()
	if v.note.Result() == ResultAnswer {
		c.misses, c.since, c.next = 0, time.Time{}, time.Time{}
	} else {
		if c.misses == 0 {
			c.since = now
		}
		c.misses = bump(c.misses)
		pace := min(p.timing.Interval, callRetry)
		if c.misses >= p.timing.DownAfter {
			pace = callRetry
		}
		c.next = asked.Add(pace - rand.N(pace/10))
	}
	if was != c.note && (was != NoteNone || c.misses > 0) {
		p.log.Info("sstp call", "backend", uint32(t.Backend), "addr", t.Addr, "port", s.check.Port,
			"note", c.note.String(), "detail", c.detail)
	}
	if s.check.DeepVotes && failed != (c.misses > 0) {
		poke(p.changed) // the others should ask too, or need not any more
	}
	p.judgeSSTP(t, s)
}

// failing tells for how long this node's calls have failed, for the others.
func (s *sstpState) failing(now time.Time) time.Duration {
	if s.call.misses == 0 || !s.check.DeepVotes {
		return 0
	}
	return max(now.Sub(s.call.since), quietUnit)
}

// CallReport is what status prints of this node's own calls of a server.
type CallReport struct {
	Note   Note
	Misses uint8 // in a row
	RTT    time.Duration
	Age    time.Duration // of the last result; negative: none yet
	Detail string        // the server's or the kernel's words, when Note is a miss
}

func (c *callState) report(now time.Time) CallReport {
	r := CallReport{Note: c.note, Misses: c.misses, RTT: c.rtt, Age: -1, Detail: c.detail}
	if !c.at.IsZero() {
		r.Age = now.Sub(c.at)
	}
	return r
}

// Hint is a sentence for a person about a call that failed, else empty.
func (r *CallReport) Hint() string {
	hint := ""
	switch r.Note {
	case NoteNone, NoteCall:
		return ""
	case NoteCallRefused:
		hint = "SSTP listens but refuses calls: are all its ports in use? Set-VpnServerPortConfiguration gives it more"
	case NoteCallNak:
		hint = "SSTP listens but does not agree to a call"
	case NoteCallSilent:
		hint = "SSTP listens but gives a call no answer: does RemoteAccess hang?"
	case NoteCallBroken:
		hint = "what answers a call is not SSTP: is another service, or another load balancer, in between?"
	default: // the connection itself, though that of the check came up
		hint = "a call did not connect: " + r.Note.String()
	}
	if r.Detail != "" {
		hint += " (" + r.Detail + ")"
	}
	return hint
}
