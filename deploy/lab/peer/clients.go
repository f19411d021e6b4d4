package peer

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// ClientsConfig is a set of clients in one process.
type ClientsConfig struct {
	VIP       netip.Addr    `json:"vip"`
	VIP6      netip.Addr    `json:"vip6"`       // for IPv6 clients
	Addrs     []netip.Addr  `json:"addrs"`      // one client each; local in the namespace, IPv6 with their whole /64
	MoveEvery int           `json:"move_every"` // of the IPv6 clients one in so many changes its address; 0: none
	Rate      int           `json:"rate"`       // data packets of each a second
	LossAfter time.Duration `json:"loss_after"`
	Control   string        `json:"control"`
}

// Kind is how a client logs in.
type Kind string

// Kinds of clients: they take turns.
const (
	Certificate Kind = "certificate" // one IKE_AUTH, larger than the MTU: IP fragments
	EAP         Kind = "eap"         // four IKE_AUTH rounds, as EAP-MSCHAPv2 has
	Plain       Kind = "plain"       // one small IKE_AUTH
)

var kinds = [...]Kind{Certificate, EAP, Plain, Plain}

// Session is one login of a client.
type Session struct {
	Server uint16    `json:"server"`
	From   time.Time `json:"from"` // login complete
	Gap    float64   `json:"gap"`  // seconds without service before it; 0 for the first
	Cause  string    `json:"cause"`
}

// Causes of a session.
const (
	CauseFirst   = "first"
	CauseLoss    = "loss"    // no echo for ClientsConfig.LossAfter
	CauseCommand = "command" // told to
)

// Window is a run of lost packets of one client.
type Window struct {
	From time.Time `json:"from"` // the first lost one was sent
	To   time.Time `json:"to"`   // the last lost one was sent
	Lost int64     `json:"lost"`
}

// ClientStats is one client's account.
type ClientStats struct {
	Client   netip.Addr `json:"client"`
	Kind     Kind       `json:"kind"`
	Up       bool       `json:"up"`
	Sent     int64      `json:"sent"`
	Echoed   int64      `json:"echoed"`
	Lost     int64      `json:"lost"`    // no echo within a second
	Late     int64      `json:"late"`    // echo after that: counted as lost too
	Foreign  int64      `json:"foreign"` // replies from another address than the VIP's: no echoes
	Logins   int64      `json:"logins"`
	Attempts int64      `json:"attempts"`
	Moves    int64      `json:"moves"`    // to another address of its /64
	Sessions []Session  `json:"sessions"` // the latest maxSessions
	Windows  []Window   `json:"windows"`  // the latest maxWindows
}

// ClientsStats is the answer to /stats.
type ClientsStats struct {
	Now     time.Time     `json:"now"`
	Clients []ClientStats `json:"clients"`
}

// Limits and times of a client.
const (
	lostAfter        = time.Second // no echo: lost
	clientKeepalive  = 2 * time.Second
	clientDPD        = 5 * time.Second
	loginStagger     = 4 * time.Millisecond // between the first logins
	retryPause       = 200 * time.Millisecond
	drainPause       = 300 * time.Millisecond // before an ordered login: packets on their way
	maxSessions      = 64
	maxWindows       = 64
	authRequestSize  = 2032 // RSA-4096 certificate: two IP fragments
	eapRounds        = 4
	clientReadBuffer = 256 << 10
)

// retransmits are the waits for a reply (RFC 7296 2.1: grow; 2.4: give up).
var retransmits = [...]time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second}

type clients struct {
	cfg    ClientsConfig
	paused atomic.Bool // nothing is sent of their own accord
	mu     sync.Mutex
	all    []*client
	six    int // how many of all speak IPv6
	wg     sync.WaitGroup
}

// RunClients runs until ctx ends.
func RunClients(ctx context.Context, cfg ClientsConfig) error {
	if cfg.Rate < 1 {
		return fmt.Errorf("rate %d: want at least 1", cfg.Rate)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	cs := &clients{cfg: cfg}
	cs.add(ctx, cfg.Addrs)
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) { Reply(w, cs.stats()) })
	mux.HandleFunc("POST /add", func(w http.ResponseWriter, r *http.Request) {
		cs.order(w, r, func(a []netip.Addr) { cs.add(ctx, a) })
	})
	mux.HandleFunc("POST /relogin", func(w http.ResponseWriter, r *http.Request) { cs.order(w, r, cs.relogin) })
	handlePause(mux, &cs.paused)
	var ctl sync.WaitGroup
	ctl.Go(func() { cancel(ServeControl(ctx, cfg.Control, mux)) })
	<-ctx.Done()
	ctl.Wait()
	cs.wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// order runs a command whose body is a list of addresses.
func (cs *clients) order(w http.ResponseWriter, r *http.Request, do func([]netip.Addr)) {
	var addrs []netip.Addr
	if err := Decode(r, &addrs); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	do(addrs)
	w.WriteHeader(http.StatusNoContent)
}

func (cs *clients) add(ctx context.Context, addrs []netip.Addr) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for i, a := range addrs {
		c := &client{
			cfg: cs.cfg, vip: cs.cfg.VIP, delay: time.Duration(i) * loginStagger, again: make(chan struct{}, 1),
			st: ClientStats{Client: a, Kind: kinds[len(cs.all)%len(kinds)]}, paused: &cs.paused,
		}
		if a.Is6() {
			c.vip = cs.cfg.VIP6
			c.moves = cs.cfg.MoveEvery > 0 && cs.six%cs.cfg.MoveEvery == 0
			cs.six++
		}
		cs.all = append(cs.all, c)
		cs.wg.Go(func() { c.run(ctx) })
	}
}

func (cs *clients) relogin(addrs []netip.Addr) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	for _, c := range cs.all {
		if slices.Contains(addrs, c.st.Client) {
			select {
			case c.again <- struct{}{}:
			default: // already told
			}
		}
	}
}

func (cs *clients) stats() ClientsStats {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	st := ClientsStats{Now: time.Now(), Clients: make([]ClientStats, 0, len(cs.all))}
	for _, c := range cs.all {
		st.Clients = append(st.Clients, c.snapshot())
	}
	return st
}

// account is the bookkeeping of a client's data packets. Sequence numbers run
// on over all its sessions.
type account struct {
	base uint64 // sequence number of out[0]
	out  []packet
}

type packet struct {
	at     time.Time
	echoed bool
}

// send numbers the next packet.
func (a *account) send(now time.Time) uint64 {
	a.out = append(a.out, packet{at: now})
	return a.base + uint64(len(a.out)) - 1
}

// echo takes an echo; late if the packet was given up before.
func (a *account) echo(seq uint64) (fresh, late bool) {
	if seq < a.base {
		return false, true
	}
	i := seq - a.base
	if i >= uint64(len(a.out)) || a.out[i].echoed {
		return false, false
	}
	a.out[i].echoed = true
	return true, false
}

// extend gives all that is out more time.
func (a *account) extend(by time.Duration) {
	for i := range a.out {
		a.out[i].at = a.out[i].at.Add(by)
	}
}

// sweep forgets what was echoed and reports, oldest first, what was sent
// before limit and was not.
func (a *account) sweep(limit time.Time, lost func(time.Time)) {
	n := 0
	for ; n < len(a.out); n++ {
		p := a.out[n]
		if p.echoed {
			continue
		}
		if p.at.After(limit) {
			break
		}
		lost(p.at)
	}
	a.out = a.out[n:]
	a.base += uint64(n)
}
