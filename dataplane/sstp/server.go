package sstp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/dataplane/sstp/staple"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Config of a Server.
type Config struct {
	Port uint16 // of the services; 443 if 0
	Self string // the node's name, for logs
}

// Deps of a Server.
type Deps struct {
	// Choose says which server a new connection of a client goes to; ok false:
	// none. It is called once for each connection and must be fast.
	Choose func(vip uint8, client netip.Addr) (Route, bool)
	// Instead says which other server a new connection of a client without a record
	// (address or IPv6 prefix) goes to, while ports of some could not be reached: none that avoid names. ok
	// false: none. nil: never another one. As fast as Choose.
	Instead func(vip uint8, client [16]byte, avoid func(table.Slot) bool) (Route, bool)
	// Evidence takes what a server proved about a client; it must not block.
	// EarnedAuth, Opening: the server acknowledged a call. Confirmed: it sent
	// data on a call that has stood for 10 s since Call Connected.
	Evidence func(table.Evidence)
	// Inherited listeners by "addr:port", from a process before this one. The
	// first Apply takes those that it wants and closes the rest.
	Inherited map[string]*net.TCPListener
	Log       *slog.Logger          // nil: the default
	Metrics   prometheus.Registerer // nil: none
	// HTTP asks OCSP responders; nil: a client that follows no redirect.
	HTTP *http.Client
}

// Server is the SSTP side of a node. Make it with New, give it work with Apply,
// and let it Run.
type Server struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	staples *staple.Keeper
	plan    atomic.Pointer[plan]
	gate    gate
	sources sources
	table   sessions
	alarms  alarms
	refused refusalBook
	dead    dead
	lot     *lot
	linger  struct{ first, longest time.Duration }
	tick    atomic.Int64 // seconds since the start, and 1: what idle times are measured by

	sweeping sync.Mutex
	rush     rush

	mu        sync.Mutex // Apply, and what follows
	listeners map[netip.AddrPort]*listener
	inherited map[string]*net.TCPListener
	draining  bool
	closed    bool
	faults    []string

	started chan struct{} // closed by Run: accepting may begin
	handoff chan *session // to a worker that waits
	ctx     context.Context
	cancel  context.CancelFunc
	working sync.WaitGroup // accept loops, connections, closings
}

// New checks and allocates; it does no I/O.
func New(cfg Config, deps Deps) (*Server, error) {
	var errs []error
	if deps.Choose == nil {
		errs = append(errs, errors.New("sstp server needs a chooser"))
	}
	if deps.Evidence == nil {
		errs = append(errs, errors.New("sstp server needs a taker of evidence"))
	}
	m, err := newMetrics(deps.Metrics)
	if err := errors.Join(append(errs, err)...); err != nil {
		return nil, err
	}
	if cfg.Port == 0 {
		cfg.Port = 443
	}
	if deps.Log == nil {
		deps.Log = slog.Default()
	}
	if deps.HTTP == nil {
		deps.HTTP = &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	s := &Server{cfg: cfg, deps: deps, log: deps.Log, metrics: m, listeners: map[netip.AddrPort]*listener{},
		inherited: deps.Inherited, started: make(chan struct{}), handoff: make(chan *session)}
	s.linger.first, s.linger.longest = firstLinger, longestLinger
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.staples = staple.New(deps.HTTP, deps.Log, func(result string) { m.staples.WithLabelValues(result).Inc() })
	s.tick.Store(1)
	limits := Limits{}.withDefaults()
	s.plan.Store(&plan{limits: &limits})
	s.gate.init(computingPlaces(), limits.Handshakes)
	s.sources.init()
	s.table.init()
	s.alarms.init(s.log, &s.tick)
	return s, nil
}

// pace is how often idle connections are looked for; idle times are that coarse.
const pace = time.Second

// Run accepts and relays until ctx ends; then it closes everything, and returns
// nil. A Server runs once.
func (s *Server) Run(ctx context.Context) error {
	select {
	case <-s.started:
		return errors.New("run sstp server: it ran before")
	default:
	}
	parking, err := openLot()
	if err != nil {
		return fmt.Errorf("run sstp server: %w", err)
	}
	s.lot = parking
	s.working.Go(func() { parking.wait(s.wake) })
	close(s.started)
	tick := time.NewTicker(pace)
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-tick.C:
			s.sweep(s.tick.Add(1))
		}
	}
	s.mu.Lock()
	s.closed = true
	for addr, l := range s.listeners {
		l.close()
		delete(s.listeners, addr)
	}
	s.closeInherited()
	s.mu.Unlock()
	s.gate.close()
	s.cancel()
	for _, c := range s.table.each() {
		c.end(endStopped)
	}
	parking.close()
	s.working.Wait()
	s.staples.Close()
	return nil
}

func (s *Server) closeInherited() {
	for addr, ln := range s.inherited {
		ln.Close()
		delete(s.inherited, addr)
	}
}
