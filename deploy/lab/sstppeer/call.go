package sstppeer

import (
	"bufio"
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// call is one connection whose request was answered with 200: a session with
// its I/O.
type call struct {
	id    uint64
	from  netip.AddrPort
	inner netip.Addr
	since time.Time
	out   *outbox
	in    atomic.Int64 // bytes of packets

	mu        sync.Mutex // guards session
	session   *session
	connected time.Time // zero: not yet
}

// CallStats is one call that stands.
type CallStats struct {
	ID        uint64         `json:"id"`
	User      string         `json:"user"`
	From      netip.AddrPort `json:"from"`  // as the server sees it
	Inner     netip.Addr     `json:"inner"` // of the client, in the tunnel
	State     State          `json:"state"`
	Up        bool           `json:"up"`   // IP flows
	Hash      string         `json:"hash"` // that the client named, hex; "" before it did
	Since     time.Time      `json:"since"`
	Connected time.Time      `json:"connected,omitzero"`
	In        int64          `json:"in"`  // bytes of packets
	Out       int64          `json:"out"` //
	Dropped   int64          `json:"dropped"`
}

func newCall(id uint64, from netip.AddrPort, inner netip.Addr, cfg sessionConfig, deliver func([]byte)) *call {
	now := time.Now()
	c := &call{id: id, from: from, inner: inner, since: now, out: newOutbox()}
	data := func(protocol uint16, body []byte) { c.out.data(protocol, body) }
	c.session = newSession(cfg, now, func(p []byte) { c.out.control(p) }, data, deliver)
	return c
}

// run serves the call until it ends; the connection is closed then.
func (c *call) run(ctx context.Context, conn net.Conn, in *bufio.Reader) {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		c.out.run(conn)
		cancel()
	})
	wg.Go(func() {
		c.clock(ctx)
		cancel()
	})
	stop := context.AfterFunc(ctx, func() {
		c.out.close()
		conn.SetReadDeadline(time.Now())
		conn.SetWriteDeadline(time.Now().Add(lastTime))
	})
	c.read(in)
	cancel()
	wg.Wait()
	stop()
	conn.Close()
}

// read hands packets to the session.
func (c *call) read(in *bufio.Reader) {
	var buf [maxPacket]byte
	for {
		p, err := readPacket(in, &buf)
		if err != nil {
			c.ended(err)
			return
		}
		c.in.Add(int64(len(p.raw)))
		c.mu.Lock()
		err = c.session.receive(time.Now(), p)
		if c.session.state == StateConnected && c.connected.IsZero() {
			c.connected = time.Now()
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// ended notes why the stream ended, unless the session knew before.
func (c *call) ended(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session.reason == "" {
		c.session.reason = reasonOfRead(err)
	}
}

const tickEvery = 200 * time.Millisecond

func (c *call) clock(ctx context.Context) {
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			c.mu.Lock()
			err := c.session.tick(now)
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}
}

// hangUp ends the call gently.
func (c *call) hangUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.session.disconnect(time.Now(), reasonWeLeft)
}

// up reports whether IP flows.
func (c *call) up() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session.up()
}

func (c *call) stats() CallStats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := CallStats{
		ID: c.id, User: c.session.link.login.user, From: c.from, Inner: c.inner, State: c.session.state, Up: c.session.up(),
		Since: c.since, Connected: c.connected, In: c.in.Load(), Out: c.out.sent.Load(), Dropped: c.out.dropped.Load(),
	}
	if c.session.bound.protocol != 0 {
		s.Hash = hashText(c.session.bound.protocol, c.session.bound.hash)
	}
	return s
}

// hashText is a hash as administrators see it.
func hashText(protocol byte, h [32]byte) string {
	if protocol == hashSHA1 {
		return hex.EncodeToString(h[:20])
	}
	return hex.EncodeToString(h[:])
}
