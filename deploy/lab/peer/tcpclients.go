package peer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// TCPClientsConfig is a set of clients of TCP 443 in one process.
type TCPClientsConfig struct {
	VIP     netip.Addr   `json:"vip"`
	VIP6    netip.Addr   `json:"vip6"`
	Addrs   []netip.Addr `json:"addrs"` // one long-lived connection each
	Control string       `json:"control"`
}

// TCPClientStats is one client's account. TCP repeats what is lost on the way,
// so a fault shows as a stall, a reset or records without an echo.
type TCPClientStats struct {
	Client   netip.Addr `json:"client"`
	Up       bool       `json:"up"`
	Sent     int64      `json:"sent"`     // records
	Echoed   int64      `json:"echoed"`   //
	Lost     int64      `json:"lost"`     // without an echo when their connection ended
	Attempts int64      `json:"attempts"` // to connect
	Resets   int64      `json:"resets"`   // connections that ended, whoever ended them
	Sessions []Session  `json:"sessions"` // connections, the latest maxSessions
	Stalls   []Window   `json:"stalls"`   // longer than stallAfter without an echo; Lost is not used
	LastEnd  string     `json:"last_end"` // why the last connection ended
}

// TCPClientsStats is the answer to /stats.
type TCPClientsStats struct {
	Now     time.Time        `json:"now"`
	Clients []TCPClientStats `json:"clients"`
}

const (
	recordPeriod = 100 * time.Millisecond
	stallAfter   = 500 * time.Millisecond
	tcpDialBound = 5 * time.Second
	// tcpSilence without an echo ends a connection: longer than the doubled
	// retransmission after the longest outage that a drill allows.
	tcpSilence = 20 * time.Second
)

type tcpClient struct {
	vip    netip.Addr
	delay  time.Duration
	paused *atomic.Bool

	mu       sync.Mutex
	st       TCPClientStats
	seq      uint64
	lastEcho time.Time
}

// RunTCPClients runs until ctx ends.
func RunTCPClients(ctx context.Context, cfg TCPClientsConfig) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var paused atomic.Bool
	var wg sync.WaitGroup
	var all []*tcpClient
	for i, a := range cfg.Addrs {
		c := &tcpClient{vip: cfg.VIP, delay: time.Duration(i) * loginStagger, paused: &paused, st: TCPClientStats{Client: a}}
		if a.Is6() {
			c.vip = cfg.VIP6
		}
		all = append(all, c)
		wg.Go(func() { c.run(ctx) })
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		st := TCPClientsStats{Now: time.Now()}
		for _, c := range all {
			st.Clients = append(st.Clients, c.snapshot())
		}
		Reply(w, st)
	})
	handlePause(mux, &paused)
	wg.Go(func() { cancel(ServeControl(ctx, cfg.Control, mux)) })
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// run keeps one connection until ctx ends.
func (c *tcpClient) run(ctx context.Context) {
	if !wait(ctx, c.delay) {
		return
	}
	cause := CauseFirst
	for ctx.Err() == nil {
		conn, in, err := c.connect(ctx)
		if err != nil {
			c.mu.Lock()
			c.st.LastEnd = err.Error()
			c.mu.Unlock()
			wait(ctx, retryPause+rand.N(retryPause))
			continue
		}
		err = c.stream(ctx, conn, in, cause)
		conn.Close()
		if ctx.Err() == nil {
			c.ended(err)
		}
		cause = CauseLoss
	}
}

// connect opens TCP, TLS and the stream.
func (c *tcpClient) connect(ctx context.Context) (*tls.Conn, *bufio.Reader, error) {
	c.mu.Lock()
	c.st.Attempts++
	from := c.st.Client
	c.mu.Unlock()
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: tcpDialBound}
	d.SetMultipathTCP(false)
	raw, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(c.vip, tcpPort).String())
	if err != nil {
		return nil, nil, err
	}
	raw.SetDeadline(time.Now().Add(tcpDialBound))
	// Self-signed: what is proved here is the way, not the name.
	t := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	in := bufio.NewReader(t)
	if _, err := io.WriteString(t, duplexRequest(c.vip.String())); err != nil {
		raw.Close()
		return nil, nil, err
	}
	first, err := readHead(in)
	if err == nil && !strings.HasPrefix(first, "HTTP/1.1 200") {
		err = fmt.Errorf("server says %q", first)
	}
	if err != nil {
		raw.Close()
		return nil, nil, err
	}
	raw.SetDeadline(time.Time{})
	return t, in, nil
}

var errSilence = errors.New("no echo for too long")

// stream sends records until the connection ends.
func (c *tcpClient) stream(ctx context.Context, conn *tls.Conn, in *bufio.Reader, cause string) error {
	readErr := make(chan error, 1)
	c.mu.Lock()
	c.lastEcho = time.Now()
	c.mu.Unlock()
	go func() { readErr <- c.read(in, cause) }()
	defer func() { conn.NetConn().Close() }()
	tick := time.NewTicker(recordPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-readErr:
			return err
		case now := <-tick.C:
			c.mu.Lock()
			if c.paused.Load() {
				c.lastEcho = now
				c.mu.Unlock()
				continue
			}
			silent := now.Sub(c.lastEcho) > tcpSilence
			r := record{seq: c.seq}
			c.seq++
			c.st.Sent++
			c.mu.Unlock()
			if silent {
				return errSilence
			}
			conn.SetWriteDeadline(now.Add(tcpSilence))
			if _, err := conn.Write(r.encode()); err != nil {
				return err
			}
		}
	}
}

// read takes echoes; the first one tells whose connection it is.
func (c *tcpClient) read(in *bufio.Reader, cause string) error {
	known := false
	for {
		r, err := readRecord(in)
		if err != nil {
			return err
		}
		now := time.Now()
		c.mu.Lock()
		if !known {
			known = true
			c.st.Up = true
			c.st.Sessions = append(c.st.Sessions, Session{Server: r.server, From: now, Cause: cause})
			if len(c.st.Sessions) > maxSessions {
				c.st.Sessions = slices.Delete(c.st.Sessions, 0, 1)
			}
		}
		c.st.Echoed++
		if now.Sub(c.lastEcho) > stallAfter {
			c.st.Stalls = append(c.st.Stalls, Window{From: c.lastEcho, To: now})
			if len(c.st.Stalls) > maxWindows {
				c.st.Stalls = slices.Delete(c.st.Stalls, 0, 1)
			}
		}
		c.lastEcho = now
		c.mu.Unlock()
	}
}

// ended notes a connection that is over.
func (c *tcpClient) ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.st.Resets++
	c.st.Up = false
	c.st.Lost = c.st.Sent - c.st.Echoed
	if err != nil {
		c.st.LastEnd = err.Error()
	}
}

func (c *tcpClient) snapshot() TCPClientStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	st := c.st
	st.Sessions, st.Stalls = slices.Clone(st.Sessions), slices.Clone(st.Stalls)
	return st
}
