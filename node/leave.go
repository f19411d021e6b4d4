package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/raft"
)

// Times of leaving. Routers take a change in well under a second; the sum
// stays below ten seconds.
const (
	leaveGateways = 4 * time.Second         // for the gateways to be handed over
	leaveDrain    = 1500 * time.Millisecond // between asking routers to go elsewhere and withdrawing
	leaveQuiet    = 3 * time.Second         // for packets to stop coming after the withdrawal
	leaveTimeout  = 30 * time.Second
)

// leave takes this node out, step by step; each step does nothing where it was
// done before, so running it again resumes.
func (m *member) leave(in admin.LeaveRequest, step func(string)) (err error) {
	if !m.leaving.CompareAndSwap(false, true) {
		return &admin.Error{Status: http.StatusConflict, Message: "this node is leaving already"}
	}
	defer m.leaving.Store(false)
	m.ownEntry <- struct{}{} // a change of this node's entry that is on its way ends in two seconds
	defer func() { <-m.ownEntry }()
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if m.removed.Load() != nil || m.quarantined.Load() {
		step("this node is out of the cluster already: setting its identity and store aside")
		m.depart()
		return nil
	}
	if err := m.mayLeave(in.Force); err != nil {
		return err
	}
	var before Stage
	if m.parked.Load() {
		before = StageParked
	}
	m.node.setStage(StageLeaving, "")
	defer func() {
		if err != nil { // serve again: the command can be repeated
			m.draining.Store(int32(bgp.StageServing))
			m.node.setStage(cmp.Or(before, StageRunning), "the last leave failed: "+err.Error())
		}
	}()
	// What goes wrong stops a leave, or is said by a forced one.
	stops := func(err error) bool {
		if err != nil && in.Force {
			step("forced on: " + err.Error())
		}
		return err != nil && !in.Force
	}
	mine := m.ownGateways()
	step("marking the node as leaving")
	if err := m.markDraining(ctx); stops(err) {
		return err
	}
	step("handing its gateways over")
	if err := m.waitGateways(ctx, mine); stops(err) {
		return err
	}
	if m.speaker != nil {
		step("asking the routers to use other nodes")
		m.draining.Store(int32(bgp.StageDraining))
		pause(ctx, leaveDrain)
		step("withdrawing the routes")
		m.draining.Store(int32(bgp.StageStopping))
		m.waitWithdrawn(ctx)
	}
	step("waiting until no packets come any more")
	m.waitQuiet(ctx)
	if err := m.handOver(ctx, step); stops(err) {
		return err
	}
	step("leaving the member list")
	if err := m.removeSelf(ctx); stops(err) {
		return err
	} else if err != nil {
		step("the others may still count this node as a member: run 'vpnlb cluster remove " + m.cfg.Name + "' on one of them")
	}
	if g := m.gossip.Load(); g != nil {
		if err := g.Leave(time.Second); err != nil {
			m.log.Info("gossip leave", "error", err.Error())
		}
	}
	m.drainSSTP()
	step("left; the data plane is being detached")
	m.depart()
	return nil
}

// mayLeave refuses where the voters that would remain and are alive could not
// agree on anything.
func (m *member) mayLeave(force bool) error {
	if force {
		return nil
	}
	remaining, live := m.votersWithout(m.self)
	if remaining == 0 {
		return &admin.Error{Status: http.StatusConflict, Message: "this node is the only voter: leaving would end the cluster and its agreed state; add --force to do that"}
	}
	if live < remaining/2+1 {
		return &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("of the %d voters that would remain only %d are live, and %d are needed: start the others first, or add --force", remaining, live, remaining/2+1)}
	}
	return nil
}

// votersWithout counts the voters but one, and how many of them answer.
func (m *member) votersWithout(without state.NodeID) (voters, live int) {
	for _, s := range m.replica.Status().Servers {
		if !s.Voter || s.ID == without {
			continue
		}
		voters++
		if m.liveVoter(s.ID) {
			live++
		}
	}
	return voters, live
}

