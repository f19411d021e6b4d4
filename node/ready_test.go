package node

import (
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/bgp"
)

// manager is the receiving end of sd_notify(3).
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	path string
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(t.TempDir(), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &manager{t: t, conn: conn, path: path}
}

// ready takes what has come so far, without waiting, and reports whether READY
// was among it.
func (s *manager) ready() bool {
	s.t.Helper()
	raw, err := s.conn.SyscallConn()
	if err != nil {
		s.t.Fatal(err)
	}
	ready, b := false, make([]byte, 4096)
	err = raw.Read(func(fd uintptr) bool {
		for {
			n, _, err := unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT)
			if err != nil {
				return true
			}
			ready = ready || strings.Contains("\n"+string(b[:n]), "\nREADY=1")
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return ready
}

// READY comes with the first route, or when it is settled that there is none:
// a manager that waits for it in vain would kill the node again and again.
func TestReadyWhenSettled(t *testing.T) {
	good := bgp.Facts{
		Node: bgp.NodeFacts{PlaneAttached: true, PlaneSelfCheck: true, CaughtUp: true, SpecStored: true},
		VIP:  bgp.VIPFacts{Backends: 2, Usable: 2, Up: 2, Reached: 2, OthersWilling: 1},
	}
	with := func(edit func(*bgp.Facts)) bgp.Facts { f := good; edit(&f); return f }
	empty := with(func(f *bgp.Facts) { f.VIP = bgp.VIPFacts{} })
	alone := func(f *bgp.Facts) { f.Node.CaughtUp, f.Node.QuorumLost = false, time.Minute }
	old := with(func(f *bgp.Facts) { alone(f); f.Node.StateAge = 8 * 24 * time.Hour })
	first, second := netip.MustParseAddr("203.0.113.10"), netip.MustParseAddr("203.0.113.11")
	for _, c := range []struct {
		name     string
		caughtUp bool
		facts    map[netip.Addr]bgp.Facts
		want     bool
	}{
		{"no VIP yet", true, nil, true},
		{"no VIP known, not caught up", false, nil, false},
		{"a VIP without a server", true, map[netip.Addr]bgp.Facts{first: empty}, true},
		{"a VIP without a server, not caught up", false, map[netip.Addr]bgp.Facts{first: with(func(f *bgp.Facts) { alone(f); f.VIP = bgp.VIPFacts{} })}, false},
		{"all servers offline", true, map[netip.Addr]bgp.Facts{first: with(func(f *bgp.Facts) { f.VIP.Usable, f.VIP.Up, f.VIP.Reached = 0, 0, 0 })}, true},
		{"a route is on its way", true, map[netip.Addr]bgp.Facts{first: good}, false},
		{"a route is on its way beside an empty VIP", true, map[netip.Addr]bgp.Facts{first: good, second: empty}, false},
		{"waits for a leader", false, map[netip.Addr]bgp.Facts{first: with(func(f *bgp.Facts) { f.Node.CaughtUp, f.Node.QuorumLost = false, time.Second })}, false},
		{"a cold start announces", false, map[netip.Addr]bgp.Facts{first: with(alone)}, false},
		{"the stored state is too old", false, map[netip.Addr]bgp.Facts{first: old, second: with(func(f *bgp.Facts) { alone(f); f.VIP = bgp.VIPFacts{} })}, true},
		{"removed", true, map[netip.Addr]bgp.Facts{first: with(func(f *bgp.Facts) { f.Node.Removed = true })}, true},
		{"the node's own certificate is missing", true, map[netip.Addr]bgp.Facts{first: with(func(f *bgp.Facts) { f.VIP.ServiceFailed = true })}, false},
		{"no server in reach", true, map[netip.Addr]bgp.Facts{first: with(func(f *bgp.Facts) { f.VIP.Reached, f.VIP.Doubtful = 0, true })}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := newManager(t)
			m := &member{node: &Node{notify: newNotifier(s.path)}, limits: bgp.DefaultLimits()}
			var err error
			if m.announcer, err = bgp.NewAnnouncer(bgp.AnnouncerConfig{}, &bgp.GoBGP{}, bgp.Deps{}); err != nil {
				t.Fatal(err)
			}
			m.caughtUp.Store(c.caughtUp)
			if err := m.announcer.Update(c.facts); err != nil {
				t.Fatal(err)
			}
			m.tellReady(c.facts)
			if got := s.ready(); got != c.want {
				t.Errorf("READY %v, want %v", got, c.want)
			}
		})
	}
}

// While READY has not been said the manager is asked for patience, and not after.
func TestPatienceUntilReady(t *testing.T) {
	s := newManager(t)
	n := newNotifier(s.path)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		n.untilReady(t.Context(), 30*time.Millisecond)
	}()
	b := make([]byte, 4096)
	for range 2 {
		if err := s.conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		got, err := s.conn.Read(b)
		if err != nil || string(b[:got]) != "EXTEND_TIMEOUT_USEC=30000" {
			t.Fatalf("told %q, %v", b[:got], err)
		}
	}
	n.ready()
	<-ended
}
