package health

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Proposer makes the cluster agree on commands; one outcome for each.
type Proposer interface {
	Propose(ctx context.Context, cmds ...state.Command) ([]state.Outcome, error)
}

// JudgeDeps are what a Judge needs.
type JudgeDeps struct {
	// Facts are those of now; false while this node does not lead.
	Facts    func() (Facts, bool)
	Proposer Proposer
	Log      *slog.Logger // nil: discard
}

// Judge proposes, while this node leads, what Decide decides.
type Judge struct {
	deps JudgeDeps
	log  *slog.Logger

	mu   sync.Mutex
	last []Decision
}

// Pace of a Judge.
const (
	judgeTick    = 200 * time.Millisecond // a verdict is due within 5 s of a death, four of which are misses
	judgeTimeout = 2 * time.Second        // then the facts are too old to insist
)

// NewJudge makes a judge; Run starts it.
func NewJudge(deps JudgeDeps) (*Judge, error) {
	if deps.Facts == nil || deps.Proposer == nil {
		return nil, errors.New("make judge: facts and proposer are needed")
	}
	j := &Judge{deps: deps, log: deps.Log}
	if j.log == nil {
		j.log = slog.New(slog.DiscardHandler)
	}
	return j, nil
}

// Decisions are those of the last round, for status; empty while not leading.
func (j *Judge) Decisions() []Decision {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.last
}

// Run judges until ctx ends. It returns nil.
func (j *Judge) Run(ctx context.Context) error {
	tick := time.NewTicker(judgeTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			j.round(ctx)
		}
	}
}

func (j *Judge) round(ctx context.Context) {
	var decisions []Decision
	if f, leading := j.deps.Facts(); leading {
		decisions = Decide(f)
	}
	var cmds []state.Command
	for _, d := range decisions {
		if d.Command != nil {
			cmds = append(cmds, d.Command)
		}
	}
	j.note(decisions)
	if len(cmds) == 0 {
		return
	}
	timed, cancel := context.WithTimeout(ctx, judgeTimeout)
	defer cancel()
	outcomes, err := j.deps.Proposer.Propose(timed, cmds...)
	if err != nil {
		j.log.Warn("verdicts not proposed", "commands", len(cmds), "err", err)
		return
	}
	for i, o := range outcomes {
		if o.Code != state.OK && i < len(cmds) { // somebody else was first: the next round looks again
			j.log.Info("verdict not taken", "command", cmds[i], "code", uint8(o.Code), "detail", o.Detail)
		}
	}
}

// note keeps the decisions and logs those whose reason has changed.
func (j *Judge) note(decisions []Decision) {
	type key struct {
		backend state.BackendID
		class   state.Class
	}
	j.mu.Lock()
	was := make(map[key]Reason, len(j.last))
	for _, d := range j.last {
		was[key{d.Backend, d.Class}] = d.Reason
	}
	j.last = decisions
	j.mu.Unlock()
	for _, d := range decisions {
		if was[key{d.Backend, d.Class}] != d.Reason {
			j.log.Info("health decision changed", "backend", uint32(d.Backend), "class", d.Class.String(), "reason", string(d.Reason),
				"up", d.Votes.Up, "down", d.Votes.Down, "neutral", d.Votes.Neutral, "fresh", d.Votes.Fresh, "members", d.Votes.Members)
		}
	}
}