// liveVoter reports whether a voter is heard and takes part: one whose
// consensus is parked answers calls all the same.
func (m *member) liveVoter(id state.NodeID) bool {
	if id == m.self {
		return m.replica.Status().Parked == "" && m.removed.Load() == nil
	}
	if m.contacts.silence(id) >= silentAfter {
		return false
	}
	for _, h := range m.hints() {
		if h.Node == id {
			return !h.Status.RaftOff
		}
	}
	return true
}

func (m *member) markDraining(ctx context.Context) error {
	self, ok := m.spec().MemberByID(m.self)
	if !ok || self.Draining {
		return nil
	}
	marked := *self
	marked.Draining = true
	_, err := m.change(ctx, state.UpdateMember{Member: marked})
	return err
}

// ownGateways are those that the log gives to this node, or that it holds still.
func (m *member) ownGateways() []state.GatewayID {
	var out []state.GatewayID
	steps := m.keeper.Status().Plan.Gateways
	for _, g := range m.spec().Gateways {
		held := slices.ContainsFunc(steps, func(s gateway.Step) bool { return s.Gateway == g.ID && s.Hold })
		if g.Owner == m.self || held {
			out = append(out, g.ID)
		}
	}
	return out
}

// waitGateways waits until none of these gateways is this node's, and their new
// owners have announced them. Where nobody else could own one there is nothing
// to wait for.
func (m *member) waitGateways(ctx context.Context, mine []state.GatewayID) error {
	ctx, cancel := context.WithTimeout(ctx, leaveGateways)
	defer cancel()
	for {
		spec := m.spec()
		left := notTaken(spec, m.self, mine, m.hints())
		if len(left) == 0 {
			return nil
		}
		if !pause(ctx, 50*time.Millisecond) {
			return fmt.Errorf("no other node has taken %s of this node's gateways within %s; nothing was withdrawn, run the command again", strings.Join(left, ", "), leaveGateways)
		}
	}
}

// notTaken lists those of a leaving node's gateways that are its own still, or
// that their new owner does not hold yet. Whether other gateways have a good
// owner is no reason to stay.
func notTaken(spec *state.Spec, self state.NodeID, mine []state.GatewayID, hints []cluster.Hints) (left []string) {
	if !slices.ContainsFunc(spec.Members, func(o state.Member) bool {
		return o.ID != self && o.Role == state.RoleNode && !o.Draining
	}) {
		return nil
	}
	for _, id := range mine {
		g, ok := spec.GatewayByID(id)
		if !ok {
			continue // taken out of the cluster meanwhile
		}
		elsewhere := slices.ContainsFunc(hints, func(h cluster.Hints) bool { return slices.Contains(h.Status.Gateways, id) })
		if g.Owner == self || !elsewhere {
			left = append(left, g.Addr.String())
		}
	}
	return left
}

func (m *member) waitWithdrawn(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	for m.anyAnnounced() && pause(ctx, 20*time.Millisecond) {
	}
}

// waitQuiet waits until no packet was forwarded for half a second, or a deadline.
func (m *member) waitQuiet(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, leaveQuiet)
	defer cancel()
	last, _ := m.passed()
	since := time.Now()
	for pause(ctx, 50*time.Millisecond) {
		if n, ok := m.passed(); n != last || !ok {
			last, since = n, time.Now()
		} else if time.Since(since) > 500*time.Millisecond {
			return
		}
	}
}

// forwarded counts packets that this node sent on.
func (m *member) forwarded() (n uint64, ok bool) {
	counters, err := m.plane.Counters()
	if err != nil {
		return 0, false
	}
	for r := table.ForwardAffinity; r <= table.ForwardReturnUnknown; r++ {
		n += counters.Reasons[r].Packets
	}
	return n + counters.Reasons[table.PassNoNeighbour].Packets, true
}

func (m *member) handOver(ctx context.Context, step func(string)) error {
	if m.replica.Status().Role != raft.RoleLeader {
		return nil
	}
	if voters, _ := m.votersWithout(m.self); voters == 0 {
		return nil
	}
	step("handing the leadership over")
	if err := m.replica.TransferLeadership(ctx); err != nil {
		return fmt.Errorf("hand the leadership over: %w", err)
	}
	for m.replica.Status().Role == raft.RoleLeader || m.replica.Status().LeaderAddr == "" {
		if !pause(ctx, 20*time.Millisecond) {
			return errors.New("no other node took the leadership: run the command again")
		}
	}
	return nil
}

