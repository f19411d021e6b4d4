// MD5 keys cannot be set on MPTCP sockets, which listeners are by default.

//go:debug multipathtcp=0

package bgp

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/osrg/gobgp/v3/api"
	bgplog "github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/server"
	"google.golang.org/protobuf/types/known/anypb"
)

const (
	sessionBound = 20 * time.Second // a dial every 1-2 s, twice in bad luck, on a busy machine
	routerASN    = 64999
	nodeASN      = 65011
)

// severalSpeakers skips a test that starts speakers while others run: the
// library's StartBgp writes global variables (the same values each time), which
// the race detector rightly dislikes. A node has one speaker, as in
// TestWithFRR, which runs under the detector.
func severalSpeakers(t *testing.T) {
	t.Helper()
	if raceDetector {
		t.Skip("several speakers in one process: the library's globals")
	}
}

// until polls cond with a bound.
func until(t *testing.T, bound time.Duration, what string, cond func() bool) {
	t.Helper()
	deadline := time.NewTimer(bound)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-deadline.C:
			t.Fatalf("%s: not within %s", what, bound)
		case <-tick.C:
		}
	}
}

// freePort finds a port for a listener on addr. Somebody may take it before
// we do, then the test fails at the start, not wrongly.
func freePort(t *testing.T, addr string) int {
	t.Helper()
	l, err := net.Listen("tcp4", addr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// peerRouter is the router's side: a bare server of the library.
type peerRouter struct {
	t    *testing.T
	srv  *server.BgpServer
	addr netip.Addr
	port int

	mu     sync.Mutex
	events []string // withdraw of a prefix, or a session state, in order of arrival
}

type quiet struct{}

func (quiet) Panic(string, bgplog.Fields) {}
func (quiet) Fatal(string, bgplog.Fields) {}
func (quiet) Error(string, bgplog.Fields) {}
func (quiet) Warn(string, bgplog.Fields)  {}
func (quiet) Info(string, bgplog.Fields)  {}
func (quiet) Debug(string, bgplog.Fields) {}
func (quiet) SetLevel(bgplog.LogLevel)    {}
func (quiet) GetLevel() bgplog.LogLevel   { return bgplog.ErrorLevel }

func newPeerRouter(t *testing.T, addr string, asn uint32) *peerRouter {
	t.Helper()
	r := &peerRouter{t: t, srv: server.NewBgpServer(server.LoggerOption(quiet{})), addr: netip.MustParseAddr(addr), port: freePort(t, addr)}
	go r.srv.Serve()
	if err := r.srv.StartBgp(context.Background(), &api.StartBgpRequest{Global: &api.Global{
		Asn: asn, RouterId: addr, ListenPort: int32(r.port), ListenAddresses: []string{addr},
	}}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := r.srv.WatchEvent(ctx, &api.WatchEventRequest{
		Peer:  &api.WatchEventRequest_Peer{},
		Table: &api.WatchEventRequest_Table{Filters: []*api.WatchEventRequest_Table_Filter{{Type: api.WatchEventRequest_Table_Filter_ADJIN}}},
	}, r.note); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = r.srv.StopBgp(context.Background(), &api.StopBgpRequest{})
	})
	return r
}

func (r *peerRouter) note(ev *api.WatchEventResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p := ev.GetPeer(); p != nil {
		r.events = append(r.events, sessionState(p.GetPeer().GetState().GetSessionState()))
	}
	for _, p := range ev.GetTable().GetPaths() {
		if p.IsWithdraw {
			r.events = append(r.events, "withdraw "+prefixOf(p))
		}
	}
}

func (r *peerRouter) noted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

func (r *peerRouter) accept(node string, asn uint32, password string) {
	r.t.Helper()
	if err := r.srv.AddPeer(context.Background(), &api.AddPeerRequest{Peer: &api.Peer{
		Conf:      &api.PeerConf{NeighborAddress: node, PeerAsn: asn, AuthPassword: password},
		Timers:    &api.Timers{Config: &api.TimersConfig{HoldTime: 3, KeepaliveInterval: 1}},
		Transport: &api.Transport{PassiveMode: true},
	}}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *peerRouter) originate(prefix string) {
	r.t.Helper()
	path, err := pathOf(Advertisement{netip.MustParseAddr(prefix), Announce})
	if err != nil {
		r.t.Fatal(err)
	}
	if _, err := r.srv.AddPath(context.Background(), &api.AddPathRequest{Path: path}); err != nil {
		r.t.Fatal(err)
	}
}

// seenRoute is a route as the router got it.
type seenRoute struct {
	next        string
	asPath      []uint32
	pref        int64 // -1 = none
	origin      uint32
	communities []uint32
}

func prefixOf(p *api.Path) string {
	var n api.IPAddressPrefix
	if err := p.GetNlri().UnmarshalTo(&n); err != nil {
		return "?"
	}
	return fmt.Sprintf("%s/%d", n.Prefix, n.PrefixLen)
}

func (r *peerRouter) routes() map[string]seenRoute {
	r.t.Helper()
	out := map[string]seenRoute{}
	_ = r.srv.ListPath(context.Background(), &api.ListPathRequest{Family: familyOf(r.addr)}, func(d *api.Destination) {
		for _, p := range d.Paths {
			if p.NeighborIp == "" || p.NeighborIp == "<nil>" {
				continue // its own
			}
			out[d.Prefix] = decode(p.Pattrs)
		}
	})
	return out
}

func decode(attrs []*anypb.Any) seenRoute {
	s := seenRoute{pref: -1}
	for _, any := range attrs {
		m, err := any.UnmarshalNew()
		if err != nil {
			continue
		}
		switch a := m.(type) {
		case *api.NextHopAttribute:
			s.next = a.NextHop
		case *api.AsPathAttribute:
			for _, seg := range a.Segments {
				s.asPath = append(s.asPath, seg.Numbers...)
			}
		case *api.LocalPrefAttribute:
			s.pref = int64(a.LocalPref)
		case *api.OriginAttribute:
			s.origin = a.Origin
		case *api.CommunitiesAttribute:
			s.communities = a.Communities
		}
	}
	return s
}

// nodeConfig configures the speaker under test.
func nodeConfig(local string, asn uint32, routers ...Neighbour) Config {
	for i := range routers {
		routers[i].LocalAddress = netip.MustParseAddr(local)
	}
	return Config{ASN: asn, RouterID: netip.MustParseAddr(local), Neighbours: routers}
}

func (r *peerRouter) neighbour(asn uint32) Neighbour {
	return Neighbour{Address: r.addr, ASN: asn, Port: r.port}
}

// run starts a speaker and gives a function that waits for Run's result.
func run(t *testing.T, cfg Config) (*GoBGP, func() error) {
	t.Helper()
	s, err := NewGoBGP(cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	result := sync.OnceValue(func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(sessionBound):
			return errors.New("run does not return")
		}
	})
	t.Cleanup(func() { _ = result() })
	return s, result
}

func set(t *testing.T, s Speaker, ads ...Advertisement) {
	t.Helper()
	if err := s.Set(context.Background(), ads); err != nil {
		t.Fatal(err)
	}
}

func awaitRoute(t *testing.T, r *peerRouter, prefix string, want seenRoute) {
	t.Helper()
	var got seenRoute
	ok := func() bool {
		var have bool
		got, have = r.routes()[prefix]
		return have && got.next == want.next && slices.Equal(got.asPath, want.asPath) && got.pref == want.pref &&
			got.origin == want.origin && slices.Equal(got.communities, want.communities)
	}
	deadline := time.NewTimer(sessionBound)
	defer deadline.Stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline.C:
			t.Fatalf("route %s: got %+v, want %+v; all: %v", prefix, got, want, r.routes())
		case <-tick.C:
		}
	}
}

