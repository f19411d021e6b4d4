package node

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/node/admin"
)

// Whoever reaches the port may try to join. What is refused must not reach the
// log, which every node writes to its disk.
func TestVirtualRefusedJoinsWriteNothing(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		used := leader.token()
		if err := tw.node(4).ask(leader, used); err != nil {
			t.Fatal(err)
		}
		bound := transport.NewToken()
		leader.propose(state.AddToken{Hash: bound.Hash(), Name: "n9", Life: 10 * time.Minute})
		old := transport.NewToken()
		leader.propose(state.AddToken{Hash: old.Hash(), Life: time.Second})
		time.Sleep(3 * time.Second) // of cluster time
		good := leader.token()
		stranger := tw.node(5)
		big := strings.Repeat("a", 50<<10)
		before := leader.m.replica.Status().LastIndex
		for name, c := range map[string]struct {
			token string
			bend  func(*joinRequest)
			code  int
		}{
			"unknown":         {token: transport.NewToken().String(), code: http.StatusForbidden},
			"used by another": {token: used, code: http.StatusForbidden},
			"for another":     {token: bound.String(), code: http.StatusForbidden},
			"expired":         {token: old.String(), code: http.StatusForbidden},
			"a name taken":    {token: good, bend: func(r *joinRequest) { r.Name = "n1" }, code: http.StatusForbidden},
			"a long address":  {token: good, bend: func(r *joinRequest) { r.Gossip = big }, code: http.StatusForbidden},
			"another member's address": {token: good, bend: func(r *joinRequest) { r.Cluster = nodes[0].cfg.Cluster.Address.String() },
				code: http.StatusForbidden},
			"an old version": {token: good, bend: func(r *joinRequest) { r.Format = 0 }, code: http.StatusForbidden},
		} {
			for _, at := range nodes { // at members that do not lead, too
				req, err := stranger.describe(stranger.ids.Load().Identity())
				if err != nil {
					t.Fatal(err)
				}
				req.Token = c.token
				if c.bend != nil {
					c.bend(&req)
				}
				var refused *transport.StatusError
				if err := stranger.knock(at, req); !errors.As(err, &refused) || refused.Code != c.code || refused.Reason == "" {
					t.Errorf("%s, at %s: %v", name, at.host, err)
				}
			}
		}
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				req, err := stranger.describe(stranger.ids.Load().Identity())
				if err != nil {
					t.Error(err)
				}
				req.Token, req.Gossip = transport.NewToken().String(), rand.Text()+big
				if stranger.knock(leader, req) == nil {
					t.Error("a join without a token that is known was answered")
				}
			})
		}
		wg.Wait()
		if grown := leader.m.replica.Status().LastIndex - before; grown > 3 { // ticks and the like
			t.Errorf("refused joins added %d entries to the log", grown)
		}
		if err := stranger.ask(leader, good); err != nil {
			t.Errorf("a join with a good token: %v", err)
		}
	})
}

// knock sends a join request as it is.
func (v *vnode) knock(at *vnode, req joinRequest) error {
	j := transport.Joiner{Addr: at.cfg.Cluster.Address.String(), CAHash: transport.HashCA(at.m.ids.Identity().Roots()[0]), Dial: v.town.net.Dialer(v.host + ":0")}
	_, _, err := j.Join(v.town.t.Context(), req, nil)
	return err
}

// asks is what 'vpnlb cluster join' does to be admitted. lost: the answer does
// not arrive.
func (v *vnode) asks(at *vnode, token string, lost bool) error {
	v.town.t.Helper()
	hash := transport.HashCA(at.m.ids.Identity().Roots()[0])
	in := admin.JoinRequest{Addr: at.cfg.Cluster.Address.String(), Token: token, CAHash: hash.String()}
	if lost {
		dial := v.dial
		defer func() { v.dial = dial }()
		v.dial = func(ctx context.Context, addr string) (net.Conn, error) {
			c, err := dial(ctx, addr)
			return lossy{Conn: c, upto: at.m.spec().Index, m: at.m}, err
		}
	}
	return v.askAdmission(v.town.t.Context(), in, hash, func(string) {})
}

// lossy is a connection that breaks when the log has grown by the admission.
type lossy struct {
	net.Conn
	upto uint64
	m    *member
}

func (c lossy) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if slices.ContainsFunc(c.m.spec().Members, func(o state.Member) bool { return o.Joined > c.upto }) {
		c.Conn.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}

