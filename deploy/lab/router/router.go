package router

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	bgplog "github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/server"
)

// recheck is how often the kernel is compared without an event: links come
// and go and take next hops with them.
const recheck = 250 * time.Millisecond

// Event is one line of JSON on the output.
type Event struct {
	Time     time.Time    `json:"time"`
	Kind     string       `json:"kind"` // ready, route, session, error
	VIP      netip.Addr   `json:"vip,omitzero"`
	NextHops []netip.Addr `json:"next_hops,omitempty"` // of the learned route now in the kernel; none = the floating one is left
	Node     netip.Addr   `json:"node,omitzero"`
	State    string       `json:"state,omitempty"` // session: established or down
	Error    string       `json:"error,omitempty"`
}

// Kinds of events.
const (
	KindReady   = "ready"   // listening, floating routes in place
	KindRoute   = "route"   // the learned route of a VIP changed in the kernel
	KindSession = "session" // a BGP session came up or went down
	KindError   = "error"   // the kernel refused a route; it is tried again
)

type router struct {
	cfg      Config
	log      *slog.Logger
	srv      *server.BgpServer
	learned  routes
	floating routes
	wake     chan struct{} // capacity 1

	mu     sync.Mutex // out and last: events come from two goroutines
	out    *json.Encoder
	last   string // last error, told once
	states map[netip.Addr]bool
}

// Run serves until ctx ends; then the routes it installed are removed. Events
// go to out, one JSON object a line. The calling process must be inside the
// namespace already, with all its threads.
func Run(ctx context.Context, cfg Config, out io.Writer, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return fmt.Errorf("router configuration: %w", err)
	}
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cfg = cfg.withDefaults()
	r := &router{
		cfg: cfg, log: log, out: json.NewEncoder(out),
		learned:  routes{protocol: protocolLearned, metric: cfg.Metric},
		floating: routes{protocol: protocolFloating, metric: cfg.FloatMetric},
		wake:     make(chan struct{}, 1), states: make(map[netip.Addr]bool),
	}
	if cfg.Interface != "" {
		dev, err := net.InterfaceByName(cfg.Interface)
		if err != nil {
			return fmt.Errorf("find interface %s: %w", cfg.Interface, err)
		}
		r.learned.link, r.floating.link = dev.Index, dev.Index
	}
	return r.run(ctx)
}

func (r *router) run(ctx context.Context) error {
	base := context.WithoutCancel(ctx)
	watch, unwatch := context.WithCancel(base)
	if err := r.startBGP(base, watch); err != nil {
		unwatch()
		return err
	}
	r.loop(ctx)
	unwatch()
	err := r.srv.StopBgp(base, &api.StopBgpRequest{})
	for _, rs := range [...]*routes{&r.learned, &r.floating} {
		_, e := rs.reconcile(nil)
		err = errors.Join(err, e)
	}
	return err
}

func (r *router) startBGP(base, watch context.Context) error {
	r.srv = server.NewBgpServer(server.LoggerOption(logBridge{r.log}))
	go r.srv.Serve()
	listen := make([]string, 0, len(r.cfg.Listen))
	for _, a := range r.cfg.Listen {
		listen = append(listen, a.String())
	}
	if err := r.srv.StartBgp(base, &api.StartBgpRequest{Global: &api.Global{
		Asn: r.cfg.ASN, RouterId: r.cfg.RouterID.String(), ListenPort: int32(r.cfg.Port), ListenAddresses: listen,
	}}); err != nil {
		return fmt.Errorf("start bgp: %w", err)
	}
	// The nodes import nothing; do not offer them each other's routes.
	if err := r.srv.SetPolicyAssignment(base, &api.SetPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: api.PolicyDirection_EXPORT, DefaultAction: api.RouteAction_REJECT,
	}}); err != nil {
		return fmt.Errorf("set export policy: %w", err)
	}
	if err := r.srv.WatchEvent(watch, &api.WatchEventRequest{
		Peer: &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{
			{Type: api.WatchEventRequest_Table_Filter_BEST},
			{Type: api.WatchEventRequest_Table_Filter_POST_POLICY},
		}},
	}, r.onEvent); err != nil {
		return fmt.Errorf("watch bgp: %w", err)
	}
	for _, n := range r.cfg.Nodes {
		hold := uint64(r.cfg.HoldTime / time.Second)
		if err := r.srv.AddPeer(base, &api.AddPeerRequest{Peer: &api.Peer{
			Conf:      &api.PeerConf{NeighborAddress: n.Address.String(), PeerAsn: n.ASN, AuthPassword: n.Password},
			Timers:    &api.Timers{Config: &api.TimersConfig{HoldTime: hold, KeepaliveInterval: max(1, hold/3), ConnectRetry: 1}},
			Transport: &api.Transport{PassiveMode: true},
		}}); err != nil {
			return fmt.Errorf("add node %s: %w", n.Address, err)
		}
	}
	return nil
}

