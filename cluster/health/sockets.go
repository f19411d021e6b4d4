package health

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"
)

// sockets are the prober's two, opened when a target of the family is there.
// Used by the goroutine of Run alone.
type sockets struct {
	prober  *Prober
	open    [2]*socket // IPv4, IPv6
	retry   [2]time.Time
	readers sync.WaitGroup
}

type socket struct {
	net.PacketConn
	dead chan struct{} // closed when its reader has ended
}

// send sends one probe. Without a socket the question is withdrawn: a node that
// cannot ask knows nothing, it does not know that a server is down.
func (s *sockets) send(d probeDue) error {
	conn := s.conn(d.to.Addr())
	if conn == nil {
		s.prober.withdraw(d.id)
		return nil
	}
	_, err := conn.WriteTo(d.data, net.UDPAddrFromAddrPort(d.to))
	s.prober.takeRefused(conn.PacketConn)
	if errors.Is(err, net.ErrClosed) {
		s.prober.withdraw(d.id)
		return nil
	}
	return err
}

// conn gives the open socket of a family, or opens it.
func (s *sockets) conn(to netip.Addr) *socket {
	i, local, unspecified := 0, s.prober.cfg.Local4, netip.IPv4Unspecified()
	if to.Is6() {
		i, local, unspecified = 1, s.prober.cfg.Local6, netip.IPv6Unspecified()
	}
	if s.open[i] != nil {
		select {
		case <-s.open[i].dead:
			s.open[i].Close()
			s.open[i] = nil
		default:
			return s.open[i]
		}
	}
	now := time.Now()
	if now.Before(s.retry[i]) {
		return nil
	}
	if !local.IsValid() {
		local = unspecified
	}
	conn, err := s.prober.listen(netip.AddrPortFrom(local, 0))
	s.retry[i] = now.Add(reopenDelay)
	if err != nil {
		s.prober.metrics.unopened.Inc()
		s.prober.log.Warn("probe socket not opened", "local", local, "err", err)
		return nil
	}
	k := &socket{PacketConn: conn, dead: make(chan struct{})}
	s.open[i] = k
	s.readers.Go(func() {
		defer close(k.dead)
		s.prober.read(conn)
	})
	return k
}

func (s *sockets) close() {
	for _, k := range s.open {
		if k != nil {
			k.Close()
		}
	}
	s.readers.Wait()
}

// read takes answers until the socket fails for good.
func (p *Prober) read(conn net.PacketConn) {
	buf := make([]byte, markerSize+maxAnswer+1)
	failures := 0
	for failures < maxReadFailures {
		n, from, err := conn.ReadFrom(buf)
		p.takeRefused(conn)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // an ICMP error shows up here too
			failures++
			continue
		}
		failures = 0
		if u, ok := from.(*net.UDPAddr); ok {
			if again := p.answered(u.AddrPort(), buf[:n]); again != nil {
				_, _ = conn.WriteTo(again, from) // lost or not: the question's timeout follows
			}
		}
	}
}

// maxReadFailures in a row, with nothing read in between, end a socket: more
// than all targets refusing at once.
const maxReadFailures = 4 * len(probedPorts) * MaxTargets

func (p *Prober) takeRefused(conn net.PacketConn) {
	if r, ok := conn.(Refuser); ok {
		p.refused(r.Refused())
	}
}
