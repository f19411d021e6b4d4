package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/memnet"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/config"
	"github.com/vpnlb/vpnlb/raft"
)

// town is a virtual cluster: real memberships, with real stores, transport,
// gossip and duties, over a network in memory; the model is their data plane.
// What needs a kernel or a wire is left out: XDP, probes, gateways, BGP. It
// lives inside a synctest bubble.
type town struct {
	t     *testing.T
	dir   string
	net   *memnet.Network
	nodes []*vnode

	prepare func(*member) // what a test wants of each membership before it starts; nil: nothing

	mu     sync.Mutex
	hashes map[uint64][32]byte // of the agreed state, by index: the first that was seen
}

// vnode is one virtual node. It keeps its folder over restarts.
type vnode struct {
	*Node
	town  *town
	host  string
	name  string
	m     *member
	wire  *wire
	pins  dataplane.Pinned // that the next process finds, on the wire as it is
	stop  context.CancelFunc
	ended chan struct{} // closed when the membership has ended; nil: none began
	err   error         // how it ended
	drops atomic.Int32  // how often its addresses were dropped
	clean atomic.Int32  // how often the host was cleaned up
}

func newTown(t *testing.T, dir string) *town {
	return &town{t: t, dir: dir, net: memnet.New(), hashes: make(map[uint64][32]byte)}
}

// node makes a node that belongs to no cluster.
func (tw *town) node(i int) *vnode {
	tw.t.Helper()
	v := &vnode{town: tw, host: fmt.Sprintf("192.0.2.%d", i)}
	v.boot()
	tw.nodes = append(tw.nodes, v)
	return v
}

func (v *vnode) boot() {
	v.town.t.Helper()
	v.fresh()
	if err := v.tryIdentity(); err != nil {
		v.town.t.Fatal(err)
	}
}

