package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/affinity"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/raft"
)

// turnInterval is how often the prober is told its part: a turn is as late at most.
const turnInterval = 100 * time.Millisecond

// runProber keeps the probes' targets equal to the agreed backends, and tells the
// prober its part in the probes and in the calls of SSTP. Cluster time stands still on a
// follower while nothing is agreed: it goes on from the last stamp by this node's own
// clock.
func (m *member) runProber(ctx context.Context) error {
	var probes sync.WaitGroup
	defer probes.Wait()
	probes.Go(func() { m.prober.Run(ctx) }) // returns nil
	var index uint64
	var targets []health.Target
	stamp, at := m.replica.Now(), time.Now()
	doubts := 0 // how many servers gave no answer
	for {
		spec := m.spec()
		if spec.Index != index {
			index = spec.Index
			targets = health.TargetsOf(spec)
			m.prober.SetTargets(targets, health.TimingOf(&spec.Settings))
		}
		if now := m.replica.Now(); now != stamp {
			stamp, at = now, time.Now()
		}
		m.sampleReturns(spec)
		if n := len(m.returns.Unanswered()); n != doubts {
			doubts = n
			m.tellSoon()
		}
		observers, now := m.observers(), stamp.Add(time.Since(at))
		m.prober.SetTurns(health.Turns(targets, health.TurnFacts{
			Spec: spec, Self: m.self, Now: now, Observers: observers, Returns: m.returns, Unanswered: m.unanswered(),
		}))
		m.prober.SetCalls(health.Calls(targets, health.CallFacts{Spec: spec, Self: m.self, Now: now, Observers: observers}))
		if !pause(ctx, turnInterval) {
			return nil
		}
	}
}

// sampleReturns takes the data plane's counts of every server.
func (m *member) sampleReturns(spec *state.Spec) {
	counters, err := m.plane.Counters()
	if err != nil {
		return // the samples grow old, which health.Returns knows
	}
	m.watchTraffic(spec, &counters)
	counts := make(map[state.BackendID]health.Counts, len(spec.Backends))
	for i := range spec.Backends {
		b := &spec.Backends[i]
		n := counters.Returns[b.Slot]
		counts[b.ID] = health.Counts{
			Proof: n.ESP + n.SK, Protected: n.SK, In: counters.In[b.Slot].Packets, Out: counters.Out[b.Slot].Packets,
		}
	}
	m.returns.Sample(counts)
}

// unanswered are the servers that give clients no answer any more, by this node's
// counters or by another's word.
func (m *member) unanswered() map[state.BackendID]bool {
	out := make(map[state.BackendID]bool)
	for _, id := range m.returns.Unanswered() {
		out[id] = true
	}
	for _, h := range m.hints() {
		for _, id := range h.Status.Unanswered {
			out[id] = true
		}
	}
	return out
}

// observation is what this node's own probes and counters say now. It goes to
// this node's collector as the others' do.
func (m *member) observation() []byte {
	o := m.prober.Observe(m.returns)
	if g := m.gossip.Load(); g != nil {
		o.Boot = g.Boot() // the prober knows the file's; the others may have proved that it is too low
	}
	m.collector.Receive(m.self, o)
	return o.Encode()
}

func (m *member) observers() []health.Observer { return m.collector.Observers() }

// runLearning carries what the data plane saw to consensus.
func (m *member) runLearning(ctx context.Context) error {
	var workers sync.WaitGroup
	defer workers.Wait()
	// None of these ends before ctx, and none returns an error.
	workers.Go(func() { m.learner.Run(ctx) })
	workers.Go(func() { m.toucher.Run(ctx) })
	workers.Go(func() { m.expiry.Run(ctx) })
	workers.Go(func() { m.followDeleted(ctx) })
	for {
		select {
		case <-ctx.Done():
			return nil
		case batch := <-m.plane.Evidence():
			m.learner.Offer(batch)
		case batch := <-m.plane.Activity():
			m.toucher.Offer(batch)
		}
	}
}

// followDeleted tells the toucher which records the agreement removed: one
// that expired although this node saw newer activity is proposed again.
func (m *member) followDeleted(ctx context.Context) {
	w := m.replica.Watch()
	defer w.Close()
	for {
		d, _, err := w.Next(ctx)
		if err != nil {
			return
		}
		if len(d.Delete) > 0 {
			m.toucher.Deleted(d.Delete)
		}
	}
}

// office is what expiry needs to know of this node's leadership.
func (m *member) office() affinity.Office {
	st := m.replica.Status()
	o := affinity.Office{Leading: st.Role == raft.RoleLeader, Term: st.Term, Now: m.replica.Now()}
	if since := m.tookOffice.Load(); o.Leading && since != nil {
		o.Held = time.Since(*since)
	}
	return o
}

// oldKeyKept is how long an old gossip key stays readable after a change:
// members that were away for less come back by gossip, others by the log,
// which travels on the other port.
const oldKeyKept = 2 * time.Minute

// tidyGossipKeys ends a key change: the old key goes when every member that is
// alive has long followed.
func (m *member) tidyGossipKeys(ctx context.Context) {
	s, ok := m.spec().SecretByName(secretGossip)
	if !ok {
		return
	}
	if s.Version != m.keysSeen {
		m.keysSeen, m.keysSince = s.Version, time.Now()
	}
	if time.Since(m.keysSince) < oldKeyKept {
		return
	}
	if raw, err := m.openSecret(secretGossip); err == nil && len(raw) > gossipKeyBytes {
		m.putGossipKeys(ctx, s, raw[:gossipKeyBytes])
	}
}

// rotateGossipKey draws a new key once somebody was removed: it knows the old
// one. That is seen in the log, so nothing that interrupts a command prevents
// it. The old key stays readable for the members that have not heard of the new
// one yet. The log brings that to all of them, and to nobody else: raft's
// configuration has followed the member list before.
func (m *member) rotateGossipKey(ctx context.Context) {
	spec := m.spec()
	s, ok := spec.SecretByName(secretGossip)
	if !ok || !slices.ContainsFunc(spec.Removed, func(r state.RemovedMember) bool { return r.Index > s.Version }) {
		return
	}
	for _, server := range m.replica.Status().Servers {
		if _, ok := spec.MemberByID(server.ID); !ok {
			return // soon
		}
	}
	raw, err := m.openSecret(secretGossip)
	if err == nil && len(raw) < gossipKeyBytes {
		err = errors.New("the gossip keys in the agreed state are malformed")
	}
	if m.gossipFault.set(err) {
		m.log.Warn("change the gossip key", "error", err.Error())
	}
	if err == nil && m.putGossipKeys(ctx, s, append(cluster.NewKey(), raw[:gossipKeyBytes]...)) {
		m.log.Info("gossip key changed: a member was removed")
	}
}

func (m *member) putGossipKeys(ctx context.Context, old *state.Secret, keys []byte) bool {
	sealed, err := m.seal(secretGossip, keys)
	if err != nil {
		return false // secretFault tells
	}
	return m.propose(ctx, state.PutSecret{Name: secretGossip, Sealed: sealed, Expect: old.Version})
}
