package health

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Config of a Prober.
type Config struct {
	// Local4 and Local6 are the node's own addresses to probe from, so that
	// answers come back to this node and are never taken for return traffic.
	// Zero: the kernel chooses.
	Local4, Local6 netip.Addr
	// Boot is the node's persisted boot counter; it orders observations.
	Boot uint64
}

// Deps of a Prober.
type Deps struct {
	// Listen opens an unconnected UDP socket on a local address with port 0.
	// nil: Listen. A socket may implement Refuser.
	Listen func(local netip.AddrPort) (net.PacketConn, error)
	// Dial opens the connections of SSTP checks. nil: the kernel's.
	Dial    Dial
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none
}

// Refuser is a socket that knows which destinations answered with an ICMP
// error. Refused returns and forgets them.
type Refuser interface {
	Refused() []netip.AddrPort
}

// probedPorts are the two doors of an IKEv2 server.
var probedPorts = [...]uint16{500, 4500}

// Prober asks every target on both ports once per interval, with one socket
// for each address family, and checks SSTP where that is asked for. Safe for concurrent use.
type Prober struct {
	cfg     Config
	listen  func(netip.AddrPort) (net.PacketConn, error)
	dial    Dial
	log     *slog.Logger
	metrics *metrics
	wake    chan struct{} // targets or timing changed
	changed chan struct{} // an opinion changed

	mu       sync.Mutex
	timing   Timing
	sequence uint64
	raised   time.Time // when a doubt about one server last became one about all
	targets  map[state.BackendID]*target
	asked    map[spi]*question // at most maxOpen for each port of each target
}

// target is a backend under observation.
type target struct {
	Target
	ports   [len(probedPorts)]portState
	form    form // of its next probe
	single  int  // the last of offers but the first that was tried
	pace    pace
	damped  damped
	opinion Opinion
	sstp    *sstpState // nil: not asked for
}

type portState struct {
	run    run
	note   Note
	group  uint16        // the KE group the server asked for
	policy bool          // it has answered a probe with this wrong group with INVALID_KE_PAYLOAD before
	rtt    time.Duration // of the last answer
	at     time.Time     // of the last result; zero: none yet

	first  time.Time     // when to ask for the first time
	asked  time.Time     // of the last question; zero: none yet
	early  time.Duration // the next is so much earlier than an interval later
	soon   bool          // ask again at once
	took   uint64        // the slot of the last question
	open   []*question   // that wait for an answer, in the order they were asked
	sure   uint8         // answers in a row since the alarm
	missed missRun       // of the present run of misses
}

// missRun is what is known of a run of misses beside its length.
type missRun struct {
	since  time.Time // of the first
	asked  time.Time // when the question of the last one was
	before time.Time // of the one before; zero: there is one alone
}

// question is one probe that waits for its answer.
type question struct {
	id      spi
	backend state.BackendID
	port    int // index into probedPorts
	form    form
	asked   time.Time
	request []byte
	cookie  bool // the server asked for a cookie and has got it
}

