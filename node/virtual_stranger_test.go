package node

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/node/admin"
)

// While a member is cut off, its daemon running, others join and one of them
// takes the lead. After the heal it must follow a leader that it never heard of.
func TestVirtualMembersChangeDuringPartition(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		away := others(nodes, tw.leader(nodes...))[0]
		rest := others(nodes, away)
		tw.isolate(away)
		for i := 4; i <= 5; i++ { // two: the rest must still elect when its leader is cut off
			v := tw.node(i)
			tw.net.Cut(away.host, v.host)
			v.join(rest[0], rest[0].token())
			rest = append(rest, v)
		}
		joined := rest[2:]
		leader := tw.leader(rest...)
		for i := 0; i < 50 && !slices.Contains(joined, leader); i++ {
			for _, o := range others(rest, leader) {
				tw.net.Cut(leader.host, o.host)
			}
			next := tw.leader(others(rest, leader)...)
			for _, o := range others(rest, leader) {
				tw.net.Heal(leader.host, o.host)
			}
			leader = next
		}
		if !slices.Contains(joined, leader) {
			t.Fatal("none of the new members took the lead")
		}
		rest[0].propose(state.Tick{})
		tw.rejoin(away)
		took := tw.eventually(20*time.Second, "follow the new leader", func() bool {
			return away.m.quorumLost() == 0 && away.m.view().Index() == rest[0].m.view().Index()
		})
		t.Logf("followed after %v", took)
		tw.agree(append(rest, away)...)
	})
}

// mint makes what a removed node can make: it knows the cluster secret, hence
// the CA's key, and certifies a node that nobody admitted.
func (v *vnode) mint() transport.Identity {
	t := v.town.t
	t.Helper()
	own := v.m.ids.Identity()
	raw, err := v.m.openSecret(secretCA)
	if err != nil {
		t.Fatal(err)
	}
	ca, err := transport.ParseCA(raw)
	if err != nil {
		t.Fatal(err)
	}
	fresh, err := transport.OpenIdentity(t.TempDir(), false)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := fresh.Identity().CSR()
	if err != nil {
		t.Fatal(err)
	}
	cert, err := ca.Issue(csr, transport.Name{Cluster: own.Cluster(), Node: fresh.Identity().Node, Role: state.RoleNode})
	if err != nil {
		t.Fatal(err)
	}
	if err := fresh.Adopt(transport.Admission{Certificate: cert, Roots: own.Roots(), Secret: own.Secret}); err != nil {
		t.Fatal(err)
	}
	return fresh.Identity()
}

// intrude dials as id, by both protocols, again and again, and reports whether
// it was ever let in.
func (tw *town) intrude(id transport.Identity, at *vnode, patience time.Duration) bool {
	tw.t.Helper()
	const addr = "192.0.2.200:7950"
	tr, err := transport.New(transport.Config{Addr: addr}, transport.Deps{
		Identity:  func() transport.Identity { return id },
		Authorize: func(state.NodeID, []byte) error { return nil },
		Listener:  tw.net.Listen(addr), Dial: tw.net.Dialer(addr),
	})
	if err != nil {
		tw.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(tw.t.Context())
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	defer func() { cancel(); <-done }()
	to := at.cfg.Cluster.Address.String()
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(100 * time.Millisecond) {
		call, stop := context.WithTimeout(ctx, time.Second)
		_, err := tr.Ping(call, transport.Target{Addr: to})
		stop()
		if err == nil {
			return true
		}
		if c, err := tr.Raft().Dial(to, time.Second); err == nil {
			// The server says no after the client's end of the handshake.
			c.SetDeadline(time.Now().Add(time.Second))
			_, err := c.Read(make([]byte, 1))
			c.Close()
			if errors.Is(err, os.ErrDeadlineExceeded) { // nobody closed it
				return true
			}
		}
	}
	return false
}

// A certificate of the CA is not enough: not at members that caught up, not at
// one that has just started and is behind, not at a blank one that joins.
func TestVirtualForgedMember(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		forged := leader.mint()
		known := nodes[1].m.ids.Identity()
		if err := leader.m.authorize(state.NewNodeID(), known.PublicKey()); err != nil {
			t.Errorf("a member under a new ID: %v", err)
		}
		if leader.m.authorize(known.Node, forged.PublicKey()) == nil {
			t.Error("a member's ID under another key was let in")
		}
		if tw.intrude(forged, leader, 1500*time.Millisecond) {
			t.Error("the leader let a forged member in")
		}
		// A member that is away, and starts alone.
		behind := others(nodes, leader)[0]
		behind.halt()
		leader.propose(state.Tick{})
		behind.restart()
		tw.isolate(behind)
		if tw.intrude(forged, behind, 1500*time.Millisecond) {
			t.Error("a member that is behind and alone let a forged member in")
		}
		if !slices.ContainsFunc(behind.m.warnings(&admin.Status{}), func(w string) bool { return strings.Contains(w, forged.Node.String()) }) {
			t.Error("status does not say that a node calls whom nobody can vouch for")
		}
		tw.rejoin(behind)
		if tw.intrude(forged, behind, 1500*time.Millisecond) {
			t.Error("a member that has just started let a forged member in")
		}
		tw.agree(nodes...)
		// A blank one, before anybody has sent it the log.
		blank := tw.node(4)
		if err := blank.ask(leader, leader.token()); err != nil {
			t.Fatal(err)
		}
		tw.isolate(blank)
		blank.start(admission{})
		if tw.intrude(forged, blank, 1500*time.Millisecond) {
			t.Error("a blank node let a forged member in")
		}
		tw.rejoin(blank)
		if err := blank.waitStage(t.Context(), StageRunning); err != nil {
			t.Fatal(err)
		}
		tw.agree(append(nodes, blank)...)
		// One member vouches for it: that one is in league, the others are not.
		liar := others(nodes, leader)[1]
		liar.halt()
		list := membersFile{Node: liar.m.self, Index: 1 << 40, Members: []knownPeer{{ID: forged.Node, Key: forged.PublicKey()}}}
		for _, o := range leader.m.spec().Members {
			list.Members = append(list.Members, knownPeer{ID: o.ID, Addr: o.Cluster, Key: o.PublicKey})
		}
		b, err := json.Marshal(list)
		if err := errors.Join(err, os.WriteFile(liar.membersPath(), b, 0o600)); err != nil {
			t.Fatal(err)
		}
		liar.restart()
		if err := liar.waitStage(t.Context(), StageRunning); err != nil {
			t.Fatal(err)
		}
		if !tw.intrude(forged, liar, 1500*time.Millisecond) {
			t.Error("whoever is in the list is not let in: this test proves nothing")
		}
		if tw.intrude(forged, leader, 1500*time.Millisecond) || tw.intrude(forged, behind, 1500*time.Millisecond) {
			t.Error("one member alone vouched for a forged one")
		}
		// What an older version answers to a question that it does not know.
		var unknown *transport.StatusError
		err = leader.m.transport.Call(t.Context(), transport.Target{Addr: behind.cfg.Cluster.Address.String()}, "/v1/of-a-later-version", nil, nil)
		if !errors.As(err, &unknown) || unknown.Code != http.StatusNotFound {
			t.Errorf("a path that is not known: %v", err)
		}
	})
}
