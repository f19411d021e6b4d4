package sstp

import (
	"errors"
	"io"
	"os"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/sstp/control"
)

// relay starts the two directions.
func (c *session) relay() {
	tick := c.server.tick.Load()
	for i := range c.flow {
		c.flow[i].last.Store(tick)
	}
	c.running.Store(2)
	c.setPhase(phaseRelay)
	c.server.working.Go(func() { c.pump(control.Client) })
	c.server.working.Go(func() { c.pump(control.Server) })
}

// pump moves one direction: it waits without a buffer, and writes before it
// reads on, so that a slow taker slows the sender. How long nothing came, or a
// write takes, is the sweeper's to see. A silent direction is parked.
func (c *session) pump(from control.Side) {
	src, dst := c.ends(from)
	f := &c.flow[from]
	brokenSrc, brokenDst := endClient, endServer
	if from == control.Server {
		brokenSrc, brokenDst = endServer, endClient
	}
	linger := c.server.linger.first
	armed, moved := false, false // the deadline after which to park; bytes since
	for {
		if !armed {
			_ = src.socket().SetReadDeadline(time.Now().Add(linger))
			armed, moved = true, false
		}
		b, n, err := src.receive()
		if n > 0 {
			moved = true
			tick := c.server.tick.Load()
			f.last.Store(tick)
			c.heed(from, b[:n])
			var failed error
			if !c.isClosing() {
				f.sending.Store(tick)
				failed = dst.send(b[:n])
				f.sending.Store(0)
			}
			putBuffer(b)
			if failed != nil && !c.isClosing() {
				c.broke(brokenDst)
				break
			}
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			switch {
			case moved:
				armed, linger = false, min(2*linger, c.server.linger.longest)
			case c.park(from):
				return
			}
			continue
		}
		if err == io.EOF {
			f.closed.Store(true)
			if c.isClosing() { // it was told
				break
			}
			if from == control.Server && !c.flow[control.Client].closed.Load() {
				c.dropped()
			}
			f.sending.Store(c.server.tick.Load()) // a close_notify is a write, too
			failed := dst.shut(c.flow[1-from].closed.Load())
			f.sending.Store(0)
			if failed != nil && !c.isClosing() {
				c.broke(brokenDst)
			}
			break
		}
		if err != nil {
			c.broke(brokenSrc)
			break
		}
	}
	if c.running.Add(-1) == 0 {
		c.end(endDone)
		c.leave()
	}
}

// broke ends a session whose connection to one side broke.
func (c *session) broke(reason string) {
	if c.end(reason) && reason == endServer {
		c.dropped()
	}
}

// isClosing: both sides have been told that no more comes. What still does is
// read and dropped, so that their goodbyes are seen.
func (c *session) isClosing() bool { return phase(c.phase.Load()) == phaseClosing }

// heed counts bytes, feeds the follower, and tells what it saw.
func (c *session) heed(from control.Side, p []byte) {
	f := &c.flow[from]
	f.bytes.Add(uint64(len(p)))
	if !f.fresh.Load() {
		f.fresh.Store(true)
	}
	if events := c.follow.Feed(from, p); events != 0 {
		c.server.saw(c, events)
	}
}