// NewProber makes a prober without targets.
func NewProber(cfg Config, deps Deps) (*Prober, error) {
	if cfg.Local4.IsValid() && !cfg.Local4.Unmap().Is4() {
		return nil, fmt.Errorf("make prober: %s is not an IPv4 address", cfg.Local4)
	}
	if cfg.Local6.IsValid() && !cfg.Local6.Is6() {
		return nil, fmt.Errorf("make prober: %s is not an IPv6 address", cfg.Local6)
	}
	p := &Prober{
		cfg: cfg, listen: deps.Listen, dial: deps.Dial, log: deps.Log,
		wake: make(chan struct{}, 1), changed: make(chan struct{}, 1),
		timing: DefaultTiming(), targets: map[state.BackendID]*target{}, asked: map[spi]*question{},
	}
	if p.listen == nil {
		p.listen = Listen
	}
	if p.dial == nil {
		p.dial = dialTCP
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if p.metrics, err = newMetrics(deps.Metrics); err != nil {
		return nil, fmt.Errorf("make prober: %w", err)
	}
	return p, nil
}

// SetTargets makes the prober ask exactly these, with this timing. Known
// targets keep what was learnt of them. Level-triggered: call it with every
// spec. Targets above MaxTargets are ignored.
func (p *Prober) SetTargets(ts []Target, timing Timing) {
	timing.Interval = max(timing.Interval, minInterval)
	timing.Timeout = max(timing.Timeout, minTimeout)
	timing.DownAfter, timing.UpAfter = max(timing.DownAfter, 1), max(timing.UpAfter, 1)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.timing = timing
	next := make(map[state.BackendID]*target, len(ts))
	now := time.Now()
	news := false
	for _, t := range ts[:min(len(ts), MaxTargets)] {
		t.Addr = t.Addr.Unmap()
		n := p.targets[t.Backend]
		if n != nil && n.Addr == t.Addr {
			next[t.Backend] = n
			news = n.watchSSTP(t.SSTP, now, timing) || news
			continue
		}
		news = true
		n = &target{Target: t}
		n.watchSSTP(t.SSTP, now, timing)
		for i := range n.ports { // spread new ones over the interval
			n.ports[i].first = now.Add(rand.N(timing.Interval))
		}
		next[t.Backend] = n
	}
	for id, q := range p.asked {
		if next[q.backend] != p.targets[q.backend] {
			delete(p.asked, id)
		}
	}
	if news || len(next) != len(p.targets) {
		poke(p.changed)
	}
	p.targets = next
	poke(p.wake)
}

// Changed receives when an opinion or the set of targets has changed:
// the observation is worth publishing at once.
func (p *Prober) Changed() <-chan struct{} { return p.changed }

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Observe gives everything known now, with a new sequence number. r may be nil.
func (p *Prober) Observe(r *Returns) Observation {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.sequence++
	now := time.Now()
	o := Observation{Boot: p.cfg.Boot, Sequence: p.sequence, Seen: make([]Seen, 0, len(p.targets))}
	for _, t := range p.targets {
		s := Seen{Backend: t.Backend, Class: state.ClassIKE, Opinion: t.opinion, Answers: 255}
		for i := range t.ports {
			q := &t.ports[i]
			s.Misses, s.Neutrals = max(s.Misses, q.run.misses), max(s.Neutrals, q.run.neutrals)
			s.Answers = min(s.Answers, q.run.answers)
			if q.run.misses > 0 {
				s.Missed = max(s.Missed, now.Sub(q.missed.since))
			}
			if !q.missed.before.IsZero() {
				s.Before = max(s.Before, now.Sub(q.missed.before))
			}
			if s.Note == NoteNone || q.note.Result() == ResultMiss || s.Note.Result() == ResultAnswer {
				s.Note = q.note
			}
			age := time.Hour // no result yet
			if !q.at.IsZero() {
				age = now.Sub(q.at)
			}
			s.Age = max(s.Age, age)
		}
		s.Returned, s.Quiet = r.of(t.Backend)
		o.Seen = append(o.Seen, s)
		if t.sstp != nil {
			o.Seen = append(o.Seen, t.sstp.seen(t.Backend, now))
		}
	}
	slices.SortFunc(o.Seen, func(a, b Seen) int {
		if less(a, b) {
			return -1
		}
		return 1
	})
	return o
}

// Report is what status prints of one target.
type Report struct {
	Target
	Opinion Opinion
	Ports   [len(probedPorts)]PortReport
	SSTP    *SSTPReport // nil: not checked
}

// PortReport is what status prints of one port.
type PortReport struct {
	Port     uint16
	Note     Note
	Group    uint16 // KE group the server asked for, 0 unknown
	Misses   uint8
	Answers  uint8
	Neutrals uint8
	RTT      time.Duration
	Age      time.Duration // of the last result; negative: none yet
}

// Reports lists all targets, by backend.
func (p *Prober) Reports() []Report {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	all := make([]Report, 0, len(p.targets))
	for _, t := range p.targets {
		r := Report{Target: t.Target, Opinion: t.opinion}
		for i, q := range t.ports {
			age := time.Duration(-1)
			if !q.at.IsZero() {
				age = now.Sub(q.at)
			}
			r.Ports[i] = PortReport{Port: probedPorts[i], Note: q.note, Group: q.group, RTT: q.rtt, Age: age,
				Misses: q.run.misses, Answers: q.run.answers, Neutrals: q.run.neutrals}
		}
		if t.sstp != nil {
			r.SSTP = t.sstp.report(now)
		}
		all = append(all, r)
	}
	slices.SortFunc(all, func(a, b Report) int { return int(a.Backend) - int(b.Backend) })
	return all
}

// Run probes until ctx ends. It returns nil.
func (p *Prober) Run(ctx context.Context) error {
	s := &sockets{prober: p}
	defer s.close()
	var checks sync.WaitGroup
	defer checks.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		}
		due, sstp, calls, next := p.due(time.Now())
		p.checkSSTP(ctx, sstp, &checks)
		p.makeCalls(ctx, calls, &checks)
		for _, d := range due {
			if err := s.send(d); err != nil {
				p.settle(d.id, answer{note: NoteUnsendable}, err)
			}
		}
		timer.Reset(time.Until(next))
	}
}