// onEvent runs in the library's watch goroutine. What an event says about
// routes is not used, only that there was one: the table is read as a whole.
func (r *router) onEvent(ev *api.WatchEventResponse) {
	if p := ev.GetPeer(); p != nil {
		r.onSession(p.GetPeer().GetState())
	}
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *router) onSession(s *api.PeerState) {
	node, err := netip.ParseAddr(s.GetNeighborAddress())
	if err != nil {
		return
	}
	up := s.GetSessionState() == api.PeerState_ESTABLISHED
	r.mu.Lock()
	changed := r.states[node] != up
	r.states[node] = up
	r.mu.Unlock()
	if !changed {
		return
	}
	state := "down"
	if up {
		state = "established"
	}
	r.emit(Event{Kind: KindSession, Node: node, State: state})
}

func (r *router) loop(ctx context.Context) {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	ready := false
	for {
		err := r.reconcile(ctx)
		r.report(err)
		if err == nil && !ready {
			ready = true
			r.emit(Event{Kind: KindReady})
		}
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		case <-tick.C:
		}
	}
}

func (r *router) reconcile(ctx context.Context) error {
	want, err := learned(ctx, r.srv)
	if err != nil {
		return err
	}
	changed, err := r.learned.reconcile(want)
	for _, vip := range changed {
		r.emit(Event{Kind: KindRoute, VIP: vip, NextHops: want[vip]})
	}
	float := make(map[netip.Addr][]netip.Addr, len(r.cfg.VIPs))
	for _, vip := range r.cfg.VIPs {
		for _, n := range r.cfg.Nodes {
			if n.Address.Is4() == vip.Is4() {
				float[vip] = append(float[vip], n.Address)
			}
		}
		slices.SortFunc(float[vip], netip.Addr.Compare)
	}
	_, e := r.floating.reconcile(float)
	return errors.Join(err, e)
}

// report tells an error once, until it changes or goes away.
func (r *router) report(err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	r.mu.Lock()
	changed := text != r.last
	r.last = text
	r.mu.Unlock()
	if changed && text != "" {
		r.emit(Event{Kind: KindError, Error: text})
	}
}

func (r *router) emit(e Event) {
	e.Time = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.out.Encode(e); err != nil {
		r.log.Error("event output failed", "error", err)
	}
}

// logBridge hands the library's log to slog; nothing ends the process.
type logBridge struct{ log *slog.Logger }

func (b logBridge) emit(l slog.Level, msg string, f bgplog.Fields) {
	args := make([]any, 0, 2*len(f)+2)
	args = append(args, "event", msg)
	for _, k := range slices.Sorted(maps.Keys(f)) {
		args = append(args, k, f[k])
	}
	b.log.Log(context.Background(), l, "bgp library", args...)
}
func (b logBridge) Panic(m string, f bgplog.Fields) { b.emit(slog.LevelError, m, f) }
func (b logBridge) Fatal(m string, f bgplog.Fields) { b.emit(slog.LevelError, m, f) }
func (b logBridge) Error(m string, f bgplog.Fields) { b.emit(slog.LevelError, m, f) }
func (b logBridge) Warn(m string, f bgplog.Fields)  { b.emit(slog.LevelWarn, m, f) }
func (b logBridge) Info(m string, f bgplog.Fields)  { b.emit(slog.LevelInfo, m, f) }
func (b logBridge) Debug(m string, f bgplog.Fields) { b.emit(slog.LevelDebug, m, f) }
func (logBridge) SetLevel(bgplog.LogLevel)          {}
func (logBridge) GetLevel() bgplog.LogLevel         { return bgplog.InfoLevel }
