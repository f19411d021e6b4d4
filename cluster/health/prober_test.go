package health

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

var (
	server1 = netip.MustParseAddr("198.51.100.11")
	server2 = netip.MustParseAddr("2001:db8::12")
	server3 = netip.MustParseAddr("198.51.100.13")
)

// behaviour is how a server answers one datagram; nil: silence.
type behaviour func(port uint16, id spi, group uint16) []byte

func rejects(port uint16, id spi, _ uint16) []byte {
	return reply(id, port == 4500, payloadNotify, notify(notifyInvalidKE, 0, 14)...)
}

func neutralises(port uint16, id spi, _ uint16) []byte {
	return reply(id, port == 4500, payloadNotify, notify(notifyNoProposalChosen)...)
}

// fabric is a network of IKE servers in memory.
type fabric struct {
	mu      sync.Mutex
	servers map[netip.Addr]behaviour
	raw     map[netip.Addr]func(port uint16, request []byte) []byte // in place of a behaviour
	refuses map[netip.Addr]bool                                     // by ICMP
	delay   time.Duration
	from    netip.Addr // answers come from here when valid
	opened  int
	fail    error // of Listen
	conns   []*memConn
	probes  int
	webs    map[netip.Addr]Dial // TCP 443; none: SSTP listens
}

func (f *fabric) dial(ctx context.Context, local netip.Addr, to netip.AddrPort) (net.Conn, error) {
	f.mu.Lock()
	d := f.webs[to.Addr()]
	f.mu.Unlock()
	if d == nil {
		d = serve(listens)
	}
	return d(ctx, local, to)
}

func (f *fabric) setWeb(a netip.Addr, d Dial) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.webs == nil {
		f.webs = map[netip.Addr]Dial{}
	}
	f.webs[a] = d
}

type memConn struct {
	f       *fabric
	in      chan packet
	closed  chan struct{}
	once    sync.Once
	mu      sync.Mutex
	refused []netip.AddrPort
}

type packet struct {
	from netip.AddrPort
	data []byte
}

func (f *fabric) listen(local netip.AddrPort) (net.PacketConn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		return nil, f.fail
	}
	f.opened++
	c := &memConn{f: f, in: make(chan packet, 4096), closed: make(chan struct{})}
	f.conns = append(f.conns, c)
	return c, nil
}

func (f *fabric) set(a netip.Addr, b behaviour) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.servers[a] = b
	delete(f.raw, a)
}

func (f *fabric) setRaw(a netip.Addr, answer func(port uint16, request []byte) []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.raw == nil {
		f.raw = map[netip.Addr]func(uint16, []byte) []byte{}
	}
	f.raw[a] = answer
}

func (c *memConn) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	ap := to.(*net.UDPAddr).AddrPort()
	data := bytes.Clone(b)
	c.f.mu.Lock()
	defer c.f.mu.Unlock()
	c.f.probes++
	if c.f.refuses[ap.Addr()] {
		c.mu.Lock()
		c.refused = append(c.refused, ap)
		c.mu.Unlock()
		c.in <- packet{} // wakes the reader with an error
		return len(b), nil
	}
	ike := data
	if ap.Port() == 4500 {
		ike = data[markerSize:]
	}
	answer := c.f.servers[ap.Addr()]
	if raw := c.f.raw[ap.Addr()]; raw != nil {
		answer = func(port uint16, _ spi, _ uint16) []byte { return raw(port, ike) }
	}
	if answer == nil {
		return len(b), nil
	}
	var group uint16
	_ = eachPayload(ike[16], ike[headerSize:], func(kind byte, body []byte) {
		if kind == payloadKE {
			group = uint16(body[0])<<8 | uint16(body[1])
		}
	})
	back := answer(ap.Port(), spi(ike[:8]), group)
	if back == nil {
		return len(b), nil
	}
	from := ap
	if c.f.from.IsValid() {
		from = netip.AddrPortFrom(c.f.from, ap.Port())
	}
	time.AfterFunc(c.f.delay, func() { c.in <- packet{from, back} })
	return len(b), nil
}