func (v *vnode) waitVote(nodes ...*vnode) {
	v.town.t.Helper()
	v.start(admission{})
	ctx, cancel := context.WithTimeout(v.town.t.Context(), time.Minute)
	defer cancel()
	if err := errors.Join(v.waitStage(ctx, StageRunning), v.waitVoter(ctx, func(string) {})); err != nil {
		v.town.t.Fatal(err)
	}
	v.town.agree(append(nodes, v)...)
}

// A join whose answer was lost is taken up by the same command, by one with
// another token, and after its member was removed.
func TestVirtualJoinAnswerLost(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		members := func() int { return len(leader.m.spec().Members) }

		again := tw.node(4)
		token := leader.token()
		if err := again.asks(leader, token, true); err == nil || members() != 4 || again.ids.Load().Identity().Member() {
			t.Fatalf("%v, %d members", err, members())
		}
		if err := again.asks(nodes[1], token, false); err != nil || members() != 4 {
			t.Fatalf("the same command again: %v, %d members", err, members())
		}
		anew := tw.node(5)
		short := transport.NewToken()
		leader.propose(state.AddToken{Hash: short.Hash(), Life: 2 * time.Second})
		if err := anew.asks(leader, short.String(), true); err == nil || members() != 5 {
			t.Fatalf("%v, %d members", err, members())
		}
		time.Sleep(3 * time.Second) // raft has it as a non-voter
		var refused *transport.StatusError
		if err := anew.asks(leader, short.String(), false); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "expired") {
			t.Errorf("the same command, too late: %v", err)
		}
		first := anew.ids.Load().Identity().Node
		anew.boot() // the daemon starts again meanwhile
		token = leader.token()
		if err := anew.asks(leader, token, true); err == nil || members() != 5 {
			t.Fatalf("with another token, whose answer is lost too: %v, %d members", err, members())
		}
		if err := anew.asks(nodes[1], token, false); err != nil || members() != 5 {
			t.Fatalf("with another token: %v, %d members", err, members())
		}
		if _, ok := leader.m.spec().MemberByID(first); ok {
			t.Error("the member that never came is still one")
		}
		if err := tw.node(7).asks(leader, token, false); !errors.As(err, &refused) {
			t.Errorf("a token that resumed a join was good for another node, too: %v", err)
		}
		anew.waitVote(nodes...)

		// The administrator removed what was left of it.
		gone := tw.node(6)
		if err := gone.asks(leader, leader.token(), true); err == nil || members() != 6 {
			t.Fatalf("%v, %d members", err, members())
		}
		leader.propose(state.RemoveMember{ID: gone.ids.Load().Identity().Node})
		if err := gone.asks(leader, leader.token(), false); err != nil || members() != 6 {
			t.Fatalf("after its removal: %v, %d members", err, members())
		}

		// A member that runs is no leftover, whoever has its key.
		double := tw.node(8)
		key := anew.ids.Load().Identity().Key
		req, err := double.describe(transport.Identity{Node: state.NewNodeID(), Key: key})
		if err != nil {
			t.Fatal(err)
		}
		req.Token = leader.token()
		if err := double.knock(leader, req); !errors.As(err, &refused) || !strings.Contains(refused.Reason, "n5") {
			t.Errorf("in the place of a member that runs: %v", err)
		}
	})
}

// Joining a cluster on a member of another one is refused, not "complete".
func TestVirtualJoinElsewhere(t *testing.T) {
	alone(t, func(t *testing.T, tw *town, only *vnode) {
		in := admin.JoinRequest{Addr: "192.0.2.99:7950", Token: transport.NewToken().String(),
			CAHash: transport.HashCA(only.m.ids.Identity().Roots()[0]).String()}
		if err := only.joinCluster(in, func(string) {}); err != nil {
			t.Errorf("resuming the join that made it a member: %v", err)
		}
		in.CAHash = transport.HashCA([]byte("another")).String()
		var refused *admin.Error
		if err := only.joinCluster(in, func(string) {}); !errors.As(err, &refused) || refused.Status != http.StatusConflict {
			t.Errorf("joining another cluster: %v", err)
		}
	})
}

// alone runs a test with a cluster of one node.
func alone(t *testing.T, f func(t *testing.T, tw *town, only *vnode)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t, dir)
		defer tw.end()
		only := tw.node(1)
		only.init()
		f(t, tw, only)
	})
}
