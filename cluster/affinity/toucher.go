package affinity

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// ToucherDeps are what a Toucher needs.
type ToucherDeps struct {
	View     func() View
	Proposer Proposer
	Max      int                   // clients held, evenly in touchShards parts; 0: MaxActive
	Log      *slog.Logger          // nil: discard
	Metrics  prometheus.Registerer // nil: none
}

// Toucher reports activity between clients and their recorded servers: at most
// one touch a client in a touch interval, at once in the last quarter of a
// record's life. What could not be proposed is held, the newest of each client.
type Toucher struct {
	deps    ToucherDeps
	log     *slog.Logger
	metrics *toucherMetrics
	wake    chan struct{}
	clock   clusterClock

	mu      sync.Mutex
	seed    maphash.Seed
	shards  [touchShards]map[table.Key]held
	count   int
	urgent  []table.Key // due now
	relearn []state.Learned
	failing bool
}

// touchShards cuts the look at held activity: one shard each tick.
const touchShards = 64

// held is activity that is not agreed yet, and what was known of the record.
type held struct {
	at      time.Time // of the last packet
	slot    table.Slot
	heard   bool      // packets from the server since the last touch
	urgent  bool      // is in Toucher.urgent
	touched time.Time // when it was last proposed, zero: not yet
	backend state.BackendID
	state   state.Confirmation // record's
	seen    state.Time         // record's Seen, to tell an expiry from a removal
	heardAt state.Time         // record's Heard
}

// NewToucher makes a toucher; Run starts it.
func NewToucher(deps ToucherDeps) (*Toucher, error) {
	if deps.View == nil || deps.Proposer == nil {
		return nil, errors.New("make toucher: view and proposer are needed")
	}
	if deps.Max <= 0 {
		deps.Max = MaxActive
	}
	t := &Toucher{deps: deps, log: deps.Log, wake: make(chan struct{}, 1), seed: maphash.MakeSeed()}
	for i := range t.shards {
		t.shards[i] = map[table.Key]held{}
	}
	if t.log == nil {
		t.log = slog.New(slog.DiscardHandler)
	}
	var err error
	if t.metrics, err = newToucherMetrics(deps.Metrics); err != nil {
		return nil, fmt.Errorf("make toucher: %w", err)
	}
	return t, nil
}

// Offer takes activity and never blocks. Activity of a client whose record
// names another server, or none, is no news.
func (t *Toucher) Offer(batch []table.Activity) {
	view := t.deps.View()
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	cluster := t.clock.now(view.Spec(), now)
	for _, a := range batch {
		r, ok := view.Affinity(stateKey(a.Key))
		if !ok {
			continue
		}
		if id, ok := backendOf(view.Spec(), a.Slot); !ok || id != r.Backend {
			continue
		}
		t.hold(a, r, now)
		t.consider(a.Key, view.Spec(), r, now, cluster)
	}
	t.metrics.held.Set(float64(t.count))
	poke(t.wake)
}

func (t *Toucher) shard(k table.Key) map[table.Key]held {
	return t.shards[maphash.Comparable(t.seed, k)%touchShards]
}

// hold merges one activity into what is held of its client.
func (t *Toucher) hold(a table.Activity, r state.Affinity, now time.Time) {
	s := t.shard(a.Key)
	h, known := s[a.Key]
	if !known || h.backend != r.Backend {
		if !known && len(s) >= (t.deps.Max+touchShards-1)/touchShards {
			t.evict(s)
		}
		if !known {
			t.count++
		}
		h = held{urgent: h.urgent} // the record moved: what was held is void
	}
	if at := now.Add(-time.Duration(a.Age) * time.Second); at.After(h.at) {
		h.at = at
	}
	h.slot, h.backend, h.heard = a.Slot, r.Backend, h.heard || a.Heard
	h.state, h.seen, h.heardAt = r.State, r.Seen, r.Heard
	s[a.Key] = h
}

// evict drops the oldest of a few: the newest activity is worth most, and a
// perfect order would cost more than it is worth.
func (t *Toucher) evict(s map[table.Key]held) {
	const few = 8
	var oldest table.Key
	var at time.Time
	n := 0
	for k, h := range s {
		if n == 0 || h.at.Before(at) {
			oldest, at = k, h.at
		}
		if n++; n == few {
			break
		}
	}
	if n > 0 {
		delete(s, oldest)
		t.count--
		t.metrics.evicted.Inc()
	}
}

