package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/raft"
)

// A new generation of tables is proposed only when every live member's data
// plane has reached the one before: then two generations at most are in use at
// once, and a client whose login crosses a change meets one change, not two.
// What is urgent (a server down or offline) does not wait.

// waitsForGeneration reports whether a command changes tables and may wait.
func waitsForGeneration(cmd state.Command) bool {
	switch c := cmd.(type) {
	case state.PutVIP, state.PutBackend:
		return true
	case state.SetBackendAdmin:
		return c.Admin != state.AdminOffline
	case state.SetHealth:
		return c.Verdict == state.VerdictUp
	case state.VoidBackend:
		return true
	}
	return false
}

// byLeader reports whether the leader has to propose a command: because it waits
// for its turn, or because an older member would not understand it. Only the
// leader knows all members: one may have been admitted that the node which was
// asked has not heard of yet.
func byLeader(cmd state.Command) bool { return waitsForGeneration(cmd) || state.FormatOf(cmd) > 1 }

// generationPatience bounds how long a change waits for members that lag. A
// data plane applies a change within a fraction of a second.
const generationPatience = 10 * time.Second

// proposeLed proposes a command of byLeader, on the leader.
func (m *member) proposeLed(ctx context.Context, cmd state.Command) (state.Outcome, error) {
	if waitsForGeneration(cmd) {
		return m.proposeQuiet(ctx, cmd)
	}
	return m.proposeNow(ctx, cmd)
}

// proposeNow proposes a command on the leader, if all members understand it.
func (m *member) proposeNow(ctx context.Context, cmd state.Command) (state.Outcome, error) {
	if st := m.replica.Status(); st.Role != raft.RoleLeader {
		return state.Outcome{}, &raft.NotLeaderError{ID: st.LeaderID, Addr: st.LeaderAddr} // the new leader judges, and has its own queue
	}
	if err := understood(m.spec(), cmd); err != nil {
		return state.Outcome{}, err
	}
	outcomes, err := m.replica.Propose(ctx, cmd)
	if err != nil {
		return state.Outcome{}, err
	}
	return outcomes[0], nil
}

// proposeQuiet proposes a change of tables, on the leader, after the one
// before has reached every live member. One at a time.
func (m *member) proposeQuiet(ctx context.Context, cmd state.Command) (state.Outcome, error) {
	wait, cancel := context.WithTimeout(ctx, generationPatience)
	defer cancel()
	select {
	case m.generation <- struct{}{}:
		defer func() { <-m.generation }()
	case <-wait.Done():
		return state.Outcome{}, &admin.Error{Status: http.StatusServiceUnavailable, Message: "other changes are waiting for their turn: nothing was changed, try again"}
	}
	for m.lagging(m.spec()) > 0 {
		if !pause(wait, 20*time.Millisecond) {
			return state.Outcome{}, &admin.Error{Status: http.StatusServiceUnavailable,
				Message: fmt.Sprintf("a live member has not applied the change before this one within %s, so nothing was changed: 'vpnlb cluster members' shows whose data plane lags", generationPatience)}
		}
	}
	return m.proposeNow(ctx, cmd)
}

// turn takes the leader's token for a verdict, without waiting. The caller
// gives it back.
func (m *member) turn(judged *state.Spec) bool {
	select {
	case m.generation <- struct{}{}:
	default:
		return false
	}
	if spec := m.spec(); spec.Generation != judged.Generation || m.lagging(spec) > 0 {
		<-m.generation
		return false
	}
	return true
}

// proposeChange proposes one command of an administrator, by the leader where
// it has to.
func (m *member) proposeChange(ctx context.Context, cmd state.Command) (state.Outcome, error) {
	if err := understood(m.spec(), cmd); err != nil {
		return state.Outcome{}, err
	}
	if err := state.Check(cmd); err != nil {
		return state.Outcome{}, refuse("%v", err) // the leader could not read it
	}
	if !byLeader(cmd) {
		outcomes, err := m.replica.Propose(ctx, cmd)
		if err != nil {
			return state.Outcome{}, err
		}
		return outcomes[0], nil
	}
	body := state.EncodeBatch(state.Batch{Envelopes: []state.Envelope{{Origin: m.self, Command: cmd}}})
	for try := 0; ; try++ {
		if m.replica.Status().Role == raft.RoleLeader {
			outcome, err := m.proposeLed(ctx, cmd)
			if !errors.Is(err, raft.ErrNotLeader) {
				return repeated(outcome, try), err
			}
		}
		var out []byte
		err := m.callLeaderOnce(ctx, pathChange, body, &out)
		var refused *transport.StatusError
		switch {
		case err == nil:
			outcomes, err := state.DecodeOutcomes(out)
			if err != nil || len(outcomes) != 1 {
				return state.Outcome{}, fmt.Errorf("read the leader's answer: %w", err)
			}
			return repeated(outcomes[0], try), nil
		case errors.As(err, &refused) && refused.Code != http.StatusMisdirectedRequest:
			return state.Outcome{}, &admin.Error{Status: refused.Code, Message: refused.Reason}
		}
		// No leader, or not this one any more: the command carries the version
		// that its author saw, so asking again cannot change something twice.
		if !pause(ctx, 100*time.Millisecond) {
			return state.Outcome{}, ctx.Err()
		}
	}
}

// understood refuses a command of a format that a member does not know: its
// entry would park that member.
func understood(spec *state.Spec, cmd state.Command) error {
	need := state.FormatOf(cmd)
	if lowest, has := spec.LowestFormat(); lowest != nil && has < need {
		return &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("node %s runs a version that does not know this (format %d, it needs %d): upgrade it first", lowest.Name, has, need)}
	}
	return nil
}

// repeated says in a refusal that an earlier try, whose answer was lost, may
// be what stands in the way.
func repeated(o state.Outcome, tries int) state.Outcome {
	if o.Code == state.Conflict && tries > 0 {
		o.Detail += " (this very command may have been applied already: its first answer was lost)"
	}
	return o
}

// serveChange is the leader's side of proposeChange.
func (m *member) serveChange(ctx context.Context, in []byte) ([]byte, error) {
	batch, err := state.DecodeBatch(in)
	if err != nil {
		return nil, &transport.StatusError{Code: http.StatusBadRequest, Reason: "read the change: " + err.Error()}
	}
	if len(batch.Envelopes) != 1 || !byLeader(batch.Envelopes[0].Command) {
		return nil, &transport.StatusError{Code: http.StatusBadRequest, Reason: "this is not one change that the leader judges"}
	}
	var old *admin.Error
	if err := understood(m.spec(), batch.Envelopes[0].Command); errors.As(err, &old) {
		return nil, &transport.StatusError{Code: old.Status, Reason: old.Message}
	}
	if m.replica.Status().Role != raft.RoleLeader {
		return nil, leaderHint(&raft.NotLeaderError{Addr: m.replica.Status().LeaderAddr})
	}
	outcome, err := m.proposeLed(ctx, batch.Envelopes[0].Command)
	var known *admin.Error
	if errors.As(err, &known) {
		return nil, &transport.StatusError{Code: known.Status, Reason: known.Message}
	}
	if err != nil {
		return nil, leaderHint(err)
	}
	return state.EncodeOutcomes([]state.Outcome{outcome}), nil
}
