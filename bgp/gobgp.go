package bgp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	"github.com/osrg/gobgp/v3/pkg/server"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/bgp/screen"
)

// Errors of the speaker.
var (
	ErrStopped = errors.New("speaker is stopped")
	// ErrSocketOption: MD5 or TTL protection could not be set up. A session
	// without it would be open to anybody, or never come up: fatal.
	ErrSocketOption = screen.ErrSocketOption
)

const (
	// stopBound is how long Run waits for the withdrawals when nobody called
	// Stop before.
	stopBound = 2 * time.Second
	// flushPoll is how often Stop looks whether the withdrawals were written.
	flushPoll = 10 * time.Millisecond
	// flushSettle separates the written withdrawal from the Cease, so that
	// it is read even if the close turns into a reset.
	flushSettle = 50 * time.Millisecond
)

// Deps are the injected services. Log may be nil (discard), Metrics too (none).
type Deps struct {
	Log     *slog.Logger
	Metrics prometheus.Registerer
}

func (d Deps) logger() *slog.Logger {
	if d.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return d.Log
}

// GoBGP is the Speaker on the gobgp library. One per process is meant: the
// library keeps a goroutine after Stop.
type GoBGP struct {
	cfg    Config
	log    *slog.Logger
	bridge *logBridge
	met    *speakerMetrics

	mu      sync.Mutex
	srv     *server.BgpServer     // nil before Run
	screen  *screen.Screen        // set with srv: the sessions with the routers
	desired map[netip.Addr]Action // what Set asked for last
	applied map[netip.Addr]Action // what the library holds
	stopped bool
	closed  chan struct{} // closed once Stop is through
}

// NewGoBGP validates the configuration; it opens nothing.
func NewGoBGP(cfg Config, deps Deps) (*GoBGP, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("bgp configuration: %w", err)
	}
	met, err := newSpeakerMetrics(deps.Metrics)
	if err != nil {
		return nil, err
	}
	return &GoBGP{
		cfg: cfg.withDefaults(), log: deps.logger(), bridge: newLogBridge(deps.logger()), met: met,
		desired: make(map[netip.Addr]Action), applied: make(map[netip.Addr]Action),
		closed: make(chan struct{}),
	}, nil
}

// Run starts the sessions and blocks until ctx ends (nil, after Stop with a
// short bound if it has not been called) or the protection of a session cannot
// be set up (ErrSocketOption) or the library fails (ErrLibrary).
func (s *GoBGP) Run(ctx context.Context) error {
	if err := s.start(ctx); err != nil {
		return err
	}
	var failure error
	select {
	case <-ctx.Done():
	case <-s.closed:
		return nil
	case failure = <-s.bridge.fatal:
	case failure = <-s.screen.Fatal():
	}
	bound, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopBound)
	defer cancel()
	if err := s.Stop(bound); err != nil && failure == nil && !errors.Is(err, ErrStopped) {
		s.log.Warn("bgp stop incomplete", "error", err)
	}
	return failure
}

func (s *GoBGP) start(ctx context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return ErrStopped
	}
	if s.srv != nil {
		return errors.New("speaker runs already")
	}
	base := context.WithoutCancel(ctx)
	scr, err := screen.Listen(base, s.cfg.outer(), screen.Deps{Log: s.log, Renew: s.renew, Changed: s.onChange})
	if err != nil {
		return err
	}
	s.bridge.name(s.cfg.Neighbours, scr)
	srv := server.NewBgpServer(server.LoggerOption(s.bridge))
	go srv.Serve()
	if err := srv.StartBgp(base, &api.StartBgpRequest{Global: &api.Global{
		Asn: s.cfg.ASN, RouterId: s.cfg.RouterID.String(), ListenPort: -1,
	}}); err != nil {
		scr.Close(base)
		return fmt.Errorf("start bgp: %w", err)
	}
	if err := installPolicies(base, srv, &s.cfg, scr); err != nil {
		scr.Close(base)
		return errors.Join(err, srv.StopBgp(base, &api.StopBgpRequest{}))
	}
	s.srv, s.screen = srv, scr
	// Routes first: the first UPDATE of a session then carries everything.
	if err := s.applyLocked(base); err != nil {
		return err
	}
	scr.Start(base)
	return nil
}

