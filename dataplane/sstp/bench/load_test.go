package bench

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// opening is how many clients open a call at one time.
	opening = 16
	// patience bounds every wait of a client.
	patience = 60 * time.Second
)

// Load is the process with the clients. Its methods are called by the benchmark; what is
// open stays open between two calls.
type Load struct {
	source atomic.Uint32 // number of the next client's address
	mu     sync.Mutex
	groups [][]*call
	faults atomic.Uint64
	echoed atomic.Uint64 // echo requests answered
	passed atomic.Uint64 // packets sent and had back, of a held group
}

// call is one client's connection.
type call struct {
	conn *tls.Conn
	r    *bufio.Reader
}

// forgetful makes the client say that it takes session tickets, as real ones do, and
// never have one: every handshake is a full one.
type forgetful struct{}

func (forgetful) Get(string) (*tls.ClientSessionState, bool) { return nil, false }
func (forgetful) Put(string, *tls.ClientSessionState)        {}

// clientConfig offers the groups that Windows offers, X25519 first.
func clientConfig(version uint16) *tls.Config {
	return &tls.Config{
		ServerName:                  "vpn.example.com",
		InsecureSkipVerify:          true, // chains are not what is measured; the key's signature is checked
		MinVersion:                  version,
		MaxVersion:                  version,
		CurvePreferences:            []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384},
		ClientSessionCache:          forgetful{},
		DynamicRecordSizingDisabled: true,
	}
}

// connect goes as far as the server's response head. Every call comes from an address of
// its own in 127.0.0.0/8.
func (l *Load) connect(proxy string, config *tls.Config) (*call, error) {
	n := l.source.Add(1)
	d := net.Dialer{
		Timeout:   patience,
		LocalAddr: &net.TCPAddr{IP: net.IPv4(127, byte(1+n>>16&0x3f), byte(n>>8), byte(n))},
	}
	raw, err := d.Dial("tcp4", proxy)
	if err != nil {
		return nil, err
	}
	c := &call{conn: tls.Client(raw, config)}
	c.r = bufio.NewReaderSize(c.conn, headLimit)
	if err := c.begin(); err != nil {
		raw.Close()
		return nil, err
	}
	return c, nil
}

func (c *call) begin() error {
	if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	if err := c.conn.Handshake(); err != nil {
		return fmt.Errorf("handshake: %w", err)
	}
	if c.conn.ConnectionState().DidResume {
		return errors.New("the handshake resumed a session, want full ones")
	}
	if _, err := c.conn.Write(request); err != nil {
		return fmt.Errorf("send a head: %w", err)
	}
	if err := readHead(c.r, "HTTP/1.1 200 "); err != nil {
		return err
	}
	return c.conn.SetDeadline(time.Time{})
}

// ask sends one packet and gives the next.
func (c *call) ask(packet []byte) ([]byte, error) {
	if _, err := c.conn.Write(packet); err != nil {
		return nil, fmt.Errorf("send a packet: %w", err)
	}
	return readPacket(c.r)
}

// OpenArgs of a group of calls.
type OpenArgs struct {
	Proxy string
	TLS   uint16
	Calls int
}