func TestAttributes(t *testing.T) {
	severalSpeakers(t)
	const local = "127.0.1.11"
	outer, inner := newPeerRouter(t, "127.0.1.1", routerASN), newPeerRouter(t, "127.0.1.2", nodeASN)
	outer.accept(local, nodeASN, "")
	inner.accept(local, nodeASN, "")
	outer.originate("198.51.100.7")
	s, _ := run(t, nodeConfig(local, nodeASN, outer.neighbour(routerASN), inner.neighbour(nodeASN)))
	const p = "203.0.113.10/32"
	steps := []struct {
		action       Action
		outer, inner seenRoute
	}{
		{Announce, seenRoute{local, []uint32{nodeASN}, -1, 0, nil}, seenRoute{local, nil, 100, 0, nil}},
		{Demote, seenRoute{local, slices.Repeat([]uint32{nodeASN}, 4), -1, 1, nil}, seenRoute{local, nil, 50, 1, nil}},
		{Drain, seenRoute{local, slices.Repeat([]uint32{nodeASN}, 7), -1, 2, []uint32{0xFFFF0000}}, seenRoute{local, nil, 0, 2, []uint32{0xFFFF0000}}},
		{Announce, seenRoute{local, []uint32{nodeASN}, -1, 0, nil}, seenRoute{local, nil, 100, 0, nil}},
	}
	for _, st := range steps {
		set(t, s, Advertisement{vip1, st.action}, Advertisement{vip2, Announce})
		awaitRoute(t, outer, p, st.outer)
		awaitRoute(t, inner, p, st.inner)
	}
	for _, n := range s.Neighbours() {
		if !n.Established || n.Advertised != 2 || n.LocalAddr.String() != local || n.Since.IsZero() {
			t.Errorf("status %+v", n)
		}
	}
	set(t, s, Advertisement{vip2, Announce})
	until(t, sessionBound, "withdrawal of one VIP", func() bool {
		_, a := outer.routes()[p]
		_, b := inner.routes()[p]
		return !a && !b && len(outer.routes()) == 1 && len(inner.routes()) == 1
	})

	// Nothing that the router offers may be used or passed on.
	until(t, sessionBound, "the router's own route to arrive", func() bool { return s.Neighbours()[0].Dropped >= 1 })
	_ = s.srv.ListPath(context.Background(), &api.ListPathRequest{Family: familyOf(vip1)}, func(d *api.Destination) {
		if d.Prefix != "203.0.113.11/32" {
			t.Errorf("imported %s", d.Prefix)
		}
	})
	if _, ok := inner.routes()["198.51.100.7/32"]; ok {
		t.Error("a route of one router reached the other")
	}
}

