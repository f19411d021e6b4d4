package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// client is one simulated VPN client with an address of its own.
type client struct {
	cfg   ClientsConfig
	vip   netip.Addr
	delay time.Duration
	moves bool          // changes its interface identifier, IPv6
	again chan struct{} // told to log in again

	mu       sync.Mutex
	st       ClientStats
	acc      account
	lastEcho time.Time
	judged   time.Time
	paused   *atomic.Bool
	foreign  foreign
}

var errNoAnswer = errors.New("no answer")

// run logs in and sends until ctx ends, again and again.
func (c *client) run(ctx context.Context) {
	if !wait(ctx, c.delay) {
		return
	}
	cause := CauseFirst
	for ctx.Err() == nil {
		c.mu.Lock()
		c.st.Attempts++
		from, kind := c.st.Client, c.st.Kind
		c.mu.Unlock()
		if c.moves {
			from = anotherOf(from)
		}
		t, err := login(ctx, from, c.vip, kind, &c.foreign)
		if err != nil {
			wait(ctx, retryPause+rand.N(retryPause))
			continue
		}
		c.begin(t, cause)
		cause = c.serve(ctx, t)
		c.end()
	}
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// begin notes a completed login.
func (c *client) begin(t *tunnel, cause string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := time.Now()
	s := Session{Server: t.server, From: now, Cause: cause}
	if !c.lastEcho.IsZero() {
		s.Gap = now.Sub(c.lastEcho).Seconds()
	}
	c.st.Sessions = append(c.st.Sessions, s)
	if len(c.st.Sessions) > maxSessions {
		c.st.Sessions = slices.Delete(c.st.Sessions, 0, 1)
	}
	c.st.Up, c.lastEcho, c.judged = true, now, now
	c.st.Logins++
}

// end judges everything that is still out.
func (c *client) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.acc.sweep(time.Now(), c.lost)
	c.st.Up = false
}

// serve sends data, keepalives and DPD until the tunnel is lost or a new
// login is ordered; it returns the cause of the next login.
func (c *client) serve(ctx context.Context, t *tunnel) string {
	var readers sync.WaitGroup
	readers.Go(func() { c.read(t, t.conn) })
	defer func() { t.conn.Close(); readers.Wait() }()
	interval := time.Second / time.Duration(c.cfg.Rate)
	if !wait(ctx, rand.N(interval)) {
		return ""
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	to := netip.AddrPortFrom(t.vip, 4500)
	nextKeepalive, nextDPD, nextMove := time.Now().Add(rand.N(clientKeepalive)), time.Now().Add(rand.N(clientDPD)), time.Now().Add(movePeriod)
	for {
		select {
		case <-ctx.Done():
			return ""
		case <-c.again:
			wait(ctx, drainPause)
			return CauseCommand
		case <-tick.C:
			now := time.Now() // a tick may be an old one
			if c.paused.Load() {
				c.judge(now)
				continue
			}
			if !c.send(now, t, to) {
				return CauseLoss
			}
			if now.After(nextKeepalive) {
				nextKeepalive = now.Add(clientKeepalive)
				t.conn.WriteToUDPAddrPort(keepalive, to)
			}
			if now.After(nextDPD) {
				nextDPD = now.Add(clientDPD)
				t.conn.WriteToUDPAddrPort(t.alive(), to)
			}
			if c.moves && now.After(nextMove) {
				nextMove = now.Add(movePeriod)
				c.move(ctx, t, to, &readers)
			}
		}
	}
}

// judge gives up what is out for too long.
func (c *client) judge(now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastEcho = c.lastEcho.Add(now.Sub(c.judged)) // a pause is no silence
	c.stood(now)
	c.acc.sweep(now.Add(-lostAfter), c.lost)
}

// stillAfter is a gap between two ticks that no network explains: this process, or
// the machine as a whole, stood still.
const stillAfter = 300 * time.Millisecond

// stood tells for how long nothing could be heard because the client itself stood
// still until now. What is out gets that time on top: its echo may lie in the
// socket, and is lost if it does not come in the time that is left.
func (c *client) stood(now time.Time) time.Duration {
	gap := now.Sub(c.judged)
	c.judged = now
	if gap < max(stillAfter, 3*time.Second/time.Duration(c.cfg.Rate)) {
		return 0
	}
	c.acc.extend(gap)
	return gap
}

// send sends one data packet; false: the tunnel is lost.
func (c *client) send(now time.Time, t *tunnel, to netip.AddrPort) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastEcho = c.lastEcho.Add(c.stood(now))
	c.acc.sweep(now.Add(-lostAfter), c.lost)
	if now.Sub(c.lastEcho) > c.cfg.LossAfter {
		return false
	}
	c.st.Sent++
	// Written under the lock: an echo never finds its packet unnumbered.
	d := data{spi: t.out, seq: c.acc.send(now)}
	t.conn.WriteToUDPAddrPort(d.encodeFor(localOf(t.conn), to, 0), to)
	return true
}

// read takes what comes back through the tunnel until its socket is closed.
func (c *client) read(t *tunnel, conn *net.UDPConn) {
	to := netip.AddrPortFrom(t.vip, 4500)
	buf := make([]byte, 4096)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || !c.foreign.heard(from, to) || n < 4 {
			continue
		}
		if [4]byte(buf) == marker {
			if m := dpdReply(t, buf[4:n]); m != nil {
				conn.WriteToUDPAddrPort(onPort4500(m), to)
			}
			continue
		}
		if d, ok := parseData(buf[:n]); ok && binary.BigEndian.Uint32(buf) == t.in {
			c.echo(d)
		}
	}
}

// dpdReply answers a request of the server; nil: it was none.
func dpdReply(t *tunnel, b []byte) []byte {
	h, ok := parseHeader(b)
	if !ok || h.spiI != t.spiI || h.spiR != t.spiR || h.exchange != exchangeInformational || h.flags&flagResponse != 0 {
		return nil
	}
	h.flags = flagInitiator | flagResponse
	return skMessage(h, secret{}, 0)
}

func (c *client) echo(d data) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fresh, late := c.acc.echo(d.seq)
	if late {
		c.st.Late++
	}
	if fresh {
		c.st.Echoed++
		c.lastEcho = time.Now()
	}
}

// lost notes one lost packet that was sent at that time.
func (c *client) lost(at time.Time) {
	c.st.Lost++
	c.st.Windows = lose(c.st.Windows, at)
}

// lose puts a packet that was sent at that time and lost into the windows.
func lose(windows []Window, at time.Time) []Window {
	if n := len(windows); n > 0 && at.Sub(windows[n-1].To) < lostAfter {
		windows[n-1].To = at
		windows[n-1].Lost++
		return windows
	}
	windows = append(windows, Window{From: at, To: at, Lost: 1})
	if len(windows) > maxWindows {
		windows = slices.Delete(windows, 0, 1)
	}
	return windows
}

func (c *client) snapshot() ClientStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.st
	st.Sessions, st.Windows, st.Foreign = slices.Clone(st.Sessions), slices.Clone(st.Windows), c.foreign.n.Load()
	return st
}
