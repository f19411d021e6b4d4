package node

import (
	"crypto/rand"
	"errors"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
)

// Whoever reaches the port may try to join. What is refused must not reach the
// log, which every node writes to its disk.
func TestVirtualRefusedJoinsWriteNothing(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		used := leader.token()
		tw.node(4).join(leader, used)
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
		stranger.join(leader, good)
	})
}

// knock sends a join request as it is.
func (v *vnode) knock(at *vnode, req joinRequest) error {
	j := transport.Joiner{Addr: at.cfg.Cluster.Address.String(), CAHash: transport.HashCA(at.m.ids.Identity().Roots()[0]), Dial: v.town.net.Dialer(v.host + ":0")}
	_, _, err := j.Join(v.town.t.Context(), req, nil)
	return err
}