func (c *memConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-c.closed:
		return 0, nil, net.ErrClosed
	case p := <-c.in:
		if p.data == nil {
			return 0, nil, errors.New("connection refused")
		}
		return copy(b, p.data), net.UDPAddrFromAddrPort(p.from), nil
	}
}

func (c *memConn) Refused() []netip.AddrPort {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.refused
	c.refused = nil
	return r
}

func (c *memConn) Close() error                     { c.once.Do(func() { close(c.closed) }); return nil }
func (c *memConn) LocalAddr() net.Addr              { return &net.UDPAddr{} }
func (c *memConn) SetDeadline(time.Time) error      { return os.ErrNoDeadline }
func (c *memConn) SetReadDeadline(time.Time) error  { return os.ErrNoDeadline }
func (c *memConn) SetWriteDeadline(time.Time) error { return os.ErrNoDeadline }

// bench runs a prober of server1 and server2 inside a bubble.
type bench struct {
	*fabric
	*Prober
}

func probing(t *testing.T, body func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		f := &fabric{servers: map[netip.Addr]behaviour{server1: rejects, server2: rejects},
			refuses: map[netip.Addr]bool{}, delay: time.Millisecond}
		p, err := NewProber(Config{Boot: 7}, Deps{Listen: f.listen})
		if err != nil {
			t.Fatal(err)
		}
		p.SetTargets([]Target{{Backend: 1, Addr: server1}, {Backend: 2, Addr: server2}}, DefaultTiming())
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- p.Run(ctx) }()
		body(&bench{f, p})
		cancel()
		if err := <-done; err != nil {
			t.Errorf("run: %v", err)
		}
		time.Sleep(time.Second) // packets under way
	})
}

func (b *bench) opinion(id state.BackendID) Opinion {
	for _, r := range b.Reports() {
		if r.Backend == id {
			return r.Opinion
		}
	}
	return OpinionUnknown
}

// until waits for an opinion and returns how long it took, or -1.
func (b *bench) until(id state.BackendID, want Opinion, limit time.Duration) time.Duration {
	start := time.Now()
	for time.Since(start) <= limit {
		if b.opinion(id) == want {
			return time.Since(start)
		}
		time.Sleep(10 * time.Millisecond)
	}
	return -1
}

func TestProberUpDownUp(t *testing.T) {
	probing(t, func(b *bench) {
		if d := b.until(1, OpinionUp, 6*time.Second); d < 3600*time.Millisecond {
			t.Errorf("up after %v; five answers take 4 s or a little less", d)
		}
		time.Sleep(10 * time.Second)
		b.set(server1, nil)
		if d := b.until(1, OpinionDown, 5*time.Second); d < 2*time.Second || d > 4100*time.Millisecond {
			t.Errorf("down after %v; three misses take up to 4 s", d)
		}
		if got := b.opinion(2); got != OpinionUp {
			t.Errorf("the other server is %v", got)
		}
		b.set(server1, rejects)
		if d := b.until(1, OpinionUp, 7*time.Second); d < 3*time.Second {
			t.Errorf("up again after %v", d)
		}
	})
}

func TestProberEitherPort(t *testing.T) {
	for _, dead := range probedPorts {
		probing(t, func(b *bench) {
			time.Sleep(10 * time.Second)
			b.set(server1, func(port uint16, id spi, g uint16) []byte {
				if port == dead {
					return nil
				}
				return rejects(port, id, g)
			})
			if d := b.until(1, OpinionDown, 5*time.Second); d < 0 {
				t.Errorf("port %d dead: still %v", dead, b.opinion(1))
			}
		})
	}
}

// TestProberDampens: two misses in a row, however often, change nothing.
func TestProberDampens(t *testing.T) {
	probing(t, func(b *bench) {
		time.Sleep(10 * time.Second)
		n := map[uint16]int{}
		b.set(server1, func(port uint16, id spi, g uint16) []byte {
			if n[port]++; n[port]%3 != 0 {
				return nil
			}
			return rejects(port, id, g)
		})
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if got := b.opinion(1); got != OpinionUp {
				t.Fatalf("%v", got)
			}
		}
	})
}

