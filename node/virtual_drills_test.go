package node

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/raft"
)

// inTown runs a test with a cluster of three nodes and three servers.
func inTown(t *testing.T, f func(t *testing.T, tw *town, nodes []*vnode)) {
	inTownWith(t, nil, f)
}

// inTownWith prepares each membership before it starts.
func inTownWith(t *testing.T, prepare func(*member), f func(t *testing.T, tw *town, nodes []*vnode)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		tw := newTown(t, dir)
		tw.prepare = prepare
		defer tw.end()
		nodes := []*vnode{tw.node(1), tw.node(2), tw.node(3)}
		nodes[0].init()
		nodes[1].join(nodes[0], nodes[0].token())
		nodes[2].join(nodes[1], nodes[0].token()) // by a member that does not lead
		nodes[0].propose(state.PutVIP{VIP: state.VIP{Name: "vpn", Addr: vipAddr, ClientBits: 64}})
		for _, name := range []string{"r1", "r2", "r3"} {
			nodes[0].addServer(name)
			nodes[0].judge(name, state.VerdictUp)
		}
		tw.agree(nodes...)
		f(t, tw, nodes)
	})
}

func (v *vnode) addServer(name string) {
	v.town.t.Helper()
	slot := table.Slot(len(v.m.spec().Backends) + 1)
	vip, _ := v.m.spec().VIPByName("vpn")
	v.propose(state.PutBackend{Backend: state.Backend{Name: name, Addr: serverAddr(slot), VIP: vip.ID, Weight: 100, Admin: state.AdminEnabled}})
	v.town.eventually(time.Second, "the server is here", func() bool { _, ok := v.m.spec().BackendByName(name); return ok })
	if b, _ := v.m.spec().BackendByName(name); table.Slot(b.Slot) != slot {
		v.town.t.Fatalf("%s has slot %d, want %d", name, b.Slot, slot)
	}
}

// judge commits a verdict, as the leader's tally does; here are no probes.
func (v *vnode) judge(name string, verdict state.Verdict) {
	v.town.t.Helper()
	v.judgeClass(name, state.ClassIKE, verdict)
}

func (v *vnode) judgeClass(name string, c state.Class, verdict state.Verdict) {
	v.town.t.Helper()
	b, _ := v.m.spec().BackendByName(name)
	v.propose(state.SetHealth{Backend: b.ID, Class: c, Verdict: verdict, Previous: b.Health[c-1].Index})
}

func (v *vnode) setAdmin(name string, a state.AdminState) {
	v.town.t.Helper()
	b, _ := v.m.spec().BackendByName(name)
	v.propose(state.SetBackendAdmin{ID: b.ID, Admin: a, Expect: b.Version})
}

// farm is clients and where each one is at home.
type farm struct {
	tw   *town
	home []table.Slot
}

// enter logs n clients in: the request crosses one node, the answers another.
func (tw *town) enter(n int, nodes ...*vnode) *farm {
	tw.t.Helper()
	f := &farm{tw: tw, home: make([]table.Slot, n)}
	for i := range f.home {
		f.home[i] = nodes[i%len(nodes)].login(clientAddr(i))
		if f.home[i] == 0 {
			tw.t.Fatalf("client %d goes nowhere", i)
		}
	}
	for _, payload := range [][]byte{authEnd, esp} {
		for i, slot := range f.home {
			nodes[(i+1)%len(nodes)].answer(slot, clientAddr(i), payload)
		}
		tw.eventually(10*time.Second, "learn", func() bool {
			return !slices.ContainsFunc(nodes, func(v *vnode) bool { return v.m.learner.Pending() > 0 })
		})
		tw.agree(nodes...)
	}
	if got := nodes[0].m.spec().Affinities; got != n {
		tw.t.Errorf("%d records of %d clients", got, n)
	}
	return f
}

