package health

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// sstpState is what is known of SSTP of a target. Its runs, opinion and
// observation are its own: IKE does not feel them.
type sstpState struct {
	run     run
	note    Note
	rtt     time.Duration // of the last answer
	at      time.Time     // of the last result; zero: none yet
	next    time.Time     // when to ask
	asked   time.Time     // zero: no check under way
	check   SSTPCheck
	call    callState
	detail  string
	damped  damped
	opinion Opinion
}

// sure reports whether enough equal results stand behind the last one: then
// the next check may wait.
func (s *sstpState) sure(t Timing) bool {
	return s.run.answers >= t.UpAfter || s.run.misses >= t.DownAfter
}

// watchSSTP begins, changes or ends the checks of SSTP and reports whether it
// began or ended them. Where another port or certificate is asked for, earlier
// results say nothing of it: the next comes at once, and the opinion stands
// until there are enough.
func (t *target) watchSSTP(check *SSTPCheck, now time.Time, timing Timing) (changed bool) {
	t.SSTP = check
	switch {
	case check == nil && t.sstp == nil:
	case check == nil:
		t.sstp = nil
		return true
	case t.sstp == nil:
		t.sstp = &sstpState{check: *check, next: now.Add(rand.N(timing.Interval))}
		return true
	case t.sstp.check != *check:
		t.sstp.check = *check
		t.sstp.run, t.sstp.next = run{}, now
		t.sstp.call = callState{asked: t.sstp.call.asked}
	}
	return false
}

// sstpDue is one check to make.
type sstpDue struct {
	target *target
	state  *sstpState
	check  SSTPCheck
}

// dueSSTP lists the checks whose time has come, and tells when to come back if
// that is before next. p.mu is held.
func (p *Prober) dueSSTP(now, next time.Time) ([]sstpDue, time.Time) {
	var out []sstpDue
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
		out = append(out, sstpDue{t, s, s.check})
	}
	return out, next
}

// checkSSTP makes the due checks, each in a goroutine that ends with the
// timeout: at most one for each target.
func (p *Prober) checkSSTP(ctx context.Context, due []sstpDue, checks *sync.WaitGroup) {
	p.mu.Lock()
	timeout := p.timing.Timeout
	p.mu.Unlock()
	for _, d := range due {
		checks.Go(func() {
			limited, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			v, err := askSSTP(limited, p.dial, p.local(d.target.Addr), d.target.Addr, d.check)
			if ctx.Err() == nil {
				p.settleSSTP(d, v, err)
			}
		})
	}
}

// local is the address to ask a server from.
func (p *Prober) local(server netip.Addr) netip.Addr {
	if server.Is6() {
		return p.cfg.Local6
	}
	return p.cfg.Local4
}

// settleSSTP takes the result of a check, unless its target is gone or something
// else is asked of it by now.
func (p *Prober) settleSSTP(d sstpDue, v verdictSSTP, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	t, s := d.target, d.state
	if p.targets[t.Backend] != t || t.sstp != s {
		return
	}
	defer poke(p.wake)
	now := time.Now()
	asked := s.asked
	s.asked = time.Time{}
	if s.check != d.check {
		return
	}
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
	p.judgeSSTP(t, s)
}

// judgeSSTP renews the opinion on SSTP of a target: that of the checks, and down
// while calls fail. p.mu is held.
func (p *Prober) judgeSSTP(t *target, s *sstpState) {
	was := s.opinion
	s.opinion = s.damped.update([]run{s.run}, p.timing)
	if s.check.DeepVotes && s.call.misses >= p.timing.DownAfter {
		s.opinion = OpinionDown
	}
	if s.opinion != was {
		p.log.Info("opinion changed", "backend", uint32(t.Backend), "addr", t.Addr, "port", s.check.Port,
			"from", was.String(), "to", s.opinion.String(), "note", s.note.String(), "detail", s.detail,
			"call", s.call.note.String())
		poke(p.changed)
	}
}

// seen is the observation of class TCP.
func (s *sstpState) seen(id state.BackendID, now time.Time) Seen {
	age := time.Hour // no result yet
	if !s.at.IsZero() {
		age = now.Sub(s.at)
	}
	o := Seen{
		Backend: id, Class: state.ClassTCP, Opinion: s.opinion, Note: s.note, Age: age,
		Misses: s.run.misses, Answers: s.run.answers, Neutrals: s.run.neutrals, Failing: s.failing(now),
	}
	if o.Failing > 0 { // the worse of the two
		o.Misses, o.Answers = max(o.Misses, s.call.misses), 0
		if s.note.Result() == ResultAnswer {
			o.Note = s.call.note
		}
	}
	return o
}

// SSTPReport is what status prints of SSTP.
type SSTPReport struct {
	Check   SSTPCheck
	Opinion Opinion
	PortReport
	Detail string // the server's or the kernel's words, when Note is a miss
	Call   CallReport
}

func (s *sstpState) report(now time.Time) *SSTPReport {
	age := time.Duration(-1)
	if !s.at.IsZero() {
		age = now.Sub(s.at)
	}
	return &SSTPReport{Check: s.check, Opinion: s.opinion, Detail: s.detail, Call: s.call.report(now), PortReport: PortReport{
		Port: s.check.Port, Note: s.note, RTT: s.rtt, Age: age,
		Misses: s.run.misses, Answers: s.run.answers, Neutrals: s.run.neutrals,
	}}
}

// Hint is a sentence for a person about a check that is no answer, or about a call
// that failed, else empty.
func (r *SSTPReport) Hint() string {
	hint := ""
	switch r.Note {
	case NoteSilent:
		hint = fmt.Sprintf("no answer: is the server running, and does its firewall admit TCP %d from the nodes?", r.Port)
	case NoteRefused:
		hint = fmt.Sprintf("refused: nothing listens on TCP %d, or a firewall rejects it", r.Port)
		if !r.Check.TLS {
			hint += useHTTP
		}
	case NoteUnsendable:
		hint = NoteUnsendable.Hint()
	case NoteNoTLS:
		hint = fmt.Sprintf("TCP connects, but TLS does not come up: is a certificate bound to port %d?", r.Port)
	case NoteNoStatus:
		hint = "TLS comes up, but no HTTP status follows"
		if !r.Check.TLS {
			hint = "TCP connects, but no HTTP status follows" + useHTTP
		}
	case NoteOtherStatus:
		hint = fmt.Sprintf("another service answers on TCP %d than SSTP, which says 401: is RemoteAccess running, with SSTP ports?", r.Port)
		if !r.Check.TLS {
			hint += useHTTP
		}
	case NoteOtherLeaf:
		return fmt.Sprintf("the server shows another certificate (sha256 %s) than vpnlb's %s (sha256 %x): re-encryption needs the same one on both",
			r.Detail, cmp.Or(r.Check.LeafName, "certificate"), r.Check.Leaf)
	case NoteSSTP:
		return r.Call.Hint()
	default:
		return ""
	}
	if r.Detail != "" {
		hint += " (" + r.Detail + ")"
	}
	return hint
}

// useHTTP names the setting of RRAS without which it speaks no plain HTTP.
const useHTTP = "; where TLS ends on the nodes, the server needs Use HTTP under its SSL Certificate Binding"