// probeDue is one datagram to send.
type probeDue struct {
	id   spi
	to   netip.AddrPort
	data []byte
}

// due ends questions that timed out, asks those whose time has come, and tells
// when to come back.
func (p *Prober) due(now time.Time) (out []probeDue, sstp, calls []sstpDue, next time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next = now.Add(p.timing.Interval)
	for _, t := range p.targets {
		for i := range t.ports {
			q := &t.ports[i]
			for len(q.open) > 0 && now.Sub(q.open[0].asked) >= p.timing.Timeout {
				silent := answer{note: NoteSilent}
				if q.open[0].cookie { // it did answer, with what proves nothing new
					silent.note = NoteCookie
				}
				p.result(t, q.open[0], silent, now)
			}
			if !now.Before(p.nextAsk(t, i, now)) {
				out = append(out, p.ask(t, i, now))
			}
			next = earlier(next, p.nextAsk(t, i, now))
			if len(q.open) > 0 {
				next = earlier(next, q.open[0].asked.Add(p.timing.Timeout))
			}
		}
	}
	sstp, next = p.dueSSTP(now, next)
	calls, next = p.dueCalls(now, next)
	return out, sstp, calls, next
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

// settle ends the question id with a result, if it is still open.
func (p *Prober) settle(id spi, a answer, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.asked[id]
	if !ok {
		return
	}
	t := p.targets[q.backend]
	if err != nil && t.ports[q.port].note != a.note {
		p.log.Warn("probe not sent", "backend", uint32(q.backend), "port", probedPorts[q.port], "err", err)
	}
	p.result(t, q, a, time.Now())
}

// answered takes a datagram. Only one from the very address and port that was
// asked, with the SPI drawn for it, counts (RFC 7296, section 2.1). It returns what
// to send back: the request with the cookie that the server asks for, once.
func (p *Prober) answered(from netip.AddrPort, data []byte) (again []byte) {
	marker := from.Port() == 4500
	a, err := parseAnswer(data, marker)
	if err != nil || p.askedOf(a.id) != netip.AddrPortFrom(from.Addr().Unmap(), from.Port()) {
		p.metrics.stray.Inc()
		return nil
	}
	if a.note == NoteCookie {
		if again = p.repeat(a, marker); again != nil {
			return again
		}
	}
	p.settle(a.id, a, nil)
	return nil
}

// repeat gives the request of an open question with the cookie of a; nil: it had
// one already.
func (p *Prober) repeat(a answer, marker bool) []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.asked[a.id]
	if !ok || q.cookie {
		return nil
	}
	q.cookie = true
	return withCookie(q.request, a.cookie, marker)
}

// askedOf tells who was asked with this SPI.
func (p *Prober) askedOf(id spi) netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	q, ok := p.asked[id]
	if !ok {
		return netip.AddrPort{}
	}
	return netip.AddrPortFrom(p.targets[q.backend].Addr, probedPorts[q.port])
}

// refused ends an open question to each of the destinations that an ICMP error names.
func (p *Prober) refused(tos []netip.AddrPort) {
	for _, to := range tos {
		p.settle(p.oldestTo(to), answer{note: NoteRefused}, nil)
	}
}

// oldestTo finds the oldest open question to an address and port; zero: none.
func (p *Prober) oldestTo(to netip.AddrPort) spi {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, t := range p.targets {
		for i := range t.ports {
			if t.Addr == to.Addr().Unmap() && probedPorts[i] == to.Port() && len(t.ports[i].open) > 0 {
				return t.ports[i].open[0].id
			}
		}
	}
	return spi{}
}

// withdraw forgets a question that was never sent.
func (p *Prober) withdraw(id spi) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if q, ok := p.asked[id]; ok {
		p.forget(&p.targets[q.backend].ports[q.port], q)
	}
}
