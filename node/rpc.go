package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/raft"
)

// Paths between nodes, on the mTLS port. Bodies are bounded by the transport.
const (
	pathContact = "/v1/contact" // hint bundle in, hint bundle out
	pathPropose = "/v1/propose" // envelopes in, outcomes out; leader only
	pathChange  = "/v1/change"  // a change that waits its turn, or that not every version knows; leader only
	pathIndex   = "/v1/index"   // the leader's confirmed command index
	pathSilence = "/v1/silence" // how long a member has been silent, as the callee sees it
	pathJoin    = "/v1/join"    // a join that another member received; leader only
	pathReplace = "/v1/replace" // a member that lost its store asks for a new ID; leader only
	pathMark    = "/v1/mark"    // how far the caller's log is; out: what the callee remembered
	pathApplied = "/v1/applied" // the callee's own applied index
	pathVouch   = "/v1/vouch"   // whether the callee's member list has a node; older versions do not know it
	pathSecret  = "/v1/secret"  // the cluster secret, for a member that has lost it; older versions do not know it
	pathMoved   = "/v1/moved"   // the caller's cluster and gossip address changed
)

type indexAnswer struct {
	Index uint64 `json:"index"`
}

type silenceRequest struct {
	Node state.NodeID `json:"node"`
}

type silenceAnswer struct {
	Millis int64 `json:"ms"`
}

// serveRPC registers what other nodes may ask.
func (m *member) serveRPC() {
	m.transport.HandleRPC(pathContact, transport.Bytes(func(_ context.Context, p transport.Peer, in []byte) ([]byte, error) {
		return m.answerContact(p.Node, in), nil
	}))
	m.transport.HandleRPC(pathPropose, transport.Bytes(func(ctx context.Context, p transport.Peer, in []byte) ([]byte, error) {
		if err := checkOrigin(p.Node, in); err != nil {
			return nil, err
		}
		out, err := m.replica.Accept(ctx, in)
		return out, leaderHint(err)
	}))
	m.transport.HandleRPC(pathChange, transport.Bytes(func(ctx context.Context, _ transport.Peer, in []byte) ([]byte, error) {
		return m.serveChange(ctx, in)
	}))
	m.transport.HandleRPC(pathIndex, transport.JSON(func(ctx context.Context, _ transport.Peer, _ struct{}) (indexAnswer, error) {
		index, err := m.replica.LeaderAnswer(ctx)
		return indexAnswer{Index: index}, leaderHint(err)
	}))
	m.transport.HandleRPC(pathSilence, transport.JSON(func(_ context.Context, _ transport.Peer, in silenceRequest) (silenceAnswer, error) {
		return silenceAnswer{Millis: m.contacts.silence(in.Node).Milliseconds()}, nil
	}))
	m.transport.HandleRPC(pathMark, transport.JSON(func(_ context.Context, p transport.Peer, in raft.Mark) (markAnswer, error) {
		return m.serveMark(p, in)
	}))
	m.transport.HandleRPC(pathApplied, transport.JSON(func(context.Context, transport.Peer, struct{}) (indexAnswer, error) {
		return indexAnswer{Index: m.view().Index()}, nil
	}))
	m.transport.HandleRPC(pathVouch, transport.JSON(func(_ context.Context, _ transport.Peer, in vouchRequest) (vouchAnswer, error) {
		return m.vouch(in)
	}))
	m.transport.HandleRPC(pathSecret, transport.JSON(func(_ context.Context, p transport.Peer, _ struct{}) (secretAnswer, error) {
		return m.serveSecret(p)
	}))
	m.transport.HandleRPC(pathMoved, transport.JSON(m.serveMoved))
	m.transport.HandleRPC(pathJoin, transport.JSON(func(ctx context.Context, _ transport.Peer, in joinRequest) (joinAnswer, error) {
		return m.admit(ctx, in)
	}))
	m.transport.HandleRPC(pathReplace, transport.JSON(func(ctx context.Context, p transport.Peer, in joinRequest) (joinAnswer, error) {
		old, err := m.replacedBy(p, in)
		if err != nil {
			return joinAnswer{}, err
		}
		return m.admitAgain(ctx, old, in)
	}))
	m.transport.HandleJoin(transport.JSON(func(ctx context.Context, _ transport.Peer, in joinRequest) (joinAnswer, error) {
		return m.join(ctx, in)
	}))
}

// checkOrigin refuses commands in another node's name: their sequence numbers
// would use up that node's window.
func checkOrigin(from state.NodeID, envelopes []byte) error {
	list, err := state.DecodeEnvelopes(envelopes)
	if err != nil {
		return &transport.StatusError{Code: http.StatusBadRequest, Reason: err.Error()}
	}
	for i := range list {
		if list[i].Origin != from {
			return &transport.StatusError{Code: http.StatusForbidden, Reason: fmt.Sprintf("node %s proposed a command in the name of %s", from, list[i].Origin)}
		}
	}
	return nil
}

// leaderHint carries the leader's address in the refusal.
func leaderHint(err error) error {
	var other *raft.NotLeaderError
	if errors.As(err, &other) {
		return &transport.StatusError{Code: http.StatusMisdirectedRequest, Reason: other.Error(), Detail: other.Addr}
	}
	return err
}

// forwarder carries proposals to the leader.
type forwarder struct{ transport *transport.Transport }

// Forward implements raft.Forwarder.
func (f forwarder) Forward(ctx context.Context, leaderAddr string, envelopes []byte) ([]byte, error) {
	var out []byte
	err := f.transport.Call(ctx, transport.Target{Addr: leaderAddr}, pathPropose, envelopes, &out)
	var refused *transport.StatusError
	if errors.As(err, &refused) && refused.Code == http.StatusMisdirectedRequest {
		return nil, fmt.Errorf("forward to %s: %w", leaderAddr, &raft.NotLeaderError{Addr: refused.Detail})
	}
	return out, err
}

// callLeader calls whoever leads now.
func (m *member) callLeader(ctx context.Context, path string, in, out any) error {
	st := m.replica.Status()
	if st.LeaderAddr == "" {
		return errors.New("there is no leader now")
	}
	return m.transport.Call(ctx, transport.Target{Addr: st.LeaderAddr, Node: st.LeaderID}, path, in, out)
}
