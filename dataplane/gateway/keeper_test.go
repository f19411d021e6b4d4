package gateway

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// segment is a make-believe LAN: addresses answer with MACs.
type segment struct {
	mu        sync.Mutex
	own       [6]byte
	holders   map[netip.Addr][6]byte
	announced []time.Duration // of gw, since start
	started   time.Time
	answers   chan SegmentAnswer
	gateways  []netip.Addr
	vips      []netip.Addr
	inside    []netip.Prefix
	asked     map[netip.Addr][]time.Duration // since start
	broken    error
	mute      error // of Announce
}

func newSegment() *segment {
	return &segment{own: [6]byte{2, 1}, holders: map[netip.Addr][6]byte{}, asked: map[netip.Addr][]time.Duration{},
		inside: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, started: time.Now(), answers: make(chan SegmentAnswer, 16)}
}

func (s *segment) MAC() [6]byte                  { return s.own }
func (s *segment) Answers() <-chan SegmentAnswer { return s.answers }
func (s *segment) Run(ctx context.Context) error { <-ctx.Done(); return nil }
func (s *segment) Check() error                  { return nil }

func (s *segment) Announce(a netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mute != nil {
		return s.mute
	}
	s.announced = append(s.announced, time.Since(s.started))
	return nil
}

func (s *segment) Ask(a netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked[a] = append(s.asked[a], time.Since(s.started))
	if mac, ok := s.holders[a]; ok {
		s.answers <- SegmentAnswer{Addr: a, MAC: mac}
	}
	return nil
}

func (s *segment) Ours() (gateways, vips []netip.Addr, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.gateways), slices.Clone(s.vips), s.broken
}

func (s *segment) Inside() ([]netip.Prefix, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.inside), nil
}

func (s *segment) list(vip bool) *[]netip.Addr {
	if vip {
		return &s.vips
	}
	return &s.gateways
}

func (s *segment) Add(a netip.Addr, vip bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.list(vip)
	*l = append(*l, a)
	return nil
}

func (s *segment) Remove(a netip.Addr, vip bool) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	l := s.list(vip)
	*l = slices.DeleteFunc(*l, func(b netip.Addr) bool { return a == b })
	return nil
}

func (s *segment) set(a netip.Addr, mac [6]byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.holders[a] = mac
}

func (s *segment) said() []time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.announced)
}

// world is a Keeper with its surroundings in a synctest bubble.
type world struct {
	*segment
	mu     sync.Mutex
	agreed Agreement
	leader bool
	stall  chan struct{} // not nil: the Keeper stands still until it is closed
	keeper *Keeper
}

func (w *world) agreement() Agreement {
	w.mu.Lock()
	stall := w.stall
	w.mu.Unlock()
	if stall != nil {
		<-stall
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	a := w.agreed
	if w.leader {
		w.agreed.LeaderHeard = time.Now()
		a.LeaderHeard = w.agreed.LeaderHeard
	}
	return a
}

func (w *world) change(f func(w *world)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w)
}

func (w *world) step() Step { return w.keeper.Status().Plan.Gateways[0] }

var peerAddr = netip.MustParseAddr("198.51.100.2")

func start(t *testing.T, ctx context.Context, owner state.NodeID) *world {
	t.Helper()
	w := &world{segment: newSegment(), leader: true, agreed: Agreement{CaughtUp: true,
		Gateways: []state.Gateway{{ID: 1, Addr: gw, Owner: owner}}, VIPs: []netip.Addr{vip},
		Peers: []Peer{{ID: other, Addrs: []netip.Addr{peerAddr}, Live: true}}}}
	var err error
	w.keeper, err = New(Config{Self: self, Inside: "eth1"}, Deps{Agreement: w.agreement, Log: slog.New(slog.DiscardHandler),
		Addresses: w.segment, Segment: w.segment})
	if err != nil {
		t.Fatal(err)
	}
	w.set(peerAddr, [6]byte{2, 2})
	go w.keeper.Run(ctx)
	return w
}

func bubble(t *testing.T, f func(t *testing.T, ctx context.Context)) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		defer func() { cancel(); synctest.Wait() }()
		f(t, ctx)
	})
}

func (w *world) wants(t *testing.T, held bool, reason Reason) {
	t.Helper()
	synctest.Wait()
	if s := w.step(); s.Reason != reason {
		t.Errorf("reason %v, want %v (%+v)", s.Reason, reason, s)
	}
	if g, _, _ := w.Ours(); slices.Contains(g, gw) != held {
		t.Errorf("held %v, want %v", g, held)
	}
}

func TestOwnerTakesAndAnnounces(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		time.Sleep(25 * time.Second)
		w.wants(t, true, Owner)
		if _, vips, _ := w.Ours(); !slices.Contains(vips, vip) {
			t.Error("the vip is not on lo")
		}
		said := w.said()
		if len(said) != 6 {
			t.Fatalf("announced at %v", said)
		}
		for i, after := range []time.Duration{0, 200 * time.Millisecond, time.Second, 3 * time.Second, 13 * time.Second, 23 * time.Second} {
			if got := said[i] - said[0]; got != after {
				t.Errorf("announcement %d after %v, want %v", i, got, after)
			}
		}
		if said[0] > time.Second {
			t.Errorf("the first announcement comes after %v", said[0])
		}
	})
}

func TestOwnerTakesFromAMember(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		w.set(gw, [6]byte{2, 2}) // the old owner's kernel still answers
		time.Sleep(2 * time.Second)
		w.wants(t, true, Owner)
	})
}

