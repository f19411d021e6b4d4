package screen

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"
)

// bringUp dials and accepts until one connection is established.
func (n *neighbour) bringUp(ctx context.Context, lib *library) (*connection, error) {
	ctx, cancel := context.WithCancel(ctx)
	a := &attempts{n: n, ctx: ctx, lib: lib, tell: make(chan progress)}
	n.waiting.Store(true)
	winner, err := a.loop()
	n.drainAccepted()
	if winner == nil {
		cancel()
		return nil, err
	}
	// The losers that wait for a verdict end with a Cease of their own.
	for c := range a.live {
		select {
		case c.verdict <- false:
		default:
		}
	}
	time.AfterFunc(noticeBound, cancel)
	return winner, nil
}

// attempts are the connections of one bringUp.
type attempts struct {
	n    *neighbour
	ctx  context.Context
	lib  *library
	tell chan progress
	live map[*connection]bool // true: its OPEN has arrived and it may go on
}

func (a *attempts) loop() (*connection, error) {
	n := a.n
	a.live = map[*connection]bool{}
	dialling := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	if n.cfg.Passive {
		timer.Stop()
	}
	n.state("active")
	for {
		select {
		case <-a.ctx.Done():
			return nil, a.ctx.Err()
		case <-n.quitting:
			return nil, errors.New("stopping")
		case <-a.lib.messages:
			return nil, nil // its OPEN has waited too long: it begins anew
		case <-timer.C:
			if !dialling {
				dialling = true
				go a.dial()
			}
		case c := <-n.accepted:
			a.accept(c)
		case p := <-a.tell:
			winner, err := a.take(p)
			if winner != nil || errors.Is(err, ErrSocketOption) {
				return winner, err
			}
			if p.err != nil && (p.c == nil || p.c.dialled) {
				dialling = false
				timer.Reset(n.cfg.ConnectRetry + rand.N(n.cfg.ConnectRetry))
			}
		}
	}
}

func (a *attempts) dial() {
	c, err := a.n.dial(a.ctx)
	if err != nil {
		report(a.ctx, a.tell, progress{err: err})
		return
	}
	a.n.state("opensent")
	c.handshake(a.ctx, a.lib.open, a.n.cfg.HoldTime, a.tell)
}

func (a *attempts) accept(c net.Conn) {
	if len(a.live) >= maxHandshakes {
		c.Close()
		return
	}
	n := a.n
	if raw, err := c.(*net.TCPConn).SyscallConn(); err == nil {
		err = onSocket(raw, func(fd int) error { return n.cfg.setHopLimit(fd, n.external()) })
		if err != nil {
			c.Close()
			n.screen.fail(fmt.Errorf("neighbour %s: %w", n.cfg.Address, err))
			return
		}
	}
	if l := n.cfg.LocalAddress; l.IsValid() && addressOf(c.LocalAddr()) != l {
		c.Close()
		n.note(fmt.Errorf("the router dials %s, the session's own address is %s", addressOf(c.LocalAddr()), l))
		return
	}
	oc := n.newConnection(c, false)
	a.live[oc] = false
	n.state("opensent")
	go oc.handshake(a.ctx, a.lib.open, n.cfg.HoldTime, a.tell)
}

// take judges the progress of one connection; the established one is returned.
func (a *attempts) take(p progress) (*connection, error) {
	switch {
	case p.err != nil:
		if p.c == nil || !p.c.lost {
			a.n.note(explain(p.err))
			a.n.state("active")
		}
		delete(a.live, p.c)
		return nil, p.err
	case p.c.machine.State == Established:
		return p.c, nil
	}
	// Its OPEN arrived: RFC 4271, section 6.8, when another one is as far.
	stays := true
	for other, far := range a.live {
		if !far || other == p.c {
			continue
		}
		ours := keepsOurs(&a.n.expect, &p.c.machine.Open)
		if other.dialled == p.c.dialled { // the router began anew: the old one is dead
			other.lost = true
			other.Close()
		} else if stays = p.c.dialled == ours; stays {
			other.lost = true
			other.refuse(errCollision)
		}
	}
	a.live[p.c], p.c.lost = stays, !stays
	a.n.mu.Lock()
	a.n.status.RouterHold = p.c.machine.Open.Hold
	a.n.mu.Unlock()
	a.n.state("openconfirm")
	p.c.verdict <- stays
	return nil, nil
}