// removeSelf proposes the removal and waits until raft's configuration has
// followed: only then may this voter stop.
func (m *member) removeSelf(ctx context.Context) error {
	if voters, _ := m.votersWithout(m.self); voters == 0 {
		return nil
	}
	if _, ok := m.spec().MemberByID(m.self); ok {
		if _, err := m.change(ctx, state.RemoveMember{ID: m.self}); err != nil {
			return err
		}
	}
	wait, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// Until raft's configuration has followed, this node's vote may be needed.
	// Then the others refuse its calls and say why; or it saw the change itself.
	for m.replica.Status().Member && m.removed.Load() == nil {
		if !pause(wait, 20*time.Millisecond) {
			return errors.New("raft's configuration still names this node: run the command again")
		}
	}
	return nil
}

// removeMember removes another member for good, at an administrator's word.
func (m *member) removeMember(ctx context.Context, in admin.RemoveRequest) (any, error) {
	spec := m.spec()
	target, ok := spec.MemberByName(in.Node)
	if !ok {
		if id, err := state.ParseNodeID(in.Node); err == nil {
			target, ok = spec.MemberByID(id)
		}
	}
	if !ok {
		return nil, missing("no member is called %q; 'vpnlb cluster members' shows them", in.Node)
	}
	if target.ID == m.self {
		return nil, refuse("%s is this node: use 'vpnlb cluster leave' here", target.Name)
	}
	if err := m.awaitQuorum(ctx); err != nil {
		return nil, err
	}
	if !in.Force {
		if voters, live := m.votersWithout(target.ID); live < voters/2+1 {
			return nil, &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("of the %d voters that would remain only %d are live, and %d are needed: start the others first, or add --force", voters, live, voters/2+1)}
		}
		if by := m.heardBy(ctx, spec, target.ID); by != "" {
			return nil, &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("%s is alive, %s hears it: run 'vpnlb cluster leave' on it, which loses no packet, or add --force", target.Name, by)}
		}
	}
	return m.change(ctx, state.RemoveMember{ID: target.ID})
}

// quorumPatience is how long a command waits for a leader: an election takes less.
const quorumPatience = 3 * time.Second

// awaitQuorum refuses what cannot be agreed at once, instead of a long wait: of
// two nodes the one that is left cannot remove the other, forced or not.
func (m *member) awaitQuorum(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quorumPatience)
	defer cancel()
	for m.quorumLost() > 0 {
		if pause(ctx, 50*time.Millisecond) {
			continue
		}
		voters, live := m.votersWithout(state.NodeID{})
		return &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("nothing can be agreed now: of %d voters %d are live, and a removal needs %d of them, with --force, too. Start one of the others; where they are lost for good, 'vpnlb cluster leave --force' here and 'vpnlb cluster init' make a new cluster (forwarding stops meanwhile, and what was agreed is lost)", voters, live, voters/2+1)}
	}
	return nil
}

// heardBy names a member that hears another one, this node first; "": nobody
// does. What one node alone does not hear may only be a broken link.
func (m *member) heardBy(ctx context.Context, spec *state.Spec, target state.NodeID) string {
	if m.contacts.silence(target) < silentAfter {
		return "this node"
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	answers := make(chan string, len(spec.Members))
	asked := 0
	for i := range spec.Members {
		other := spec.Members[i]
		if other.ID == m.self || other.ID == target {
			continue
		}
		asked++
		go func() {
			var out silenceAnswer
			err := m.transport.Call(ctx, transport.Target{Addr: other.Cluster, Node: other.ID}, pathSilence, silenceRequest{Node: target}, &out)
			if err != nil || time.Duration(out.Millis)*time.Millisecond >= silentAfter {
				other.Name = ""
			}
			answers <- other.Name
		}()
	}
	for range asked {
		if name := <-answers; name != "" {
			return name
		}
	}
	return ""
}
