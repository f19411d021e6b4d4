package gateway

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Config of a Keeper.
type Config struct {
	Self   state.NodeID
	Inside string // interface of the servers' segment; holds the gateway addresses
	// Lease is how long a leader's word holds. Too low: a busy leader makes every
	// node silent. Too high: a stopped process announces what it lost. 1 s if 0.
	Lease time.Duration
}

const defaultLease = time.Second

// pace is how often the Keeper looks.
const pace = 100 * time.Millisecond

// Deps of a Keeper.
type Deps struct {
	// Agreement is asked at every step, ten times a second; it must not block.
	Agreement func() Agreement
	Log       *slog.Logger // nil: the default
	Addresses Addresses    // nil: the kernel's, opened by Run
	Segment   Segment      // nil: ARP and Neighbour Discovery on the inside interface, opened by Run
}

// Addresses puts addresses on interfaces and takes them away.
type Addresses interface {
	// Ours lists the addresses that a Keeper put there, this one or one before.
	Ours() (gateways, vips []netip.Addr, err error)
	// Inside lists the subnets of the inside interface.
	Inside() ([]netip.Prefix, error)
	Add(addr netip.Addr, vip bool) error
	Remove(addr netip.Addr, vip bool) error
}

// Segment speaks to the inside segment.
type Segment interface {
	MAC() [6]byte
	Announce(netip.Addr) error // says that the address is here
	Ask(netip.Addr) error      // asks who has it
	Answers() <-chan SegmentAnswer
	Run(context.Context) error // reads answers until ctx ends
	// Check says whether the segment is still the one that was opened: an
	// interface that was made again, or has another MAC, needs a new one.
	Check() error
}

// SegmentAnswer is one answer on the segment.
type SegmentAnswer struct {
	Addr netip.Addr
	MAC  [6]byte
}

// Status of a Keeper. It is not changed once given out.
type Status struct {
	CaughtUp  bool
	Confirmed bool
	Facts     Facts // what the plan was made from
	Plan      Plan
	Err       string // of the last step's mending, empty if it worked
}

// Keeper holds the addresses. Make it with New, then Run.
type Keeper struct {
	cfg    Config
	deps   Deps
	kick   chan struct{}
	status atomic.Pointer[Status]

	// The rest is Run's alone.
	addresses Addresses
	segment   Segment
	inside    []netip.Prefix // subnets of the inside interface
	watch     *segmentWatch
	credit    float64 // questions that may be asked now
	announced map[netip.Addr]*announcement
	claimed   map[netip.Addr]bool
	reasons   map[netip.Addr]Reason // as logged last
	started   time.Time
	confirmed time.Time // last moment with a leader's word
	last      time.Time // last step
	suspended time.Time // end of the last standstill; zero: none since a leader spoke
}

// New checks and allocates; it does no I/O.
func New(cfg Config, deps Deps) (*Keeper, error) {
	var errs []error
	if cfg.Self.IsZero() {
		errs = append(errs, errors.New("gateway keeper needs the node's ID"))
	}
	if cfg.Inside == "" {
		errs = append(errs, errors.New("gateway keeper needs an inside interface"))
	}
	if deps.Agreement == nil {
		errs = append(errs, errors.New("gateway keeper needs the agreement"))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if cfg.Lease == 0 {
		cfg.Lease = defaultLease
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	k := &Keeper{cfg: cfg, deps: deps, kick: make(chan struct{}, 1), watch: newSegmentWatch(),
		announced: map[netip.Addr]*announcement{}, claimed: map[netip.Addr]bool{}, reasons: map[netip.Addr]Reason{}}
	k.status.Store(&Status{})
	return k, nil
}

// Run keeps the addresses until ctx ends, and leaves them in place then: what is
// pinned forwards on, and until the log has given them to another node, or the
// daemon is back, the servers have no other gateway. A node that leaves hands
// them over before. It returns nil when ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	done, err := k.open()
	if err != nil {
		return fmt.Errorf("keep gateways: %w", err)
	}
	defer done()
	ctx, cancel := context.WithCancel(ctx)
	reading := make(chan error, 1)
	go func() { reading <- k.segment.Run(ctx) }()
	defer func() { cancel(); <-reading }()
	k.started = time.Now()
	k.last = k.started
	tick := time.NewTicker(pace)
	defer tick.Stop()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-reading:
			reading <- err // for the deferred wait
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("read the segment: %w", err)
		case a := <-k.segment.Answers():
			k.watch.heard(a, time.Now())
			continue
		case <-look.C:
			if err := k.segment.Check(); err != nil {
				return fmt.Errorf("keep gateways: %w", err)
			}
			continue
		case <-tick.C:
		case <-k.kick:
		}
		k.step(time.Now())
	}
}

