package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// tcpStall is how long a connection may be silent when a node dies: the
	// hold timer, and what TCP's doubled waits add to it.
	tcpStall   = 2*lossLimit + time.Second
	bypassTime = 3 * time.Second
)

// judgeTCP compares the connections before and after.
func (d *drill) judgeTCP(ctx context.Context) error {
	if len(d.tcpBefore.Clients) == 0 {
		return nil
	}
	after, err := d.l.tcpSnapshot(ctx)
	if err != nil {
		return err
	}
	v := compareTCP(d.tcpBefore, after, d.permits)
	d.notef("TCP: %d connections, %d ended with their own server, longest stall %s", len(after.Clients), v.permitted, v.stall.Round(time.Millisecond))
	if v.resets > 0 {
		d.failf("%d TCP connections ended with %d records under way", v.resets, v.records)
	}
	if len(v.elsewhere) > 0 {
		d.failf("TCP clients on another server without a permit: %v", head(v.elsewhere))
	}
	if v.stall > tcpStall {
		d.failf("a TCP connection was silent for more than %s", tcpStall)
	}
	return nil
}

// tcp lets everything happen that no connection may notice, and then what those
// of one server must.
func (d *drill) tcp(ctx context.Context) error {
	if err := d.nodeDeath(ctx); err != nil {
		return err
	}
	if err := d.standing(ctx, "a node's death"); err != nil {
		return err
	}
	i, _, err := d.tcpVictim(ctx)
	if err != nil {
		return err
	}
	d.l.say("  draining %s", serverName(i))
	if err := d.admin(ctx, "drain", i); err != nil {
		return err
	}
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	if err := d.admin(ctx, "enable", i); err != nil {
		return err
	}
	if err := d.standing(ctx, "a drain"); err != nil {
		return err
	}
	return d.tcpServerDies(ctx)
}

// tcpVictim is the server with most connections, and their number.
func (d *drill) tcpVictim(ctx context.Context) (server, on int, err error) {
	now, err := d.l.tcpSnapshot(ctx)
	if err != nil {
		return 0, 0, err
	}
	held := make(map[int]int)
	for _, c := range now.Clients {
		if n := len(c.Sessions); n > 0 {
			held[int(c.Sessions[n-1].Server)]++
		}
	}
	for i := range d.l.st.Options.Servers {
		if held[i+1] > on {
			server, on = i+1, held[i+1]
		}
	}
	if on == 0 {
		return 0, 0, errNoClients
	}
	return server, on, nil
}

// standing checks that no connection has ended.
func (d *drill) standing(ctx context.Context, what string) error {
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	now, err := d.l.tcpSnapshot(ctx)
	if err != nil {
		return err
	}
	if v := compareTCP(d.tcpBefore, now, d.permits); v.resets > 0 {
		d.failf("%d TCP connections ended by %s", v.resets, what)
	}
	return nil
}

// tcpServerDies kills a server: its connections end and stand elsewhere soon.
func (d *drill) tcpServerDies(ctx context.Context) error {
	i, on, err := d.tcpVictim(ctx)
	if err != nil {
		return err
	}
	before, err := d.l.tcpSnapshot(ctx)
	if err != nil {
		return err
	}
	d.l.say("  killing %s with %d connections", serverName(i), on)
	d.permit(i)
	start := time.Now()
	if err := d.l.peers.killServer(ctx, i); err != nil {
		return err
	}
	if err := d.l.verdict(ctx, healBound, i, "down"); err != nil {
		return err
	}
	if err := d.l.tcpServed(ctx, healBound); err != nil {
		return err
	}
	d.converged(time.Since(start))
	d.notef("all connections stand again %s after the server's death", time.Since(start).Round(time.Millisecond))
	now, err := d.l.tcpSnapshot(ctx)
	if err != nil {
		return err
	}
	if v := compareTCP(before, now, d.permits); v.resets > 0 || v.permitted < on {
		d.failf("%d connections of other servers ended, %d of its own %d", v.resets, v.permitted, on)
	}
	if err := d.l.peers.startServer(ctx, i); err != nil {
		return err
	}
	return d.l.verdict(ctx, healBound, i, "up")
}

// dsr proves that replies bypass the nodes, and that a node's death costs no
// more than its share.
func (d *drill) dsr(ctx context.Context) error {
	direct, err := d.l.packetsIn(roleRouter, directName)
	if err != nil {
		return err
	}
	returned, err := d.returned(ctx)
	if err != nil {
		return err
	}
	if err := flow(ctx, bypassTime); err != nil {
		return err
	}
	s, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	echoes := s.totals().Sent - d.before.totals().Sent
	now, err := d.l.packetsIn(roleRouter, directName)
	if err != nil {
		return err
	}
	back, err := d.returned(ctx)
	if err != nil {
		return err
	}
	d.notef("%d packets sent, %d came straight from the servers, %d by way of the nodes", echoes, now-direct, back-returned)
	if now-direct < echoes*9/10 || echoes == 0 {
		d.failf("replies did not come straight from the servers")
	}
	if back != returned {
		d.failf("the nodes saw replies")
	}
	if err := d.unharmed(ctx); err != nil {
		return err
	}
	return d.nodeDeath(ctx)
}

// returned is how many replies the nodes have forwarded.
func (d *drill) returned(ctx context.Context) (n int64, err error) {
	for _, reason := range reasonsBack {
		one, err := d.reason(ctx, reason)
		if err != nil {
			return 0, err
		}
		n += one
	}
	return n, nil
}

// packetsIn reads how many packets an interface has received.
func (l *Lab) packetsIn(role, name string) (n int64, err error) {
	err = l.inside(role, func() error {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s: %w", name, err)
		}
		n = int64(link.Attrs().Statistics.RxPackets)
		return nil
	})
	return n, err
}