// outer is the screen's part of the configuration.
func (c *Config) outer() screen.Config {
	out := screen.Config{ASN: c.ASN, RouterID: c.RouterID, ListenPort: c.ListenPort, ListenAddresses: c.ListenAddresses}
	for i := range c.Neighbours {
		n := &c.Neighbours[i]
		out.Neighbours = append(out.Neighbours, screen.Neighbour{
			Address: n.Address, LocalAddress: n.LocalAddress, NextHop6: c.nextHop6(n), ASN: n.ASN, Port: n.Port,
			HoldTime: n.HoldTime, ConnectRetry: n.ConnectRetry, Passive: n.Passive,
			TTLSecurity: n.TTLSecurity, Password: n.Password, MultihopTTL: n.MultihopTTL,
		})
	}
	return out
}

// renew implements screen.Deps: the peer of one neighbour begins anew.
func (s *GoBGP) renew(i int) error {
	s.mu.Lock()
	srv, in, stopped := s.srv, s.screen.Inner(i), s.stopped
	s.mu.Unlock()
	if stopped {
		return ErrStopped
	}
	ctx := context.Background()
	// It fails where there is no such peer yet.
	_ = srv.DeletePeer(ctx, &api.DeletePeerRequest{Address: in.Router.Addr().String()})
	return srv.AddPeer(ctx, &api.AddPeerRequest{Peer: s.peerOf(&s.cfg.Neighbours[i], in)})
}

// peerOf translates one neighbour into the peer that the library dials: the
// screen. Graceful restart is left off: with it a router keeps a dead node in its
// multipath set for the restart time.
func (s *GoBGP) peerOf(n *Neighbour, in screen.Inner) *api.Peer {
	hold := uint64(n.HoldTime / time.Second)
	p := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: in.Router.Addr().String(), PeerAsn: n.ASN, AuthPassword: in.Key},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: 1,
			HoldTime:     hold, KeepaliveInterval: max(1, hold/3), // RFC 4271 10
		}},
		Transport: &api.Transport{RemotePort: uint32(in.Router.Port()), LocalAddress: in.Local.String()},
	}
	for _, f := range s.cfg.families(n) {
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{Config: &api.AfiSafiConfig{Family: f, Enabled: true}})
	}
	return p
}

// Set implements Speaker.
func (s *GoBGP) Set(ctx context.Context, ads []Advertisement) error {
	want := make(map[netip.Addr]Action, len(ads))
	for _, ad := range ads {
		if !ad.VIP.IsValid() || ad.VIP.Is4In6() || ad.Action == Withdraw || ad.Action >= actionCount {
			return fmt.Errorf("advertise %s as %s: not an advertisement", ad.VIP, ad.Action)
		}
		want[ad.VIP] = ad.Action
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return ErrStopped
	}
	s.desired = want
	if s.srv == nil {
		return nil
	}
	return s.applyLocked(ctx)
}

// applyLocked mends the difference between desired and applied: what becomes
// less attractive first, so that at no moment more is offered than wanted.
func (s *GoBGP) applyLocked(ctx context.Context) error {
	var todo []Advertisement
	for vip, have := range s.applied {
		if want := s.desired[vip]; want < have {
			todo = append(todo, Advertisement{VIP: vip, Action: want})
		}
	}
	lower := len(todo)
	for vip, want := range s.desired {
		if want > s.applied[vip] {
			todo = append(todo, Advertisement{VIP: vip, Action: want})
		}
	}
	byAddress := func(a, b Advertisement) int { return a.VIP.Compare(b.VIP) }
	slices.SortFunc(todo[:lower], byAddress)
	slices.SortFunc(todo[lower:], byAddress)
	for _, ad := range todo {
		if err := s.applyOne(ctx, ad); err != nil {
			return err
		}
	}
	return nil
}

func (s *GoBGP) applyOne(ctx context.Context, ad Advertisement) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("advertise %s: %w", ad.VIP, err)
	}
	path, err := pathOf(ad)
	if err != nil {
		return err
	}
	if ad.Action == Withdraw {
		if err := s.srv.DeletePath(ctx, &api.DeletePathRequest{TableType: api.TableType_GLOBAL, Path: path}); err != nil {
			return fmt.Errorf("withdraw %s: %w", ad.VIP, err)
		}
		delete(s.applied, ad.VIP)
		return nil
	}
	if _, err := s.srv.AddPath(ctx, &api.AddPathRequest{TableType: api.TableType_GLOBAL, Path: path}); err != nil {
		return fmt.Errorf("advertise %s as %s: %w", ad.VIP, ad.Action, err)
	}
	s.applied[ad.VIP] = ad.Action
	return nil
}

