package node

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/raft"
)

// noteProposal logs why a duty was not agreed; ctx is the duty's own, without
// the time that this try had. A command that breaks a limit will never be agreed,
// and with a quorum there should be an answer in time: both are worth a warning.
func (m *member) noteProposal(ctx context.Context, err error) {
	if ctx.Err() != nil {
		return // the office or the membership is over
	}
	text := ""
	switch {
	case errors.Is(err, raft.ErrInvalid):
		text = err.Error()
	case errors.Is(err, context.DeadlineExceeded) && m.quorumLost() == 0:
		text = "no answer in time, although there is a leader"
	}
	if text != "" && m.unagreed.due(text, time.Now()) {
		m.log.Warn("duty not agreed", "error", text, "last", err.Error())
		return
	}
	m.log.Debug("duty not agreed", "error", err.Error())
}

// againAfter is how long a warning that was logged is not logged again.
const againAfter = 10 * time.Minute

// complaint is what was warned of last: duties fail again and again.
type complaint struct {
	mu   sync.Mutex
	text string
	at   time.Time
}

// due reports whether a warning should be logged, and takes it for logged.
func (c *complaint) due(text string, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.text == text && now.Sub(c.at) < againAfter {
		return false
	}
	c.text, c.at = text, now
	return true
}

// callLeaderOnce is callLeader for what must not be sent twice behind the
// caller's back.
func (m *member) callLeaderOnce(ctx context.Context, path string, in, out any) error {
	st := m.replica.Status()
	if st.LeaderAddr == "" {
		return errors.New("there is no leader now")
	}
	return m.transport.CallOnce(ctx, transport.Target{Addr: st.LeaderAddr, Node: st.LeaderID}, path, in, out)
}