// check holds that every client has one server, the same on all nodes: the
// one that it had. Logins may go elsewhere where the server is in moved.
func (f *farm) check(when string, moved []table.Slot, nodes ...*vnode) {
	f.tw.t.Helper()
	wrong := 0
	for i, slot := range f.home {
		login := nodes[0].login(clientAddr(i))
		for _, v := range nodes {
			if v.data(clientAddr(i)) != slot || v.login(clientAddr(i)) != login || (login != slot) != slices.Contains(moved, slot) {
				wrong++
			}
		}
	}
	if wrong > 0 {
		f.tw.t.Errorf("%s: %d answers of %d nodes for %d clients are wrong", when, wrong, len(nodes), len(f.home))
	}
}

func TestVirtualReplicate(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		voters := 0
		for _, s := range leader.m.replica.Status().Servers {
			if s.Voter {
				voters++
			}
		}
		if voters != 3 {
			t.Errorf("%d voters", voters)
		}
		for i, v := range nodes { // learnt on any node, it is on all
			client := clientAddr(i)
			v.answer(2, client, esp)
			took := tw.eventually(time.Second, "replicate", func() bool {
				return !slices.ContainsFunc(nodes, func(o *vnode) bool { return o.data(client) != 2 })
			})
			t.Logf("learnt on %s, known to all after %v", v.host, took)
		}
		tw.agree(nodes...)
		tw.eventually(5*time.Second, "hear each other by gossip", func() bool {
			return !slices.ContainsFunc(nodes, func(v *vnode) bool { return len(v.m.hints()) != 2 })
		})

		// A token is good once, and a wrong one never.
		used := nodes[1].token()
		fourth, fifth := tw.node(4), tw.node(5)
		fourth.join(nodes[2], used)
		for name, token := range map[string]string{"used": used, "unknown": transport.NewToken().String(), "malformed": "x"} {
			var refused *transport.StatusError
			if err := fifth.ask(nodes[1], token); !errors.As(err, &refused) {
				t.Errorf("a token that is %s: %v", name, err)
			}
		}
		if fifth.ids.Load().Identity().Member() {
			t.Error("a node that was refused is a member")
		}
		tw.agree(append(nodes, fourth)...)
		if got := fourth.data(clientAddr(1)); got != 2 {
			t.Errorf("the node that joined last sends a client to %d", got)
		}
	})
}

func TestVirtualClientsStay(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		f := tw.enter(3000, nodes...)
		f.check("after the login", nil, nodes...)

		nodes[1].addServer("r4")
		nodes[1].judge("r4", state.VerdictUp)
		tw.agree(nodes...)
		f.check("with another server", nil, nodes...)

		nodes[2].setAdmin("r1", state.AdminDrain)
		tw.agree(nodes...)
		f.check("while one drains", nil, nodes...)
		for i := range 1000 {
			if s := nodes[i%3].login(clientAddr(10000 + i)); s == 1 || s != nodes[(i+1)%3].login(clientAddr(10000+i)) {
				t.Fatalf("an unknown client goes to %d, and elsewhere at another node", s)
			}
		}

		nodes[0].judge("r2", state.VerdictDown)
		tw.agree(nodes...)
		f.check("while one is down", []table.Slot{2}, nodes...)

		// Those whose server is down log in again, through any node.
		for i, slot := range f.home {
			if slot == 2 {
				f.home[i] = nodes[i%3].login(clientAddr(i))
				nodes[(i+2)%3].answer(f.home[i], clientAddr(i), authEnd)
			}
		}
		time.Sleep(time.Second)
		tw.agree(nodes...)
		nodes[0].judge("r2", state.VerdictUp)
		tw.agree(nodes...)
		f.check("when it is back", nil, nodes...)

		// A member that starts anew holds what the others hold.
		nodes[1].restart()
		if err := nodes[1].waitStage(t.Context(), StageRunning); err != nil {
			t.Fatal(err)
		}
		tw.agree(nodes...)
		f.check("after a restart", nil, nodes...)
	})
}