func TestProberNeutral(t *testing.T) {
	probing(t, func(b *bench) {
		b.set(server1, neutralises)
		if d := b.until(1, OpinionNeutral, 5*time.Second); d < 0 {
			t.Fatalf("still %v", b.opinion(1))
		}
		hint := b.Reports()[0].Ports[0].Note.Hint()
		if !strings.Contains(hint, "RemoteAccess") || !strings.Contains(hint, "aes256gcm16") {
			t.Errorf("hint %q", hint)
		}
		o := b.Observe(nil)
		if s, _ := o.Of(1, state.ClassIKE); s.Opinion != OpinionNeutral || s.Note != NoteNoProposal || s.Misses != 0 {
			t.Errorf("observed %+v", s)
		}
		b.set(server1, nil)
		if d := b.until(1, OpinionDown, 5*time.Second); d < 0 {
			t.Errorf("silent, yet %v", b.opinion(1))
		}
	})
}

// TestProberLearnsGroup: a server that takes the group all the same is asked
// with another one, so that half-open SAs do not pile up.
func TestProberLearnsGroup(t *testing.T) {
	probing(t, func(b *bench) {
		accepted := 0
		b.set(server1, func(port uint16, id spi, g uint16) []byte {
			if g == wrongGroups[0].number {
				accepted++
				return reply(id, port == 4500, payloadKE, keyExchange(g)...)
			}
			return rejects(port, id, g)
		})
		if d := b.until(1, OpinionUp, 10*time.Second); d < 0 {
			t.Errorf("still %v", b.opinion(1))
		}
		if accepted > len(probedPorts) {
			t.Errorf("%d half-open SAs left behind", accepted)
		}
	})
}

func TestProberIgnoresForgedAnswers(t *testing.T) {
	for name, prepare := range map[string]func(b *bench){
		"wrong SPI": func(b *bench) {
			b.set(server1, func(port uint16, id spi, g uint16) []byte { id[0]++; return rejects(port, id, g) })
		},
		"wrong source": func(b *bench) { b.mustLock(func() { b.from = netip.MustParseAddr("203.0.113.9") }) },
		"no marker": func(b *bench) {
			b.set(server1, func(_ uint16, id spi, g uint16) []byte { return rejects(500, id, g) })
		},
		"too late": func(b *bench) { b.mustLock(func() { b.delay = 1001 * time.Millisecond }) },
	} {
		t.Run(name, func(t *testing.T) {
			probing(t, func(b *bench) {
				prepare(b)
				if d := b.until(1, OpinionDown, 6*time.Second); d < 0 {
					t.Errorf("believed: %v", b.opinion(1))
				}
			})
		})
	}
}

func (b *bench) mustLock(f func()) {
	b.fabric.mu.Lock()
	defer b.fabric.mu.Unlock()
	f()
}

func TestProberRefused(t *testing.T) {
	probing(t, func(b *bench) {
		time.Sleep(10 * time.Second)
		b.mustLock(func() { b.refuses[server1] = true })
		if d := b.until(1, OpinionDown, 4*time.Second); d < 0 || d > 3*time.Second {
			t.Errorf("down after %v; refusals take no timeout", d)
		}
		if got := b.Reports()[0].Ports[0].Note; got != NoteRefused {
			t.Errorf("note %v", got)
		}
	})
}

// TestProberWithoutSocket: who cannot ask knows nothing, and says so by age.
func TestProberWithoutSocket(t *testing.T) {
	probing(t, func(b *bench) {
		time.Sleep(10 * time.Second)
		b.mustLock(func() {
			b.fail = errors.New("address not there")
			for _, c := range b.conns {
				c.Close()
			}
		})
		time.Sleep(10 * time.Second)
		o := b.Observe(nil)
		if s, _ := o.Of(1, state.ClassIKE); s.Opinion != OpinionUp || s.Age < 8*time.Second {
			t.Errorf("observed %+v", s)
		}
		b.mustLock(func() { b.fail = nil })
		time.Sleep(3 * time.Second)
		o = b.Observe(nil)
		if s, _ := o.Of(1, state.ClassIKE); s.Opinion != OpinionUp || s.Age > 2*time.Second {
			t.Errorf("after reopening: %+v", s)
		}
	})
}

