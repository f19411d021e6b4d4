package peer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// WatchConfig is a look from a server at addresses that must always answer: each is
// pinged again and again.
type WatchConfig struct {
	Addrs   []netip.Addr `json:"addrs"`
	Control string       `json:"control"`
}

// Watched is what was seen of one address.
type Watched struct {
	Addr     netip.Addr `json:"addr"`
	Since    time.Time  `json:"since"` // the first answer: for that, neighbours have to be found
	Asked    int64      `json:"asked"`
	Answered int64      `json:"answered"`
	Lost     int64      `json:"lost"`    // asked since then, and no answer within a second
	Windows  []Window   `json:"windows"` // of those, the latest maxWindows
}

const (
	watchPeriod = 50 * time.Millisecond // between two questions to one address
	watchLen    = icmpHeaderLen + 8     // the question's number lies behind the header
)

// watcher asks on one socket for each address family.
type watcher struct {
	mu    sync.Mutex
	all   []Watched
	acc   []account // beside all
	conns map[bool]net.PacketConn
	id    uint16
}

// RunWatch runs until ctx ends.
func RunWatch(ctx context.Context, cfg WatchConfig) error {
	w := &watcher{acc: make([]account, len(cfg.Addrs)), conns: map[bool]net.PacketConn{}, id: binary.BigEndian.Uint16(random(2))}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, a := range cfg.Addrs {
		w.all = append(w.all, Watched{Addr: a})
		if w.conns[a.Is6()] != nil {
			continue
		}
		any := netip.IPv4Unspecified()
		if a.Is6() {
			any = netip.IPv6Unspecified()
		}
		c, err := listenICMP(any)
		if err != nil {
			cancel(err)
			return err
		}
		w.conns[a.Is6()] = c
		context.AfterFunc(ctx, func() { c.Close() })
		wg.Go(func() { w.read(c) })
	}
	wg.Go(func() {
		mux := http.NewServeMux()
		mux.HandleFunc("GET /stats", func(rw http.ResponseWriter, _ *http.Request) { Reply(rw, w.stats()) })
		cancel(ServeControl(ctx, cfg.Control, mux))
	})
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
				return fmt.Errorf("watch: %w", err)
			}
			return nil
		case <-tick.C:
			w.ask()
		}
	}
}

// ask sends one question to each address.
func (w *watcher) ask() {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now() // a tick may be an old one
	w.sweep(now)
	for i := range w.all {
		a := w.all[i].Addr
		b := make([]byte, watchLen)
		b[0] = icmpEcho
		if a.Is6() {
			b[0] = icmp6Echo
		}
		binary.BigEndian.PutUint16(b[4:], w.id)
		binary.BigEndian.PutUint16(b[6:], uint16(i))
		binary.BigEndian.PutUint64(b[icmpHeaderLen:], w.acc[i].send(now))
		if a.Is4() {
			binary.BigEndian.PutUint16(b[2:], ^fold(onesSum(b, 0)))
		} // the kernel sums ICMPv6
		w.all[i].Asked++
		w.conns[a.Is6()].WriteTo(b, &net.IPAddr{IP: a.AsSlice()}) // what cannot be sent is not answered
	}
}

// sweep gives up what is out for too long.
func (w *watcher) sweep(now time.Time) {
	for i := range w.all {
		s := &w.all[i]
		w.acc[i].sweep(now.Add(-lostAfter), func(at time.Time) {
			if s.Since.IsZero() || at.Before(s.Since) {
				return
			}
			s.Lost++
			s.Windows = lose(s.Windows, at)
		})
	}
}

// read takes answers until the socket is closed.
func (w *watcher) read(c net.PacketConn) {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := c.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error about an earlier question
		}
		if a, ok := netip.AddrFromSlice(from.(*net.IPAddr).IP); ok {
			w.answer(buf[:n], a.Unmap())
		}
	}
}

func (w *watcher) answer(b []byte, from netip.Addr) {
	kind := byte(icmpEchoReply)
	if from.Is6() {
		kind = icmp6EchoReply
	}
	if len(b) != watchLen || b[0] != kind || binary.BigEndian.Uint16(b[4:]) != w.id {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	i := int(binary.BigEndian.Uint16(b[6:]))
	if i >= len(w.all) || w.all[i].Addr != from {
		return
	}
	if fresh, _ := w.acc[i].echo(binary.BigEndian.Uint64(b[icmpHeaderLen:])); fresh {
		if w.all[i].Answered++; w.all[i].Since.IsZero() {
			w.all[i].Since = time.Now()
		}
	}
}

func (w *watcher) stats() []Watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sweep(time.Now())
	out := make([]Watched, len(w.all))
	for i, s := range w.all {
		s.Windows = append([]Window{}, s.Windows...)
		out[i] = s
	}
	return out
}