// consider puts a client on the urgent list when its touch is due, and forgets
// activity that is agreed already. It reports whether the client is still held.
func (t *Toucher) consider(k table.Key, spec *state.Spec, r state.Affinity, now time.Time, cluster state.Time) bool {
	s := t.shard(k)
	h, ok := s[k]
	if !ok || h.urgent {
		return ok
	}
	switch judgeTouch(&spec.Settings, r, cluster, now.Sub(h.at), h.heard) {
	case touchStale:
		delete(s, k)
		t.count--
		return false
	case touchDue:
		if now.Sub(h.touched) < min(touchAgain, spec.Settings.TouchInterval) {
			break // the view does not show the last one yet
		}
		h.urgent = true
		t.urgent = append(t.urgent, k)
	}
	h.state, h.seen, h.heardAt = r.State, r.Seen, r.Heard
	s[k] = h
	return true
}

type touchVerdict uint8

const (
	touchLater touchVerdict = iota // hold it
	touchDue                       // propose it now
	touchStale                     // the agreement knows better already
)

// judgeTouch decides about activity of a record. It is pure. age is how old the
// newest packet is; cluster is this node's best guess of cluster time.
func judgeTouch(s *state.Settings, r state.Affinity, cluster state.Time, age time.Duration, heard bool) touchVerdict {
	at := cluster.Add(-age)
	if at <= r.Seen.Add(timeGrain) && !(heard && at > r.Heard.Add(timeGrain)) {
		return touchStale
	}
	if r.State != state.Confirmed {
		return touchLater // no touch extends it; ESP will confirm it
	}
	life := s.Lifetime(r.State)
	silent := cluster.Sub(r.Seen)
	if silent >= s.TouchInterval || silent >= life*3/4 {
		return touchDue
	}
	// The record ends at Heard + UnheardTimeout however often it is touched:
	// word from the server must arrive before.
	if unheard := cluster.Sub(r.Heard); heard && unheard >= s.UnheardTimeout*3/4 && silent > 0 {
		return touchDue
	}
	return touchLater
}

// Deleted takes the keys that the agreement removed, from its deltas. A record
// that expired although this node holds newer activity is proposed again; one
// that was removed for another reason is not.
func (t *Toucher) Deleted(keys []state.Key) {
	if len(keys) == 0 {
		return
	}
	view := t.deps.View()
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	cluster := t.clock.now(view.Spec(), now)
	for _, key := range keys {
		k := tableKey(key)
		if h, ok := t.shard(k)[k]; ok {
			t.gone(key, h, view.Spec(), cluster, now)
		}
	}
	t.metrics.held.Set(float64(t.count))
	poke(t.wake)
}

// gone decides about activity whose record is not there any more.
func (t *Toucher) gone(key state.Key, h held, spec *state.Spec, cluster state.Time, now time.Time) {
	t.drop(tableKey(key))
	if len(t.relearn) < MaxPending && again(&spec.Settings, h, cluster, now.Sub(h.at)) {
		t.relearn = append(t.relearn, state.Learned{Key: key, Backend: h.backend, State: state.Confirmed})
	}
}

func (t *Toucher) drop(k table.Key) {
	delete(t.shard(k), k)
	t.count--
}

// again reports whether a removed record should be proposed again: it had
// outlived its time, while activity known here alone would have kept it. An
// unconfirmed one never: no touch extends it, and a client's packets can be forged.
func again(s *state.Settings, h held, cluster state.Time, age time.Duration) bool {
	at := cluster.Add(-age)
	if h.state != state.Confirmed || at <= h.seen.Add(timeGrain) || age >= s.AffinityTimeout {
		return false
	}
	if cluster.Sub(h.heardAt)+timeGrain >= s.UnheardTimeout {
		return h.heard
	}
	return cluster.Sub(h.seen)+timeGrain >= s.AffinityTimeout
}

// Run proposes until ctx ends. It returns nil.
func (t *Toucher) Run(ctx context.Context) error {
	tick := time.NewTicker(touchTick)
	defer tick.Stop()
	next := 0
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			t.look(next)
			next = (next + 1) % touchShards
		case <-t.wake:
		}
		for t.proposeNext(ctx) {
		}
		if t.isFailing() && !pause(ctx, maxBackoff) {
			return nil
		}
	}
}

func (t *Toucher) isFailing() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.failing
}