// Open opens calls up to Call Connected and one packet there and back, and gives the
// number of the group.
func (l *Load) Open(a OpenArgs, id *int) error {
	config := clientConfig(a.TLS)
	group := make([]*call, a.Calls)
	err := inParallel(a.Calls, opening, func(i int) error {
		c, err := l.connect(a.Proxy, config)
		if err != nil {
			return err
		}
		group[i] = c
		if err := openCall(c.conn, c.r, c.conn.ConnectionState().PeerCertificates[0].Raw); err != nil {
			return err
		}
		_, err = c.ask(data(packetLen, askEcho, 0))
		return err
	})
	if err != nil {
		return fmt.Errorf("open calls through %s: %w", a.Proxy, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	*id = len(l.groups)
	l.groups = append(l.groups, group)
	return nil
}

func (l *Load) group(id int) []*call {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.groups[id]
}

// Close ends a group's calls.
func (l *Load) Close(id int, _ *struct{}) error {
	for _, c := range l.group(id) {
		if err := c.conn.Close(); err != nil {
			return fmt.Errorf("close a call: %w", err)
		}
	}
	return nil
}

// BulkArgs say what every call of a group moves.
type BulkArgs struct {
	ID       int
	Up       bool
	Packets  uint64 // of each call
	PerWrite int    // of a client that sends
}

// Bulk returns when all has arrived.
func (l *Load) Bulk(a BulkArgs, _ *struct{}) error {
	group := l.group(a.ID)
	return inParallel(len(group), len(group), func(i int) error {
		c := group[i]
		if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		if a.Up {
			if _, err := c.conn.Write(data(smallestAsk, askUp, a.Packets)); err != nil {
				return err
			}
			if err := sendPackets(c.conn, a.Packets, a.PerWrite); err != nil {
				return err
			}
			_, err := readPacket(c.r)
			return err
		}
		if _, err := c.conn.Write(data(smallestAsk, askDown, a.Packets)); err != nil {
			return err
		}
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		return takePackets(c.r, c.conn, a.Packets, *buf)
	})
}

// EchoArgs say what every call of a group sends, one packet after the other.
type EchoArgs struct {
	ID, Size, Count int
}

// Echo gives the time of each packet there and back.
func (l *Load) Echo(a EchoArgs, took *[]time.Duration) error {
	group := l.group(a.ID)
	all := make([]time.Duration, len(group)*a.Count)
	err := inParallel(len(group), len(group), func(i int) error {
		c, packet := group[i], data(a.Size, askEcho, 0)
		if err := c.conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		for n := range a.Count {
			start := time.Now()
			if _, err := c.ask(packet); err != nil {
				return err
			}
			all[i*a.Count+n] = time.Since(start)
		}
		return nil
	})
	*took = all
	return err
}

// HandshakeArgs of calls that end with the server's response head.
type HandshakeArgs struct {
	Proxy string
	TLS   uint16
	Count int
}

// Handshakes opens and closes connections, some at one time.
func (l *Load) Handshakes(a HandshakeArgs, _ *struct{}) error {
	config := clientConfig(a.TLS)
	return inParallel(a.Count, opening, func(int) error {
		c, err := l.connect(a.Proxy, config)
		if err != nil {
			return err
		}
		return c.conn.Close()
	})
}

// HoldArgs say how a group of calls goes on by itself.
type HoldArgs struct {
	ID    int
	Every time.Duration // a packet there and back; 0: idle, only echo requests are answered
}

// Hold returns at once; Held tells what went wrong since. The group can only be closed
// afterwards.
func (l *Load) Hold(a HoldArgs, _ *struct{}) error {
	for i, c := range l.group(a.ID) {
		go func() {
			if err := l.hold(c, a.Every, time.Duration(i)*a.Every/time.Duration(len(l.group(a.ID)))); err != nil && !errors.Is(err, net.ErrClosed) {
				l.faults.Add(1)
				log.Print("load: ", err)
			}
		}()
	}
	return nil
}

func (l *Load) hold(c *call, every, first time.Duration) error {
	if every != 0 {
		go func() {
			packet := data(packetLen, askEcho, 0)
			for wait := time.NewTimer(first); ; wait.Reset(every) {
				<-wait.C
				if _, err := c.conn.Write(packet); err != nil {
					return // the reader sees it, too
				}
			}
		}()
	}
	for {
		wait := patience
		if every == 0 {
			wait += helloInterval
		}
		if err := c.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
			return err
		}
		p, err := readPacket(c.r)
		if err != nil {
			return err
		}
		switch {
		case controlType(p) == echoRequest:
			l.echoed.Add(1)
			if _, err := c.conn.Write(control(echoResponse, 0, nil)); err != nil {
				return err
			}
		case !isControl(p) && every != 0:
			l.passed.Add(1)
		default:
			return fmt.Errorf("% x came unasked", p[:min(len(p), 32)])
		}
	}
}

// HeldCounts of all held groups.
type HeldCounts struct {
	Faults, Echoed, Passed uint64
}

// Held tells how held groups fared so far.
func (l *Load) Held(_ struct{}, c *HeldCounts) error {
	*c = HeldCounts{Faults: l.faults.Load(), Echoed: l.echoed.Load(), Passed: l.passed.Load()}
	return nil
}

// inParallel does n things, some at one time, and gives the first fault.
func inParallel(n, workers int, do func(i int) error) error {
	var next atomic.Int64
	var wg sync.WaitGroup
	faults := make(chan error, workers)
	for range workers {
		wg.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := do(i); err != nil {
					faults <- err
					next.Add(int64(n)) // the others need not go on
					return
				}
			}
		})
	}
	wg.Wait()
	select {
	case err := <-faults:
		return err
	default:
		return nil
	}
}
