package affinity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// LearnerDeps are what a Learner needs.
type LearnerDeps struct {
	View     func() View // the present view; called from several goroutines
	Proposer Proposer
	// Answer tells the plane what became of an evidence. It is called from
	// several goroutines and must not call the Learner.
	Answer  func(table.Evidence, table.Answer)
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none
}

// Learner proposes what the data plane has evidence for, and answers it.
type Learner struct {
	deps    LearnerDeps
	log     *slog.Logger
	metrics *learnerMetrics
	wake    chan struct{}

	mu      sync.Mutex
	known   map[table.Key]struct{} // queued or under way
	queue   []queued               // in order of arrival
	failing bool                   // the last proposal failed
}

type queued struct {
	table.Evidence
	since time.Time
}

// NewLearner makes a learner; Run starts it.
func NewLearner(deps LearnerDeps) (*Learner, error) {
	if deps.View == nil || deps.Proposer == nil || deps.Answer == nil {
		return nil, errors.New("make learner: view, proposer and answer are needed")
	}
	l := &Learner{deps: deps, log: deps.Log, wake: make(chan struct{}, 1), known: map[table.Key]struct{}{}}
	if l.log == nil {
		l.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if l.metrics, err = newLearnerMetrics(deps.Metrics); err != nil {
		return nil, fmt.Errorf("make learner: %w", err)
	}
	return l, nil
}

// Offer takes evidence and never blocks. Evidence for a key that is queued or
// under way is left out, and so is what exceeds MaxPending: it stays pending in
// the data plane, which offers it again until it is answered.
func (l *Learner) Offer(batch []table.Evidence) {
	now := time.Now()
	l.mu.Lock()
	for _, e := range batch {
		if _, dup := l.known[e.Key]; dup {
			continue
		}
		if len(l.known) >= MaxPending {
			l.metrics.overflow.Inc()
			continue
		}
		l.known[e.Key] = struct{}{}
		l.queue = append(l.queue, queued{e, now})
	}
	l.metrics.pending.Set(float64(len(l.known)))
	l.mu.Unlock()
	poke(l.wake)
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Pending is the number of keys waiting for an answer.
func (l *Learner) Pending() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.known)
}

// Run proposes until ctx ends. It returns nil.
func (l *Learner) Run(ctx context.Context) error {
	var inFlight sync.WaitGroup
	defer inFlight.Wait()
	slots := make(chan struct{}, MaxInFlight)
	backoff := minBackoff
	for {
		batch, err := l.collect(ctx)
		if err != nil {
			return nil
		}
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		inFlight.Go(func() {
			defer func() { <-slots }()
			l.propose(ctx, batch)
		})
		if !l.isFailing() {
			backoff = minBackoff
			continue
		}
		if !pause(ctx, backoff) {
			return nil
		}
		backoff = min(2*backoff, maxBackoff)
	}
}

// pause waits; false when ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (l *Learner) isFailing() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failing
}

// collect waits for a batch: full, or its first older than Linger.
func (l *Learner) collect(ctx context.Context) ([]table.Evidence, error) {
	for {
		l.mu.Lock()
		n, wait := len(l.queue), time.Duration(0)
		if n > 0 {
			wait = Linger - time.Since(l.queue[0].since)
		}
		if n >= MaxBatchLearn || n > 0 && wait <= 0 {
			n = min(n, MaxBatchLearn)
			batch := make([]table.Evidence, n)
			for i := range batch {
				batch[i] = l.queue[i].Evidence
			}
			l.queue = l.queue[n:]
			if len(l.queue) == 0 {
				l.queue = nil // let the array go
			}
			l.mu.Unlock()
			return batch, nil
		}
		l.mu.Unlock()
		var linger <-chan time.Time
		if n > 0 {
			linger = time.After(wait)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-l.wake:
		case <-linger:
		}
	}
}

// propose judges a batch against the present view, answers what needs no
// proposal, and proposes the rest.
func (l *Learner) propose(ctx context.Context, batch []table.Evidence) {
	view := l.deps.View()
	var asked []table.Evidence
	var records []state.Learned
	for _, e := range batch {
		learned, answer := Judge(view, e)
		if answer != 0 {
			l.answer(e, answer)
			continue
		}
		asked, records = append(asked, e), append(records, learned)
	}
	if len(records) == 0 {
		l.succeeded()
		return
	}
	timed, cancel := context.WithTimeout(ctx, ProposeTimeout)
	defer cancel()
	start := time.Now()
	outcomes, err := l.deps.Proposer.Propose(timed, state.Learn{Records: records})
	l.metrics.seconds.Observe(time.Since(start).Seconds())
	answers, err := answersOf(outcomes, err, len(records))
	if err != nil {
		l.failed(asked, err)
		return
	}
	l.succeeded()
	for i, e := range asked {
		l.answer(e, answers[i])
	}
}

// answersOf translates the outcome of one Learn command. An error is a reason
// to propose the same again.
func answersOf(outcomes []state.Outcome, err error, n int) ([]table.Answer, error) {
	switch {
	case err != nil:
		return nil, err
	case len(outcomes) != 1:
		return nil, fmt.Errorf("learn: %d outcomes for one command", len(outcomes))
	case outcomes[0].Code == state.TooOld:
		return nil, errors.New("learn: the proposal was too old to be judged")
	}
	answers := make([]table.Answer, n)
	if o := outcomes[0]; o.Code != state.OK { // a limit, say: try again in 10 s
		for i := range answers {
			answers[i] = table.Refused
		}
		return answers, nil
	}
	if len(outcomes[0].Learns) != n {
		return nil, fmt.Errorf("learn: %d results for %d records", len(outcomes[0].Learns), n)
	}
	for i, r := range outcomes[0].Learns {
		switch r {
		case state.LearnStored:
			answers[i] = table.Stored
		case state.LearnSuperseded:
			answers[i] = table.Superseded
		default:
			answers[i] = table.Refused
		}
	}
	return answers, nil
}

// answer ends the wait of one evidence. The key is free again before the plane
// hears of it: what is newer than e is offered anew.
func (l *Learner) answer(e table.Evidence, a table.Answer) {
	l.mu.Lock()
	delete(l.known, e.Key)
	l.metrics.pending.Set(float64(len(l.known)))
	l.mu.Unlock()
	l.metrics.answers.WithLabelValues(answerName(a)).Inc()
	l.deps.Answer(e, a)
}

func answerName(a table.Answer) string {
	switch a {
	case table.Stored:
		return "stored"
	case table.Superseded:
		return "superseded"
	}
	return "refused"
}

func (l *Learner) succeeded() {
	l.mu.Lock()
	was := l.failing
	l.failing = false
	l.mu.Unlock()
	if was {
		l.log.Info("learning again")
	}
}

// failed puts a batch back, oldest first. Its evidence stays unanswered.
func (l *Learner) failed(batch []table.Evidence, err error) {
	l.metrics.failures.Inc()
	now := time.Now()
	back := make([]queued, len(batch), len(batch)+len(l.queue))
	for i, e := range batch {
		back[i] = queued{e, now}
	}
	l.mu.Lock()
	was := l.failing
	l.failing = true
	l.queue = append(back, l.queue...)
	l.mu.Unlock()
	if !was {
		l.log.Warn("learning failed, will try again", "records", len(batch), "err", err)
	}
	poke(l.wake)
}
