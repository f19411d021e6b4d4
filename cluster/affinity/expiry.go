package affinity

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Office is this node's leadership.
type Office struct {
	Leading bool          // and in contact with a quorum
	Term    uint64        // of it
	Held    time.Duration // since it was taken
	Now     state.Time    // cluster time as the leader counts it
}

// ExpirySource is what the expiry reads: *state.View implements it.
type ExpirySource interface {
	Spec() *state.Spec
	// Expired lists records whose time is up at now, at most limit.
	Expired(now state.Time, limit int) []state.Expired
}

// ExpiryDeps are what an Expiry needs.
type ExpiryDeps struct {
	View     func() ExpirySource
	Office   func() Office
	Proposer Proposer
	Log      *slog.Logger          // nil: discard
	Metrics  prometheus.Registerer // nil: none
}

// Expiry proposes, while this node leads, the end of records whose time is up.
type Expiry struct {
	deps    ExpiryDeps
	log     *slog.Logger
	metrics *expiryMetrics
}

// NewExpiry makes an expiry; Run starts it.
func NewExpiry(deps ExpiryDeps) (*Expiry, error) {
	if deps.View == nil || deps.Office == nil || deps.Proposer == nil {
		return nil, errors.New("make expiry: view, office and proposer are needed")
	}
	e := &Expiry{deps: deps, log: deps.Log}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if e.metrics, err = newExpiryMetrics(deps.Metrics); err != nil {
		return nil, fmt.Errorf("make expiry: %w", err)
	}
	return e, nil
}

// MayExpire reports whether a leader may expire at all: not for two touch
// intervals after it took office, in which activity that the old leader never
// learnt of is proposed again. It is pure.
func MayExpire(o Office, s *state.Settings) bool {
	return o.Leading && o.Held >= 2*s.TouchInterval
}

// Due lists what the leader should expire now. It is pure.
func Due(o Office, v ExpirySource) []state.Expired {
	s := v.Spec()
	if s.ClusterID.IsZero() || !MayExpire(o, &s.Settings) {
		return nil
	}
	return v.Expired(o.Now, MaxBatchTouch)
}

// Run sweeps until ctx ends. It returns nil.
func (e *Expiry) Run(ctx context.Context) error {
	wait := expireTick
	for pause(ctx, wait) {
		due := Due(e.deps.Office(), e.deps.View())
		wait = expireTick
		if len(due) == 0 {
			continue
		}
		if err := e.propose(ctx, due); err != nil {
			e.metrics.failures.Inc()
			e.log.Warn("expiry not proposed", "records", len(due), "err", err)
			continue
		}
		e.metrics.expired.Add(float64(len(due)))
		if len(due) >= MaxBatchTouch {
			wait = expireBusyTick
		}
	}
	return nil
}

func (e *Expiry) propose(ctx context.Context, due []state.Expired) error {
	timed, cancel := context.WithTimeout(ctx, ProposeTimeout)
	defer cancel()
	return only(e.deps.Proposer.Propose(timed, state.Expire{Records: due}))
}

// only expects the outcome of one command to be OK.
func only(outcomes []state.Outcome, err error) error {
	switch {
	case err != nil:
		return err
	case len(outcomes) != 1:
		return fmt.Errorf("%d outcomes for one command", len(outcomes))
	case outcomes[0].Code != state.OK:
		return fmt.Errorf("code %d: %s", outcomes[0].Code, outcomes[0].Detail)
	}
	return nil
}