func TestVirtualLeaderDies(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		f := tw.enter(300, nodes...)
		for round := range 3 {
			dead := tw.leader(nodes...)
			rest := slices.DeleteFunc(slices.Clone(nodes), func(v *vnode) bool { return v == dead })
			tw.isolate(dead) // nobody says goodbye
			began := time.Now()
			rest[0].propose(state.Tick{})
			took := time.Since(began)
			t.Logf("round %d: a commit %v after the leader's death", round, took)
			if took > 2*time.Second {
				t.Errorf("round %d: the next commit came after %v", round, took)
			}
			rest[1].answer(1, clientAddr(1000+round), esp)
			time.Sleep(time.Second)
			tw.agree(rest...)
			f.check("without the leader", nil, nodes...) // the dead one's tables, too
			dead.halt()
			tw.rejoin(dead)
			dead.restart()
			if err := dead.waitStage(t.Context(), StageRunning); err != nil {
				t.Fatal(err)
			}
			tw.agree(nodes...)
			if got := dead.data(clientAddr(1000 + round)); got != 1 {
				t.Errorf("round %d: a record of its absence is missing: %d", round, got)
			}
		}
	})
}

func TestVirtualPartition(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		f := tw.enter(300, nodes...)
		old := tw.leader(nodes...)
		rest := slices.DeleteFunc(slices.Clone(nodes), func(v *vnode) bool { return v == old })
		before := old.m.view().Index()
		tw.isolate(old)
		if o, err := old.try(5*time.Second, state.PutGateway{Addr: netip.MustParseAddr("198.51.100.251")}); !errors.Is(err, raft.ErrUnanswered) {
			t.Errorf("a minority answers: %+v, %v", o, err)
		}
		if old.m.quorumLost() == 0 {
			t.Error("a minority believes that it has a quorum")
		}
		if got := old.m.view().Index(); got != before {
			t.Errorf("a minority went from index %d to %d", before, got)
		}
		leader := tw.leader(rest...)
		leader.propose(state.PutGateway{Addr: netip.MustParseAddr("198.51.100.252")})
		leader.answer(2, clientAddr(5000), esp)
		old.answer(3, clientAddr(5001), esp) // learnt when it may speak again
		time.Sleep(time.Minute)
		f.check("on both sides", nil, nodes...)
		if got := old.m.view().Index(); got != before {
			t.Errorf("a minority went from index %d to %d", before, got)
		}
		tw.rejoin(old)
		t.Logf("healed after %v", tw.eventually(20*time.Second, "heal", func() bool { return old.m.quorumLost() == 0 }))
		time.Sleep(10 * time.Second)
		tw.agree(nodes...)
		f.check("after the heal", nil, nodes...)
		var gateways []string
		for _, g := range old.m.spec().Gateways {
			gateways = append(gateways, g.Addr.String())
		}
		if strings.Join(gateways, " ") != "198.51.100.252" {
			t.Errorf("gateways after the heal: %v", gateways)
		}
		for _, v := range nodes {
			if v.data(clientAddr(5000)) != 2 || v.data(clientAddr(5001)) != 3 {
				t.Errorf("%s: clients learnt during the partition go to %d and %d", v.host, v.data(clientAddr(5000)), v.data(clientAddr(5001)))
			}
		}
	})
}

func TestVirtualLeave(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		f := tw.enter(300, nodes...)
		gone := tw.leader(nodes...)
		id := gone.m.self
		var steps []string
		if err := gone.m.leave(admin.LeaveRequest{}, func(s string) { steps = append(steps, s) }); err != nil {
			t.Fatalf("leave: %v after %q", err, steps)
		}
		<-gone.ended
		rest := slices.DeleteFunc(slices.Clone(nodes), func(v *vnode) bool { return v == gone })
		if !slices.Contains(steps, "handing the leadership over") {
			t.Errorf("the leader's steps: %q", steps)
		}
		leader := tw.leader(rest...)
		if _, ok := leader.m.spec().MemberByID(id); ok {
			t.Error("the node that left is still a member")
		}
		tw.eventually(10*time.Second, "raft follows", func() bool { return len(leader.m.replica.Status().Servers) == 2 })
		tw.agree(rest...)
		f.check("after the leave", nil, rest...)

		// It comes back as a new one.
		if err := gone.reset("left"); err != nil {
			t.Fatal(err)
		}
		gone.setStage(StageWaiting, "")
		gone.join(rest[0], rest[1].token())
		if gone.m.self == id {
			t.Error("the node came back under its old ID")
		}
		tw.agree(nodes...)
		f.check("after it joined again", nil, nodes...)
	})
}