func TestStopWithdrawsFirst(t *testing.T) {
	severalSpeakers(t)
	const local = "127.0.2.11"
	r := newPeerRouter(t, "127.0.2.1", routerASN)
	r.accept(local, nodeASN, "")
	s, result := run(t, nodeConfig(local, nodeASN, r.neighbour(routerASN)))
	set(t, s, Advertisement{vip1, Announce}) // possibly before it runs
	until(t, sessionBound, "route", func() bool { return len(r.routes()) == 1 })
	ctx, cancel := context.WithTimeout(context.Background(), sessionBound)
	defer cancel()
	begin := time.Now()
	if err := s.Stop(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("stop took %s", time.Since(begin).Round(time.Millisecond))
	// The state after established, whatever it is.
	end := func() int {
		up := slices.Index(r.noted(), stateEstablished)
		return up + 1 + slices.IndexFunc(r.noted()[up+1:], func(e string) bool { return !strings.HasPrefix(e, "withdraw") && e != stateEstablished })
	}
	until(t, sessionBound, "end of the session", func() bool {
		return slices.Contains(r.noted(), stateEstablished) && end() > slices.Index(r.noted(), stateEstablished)
	})
	ev := r.noted()
	withdraw := slices.Index(ev, "withdraw 203.0.113.10/32")
	if withdraw < 0 || withdraw > end() {
		t.Errorf("no withdrawal before the end of the session: %v", ev)
	}
	if err := s.Set(ctx, nil); !errors.Is(err, ErrStopped) {
		t.Errorf("set after stop: %v", err)
	}
	if err := s.Stop(ctx); !errors.Is(err, ErrStopped) {
		t.Errorf("second stop: %v", err)
	}
	if err := result(); err != nil {
		t.Errorf("run: %v", err)
	}
}

func TestCancelStopsToo(t *testing.T) {
	severalSpeakers(t)
	const local = "127.0.3.11"
	r := newPeerRouter(t, "127.0.3.1", routerASN)
	r.accept(local, nodeASN, "")
	s, result := run(t, nodeConfig(local, nodeASN, r.neighbour(routerASN)))
	set(t, s, Advertisement{vip1, Announce})
	until(t, sessionBound, "route", func() bool { return len(r.routes()) == 1 })
	if err := result(); err != nil {
		t.Errorf("run: %v", err)
	}
	until(t, sessionBound, "withdrawal", func() bool { return len(r.routes()) == 0 })
	if !slices.Contains(r.noted(), "withdraw 203.0.113.10/32") {
		t.Errorf("no withdrawal: %v", r.noted())
	}
}

func TestPassword(t *testing.T) {
	severalSpeakers(t)
	right, wrong := "127.0.4.11", "127.0.4.12"
	none := "127.0.4.13"
	r := newPeerRouter(t, "127.0.4.1", routerASN)
	for _, a := range []string{right, wrong, none} {
		r.accept(a, nodeASN, "s3cret")
	}
	start := func(local, password string) *GoBGP {
		n := r.neighbour(routerASN)
		n.Password = password
		s, _ := run(t, nodeConfig(local, nodeASN, n))
		set(t, s, Advertisement{vip1, Announce})
		return s
	}
	bad, bare, good := start(wrong, "guess"), start(none, ""), start(right, "s3cret")
	up := func(s *GoBGP) bool { return s.Neighbours()[0].Established }
	until(t, sessionBound, "session with the right password", func() bool { return up(good) })
	// The others have been dialling at the same rate; give them two more
	// rounds and see that they report a cause.
	until(t, sessionBound, "a failed dial with a wrong password", func() bool {
		return bad.Neighbours()[0].Error != "" && bare.Neighbours()[0].Error != ""
	})
	if up(bad) || up(bare) {
		t.Error("a session came up without the right password")
	}
	if got := r.routes(); len(got) != 1 || got["203.0.113.10/32"].next != right {
		t.Errorf("routes %v", got)
	}
}

// GTSM (RFC 5082): a router that does not send hop limit 255 is not heard. The
// library sends 1 to eBGP neighbours otherwise.
func TestTTLSecurity(t *testing.T) {
	severalSpeakers(t)
	guarded, plain := "127.0.7.11", "127.0.7.12"
	r := newPeerRouter(t, "127.0.7.1", routerASN)
	add := func(node string, security *api.TtlSecurity) {
		if err := r.srv.AddPeer(context.Background(), &api.AddPeerRequest{Peer: &api.Peer{
			Conf:        &api.PeerConf{NeighborAddress: node, PeerAsn: nodeASN},
			Timers:      &api.Timers{Config: &api.TimersConfig{HoldTime: 3, KeepaliveInterval: 1}},
			Transport:   &api.Transport{PassiveMode: true},
			TtlSecurity: security,
		}}); err != nil {
			t.Fatal(err)
		}
	}
	add(guarded, &api.TtlSecurity{Enabled: true, TtlMin: 255})
	add(plain, nil)
	start := func(local string) *GoBGP {
		n := r.neighbour(routerASN)
		n.TTLSecurity = true
		s, _ := run(t, nodeConfig(local, nodeASN, n))
		return s
	}
	bad, good := start(plain), start(guarded)
	until(t, sessionBound, "session with both sides guarded", func() bool { return good.Neighbours()[0].Established })
	until(t, sessionBound, "an open message without an answer", func() bool { return bad.Neighbours()[0].State == "opensent" })
	if err := bad.Set(context.Background(), []Advertisement{{vip1, Announce}}); err != nil {
		t.Fatal(err)
	}
	set(t, good, Advertisement{vip2, Announce})
	until(t, sessionBound, "route of the guarded session", func() bool { return len(r.routes()) == 1 })
	if bad.Neighbours()[0].Established {
		t.Error("a session came up with a hop limit below 255")
	}
}

// A key that the kernel refuses must end Run, not leave a session that never comes
// up.
func TestSocketProtectionIsFatal(t *testing.T) {
	const local = "127.0.5.11"
	cfg := nodeConfig(local, nodeASN, Neighbour{Address: netip.MustParseAddr("127.0.5.1"), ASN: routerASN, Password: "s3cret"})
	s, err := NewGoBGP(cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	s.cfg.Neighbours[0].Password = strings.Repeat("x", MaxPasswordBytes+1) // Validate refuses it
	ctx, cancel := context.WithTimeout(context.Background(), sessionBound)
	defer cancel()
	if err := s.Run(ctx); !errors.Is(err, ErrSocketOption) {
		t.Errorf("run: %v, want %v", err, ErrSocketOption)
	}
}

func TestSetRefusesNonsense(t *testing.T) {
	s, err := NewGoBGP(nodeConfig("127.0.6.11", nodeASN), Deps{})
	if err != nil {
		t.Fatal(err)
	}
	for _, ad := range []Advertisement{{}, {VIP: vip1}, {VIP: vip1, Action: 99}, {netip.MustParseAddr("::ffff:203.0.113.1"), Announce}} {
		if err := s.Set(context.Background(), []Advertisement{ad}); err == nil {
			t.Errorf("%v was accepted", ad)
		}
	}
}

// sessionState is the library's name of a state, as RFC 4271 writes it.
func sessionState(s api.PeerState_SessionState) string {
	if s == api.PeerState_ESTABLISHED {
		return stateEstablished
	}
	return strings.ToLower(s.String())
}