// onChange implements screen.Deps.
func (s *GoBGP) onChange(i int, up bool, cause string) {
	a := s.cfg.Neighbours[i].Address
	s.met.session(a, up)
	if up {
		s.log.Info("bgp session established", "neighbour", a)
		return
	}
	s.log.Warn("bgp session lost", "neighbour", a, "cause", cause)
}

// Neighbours implements Speaker.
func (s *GoBGP) Neighbours() []NeighbourStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.neighboursLocked()
}

func (s *GoBGP) neighboursLocked() []NeighbourStatus {
	out := make([]NeighbourStatus, len(s.cfg.Neighbours))
	for i, n := range s.cfg.Neighbours {
		out[i] = NeighbourStatus{Address: n.Address, ASN: n.ASN, State: "idle"}
	}
	if s.screen == nil || s.stopped {
		return out
	}
	for i, st := range s.screen.Status() {
		s.fill(&out[i], &st)
		s.met.screened(&out[i])
	}
	return out
}

func (s *GoBGP) fill(n *NeighbourStatus, st *screen.Status) {
	n.State, n.Since, n.Sent, n.Error = st.State, st.Since, st.Sent, st.Error
	n.Established = n.State == stateEstablished
	n.RouterHold, n.Dropped, n.Refused, n.LastRefusal = st.RouterHold, st.Dropped, st.Refused, st.LastRefusal
	n.EverUp, n.HoldExpired = st.EverUp, st.HoldExpired
	if !n.Established {
		n.Out = time.Since(st.OutSince)
		return
	}
	n.Uptime, n.LocalAddr, n.Hold = time.Since(n.Since), st.Local, st.Hold
	for _, f := range st.Families {
		name := familyName(&api.Family{Afi: api.Family_Afi(f.AFI), Safi: api.Family_Safi(f.SAFI)})
		n.Families = append(n.Families, name)
		for vip := range s.applied {
			if familyName(familyOf(vip)) == name {
				n.Advertised++
			}
		}
	}
}

// Stop implements Speaker. The order: no more Set and no new sessions;
// everything is withdrawn; the withdrawals are waited for on every session
// that had a route; only then the sessions close with a Cease. A Cease alone
// would do on most routers, but a router with graceful restart helper mode may
// keep the routes of a session that merely ended.
func (s *GoBGP) Stop(ctx context.Context) error {
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		select {
		case <-s.closed:
		case <-ctx.Done():
		}
		return ErrStopped
	}
	defer close(s.closed)
	before := s.neighboursLocked()
	s.stopped = true
	srv := s.srv
	if srv == nil {
		s.mu.Unlock()
		return nil
	}
	scr := s.screen
	scr.Quit()
	s.desired = map[netip.Addr]Action{}
	err := s.applyLocked(context.WithoutCancel(ctx))
	s.mu.Unlock()

	err = errors.Join(err, awaitFlush(ctx, scr, before))
	for _, n := range s.cfg.Neighbours {
		s.met.session(n.Address, false)
	}
	done := make(chan error, 1)
	go func() {
		err := srv.StopBgp(context.WithoutCancel(ctx), &api.StopBgpRequest{})
		scr.Close(ctx) // once the library's Cease has been passed on
		done <- err
	}()
	select {
	case e := <-done:
		return errors.Join(err, e)
	case <-ctx.Done():
		// The withdrawals had their chance; the rest is up to the kernel,
		// which closes the connections with the process.
		return errors.Join(err, fmt.Errorf("close sessions: %w", ctx.Err()))
	}
}

// awaitFlush waits until every session that held routes has had one more UPDATE
// written to its router than before, or is gone.
func awaitFlush(ctx context.Context, scr *screen.Screen, before []NeighbourStatus) error {
	waiting := make(map[int]uint64, len(before))
	for i, n := range before {
		if n.Established && n.Advertised > 0 {
			waiting[i] = n.Sent
		}
	}
	if len(waiting) == 0 {
		return nil
	}
	tick := time.NewTicker(flushPoll)
	defer tick.Stop()
	for len(waiting) > 0 {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the withdrawals to %d neighbours: %w", len(waiting), ctx.Err())
		case <-tick.C:
		}
		for i, st := range scr.Status() {
			if sent, ok := waiting[i]; ok && (st.State != stateEstablished || st.Sent > sent) {
				delete(waiting, i)
			}
		}
	}
	settle := time.NewTimer(flushSettle)
	defer settle.Stop()
	select {
	case <-ctx.Done():
	case <-settle.C:
	}
	return nil
}

const stateEstablished = "established"