func TestStrangerIsLeftAlone(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		w.set(gw, [6]byte{2, 0xee})
		time.Sleep(10 * time.Second)
		w.wants(t, false, ForeignMAC)
		if !w.step().Alarm || len(w.said()) != 0 {
			t.Errorf("alarm %v, announced %v", w.step().Alarm, w.said())
		}
	})
}

// The same decision for IPv6, whose members are known by either family.
func TestStrangerIsLeftAlone6(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		w.change(func(w *world) { w.agreed.Gateways = []state.Gateway{{ID: 1, Addr: gw6, Owner: self}} })
		w.set(gw6, [6]byte{2, 0xee})
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if s := w.step(); s.Reason != ForeignMAC || s.Hold || !s.Alarm || len(w.said()) != 0 {
			t.Errorf("a stranger has it: %+v, announced %v", s, w.said())
		}
		w.set(gw6, [6]byte{2, 2})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if s := w.step(); s.Reason != Owner || !s.Hold || s.Alarm || len(w.said()) == 0 {
			t.Errorf("a member has it: %+v, announced %v", s, w.said())
		}
	})
}

func TestLeaderlessClaimAndHealing(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, other)
		w.set(gw, [6]byte{2, 2})
		time.Sleep(5 * time.Second)
		w.wants(t, false, OwnerElsewhere)
		w.change(func(w *world) { w.leader = false }) // leader and owner die together
		w.mu.Lock()
		delete(w.holders, gw)
		delete(w.holders, peerAddr)
		w.agreed.Peers[0].Live = false
		w.mu.Unlock()
		time.Sleep(1300 * time.Millisecond) // the lease is out, ClaimAfter is not
		w.wants(t, false, NotFirst)
		time.Sleep(1200 * time.Millisecond)
		w.wants(t, true, ClaimedNoLeader)
		if len(w.said()) == 0 {
			t.Error("a claim was not announced")
		}
		w.change(func(w *world) { w.leader = true }) // the log still says it is the other's
		time.Sleep(200 * time.Millisecond)
		w.wants(t, false, OwnerElsewhere)
	})
}

func TestRestartedKeeperIsSilent(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := &world{segment: newSegment(), leader: true, agreed: Agreement{Gateways: []state.Gateway{{ID: 1, Addr: gw, Owner: other}}}}
		stray := netip.MustParseAddr("198.51.100.253")
		w.gateways = []netip.Addr{gw, stray}
		w.keeper, _ = New(Config{Self: self, Inside: "eth1"}, Deps{Agreement: w.agreement, Log: slog.New(slog.DiscardHandler), Addresses: w.segment, Segment: w.segment})
		go w.keeper.Run(ctx)
		time.Sleep(20 * time.Second)
		w.wants(t, true, CatchingUp)
		w.change(func(w *world) { w.agreed.CaughtUp = true })
		time.Sleep(200 * time.Millisecond)
		w.wants(t, false, OwnerElsewhere)
		if g, _, _ := w.Ours(); len(g) != 0 {
			t.Errorf("left over: %v", g)
		}
		if len(w.said()) != 0 {
			t.Errorf("announced at %v", w.said())
		}
	})
}

func TestStandstillSilences(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		time.Sleep(4 * time.Second)
		w.wants(t, true, Owner)
		before := len(w.said())
		w.change(func(w *world) { w.leader = false })
		synctest.Wait()
		stall := make(chan struct{}) // a stopped process: its next step comes long after the last one
		w.change(func(w *world) { w.stall = stall })
		time.Sleep(30 * time.Second)
		w.change(func(w *world) { w.stall = nil })
		close(stall)
		time.Sleep(20 * time.Second)
		w.wants(t, true, SuspendedGap)
		if got := len(w.said()); got != before {
			t.Errorf("announced %d times after the standstill", got-before)
		}
		w.change(func(w *world) { w.leader = true })
		time.Sleep(200 * time.Millisecond)
		w.wants(t, true, Owner)
		if len(w.said()) == before {
			t.Error("not announced again when a leader spoke")
		}
	})
}

func TestInterfaceTrouble(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		w.segment.mu.Lock()
		w.broken = errors.New("no such device")
		w.segment.mu.Unlock()
		time.Sleep(time.Second)
		if s := w.keeper.Status(); s.Err == "" {
			t.Error("the trouble is not in the status")
		}
		w.segment.mu.Lock()
		w.broken = nil
		w.segment.mu.Unlock()
		time.Sleep(time.Second)
		w.wants(t, true, Owner)
	})
}

func TestNewRefuses(t *testing.T) {
	if _, err := New(Config{}, Deps{}); err == nil {
		t.Error("New took nothing")
	}
}

// The kernel drops IPv6 addresses when a link goes down; an administrator may
// take any away. They are put back, and announced as new ones.
func TestLostAddressIsAnnouncedAnew(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		time.Sleep(5 * time.Second)
		w.wants(t, true, Owner)
		before := len(w.said())
		w.Remove(gw, false)
		time.Sleep(4 * time.Second)
		w.wants(t, true, Owner)
		if n := len(w.said()) - before; n != len(burst) {
			t.Errorf("announced %d times after the loss, want %d", n, len(burst))
		}
	})
}

// An announcement that could not be sent stays due.
func TestAnnouncementIsTriedAgain(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context) {
		w := start(t, ctx, self)
		w.segment.mu.Lock()
		w.mute = errNoLinkLocal
		w.segment.mu.Unlock()
		time.Sleep(5 * time.Second)
		w.wants(t, true, Owner)
		if s := w.keeper.Status(); s.Err == "" {
			t.Error("the trouble is not in the status")
		}
		w.segment.mu.Lock()
		w.mute = nil
		w.segment.mu.Unlock()
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(w.said()); n != len(burst) {
			t.Errorf("announced %d times, want %d", n, len(burst))
		}
	})
}
