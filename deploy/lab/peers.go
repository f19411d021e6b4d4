package lab

import (
	"context"
	"net/netip"
	"time"
)

// peers is everything around the nodes. Servers are counted from 1.
type peers interface {
	startRouter(ctx context.Context) error
	startServer(ctx context.Context, i int) error
	killServer(ctx context.Context, i int) error // without a word to anybody
	startClients(ctx context.Context) error      // returns when all are served
	addClients(ctx context.Context, addrs []netip.Addr) error
	relogin(ctx context.Context, addrs []netip.Addr) error
	snapshot(ctx context.Context) (snapshot, error)
}

// snapshot is every client's account at one moment.
type snapshot struct {
	At      time.Time
	Clients map[netip.Addr]clientView
	Strays  map[netip.Addr]int64 // packets that reached a server without the client's SA
}

// clientView is one client.
type clientView struct {
	Up       bool
	Server   int    // that served it last; 0 none yet
	Login    string // differs between two logins
	Logins   int64
	Sent     int64
	Lost     int64
	Moves    int64     // to another address of its /64
	Foreign  int64     // replies from another address than the VIP's
	Sessions []session // the latest, oldest first
	Windows  []window
}

type session struct {
	Server int
	From   time.Time
	Gap    time.Duration // without service before it; real clients do not tell
	Cause  string        // peer.CauseLoss and so on; real clients do not tell
}

type window struct {
	From, To time.Time
	Lost     int64
}

func newPeers(l *Lab) peers {
	if l.st.Options.Peers == Real {
		return &realPeers{l: l}
	}
	return &embeddedPeers{l: l}
}

// totals sums up.
func (s snapshot) totals() (t ClientTotals) {
	for _, c := range s.Clients {
		t.Clients++
		t.Sent += c.Sent
		t.Lost += c.Lost
		if c.Up {
			t.Up++
		}
	}
	return t
}

// on lists the clients that server i serves.
func (s snapshot) on(i int) (out []netip.Addr) {
	for a, c := range s.Clients {
		if c.Up && c.Server == i {
			out = append(out, a)
		}
	}
	return out
}