// fresh is a new process that has not opened its identity yet.
func (v *vnode) fresh() {
	t, addr := v.town.t, netip.MustParseAddr(v.host)
	name := v.name
	if name == "" {
		name = fmt.Sprintf("n%d", addr.As4()[3])
	}
	v.name = name // it stays when the address changes
	dir := filepath.Join(v.town.dir, name)
	n, err := New(config.Config{
		Name: name, DataDir: dir, AdminSocket: filepath.Join(dir, "admin.sock"),
		Cluster:   config.Cluster{Address: netip.AddrPortFrom(addr, 7950), Gossip: netip.AddrPortFrom(addr, 7946), Heartbeat: config.DefaultHeartbeat},
		Dataplane: config.Dataplane{PinDir: filepath.Join(dir, "bpf"), Outside: "vpnlb-none0", Inside: "vpnlb-none0", Attach: config.AttachAuto, MaxClients: 1 << 16},
	}, Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	n.dial = v.town.net.Dialer(v.host + ":0")
	v.Node = n
	v.Node.host = func(bool) (hostFacts, error) { return v.facts(addr), nil }
}

// facts are those of a host that has all it needs: there is no kernel to ask.
func (v *vnode) facts(own netip.Addr) hostFacts {
	return hostFacts{own: []netip.Addr{own}, pins: func() ([16]byte, error) { return [16]byte{}, nil }}
}

// init makes the cluster.
func (v *vnode) init() {
	t := v.town.t
	t.Helper()
	init, adm, _, err := v.newCluster(v.ids.Load().Identity())
	init.TableSize = 1021 // so that tests need not build large tables
	init.First.Addrs = []netip.Addr{netip.MustParseAddr(v.host)}
	if err := errors.Join(err, v.keepFirst(init), v.ids.Load().Adopt(adm)); err != nil {
		t.Fatal(err)
	}
	v.start(admission{first: &firstMember{init: init}})
	if err := v.waitStage(t.Context(), StageRunning); err != nil {
		t.Fatal(err)
	}
}

// ask asks a member for admission, as a node without certificate.
func (v *vnode) ask(at *vnode, token string) error {
	ids := v.ids.Load()
	req, err := v.describe(ids.Identity())
	if err != nil {
		return err
	}
	req.Token, req.Addrs = token, []netip.Addr{netip.MustParseAddr(v.host)}
	var out joinAnswer
	j := transport.Joiner{Addr: at.cfg.Cluster.Address.String(), CAHash: transport.HashCA(at.m.ids.Identity().Roots()[0]), Dial: v.town.net.Dialer(v.host + ":0")}
	if _, _, err := j.Join(v.town.t.Context(), req, &out); err != nil {
		return err
	}
	return v.adopt(ids.Identity().Node, out)
}

// join asks, starts, and waits until the node votes.
func (v *vnode) join(at *vnode, token string) {
	t := v.town.t
	t.Helper()
	if err := v.ask(at, token); err != nil {
		t.Fatal(err)
	}
	v.start(admission{})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := errors.Join(v.waitStage(ctx, StageRunning), v.waitVoter(ctx, func(string) {})); err != nil {
		t.Fatal(err)
	}
}

// token makes a join token on v.
func (v *vnode) token() string {
	v.town.t.Helper()
	token := transport.NewToken()
	v.propose(state.AddToken{Hash: token.Hash(), Life: 10 * time.Minute})
	return token.String()
}

// start runs a membership on the network in memory.
func (v *vnode) start(ad admission) {
	t := v.town.t
	t.Helper()
	m, err := newMember(v.Node, ad)
	if err != nil {
		t.Fatal(err)
	}
	addr := m.cfg.Cluster.Address.String()
	m.transport, err = transport.New(transport.Config{Addr: addr}, transport.Deps{
		Identity: m.ids.Identity, Authorize: m.authorize, Removal: m.removalOf, Logger: m.log,
		Listener: v.town.net.Listen(addr), Dial: v.town.net.Dialer(addr),
	})
	if err != nil {
		t.Fatal(err)
	}
	m.replica, err = raft.New(raft.Config{ID: m.self, Addr: addr, Dir: v.storeDir(), Heartbeat: m.cfg.Cluster.Heartbeat, Boot: m.ids.Identity().Boot},
		raft.Deps{Stream: m.transport.Raft(), Forward: forwarder{m.transport}, Logger: m.log, Vet: m.vetStore})
	m.newCaller = func() (*transport.Transport, error) {
		return transport.New(transport.Config{Addr: addr}, transport.Deps{
			Identity: m.ids.Identity, Authorize: func(state.NodeID, []byte) error { return nil }, Logger: m.log,
			Listener: v.town.net.Listen(addr), Dial: v.town.net.Dialer(addr),
		})
	}
	m.gossipNet = func(d *cluster.Deps) { d.Transport, d.Registerer = v.town.net.Gossip(m.cfg.Cluster.Gossip), nil }
	m.dropAddrs = func() error { v.drops.Add(1); return nil }
	m.cleanUp = func() error { v.clean.Add(1); return nil }
	m.metrics = prometheus.NewRegistry() // the parts below register again
	if err := errors.Join(err, m.makePlane(), m.makeHealth()); err != nil {
		t.Fatal(err)
	}
	if m.pinned = v.pins; !v.pins.Found {
		v.wire = &wire{}
	}
	m.sync = newSyncer(v.wire, m.view, m.log, func() { v.town.witness(m.view()) })
	if v.town.prepare != nil {
		v.town.prepare(m)
	}
	v.m = m
	v.Node.member.Store(m)
	ctx, cancel := context.WithCancel(context.Background())
	v.stop, v.ended = cancel, make(chan struct{})
	go v.run(ctx, cancel)
}

// run is member.run without what needs a kernel.
func (v *vnode) run(ctx context.Context, cancel context.CancelFunc) {
	m := v.m
	m.serveRPC()
	work, fail := context.WithCancelCause(context.WithoutCancel(ctx))
	var parts sync.WaitGroup
	for name, run := range map[string]func(context.Context) error{
		"transport": m.transport.Run, "raft": m.runRaft, "gossip": m.runGossip, "cluster secret": m.runSecret, "contacts": m.runContacts,
		"catch up": m.runCatchUp, "learning": m.runLearning, "duties": m.runLeader, "status": m.runStatus, "peers": m.rememberPeers, "own address": m.tellMoved,
		"strangers": m.runStrangers,
		"sync": func(ctx context.Context) error {
			w := m.replica.Watch()
			defer w.Close()
			return m.sync.run(ctx, w)
		},
	} {
		parts.Go(func() {
			if err := run(work); err != nil && work.Err() == nil {
				fail(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	var err error
	select {
	case <-ctx.Done():
	case <-m.left:
		err = errLeft
	case <-work.Done():
		err = context.Cause(work)
	}
	fail(nil)
	parts.Wait()
	v.err = m.finish(ctx, err, nil)
	if v.err != nil && !errors.Is(v.err, errLeft) && !errors.Is(v.err, errRejoin) && !errors.Is(v.err, errReverted) {
		v.town.t.Errorf("%s: %v", v.host, v.err)
	}
	cancel()
	v.Node.member.Store(nil)
	close(v.ended)
}

// again does what Node.live does when a membership has ended by itself: the next
// one begins.
func (v *vnode) again() {
	v.town.t.Helper()
	<-v.ended
	if err := v.Node.ended(v.m, v.err); err != nil {
		v.town.t.Fatalf("%s: %v", v.host, err)
	}
	v.start(admission{})
}

// halt ends a membership: in order, or as a power cut where the node was
// isolated before.
func (v *vnode) halt() {
	if v.ended != nil {
		v.stop()
		<-v.ended
	}
}

// restart is a new process on the same disk: on a copy of the store, because a
// process that cannot stop in time, cut off as it is, leaves its lock to the
// end of the process, which here does not come.
func (v *vnode) restart() {
	v.town.t.Helper()
	v.halt()
	old := fmt.Sprintf("%s.boot%d", v.storeDir(), v.m.ids.Identity().Boot)
	if err := errors.Join(os.Rename(v.storeDir(), old), os.CopyFS(v.storeDir(), os.DirFS(old))); err != nil {
		v.town.t.Fatal(err)
	}
	v.boot()
	v.start(admission{})
}

// end stops everything and outwaits what libraries leave behind.
func (tw *town) end() {
	for _, v := range tw.nodes {
		v.halt()
	}
	time.Sleep(time.Minute)
}

// witness holds that equal indices have equal states, on all nodes, always.
func (tw *town) witness(view *state.View) {
	index, hash := view.Index(), view.Hash()
	tw.mu.Lock()
	defer tw.mu.Unlock()
	if first, ok := tw.hashes[index]; ok && first != hash {
		tw.t.Errorf("two states at index %d", index)
	}
	tw.hashes[index] = hash
}

func (tw *town) eventually(limit time.Duration, what string, ok func() bool) time.Duration {
	tw.t.Helper()
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		if ok() {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			tw.t.Fatalf("%s: not within %v", what, limit)
		}
	}
}

// agree waits until the nodes are at one index, in state and tables, and
// compares both.
func (tw *town) agree(nodes ...*vnode) {
	tw.t.Helper()
	tw.eventually(20*time.Second, "agree on an index", func() bool {
		for _, v := range nodes {
			if i := nodes[0].m.view().Index(); v.m.view().Index() != i || v.m.sync.index.Load() != i {
				return false
			}
		}
		return true
	})
	for _, v := range nodes {
		tw.witness(v.m.view())
		if got, want := v.wire.text(), nodes[0].wire.text(); got != want {
			tw.t.Errorf("the tables of %s and %s differ:\n%s\n%s", v.host, nodes[0].host, got, want)
		}
	}
}

// leader waits until one of the nodes leads and the others know it.
func (tw *town) leader(nodes ...*vnode) *vnode {
	tw.t.Helper()
	var out *vnode
	tw.eventually(20*time.Second, "elect a leader", func() bool {
		out = nil
		for _, v := range nodes {
			if _, err := v.m.replica.LeaderAnswer(tw.t.Context()); err == nil {
				out = v
			}
		}
		return out != nil && !slices.ContainsFunc(nodes, func(v *vnode) bool { return v.m.replica.Status().LeaderID != out.m.self })
	})
	return out
}

// isolate cuts a node off from all others; rejoin undoes it.
func (tw *town) isolate(v *vnode) {
	for _, o := range tw.nodes {
		if o != v {
			tw.net.Cut(v.host, o.host)
		}
	}
}

func (tw *town) rejoin(v *vnode) {
	for _, o := range tw.nodes {
		tw.net.Heal(v.host, o.host)
	}
}

// try has one command agreed on, within a time.
func (v *vnode) try(limit time.Duration, cmd state.Command) (state.Outcome, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	out, err := v.m.replica.Propose(ctx, cmd)
	if err != nil {
		return state.Outcome{}, err
	}
	return out[0], nil
}

// propose is try where it must succeed.
func (v *vnode) propose(cmd state.Command) state.Outcome {
	v.town.t.Helper()
	o, err := v.try(20*time.Second, cmd)
	if err != nil || o.Code != state.OK {
		v.town.t.Fatalf("%T: %+v, %v", cmd, o, err)
	}
	return o
}

var (
	vipAddr = netip.MustParseAddr("203.0.113.10")
	saInit  = ike.Message(ike.Header{InitiatorSPI: 7, NextPayload: ike.SecurityAssoc, Exchange: ike.SAInit, Flags: ike.FlagInitiator}, make([]byte, 100))
	esp     = ike.ESPDatagram(0x1234, 1, make([]byte, 64))
	authEnd = ike.Marked(ike.Message(ike.Header{InitiatorSPI: 7, ResponderSPI: 8, NextPayload: ike.Encrypted, Exchange: ike.Auth,
		Flags: ike.FlagResponse, MessageID: 5}, ike.ProtectedBody(ike.NoPayload, 64)))
)

// login is where a client's first packet goes at this node, data where one of
// its tunnel does.
func (v *vnode) login(client netip.Addr) table.Slot {
	return v.wire.decide(udp(client, vipAddr, 500, 500, saInit)).Slot
}

func (v *vnode) data(client netip.Addr) table.Slot {
	return v.wire.decide(udp(client, vipAddr, 4500, 4500, esp)).Slot
}

// answer is a server's packet to a client that crosses this node: what it
// proves is learnt.
func (v *vnode) answer(from table.Slot, client netip.Addr, payload []byte) {
	v.town.t.Helper()
	d := v.wire.decide(udp(serverAddr(from), client, 4500, 4500, payload))
	if d.Verdict != model.Forward {
		v.town.t.Errorf("%s: a reply was not forwarded: %v", v.host, d.Reason)
	}
	if d.Evidence != nil {
		v.m.learner.Offer([]table.Evidence{*d.Evidence})
	}
}

// Servers get slots in the order they are added.
func serverAddr(s table.Slot) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 51, 100, byte(100 + s)})
}

func clientAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}) }
