package lab

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

const (
	tcpName  = "tcpclients"
	tcpEvery = 4 // one client in so many holds a TCP connection too
)

// tcpClients are the clients of the first o.Clients that hold a connection:
// those of both families.
func (o Options) tcpClients() (out []netip.Addr) {
	if !o.Passthrough {
		return nil
	}
	for i := 0; i < o.Clients; i++ {
		if i%tcpEvery == 2 {
			out = append(out, o.client(i))
		}
	}
	return out
}

// startTCPClients returns when all their connections stand.
func (e *embeddedPeers) startTCPClients(ctx context.Context) error {
	addrs := e.l.st.Options.tcpClients()
	if len(addrs) == 0 {
		return nil
	}
	err := e.startPeer(tcpName, tcpName, roleClient, peer.TCPClientsConfig{
		VIP: vipAddr, VIP6: vip6Addr, Addrs: addrs, Control: e.socket(tcpName),
	})
	if err != nil {
		return err
	}
	if err := e.answers(ctx, tcpName); err != nil {
		return err
	}
	return e.l.tcpServed(ctx, loginBound)
}

// tcpSnapshot is every TCP client's account; empty where there are none.
func (l *Lab) tcpSnapshot(ctx context.Context) (st peer.TCPClientsStats, err error) {
	if len(l.st.Options.tcpClients()) == 0 {
		return st, nil
	}
	e := &embeddedPeers{l: l}
	return st, peer.Ask(ctx, e.socket(tcpName), "/stats", nil, &st)
}

// tcpServed waits until every TCP client has a connection.
func (l *Lab) tcpServed(ctx context.Context, bound time.Duration) error {
	up, why := 0, ""
	err := until(ctx, bound, "all TCP connections", func() (bool, error) {
		st, err := l.tcpSnapshot(ctx)
		up = 0
		for _, c := range st.Clients {
			if c.Up {
				up++
			} else {
				why = c.LastEnd
			}
		}
		return up == len(st.Clients), err
	})
	if err != nil {
		return fmt.Errorf("%w (%d are up; one says %q)", err, up, why)
	}
	return nil
}

// tcpComparison is what happened to the connections between two snapshots.
type tcpComparison struct {
	resets, permitted int           // ended without and with a permit of their server
	elsewhere         []netip.Addr  // another server without a permit
	stall             time.Duration // the longest of those that did not end
	records           int64         // without an echo, of connections that ended without a permit
}

// compareTCP judges connections: only those of servers with a permit may end.
func compareTCP(before, after peer.TCPClientsStats, permits permits) (c tcpComparison) {
	was := map[netip.Addr]peer.TCPClientStats{}
	for _, x := range before.Clients {
		was[x.Client] = x
	}
	for _, now := range after.Clients {
		old := was[now.Client]
		server := 0
		if n := len(old.Sessions); n > 0 {
			server = int(old.Sessions[n-1].Server)
		}
		_, permitted := permits[server]
		switch n := int(now.Resets - old.Resets); {
		case n > 0 && permitted:
			c.permitted += n
			continue
		case n > 0:
			c.resets += n
			c.records += now.Lost - old.Lost
		}
		for _, s := range now.Sessions {
			if s.From.After(before.Now) && server != 0 && int(s.Server) != server {
				c.elsewhere = append(c.elsewhere, now.Client)
				break
			}
		}
		for _, w := range now.Stalls {
			if w.To.After(before.Now) {
				c.stall = max(c.stall, w.To.Sub(w.From))
			}
		}
	}
	return c
}