// look considers all of one shard: activity of clients that fell silent, and of
// records that are gone although Deleted was not told: after a snapshot there are
// no deltas of what happened meanwhile.
func (t *Toucher) look(i int) {
	view := t.deps.View()
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	cluster := t.clock.now(view.Spec(), now)
	for k, h := range t.shards[i] {
		r, ok := view.Affinity(stateKey(k))
		if !ok {
			t.gone(stateKey(k), h, view.Spec(), cluster, now)
			continue
		}
		if r.Backend != h.backend {
			t.drop(k)
			continue
		}
		t.consider(k, view.Spec(), r, now, cluster)
	}
	t.metrics.held.Set(float64(t.count))
}

// proposeNext proposes one batch; false when there is none left or it failed.
func (t *Toucher) proposeNext(ctx context.Context) bool {
	touches, keys := t.takeTouches()
	relearn := t.takeRelearn()
	if len(touches) == 0 && len(relearn) == 0 {
		return false
	}
	var cmds []state.Command
	if len(touches) > 0 {
		cmds = append(cmds, state.Touch{Records: touches})
	}
	if len(relearn) > 0 {
		cmds = append(cmds, state.Learn{Records: relearn})
	}
	timed, cancel := context.WithTimeout(ctx, ProposeTimeout)
	defer cancel()
	outcomes, err := t.deps.Proposer.Propose(timed, cmds...)
	if err == nil && len(outcomes) != len(cmds) {
		err = fmt.Errorf("%d outcomes for %d commands", len(outcomes), len(cmds))
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.failing
	t.failing = err != nil
	if err != nil {
		t.metrics.failures.Inc()
		t.relearn = append(relearn, t.relearn...)
		t.putBack(keys)
		if !was {
			t.log.Warn("activity not proposed, will try again", "records", len(touches), "err", err)
		}
		return false
	}
	t.metrics.touched.Add(float64(len(touches)))
	t.metrics.relearned.Add(float64(len(relearn)))
	return true
}

// takeTouches builds a batch of what is due. The heard bit is cleared here and
// set again by putBack; activity that comes meanwhile stays held.
func (t *Toucher) takeTouches() (touches []state.Touched, keys []taken) {
	view := t.deps.View()
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(t.urgent) > 0 && len(touches) < MaxBatchTouch {
		k := t.urgent[0]
		t.urgent = t.urgent[1:]
		s := t.shard(k)
		h, ok := s[k]
		if !ok {
			continue
		}
		r, ok := view.Affinity(stateKey(k))
		if !ok || r.Backend != h.backend {
			h.urgent = false
			s[k] = h
			continue
		}
		touches = append(touches, state.Touched{
			Key: r.Key, Index: r.Index, Heard: h.heard, Age: uint32(max(now.Sub(h.at), 0) / time.Second),
		})
		keys = append(keys, taken{k, h.heard})
		h.urgent, h.heard, h.touched = false, false, now
		s[k] = h
	}
	if len(t.urgent) == 0 {
		t.urgent = nil
	}
	return touches, keys
}

// taken is a key under way, and whether its touch says "heard".
type taken struct {
	key   table.Key
	heard bool
}

// putBack makes a failed batch due again.
func (t *Toucher) putBack(keys []taken) {
	for _, k := range keys {
		s := t.shard(k.key)
		h, ok := s[k.key]
		if !ok {
			continue
		}
		h.heard = h.heard || k.heard
		if !h.urgent {
			h.urgent = true
			t.urgent = append(t.urgent, k.key)
		}
		h.touched = time.Time{}
		s[k.key] = h
	}
}

func (t *Toucher) takeRelearn() []state.Learned {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := min(len(t.relearn), MaxBatchTouch)
	batch := t.relearn[:n:n]
	t.relearn = t.relearn[n:]
	if len(t.relearn) == 0 {
		t.relearn = nil
	}
	return batch
}

// Held is the number of clients whose activity is not agreed yet.
func (t *Toucher) Held() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.count
}

// clusterClock guesses cluster time on any node: the last stamp applied here
// and the monotonic time since it was first seen. Ahead when no stamps come
// (nothing is agreed then), behind by the replication lag.
type clusterClock struct {
	stamp state.Time
	at    time.Time
}

func (c *clusterClock) now(s *state.Spec, now time.Time) state.Time {
	if s.Now != c.stamp || c.at.IsZero() {
		c.stamp, c.at = s.Now, now
	}
	return c.stamp.Add(now.Sub(c.at))
}
