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
	"time"
)

// client is one simulated VPN client with an address of its own.
type client struct {
	cfg   ClientsConfig
	delay time.Duration
	again chan struct{} // told to log in again

	mu       sync.Mutex
	st       ClientStats
	acc      account
	lastEcho time.Time
}

// tunnel is one established login.
type tunnel struct {
	conn       *net.UDPConn // to port 4500
	spiI, spiR uint64
	in, out    uint32 // ESP SPIs
	server     uint16
	messageID  uint32 // of the next request
}

var errNoAnswer = errors.New("no answer")

// run logs in and sends until ctx ends, again and again.
func (c *client) run(ctx context.Context) {
	if !wait(ctx, c.delay) {
		return
	}
	cause := CauseFirst
	for ctx.Err() == nil {
		t, err := c.login(ctx)
		if err != nil {
			wait(ctx, retryPause+rand.N(retryPause))
			continue
		}
		c.begin(t, cause)
		cause = c.serve(ctx, t)
		t.conn.Close()
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

// login runs IKE_SA_INIT from one port to 500 and IKE_AUTH from another to
// 4500, as a client behind a NAT does (RFC 7296 2.23).
func (c *client) login(ctx context.Context) (*tunnel, error) {
	c.mu.Lock()
	c.st.Attempts++
	addr, kind := c.st.Client, c.st.Kind
	c.mu.Unlock()
	init, err := listenUDP(ctx, netip.AddrPortFrom(addr, 0), 0)
	if err != nil {
		return nil, err
	}
	defer init.Close()
	auth, err := listenUDP(ctx, netip.AddrPortFrom(addr, 0), clientReadBuffer)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { init.Close(); auth.Close() })
	defer stop()
	t := &tunnel{conn: auth, spiI: randomSPI(), in: randomESPSPI(), messageID: 1}
	if err := c.saInit(init, t); err != nil {
		auth.Close()
		return nil, err
	}
	rounds := 1
	if kind == EAP {
		rounds = eapRounds
	}
	for round := 1; round <= rounds; round++ {
		size := 0
		if kind == Certificate {
			size = authRequestSize
		}
		if err := c.auth(t, uint8(round), uint8(rounds), size); err != nil {
			auth.Close()
			return nil, err
		}
	}
	return t, nil
}

func (c *client) saInit(conn *net.UDPConn, t *tunnel) error {
	return exchange(conn, netip.AddrPortFrom(c.cfg.VIP, 500), saInit(t.spiI, 0, flagInitiator), func(b []byte) bool {
		h, ok := parseHeader(b)
		if !ok || h.spiI != t.spiI || h.spiR == 0 || h.exchange != exchangeSAInit || h.flags&flagResponse == 0 {
			return false
		}
		t.spiR = h.spiR
		return true
	})
}

func (c *client) auth(t *tunnel, round, rounds uint8, size int) error {
	h := header{spiI: t.spiI, spiR: t.spiR, exchange: exchangeAuth, flags: flagInitiator, messageID: t.messageID}
	m := onPort4500(skMessage(h, secret{round: round, rounds: rounds, spi: t.in}, size))
	err := exchange(t.conn, netip.AddrPortFrom(c.cfg.VIP, 4500), m, func(b []byte) bool {
		if len(b) < 4 || [4]byte(b) != marker {
			return false
		}
		h, ok := parseHeader(b[4:])
		if !ok || h.spiI != t.spiI || h.spiR != t.spiR || h.exchange != exchangeAuth || h.flags&flagResponse == 0 || h.messageID != t.messageID {
			return false
		}
		s, ok := openSK(h, b[4:])
		t.out, t.server = s.spi, s.server
		return ok
	})
	t.messageID++
	return err
}

// exchange sends m until accept takes an answer, or gives up.
func exchange(conn *net.UDPConn, to netip.AddrPort, m []byte, accept func([]byte) bool) error {
	buf := make([]byte, 4096)
	for _, d := range retransmits {
		if _, err := conn.WriteToUDPAddrPort(m, to); errors.Is(err, net.ErrClosed) {
			return err
		}
		conn.SetReadDeadline(time.Now().Add(d))
		for {
			n, _, err := conn.ReadFromUDPAddrPort(buf)
			if errors.Is(err, net.ErrClosed) {
				return err
			}
			var ne net.Error
			if errors.As(err, &ne) && ne.Timeout() {
				break
			}
			if err == nil && accept(buf[:n]) {
				conn.SetReadDeadline(time.Time{})
				return nil
			}
		}
	}
	return errNoAnswer
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
	c.st.Up, c.lastEcho = true, now
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
	done := make(chan struct{})
	go func() { defer close(done); c.read(t) }()
	defer func() { t.conn.Close(); <-done }()
	interval := time.Second / time.Duration(c.cfg.Rate)
	if !wait(ctx, rand.N(interval)) {
		return ""
	}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	to := netip.AddrPortFrom(c.cfg.VIP, 4500)
	nextKeepalive, nextDPD := time.Now().Add(rand.N(clientKeepalive)), time.Now().Add(rand.N(clientDPD))
	for {
		select {
		case <-ctx.Done():
			return ""
		case <-c.again:
			wait(ctx, drainPause)
			return CauseCommand
		case now := <-tick.C:
			c.mu.Lock()
			c.acc.sweep(now.Add(-lostAfter), c.lost)
			gone := now.Sub(c.lastEcho) > c.cfg.LossAfter
			if !gone {
				c.st.Sent++
				// Written under the lock: an echo never finds its packet unnumbered.
				t.conn.WriteToUDPAddrPort(data{spi: t.out, seq: c.acc.send(now)}.encode(), to)
			}
			c.mu.Unlock()
			if gone {
				return CauseLoss
			}
			if now.After(nextKeepalive) {
				nextKeepalive = now.Add(clientKeepalive)
				t.conn.WriteToUDPAddrPort(keepalive, to)
			}
			if now.After(nextDPD) {
				nextDPD = now.Add(clientDPD)
				h := header{spiI: t.spiI, spiR: t.spiR, exchange: exchangeInformational, flags: flagInitiator, messageID: t.messageID}
				t.messageID++
				t.conn.WriteToUDPAddrPort(onPort4500(skMessage(h, secret{}, 0)), to)
			}
		}
	}
}

// read takes what comes back through the tunnel until its socket is closed.
func (c *client) read(t *tunnel) {
	to := netip.AddrPortFrom(c.cfg.VIP, 4500)
	buf := make([]byte, 4096)
	for {
		n, _, err := t.conn.ReadFromUDPAddrPort(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 4 {
			continue
		}
		if [4]byte(buf) == marker {
			if m := dpdReply(t, buf[4:n]); m != nil {
				t.conn.WriteToUDPAddrPort(onPort4500(m), to)
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
	if n := len(c.st.Windows); n > 0 && at.Sub(c.st.Windows[n-1].To) < lostAfter {
		c.st.Windows[n-1].To = at
		c.st.Windows[n-1].Lost++
		return
	}
	c.st.Windows = append(c.st.Windows, Window{From: at, To: at, Lost: 1})
	if len(c.st.Windows) > maxWindows {
		c.st.Windows = slices.Delete(c.st.Windows, 0, 1)
	}
}

func (c *client) snapshot() ClientStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.st
	st.Sessions, st.Windows = slices.Clone(st.Sessions), slices.Clone(st.Windows)
	return st
}
