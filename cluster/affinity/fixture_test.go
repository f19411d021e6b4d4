package affinity

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// agreement is a cluster of one: a real Machine behind a Proposer that can
// fail, be slow, and lag in its view. Use inside a bubble.
type agreement struct {
	t       testing.TB
	mu      sync.Mutex
	m       *state.Machine
	index   uint64
	seq     uint64
	start   time.Time
	delay   time.Duration
	fails   bool
	calls   []call
	deltas  []state.Delta
	lagging *state.View // what View gives instead of the present one
	onDelta func(state.Delta)
}

type call struct {
	at       time.Time
	commands []state.Command
}

var errNoLeader = errors.New("no leader")

func newAgreement(t testing.TB) *agreement {
	a := &agreement{t: t, m: state.NewMachine(), start: time.Now()}
	vip := netip.MustParseAddr("203.0.113.10")
	a.must(state.Init{ClusterID: state.ClusterID{1}, HashKey: [16]byte{2}, TableSize: 251, Settings: state.DefaultSettings(),
		First: state.Member{ID: state.NodeID{1}, Name: "n1", Role: state.RoleNode, Cluster: "198.51.100.1:7950",
			Gossip: "198.51.100.1:7946", Addrs: []netip.Addr{netip.MustParseAddr("198.51.100.1")}, PublicKey: make([]byte, 32), Format: 1},
		Secrets: []state.Secret{{Name: state.SecretCA, Sealed: []byte("ca")}, {Name: state.SecretGossip, Sealed: []byte("keys")}}})
	a.must(state.PutVIP{VIP: state.VIP{Name: "vpn", Addr: vip, ClientBits: 64}})
	for i := range 3 {
		a.must(state.PutBackend{Backend: state.Backend{VIP: 1, Name: string(rune('a' + i)),
			Addr: netip.AddrFrom4([4]byte{198, 18, 0, byte(i + 1)}), Weight: 100, Admin: state.AdminEnabled}})
		a.verdict(state.BackendID(i+1), state.VerdictUp)
	}
	a.calls = nil
	return a
}

func (a *agreement) verdict(id state.BackendID, v state.Verdict) {
	b, ok := a.View().Spec().BackendByID(id)
	if !ok {
		a.t.Fatalf("no backend %d", id)
	}
	a.must(state.SetHealth{Backend: id, Class: state.ClassIKE, Verdict: v, Previous: b.Health[0].Index})
}

func (a *agreement) must(c state.Command) {
	a.t.Helper()
	if o := a.apply(c); o[0].Code != state.OK {
		a.t.Fatalf("%T: %+v", c, o[0])
	}
}

func (a *agreement) now() state.Time { return state.Time(time.Since(a.start)) }

func (a *agreement) apply(cmds ...state.Command) []state.Outcome {
	a.t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	b := state.Batch{Stamp: a.now()}
	for _, c := range cmds {
		a.seq++
		b.Envelopes = append(b.Envelopes, state.Envelope{Origin: state.NodeID{1}, Boot: 1, Sequence: a.seq, Command: c})
	}
	a.index++
	applied, err := a.m.Apply(a.index, state.EncodeBatch(b))
	if err != nil {
		a.t.Fatalf("apply: %v", err)
	}
	a.deltas = append(a.deltas, applied.Delta)
	if a.onDelta != nil {
		go a.onDelta(applied.Delta)
	}
	return applied.Outcomes
}

// Propose implements Proposer.
func (a *agreement) Propose(ctx context.Context, cmds ...state.Command) ([]state.Outcome, error) {
	a.mu.Lock()
	fails, delay := a.fails, a.delay
	a.calls = append(a.calls, call{time.Now(), cmds})
	a.mu.Unlock()
	if !pause(ctx, delay+time.Microsecond) {
		return nil, ctx.Err()
	}
	if fails {
		return nil, errNoLeader
	}
	return a.apply(cmds...), nil
}

func (a *agreement) set(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
}

// View gives the present view, or a stale one.
func (a *agreement) View() *state.View {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.lagging != nil {
		return a.lagging
	}
	return a.m.View()
}

// commandsOf lists all proposed commands of a type, failed ones included.
func commandsOf[T state.Command](a *agreement) (all []T) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, c := range a.calls {
		for _, cmd := range c.commands {
			if x, ok := cmd.(T); ok {
				all = append(all, x)
			}
		}
	}
	return all
}

func client(i int) state.Client {
	return state.ClientOf(netip.AddrFrom4([4]byte{192, 0, 2 + byte(i>>8), byte(i)}), 64)
}

func key(i int) table.Key { return table.Key{Client: [16]byte(client(i)), Class: table.IKE} }

func (a *agreement) record(i int) (state.Affinity, bool) {
	return a.View().Affinity(state.Key{Client: client(i), Class: state.ClassIKE})
}

func (a *agreement) holds(i int, want state.BackendID) {
	a.t.Helper()
	if r, ok := a.record(i); r.Backend != want || ok != (want != 0) {
		a.t.Errorf("client %d is at backend %d, want %d", i, r.Backend, want)
	}
}

// bubble runs body in virtual time beside the Run of something.
func bubble(t *testing.T, body func(ctx context.Context, a *agreement, run func(func(context.Context) error))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		body(ctx, newAgreement(t), func(r func(context.Context) error) {
			wg.Go(func() {
				if err := r(ctx); err != nil {
					t.Errorf("run: %v", err)
				}
			})
		})
		cancel()
		wg.Wait()
	})
}

// answers collects what the plane was told.
type answers struct {
	mu  sync.Mutex
	got map[table.Key][]table.Answer
}

func (a *answers) take(e table.Evidence, answer table.Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.got == nil {
		a.got = map[table.Key][]table.Answer{}
	}
	a.got[e.Key] = append(a.got[e.Key], answer)
}

func (a *answers) of(i int) []table.Answer {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.got[key(i)])
}

func (a *answers) len() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.got)
}