func TestProberManyTargetsTwoSockets(t *testing.T) {
	probing(t, func(b *bench) {
		var ts []Target
		for i := range MaxTargets + 10 {
			a := netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})
			b.set(a, rejects)
			ts = append(ts, Target{Backend: state.BackendID(i + 1), Addr: a})
		}
		b.SetTargets(ts, DefaultTiming())
		time.Sleep(10 * time.Second)
		o := b.Observe(nil)
		opened, probes := 0, 0
		b.mustLock(func() { opened, probes = b.opened, b.probes })
		if len(o.Seen) != MaxTargets || opened > 2 {
			t.Errorf("%d targets, %d sockets", len(o.Seen), opened)
		}
		for _, s := range o.Seen {
			if s.Opinion != OpinionUp {
				t.Fatalf("%+v", s)
			}
		}
		if most := 2 * 12 * MaxTargets; probes > most {
			t.Errorf("%d probes in 10 s, more than %d", probes, most)
		}
		if b.Boot() != 7 {
			t.Error("boot lost")
		}
	})
}

func (b *bench) Boot() uint64 { o := b.Observe(nil); return o.Boot }

func TestProberSetTargets(t *testing.T) {
	probing(t, func(b *bench) {
		time.Sleep(10 * time.Second)
		before := b.Observe(nil)
		b.SetTargets([]Target{{Backend: 1, Addr: server2}, {Backend: 2, Addr: server2}}, DefaultTiming())
		o := b.Observe(nil)
		if o.Sequence <= before.Sequence {
			t.Error("sequence stands still")
		}
		if s, _ := o.Of(1, state.ClassIKE); s.Opinion != OpinionUnknown {
			t.Errorf("a new address keeps the old opinion: %+v", s)
		}
		if s, _ := o.Of(2, state.ClassIKE); s.Opinion != OpinionUp {
			t.Errorf("an unchanged target lost its opinion: %+v", s)
		}
		time.Sleep(300 * time.Millisecond)
		b.SetTargets(nil, DefaultTiming())
		time.Sleep(5 * time.Second)
		if o := b.Observe(nil); len(o.Seen) != 0 {
			t.Errorf("still probing %+v", o.Seen)
		}
	})
}

func TestReturns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewReturns()
		check := func(seen bool, quiet time.Duration) {
			t.Helper()
			if s, q := r.of(1); s != seen || q != quiet {
				t.Errorf("got %v %v, want %v %v", s, q, seen, quiet)
			}
		}
		check(false, 0)
		r.Sample(map[state.BackendID]Counts{1: {Proof: 50}})
		time.Sleep(time.Minute)
		r.Sample(map[state.BackendID]Counts{1: {Proof: 50}})
		check(false, time.Minute)
		r.Sample(map[state.BackendID]Counts{1: {Proof: 51}})
		check(true, 0)
		time.Sleep(5 * time.Second)
		check(true, 5*time.Second) // nobody sampled: the packet grows older all the same
		r.Sample(map[state.BackendID]Counts{1: {Proof: 3}})
		check(true, 5*time.Second) // reset
		r.Sample(map[state.BackendID]Counts{1: {Proof: 4}})
		check(true, 0)
		time.Sleep(PanicWindow - time.Millisecond)
		check(true, PanicWindow-time.Millisecond)
		time.Sleep(time.Millisecond)
		check(false, 0) // no sign of life any more, but no silence that would void either
		time.Sleep(time.Hour)
		check(false, 0)
		r.Sample(map[state.BackendID]Counts{1: {Proof: 4}})
		check(true, time.Hour+PanicWindow) // sampled again, and nothing came meanwhile
		r.Sample(nil)
		check(false, 0)
	})
}
