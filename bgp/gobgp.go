package bgp

import (
	"cmp"
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
)

// Errors of the speaker.
var (
	ErrStopped = errors.New("speaker is stopped")
	// ErrSocketOption: MD5 or TTL protection could not be set up. A session
	// without it would be open to anybody, or never come up: fatal.
	ErrSocketOption = errors.New("socket protection cannot be set up")
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
	srv     *server.BgpServer            // nil before Run
	desired map[netip.Addr]Action        // what Set asked for last
	applied map[netip.Addr]Action        // what the library holds
	changes map[netip.Addr]sessionChange // by neighbour
	stopped bool
	unwatch context.CancelFunc
	closed  chan struct{} // closed once Stop is through
}

type sessionChange struct {
	state string
	at    time.Time
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
		changes: make(map[netip.Addr]sessionChange), closed: make(chan struct{}),
	}, nil
}

// Run starts the sessions and blocks until ctx ends (nil, after Stop with a
// short bound if it has not been called) or the protection of a session cannot
// be set up (ErrSocketOption) or the library fails (ErrLibrary).
func (s *GoBGP) Run(ctx context.Context) error {
	if err := checkSocketProtection(&s.cfg); err != nil {
		return err
	}
	if err := s.start(ctx); err != nil {
		return err
	}
	var failure error
	select {
	case <-ctx.Done():
	case <-s.closed:
		return nil
	case failure = <-s.bridge.fatal:
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
	srv := server.NewBgpServer(server.LoggerOption(s.bridge))
	go srv.Serve()
	addresses := make([]string, 0, len(s.cfg.ListenAddresses))
	for _, a := range s.cfg.ListenAddresses {
		addresses = append(addresses, a.String())
	}
	base := context.WithoutCancel(ctx)
	if err := srv.StartBgp(base, &api.StartBgpRequest{Global: &api.Global{
		Asn: s.cfg.ASN, RouterId: s.cfg.RouterID.String(),
		ListenPort: int32(s.cfg.ListenPort), ListenAddresses: addresses,
	}}); err != nil {
		return fmt.Errorf("start bgp: %w", err)
	}
	if err := installPolicies(base, srv, &s.cfg); err != nil {
		return errors.Join(err, srv.StopBgp(base, &api.StopBgpRequest{}))
	}
	// The watch has a context of its own: it must end before the sessions
	// do, because ending it takes an operation of the library's server.
	watch, unwatch := context.WithCancel(base)
	s.srv, s.unwatch = srv, unwatch
	if err := srv.WatchEvent(watch, &api.WatchEventRequest{Peer: &api.WatchEventRequest_Peer{}}, s.onEvent); err != nil {
		return fmt.Errorf("watch sessions: %w", err)
	}
	// Routes first: the first UPDATE of a session then carries everything.
	if err := s.applyLocked(base); err != nil {
		return err
	}
	for i := range s.cfg.Neighbours {
		if err := srv.AddPeer(base, &api.AddPeerRequest{Peer: s.peerOf(&s.cfg.Neighbours[i])}); err != nil {
			return fmt.Errorf("add neighbour %s: %w", s.cfg.Neighbours[i].Address, err)
		}
	}
	return nil
}

// peerOf translates one neighbour. Graceful restart is left off: with it a
// router keeps a dead node in its multipath set for the restart time.
func (s *GoBGP) peerOf(n *Neighbour) *api.Peer {
	hold := uint64(n.HoldTime / time.Second)
	p := &api.Peer{
		Conf: &api.PeerConf{NeighborAddress: n.Address.String(), PeerAsn: n.ASN, AuthPassword: n.Password},
		Timers: &api.Timers{Config: &api.TimersConfig{
			ConnectRetry: uint64(n.ConnectRetry / time.Second),
			HoldTime:     hold, KeepaliveInterval: max(1, hold/3), // RFC 4271 10
		}},
		Transport: &api.Transport{RemotePort: uint32(n.Port), PassiveMode: n.Passive},
	}
	for _, f := range s.cfg.families(n) {
		p.AfiSafis = append(p.AfiSafis, &api.AfiSafi{Config: &api.AfiSafiConfig{Family: f, Enabled: true}})
	}
	if n.LocalAddress.IsValid() {
		p.Transport.LocalAddress = n.LocalAddress.String()
	}
	switch {
	case n.TTLSecurity:
		p.TtlSecurity = &api.TtlSecurity{Enabled: true, TtlMin: 255} // RFC 5082 3
	case n.MultihopTTL > 0:
		p.EbgpMultihop = &api.EbgpMultihop{Enabled: true, MultihopTtl: uint32(n.MultihopTTL)}
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

// onEvent runs in the library's watch goroutine.
func (s *GoBGP) onEvent(r *api.WatchEventResponse) {
	p := r.GetPeer()
	if p == nil || p.Peer == nil || p.Peer.State == nil {
		return
	}
	a, err := netip.ParseAddr(p.Peer.State.NeighborAddress)
	if err != nil {
		return
	}
	state := sessionState(p.Peer.State.SessionState)
	s.mu.Lock()
	before := s.changes[a]
	if before.state != state {
		s.changes[a] = sessionChange{state: state, at: time.Now()}
	}
	s.mu.Unlock()
	if before.state == state {
		return
	}
	s.met.session(a, state == stateEstablished)
	switch stateEstablished {
	case state:
		s.log.Info("bgp session established", "neighbour", a)
	case before.state:
		s.log.Warn("bgp session lost", "neighbour", a, "cause", s.bridge.lastCause(a))
	}
}

// Neighbours implements Speaker.
func (s *GoBGP) Neighbours() []NeighbourStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.neighboursLocked()
}

func (s *GoBGP) neighboursLocked() []NeighbourStatus {
	out := make([]NeighbourStatus, len(s.cfg.Neighbours))
	at := make(map[netip.Addr]int, len(out))
	for i, n := range s.cfg.Neighbours {
		out[i] = NeighbourStatus{Address: n.Address, ASN: n.ASN, State: "idle"}
		at[n.Address] = i
	}
	if s.srv == nil || s.stopped {
		return out
	}
	// ListPeer cannot fail with a request that is not nil.
	_ = s.srv.ListPeer(context.Background(), &api.ListPeerRequest{}, func(p *api.Peer) {
		a, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
		if i, ok := at[a]; err == nil && ok {
			s.fill(&out[i], &s.cfg.Neighbours[i], p)
		}
	})
	return out
}

func (s *GoBGP) fill(n *NeighbourStatus, cfg *Neighbour, p *api.Peer) {
	n.State = sessionState(p.GetState().GetSessionState())
	n.Established = n.State == stateEstablished
	n.Sent = p.GetState().GetMessages().GetSent().GetUpdate()
	if c := s.changes[n.Address]; c.state == n.State {
		n.Since = c.at
	}
	if !n.Established {
		n.Error = s.bridge.lastCause(n.Address)
		return
	}
	if !n.Since.IsZero() {
		n.Uptime = time.Since(n.Since)
	}
	n.LocalAddr, _ = netip.ParseAddr(p.GetTransport().GetLocalAddress())
	for _, f := range s.cfg.negotiated(cfg, p) {
		n.Families = append(n.Families, familyName(f))
		for vip := range s.applied {
			if sameFamily(familyOf(vip), f) {
				n.Advertised++
			}
		}
	}
}

// Stop implements Speaker. The order: no more Set; the event watch ends;
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
	s.unwatch()
	s.desired = map[netip.Addr]Action{}
	err := s.applyLocked(context.WithoutCancel(ctx))
	s.mu.Unlock()

	err = errors.Join(err, awaitFlush(ctx, srv, before))
	for _, n := range s.cfg.Neighbours {
		s.met.session(n.Address, false)
	}
	done := make(chan error, 1)
	go func() { done <- srv.StopBgp(context.WithoutCancel(ctx), &api.StopBgpRequest{}) }()
	select {
	case e := <-done:
		return errors.Join(err, e)
	case <-ctx.Done():
		// The withdrawals had their chance; the rest is up to the kernel,
		// which closes the connections with the process.
		return errors.Join(err, fmt.Errorf("close sessions: %w", ctx.Err()))
	}
}

// awaitFlush waits until every session that held routes has sent one more
// UPDATE than before, or is gone.
func awaitFlush(ctx context.Context, srv *server.BgpServer, before []NeighbourStatus) error {
	waiting := make(map[netip.Addr]uint64, len(before))
	for _, n := range before {
		if n.Established && n.Advertised > 0 {
			waiting[n.Address] = n.Sent
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
		_ = srv.ListPeer(ctx, &api.ListPeerRequest{}, func(p *api.Peer) {
			a, err := netip.ParseAddr(p.GetState().GetNeighborAddress())
			if err != nil {
				return
			}
			sent, ok := waiting[a]
			lost := sessionState(p.GetState().GetSessionState()) != stateEstablished
			if ok && (lost || p.GetState().GetMessages().GetSent().GetUpdate() > sent) {
				delete(waiting, a)
			}
		})
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

func sessionState(s api.PeerState_SessionState) string {
	return cmp.Or(map[api.PeerState_SessionState]string{
		api.PeerState_IDLE: "idle", api.PeerState_CONNECT: "connect", api.PeerState_ACTIVE: "active",
		api.PeerState_OPENSENT: "opensent", api.PeerState_OPENCONFIRM: "openconfirm",
		api.PeerState_ESTABLISHED: stateEstablished,
	}[s], "idle")
}
