package health

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// sstpState is what is known of TCP 443 of a target. Its runs, opinion and
// observation are its own: IKE does not feel them.
type sstpState struct {
	portState
	detail  string
	damped  damped
	opinion Opinion
}

// sure reports whether enough equal results stand behind the last one: then
// the next check may wait.
func (s *sstpState) sure(t Timing) bool {
	return s.run.answers >= t.UpAfter || s.run.misses >= t.DownAfter
}

// dueSSTP lists the checks whose time has come, and tells when to come back if
// that is before next. p.mu is held.
func (p *Prober) dueSSTP(now, next time.Time) ([]*target, time.Time) {
	var out []*target
	for _, t := range p.targets {
		s := t.sstp
		if s == nil || !s.asked.IsZero() {
			continue
		}
		if now.Before(s.next) {
			if s.next.Before(next) {
				next = s.next
			}
			continue
		}
		s.asked = now
		out = append(out, t)
	}
	return out, next
}

// checkSSTP makes the due checks, each in a goroutine that ends with the
// timeout: at most one for each target.
func (p *Prober) checkSSTP(ctx context.Context, due []*target, checks *sync.WaitGroup) {
	p.mu.Lock()
	timeout := p.timing.Timeout
	p.mu.Unlock()
	for _, t := range due {
		checks.Go(func() {
			local := p.cfg.Local4
			if t.Addr.Is6() {
				local = p.cfg.Local6
			}
			limited, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			v, err := askSSTP(limited, p.dial, local, t.Addr)
			if ctx.Err() == nil {
				p.settleSSTP(t, v, err)
			}
		})
	}
}

// settleSSTP takes the result of a check, unless its target is gone.
func (p *Prober) settleSSTP(t *target, v verdictSSTP, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := t.sstp
	if p.targets[t.Backend] != t || s == nil || s.asked.IsZero() {
		return
	}
	defer poke(p.wake)
	now := time.Now()
	asked := s.asked
	s.asked = time.Time{}
	if err != nil { // this node cannot ask: it knows nothing
		s.next = now.Add(reopenDelay)
		p.metrics.unopened.Inc()
		p.log.Warn("sstp check not made", "backend", uint32(t.Backend), "addr", t.Addr, "err", err)
		return
	}
	s.rtt, s.at, s.note, s.detail = now.Sub(asked), now, v.note, v.detail
	s.run.add(v.note.Result())
	p.metrics.results.WithLabelValues(v.note.String()).Inc()
	pace := min(p.timing.Interval, SSTPInterval)
	if s.sure(p.timing) {
		pace = max(p.timing.Interval, SSTPInterval)
	}
	s.next = asked.Add(pace - rand.N(pace/10))
	was := s.opinion
	if s.opinion = s.damped.update([]run{s.run}, p.timing); s.opinion != was {
		p.log.Info("opinion changed", "backend", uint32(t.Backend), "addr", t.Addr, "port", sstpPort,
			"from", was.String(), "to", s.opinion.String(), "note", v.note.String(), "detail", v.detail)
		poke(p.changed)
	}
}

// seen is the observation of class TCP.
func (s *sstpState) seen(id state.BackendID, now time.Time) Seen {
	age := time.Hour // no result yet
	if !s.at.IsZero() {
		age = now.Sub(s.at)
	}
	return Seen{
		Backend: id, Class: state.ClassTCP, Opinion: s.opinion, Note: s.note, Age: age,
		Misses: s.run.misses, Answers: s.run.answers, Neutrals: s.run.neutrals,
	}
}

// SSTPReport is what status prints of TCP 443.
type SSTPReport struct {
	Opinion Opinion
	PortReport
	Detail string // the server's or the kernel's words, when Note is a miss
}

func (s *sstpState) report(now time.Time) *SSTPReport {
	age := time.Duration(-1)
	if !s.at.IsZero() {
		age = now.Sub(s.at)
	}
	return &SSTPReport{Opinion: s.opinion, Detail: s.detail, PortReport: PortReport{
		Port: sstpPort, Note: s.note, RTT: s.rtt, Age: age,
		Misses: s.run.misses, Answers: s.run.answers, Neutrals: s.run.neutrals,
	}}
}

// Hint is a sentence for a person about a check that is no answer, else empty.
func (r *SSTPReport) Hint() string {
	hint := ""
	switch r.Note {
	case NoteSilent:
		hint = "no answer: is the server running, and does its firewall admit TCP 443 from the nodes?"
	case NoteRefused:
		hint = "refused: nothing listens on TCP 443, or a firewall rejects it"
	case NoteUnsendable:
		hint = NoteUnsendable.Hint()
	case NoteNoTLS:
		hint = "TCP connects, but TLS does not come up: is a certificate bound to port 443?"
	case NoteNoStatus:
		hint = "TLS comes up, but no HTTP status follows"
	case NoteOtherStatus:
		hint = "another service answers on TCP 443 than SSTP, which says 401: is RemoteAccess running, with SSTP ports?"
	default:
		return ""
	}
	if r.Detail != "" {
		hint += " (" + r.Detail + ")"
	}
	return hint
}
