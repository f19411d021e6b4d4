package health

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

type recorder struct {
	calls [][]state.Command
	err   error
}

func (p *recorder) Propose(_ context.Context, cmds ...state.Command) ([]state.Outcome, error) {
	p.calls = append(p.calls, cmds)
	out := make([]state.Outcome, len(cmds))
	for i := range out {
		out[i].Code = state.OK
	}
	return out, p.err
}

func TestJudge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := world{members: 3, servers: []server{{verdict: up, seen: "ddd"}, {verdict: down, seen: "uuu"}, {verdict: up, seen: "uuu"}}}
		var leading atomic.Bool
		p := &recorder{err: errors.New("no leader")}
		j, err := NewJudge(JudgeDeps{Facts: func() (Facts, bool) { return w.facts(), leading.Load() }, Proposer: p})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		go j.Run(ctx)
		time.Sleep(time.Second)
		synctest.Wait()
		if len(p.calls) != 0 || len(j.Decisions()) != 0 {
			t.Errorf("a follower judges: %v", p.calls)
		}
		leading.Store(true)
		time.Sleep(500 * time.Millisecond)
		synctest.Wait()
		if len(p.calls) < 2 || len(p.calls[0]) != 2 || len(j.Decisions()) != 3 {
			t.Errorf("got %v, %v; a failed proposal is repeated", p.calls, j.Decisions())
		}
		cancel()
		synctest.Wait()
	})
}