// open opens what was not injected, anew for each Run: a socket that ended, or
// whose interface was made again, is of no more use.
func (k *Keeper) open() (done func(), err error) {
	done = func() {}
	k.addresses, k.segment = k.deps.Addresses, k.deps.Segment
	if k.addresses == nil {
		a, err := OpenAddresses(k.cfg.Inside)
		if err != nil {
			return nil, err
		}
		k.addresses, done = a, a.Close
	}
	if k.segment == nil {
		s, err := OpenLAN(k.cfg.Inside)
		if err != nil {
			done()
			return nil, err
		}
		k.segment = s
		addresses := done
		done = func() { s.Close(); addresses() }
	}
	// What was said, asked and heard before was on another segment.
	clear(k.announced)
	k.watch, k.credit = newSegmentWatch(), questionBurst
	k.watch.own = k.segment.MAC()
	return done, nil
}

// Kick makes the Keeper decide at once instead of at its next step.
func (k *Keeper) Kick() {
	select {
	case k.kick <- struct{}{}:
	default:
	}
}

// Status is safe from any goroutine.
func (k *Keeper) Status() Status { return *k.status.Load() }

// step compares what should be with what is, and mends it.
func (k *Keeper) step(now time.Time) {
	a := k.deps.Agreement()
	gateways, vips, err := k.addresses.Ours()
	if err == nil {
		err = k.lookInside()
	}
	if err != nil { // nothing is known of the interface: change nothing
		k.status.Store(&Status{CaughtUp: a.CaughtUp, Err: err.Error(), Facts: k.Status().Facts, Plan: k.Status().Plan})
		k.last = now
		return
	}
	f := k.facts(&a, gateways, vips, now)
	plan := Decide(f)
	err = k.mend(plan, gateways, vips, now)
	k.ask(&a, &f, now)
	s := &Status{CaughtUp: f.CaughtUp, Confirmed: f.Confirmed, Facts: f, Plan: plan}
	if err != nil {
		s.Err = err.Error()
	}
	if before := k.Status().Err; s.Err != before && s.Err != "" {
		k.deps.Log.Error("gateway addresses not as they should be", "err", err)
	}
	k.status.Store(s)
	k.last = now
}

// lookInside notices another subnet: questions that are open went out from the
// old one, and prove nothing.
func (k *Keeper) lookInside() error {
	inside, err := k.addresses.Inside()
	if err != nil {
		return err
	}
	slices.SortFunc(inside, netip.Prefix.Compare)
	if inside = slices.Compact(inside); !slices.Equal(inside, k.inside) {
		k.inside = inside
		k.watch.forgetOpen()
	}
	return nil
}

// mend puts the plan into effect. Additions come first: two owners are harmless.
func (k *Keeper) mend(p Plan, gateways, vips []netip.Addr, now time.Time) error {
	errs := k.mendKind(p.VIPs, vips, true)
	errs = append(errs, k.mendKind(p.Gateways, gateways, false)...)
	for _, s := range p.Gateways {
		if k.reasons[s.Addr] != s.Reason {
			k.reasons[s.Addr] = s.Reason
			k.deps.Log.Info("gateway", "addr", s.Addr, "hold", s.Hold, "announce", s.Announce, "reason", s.Reason.String(), "alarm", s.Alarm)
		}
		k.claimed[s.Addr] = s.Claimed
		if !s.Announce {
			delete(k.announced, s.Addr)
			continue
		}
		said := k.announced[s.Addr]
		held := slices.Contains(gateways, s.Addr)
		if said == nil || said.held && !held { // new here, or somebody took it away and it is put back
			said = &announcement{since: now}
			k.announced[s.Addr] = said
		}
		said.held = held
		if said.due(now) {
			if err := k.segment.Announce(s.Addr); err != nil {
				errs = append(errs, err) // due again at the next step
				continue
			}
			said.said(now)
		}
	}
	k.forgetRemoved(p)
	return errors.Join(errs...)
}

func (k *Keeper) mendKind(steps []Step, held []netip.Addr, vip bool) []error {
	has := make(map[netip.Addr]bool, len(held))
	for _, a := range held {
		has[a] = true
	}
	var errs []error
	for _, s := range steps {
		if s.Hold && !has[s.Addr] {
			errs = append(errs, k.addresses.Add(s.Addr, vip))
		}
	}
	for _, s := range steps {
		if !s.Hold && has[s.Addr] {
			errs = append(errs, k.addresses.Remove(s.Addr, vip))
		}
	}
	return errs
}

// forgetRemoved keeps the maps as small as the plan.
func (k *Keeper) forgetRemoved(p Plan) {
	named := make(map[netip.Addr]bool, len(p.Gateways))
	for _, s := range p.Gateways {
		named[s.Addr] = true
	}
	for a := range k.reasons {
		if !named[a] {
			delete(k.reasons, a)
			delete(k.claimed, a)
			delete(k.announced, a)
		}
	}
}
