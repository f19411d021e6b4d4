package sstp

import (
	"io"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
)

// relay starts the two directions.
func (c *session) relay(back end) {
	tick := c.server.tick.Load()
	for i := range c.flow {
		c.flow[i].last.Store(tick)
	}
	c.running.Store(2)
	c.setPhase(phaseRelay)
	s := c.server
	s.working.Go(func() { c.pump(control.Client, &c.front, back) })
	s.working.Go(func() { c.pump(control.Server, back, &c.front) })
}

// pump moves one direction: it waits without a buffer, and writes before it
// reads on, so that a slow taker slows the sender. How long nothing came, or a
// write takes, is the sweeper's to see.
func (c *session) pump(from control.Side, src, dst end) {
	f := &c.flow[from]
	brokenSrc, brokenDst := endClient, endServer
	if from == control.Server {
		brokenSrc, brokenDst = endServer, endClient
	}
	for {
		b, n, err := src.receive()
		if n > 0 {
			tick := c.server.tick.Load()
			f.last.Store(tick)
			c.heed(from, b[:n])
			f.sending.Store(tick)
			failed := dst.send(b[:n])
			f.sending.Store(0)
			putBuffer(b)
			if failed != nil {
				c.end(brokenDst)
				break
			}
		}
		if err == io.EOF {
			f.closed.Store(true)
			if dst.shut() != nil {
				c.end(brokenDst)
			}
			break
		}
		if err != nil {
			c.end(brokenSrc)
			break
		}
	}
	if c.running.Add(-1) == 0 {
		c.end(endDone)
		c.leave()
	}
}

// heed counts bytes, feeds the follower, and tells what it saw.
func (c *session) heed(from control.Side, p []byte) {
	c.flow[from].bytes.Add(uint64(len(p)))
	if events := c.follow.Feed(from, p); events != 0 {
		c.server.saw(c, events)
	}
}