// A dead member is removed. When it wakes up it believes that, parks, and
// cannot disturb anybody.
func TestVirtualRemove(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		rest := slices.DeleteFunc(slices.Clone(nodes), func(v *vnode) bool { return v == leader })
		dead := rest[0]
		tw.isolate(dead)
		time.Sleep(5 * time.Second)
		if _, err := leader.m.removeMember(t.Context(), admin.RemoveRequest{Node: dead.cfg.Name}); err != nil {
			t.Fatal(err)
		}
		if _, err := leader.m.removeMember(t.Context(), admin.RemoveRequest{Node: rest[1].cfg.Name}); err == nil {
			t.Error("a member that is alive was removed without force")
		}
		tw.eventually(10*time.Second, "raft follows", func() bool { return len(leader.m.replica.Status().Servers) == 2 })
		tw.rejoin(dead)
		took := tw.eventually(30*time.Second, "the removed node hears of it", func() bool { return dead.m.removed.Load() != nil })
		t.Logf("heard of its removal after %v", took)
		if stage, why := dead.stageNow(); stage != StageParked {
			t.Errorf("stage %s (%s)", stage, why)
		}
		term := leader.m.replica.Status().Term
		time.Sleep(10 * time.Second)
		if now := leader.m.replica.Status(); now.Term != term || now.Role != raft.RoleLeader {
			t.Errorf("the removed node moved the term from %d to %d", term, now.Term)
		}
		tw.agree(leader, rest[1])
		dead.halt()
		// The old gossip key goes when everybody has long followed.
		tw.eventually(5*time.Minute, "one gossip key", func() bool {
			raw, err := leader.m.openSecret(secretGossip)
			return err == nil && len(raw) == gossipKeyBytes
		})
		time.Sleep(5 * time.Second)
		if n := len(leader.m.hints()); n != 1 {
			t.Errorf("after the change of keys %d others are heard", n)
		}
	})
}

// All power is lost. One node alone waits for the others before it trusts its
// disk; when they come, nobody's server has changed.
func TestVirtualColdStart(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		f := tw.enter(300, nodes...)
		index := nodes[0].m.view().Index()
		for _, v := range nodes {
			tw.isolate(v)
		}
		for _, v := range nodes {
			v.halt()
		}
		for _, v := range nodes {
			tw.rejoin(v)
		}
		alone := nodes[1]
		alone.restart()
		wait := alone.m.limits.ColdStartWait
		time.Sleep(wait - time.Second)
		if alone.m.cold.Load() || alone.wire.text() != "" {
			t.Error("tables were written before the wait was over")
		}
		time.Sleep(2 * time.Second)
		if !alone.m.cold.Load() || alone.m.caughtUp.Load() || alone.m.sync.index.Load() < index {
			t.Errorf("cold %v, caught up %v, index %d of %d", alone.m.cold.Load(), alone.m.caughtUp.Load(), alone.m.sync.index.Load(), index)
		}
		if _, err := alone.try(3*time.Second, state.Tick{}); !errors.Is(err, raft.ErrUnanswered) {
			t.Errorf("one of three answers: %v", err)
		}
		f.check("after a cold start", nil, alone)
		for _, v := range nodes {
			if v != alone {
				v.restart()
			}
		}
		for _, v := range nodes {
			if err := v.waitStage(t.Context(), StageRunning); err != nil {
				t.Fatal(err)
			}
		}
		tw.agree(nodes...)
		f.check("when all are back", nil, nodes...)
	})
}
