package bench

import (
	"bufio"
	"crypto/rand"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// helloInterval is how long a call may be silent before the server sends an echo
// request ([MS-SSTP] 3.1.2).
const helloInterval = 60 * time.Second

// Origin is the process behind the proxies: it answers like a server with "Use HTTP", and
// then does what the packets ask for. Its methods are called by the benchmark.
type Origin struct {
	listener *net.TCPListener
	calls    atomic.Int64
	faults   atomic.Uint64
	echoes   atomic.Uint64 // echo responses
}

// OriginCounts are the origin's view of what passed.
type OriginCounts struct {
	Calls          int64 // open now
	Faults, Echoes uint64
}

func newOrigin() (*Origin, error) {
	l, err := net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, fmt.Errorf("listen as origin: %w", err)
	}
	o := &Origin{listener: l}
	go o.accept()
	return o, nil
}

func (o *Origin) accept() {
	for {
		c, err := o.listener.AcceptTCP()
		if err != nil {
			log.Fatal("origin: ", err)
		}
		go func() {
			defer c.Close()
			o.calls.Add(1)
			defer o.calls.Add(-1)
			if err := o.serve(c); err != nil {
				o.faults.Add(1)
				log.Print("origin: ", err)
			}
		}()
	}
}

// serve ends without a fault where the client closes between two packets.
func (o *Origin) serve(c *net.TCPConn) error {
	r := bufio.NewReaderSize(c, headLimit)
	if err := readHead(r, "SSTP_DUPLEX_POST "+path); err != nil {
		return err
	}
	if _, err := c.Write(response); err != nil {
		return fmt.Errorf("answer a head: %w", err)
	}
	var asking bool
	for {
		if err := c.SetReadDeadline(time.Now().Add(helloInterval)); err != nil {
			return err
		}
		p, err := readPacket(r)
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded) && r.Buffered() == 0 && !asking:
			asking = true
			if _, err := c.Write(control(echoRequest, 0, nil)); err != nil {
				return err
			}
			continue
		case err != nil && r.Buffered() == 0 && !errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
		asking = false
		if err := o.answer(c, r, p); err != nil {
			return err
		}
	}
}

func (o *Origin) answer(c *net.TCPConn, r *bufio.Reader, p []byte) error {
	switch kind := controlType(p); kind {
	case 0:
	case connectRequest:
		nonce := make([]byte, 36)
		nonce[3] = 2 // SHA-256
		rand.Read(nonce[4:])
		_, err := c.Write(control(connectAck, 4, nonce))
		return err
	case echoResponse:
		o.echoes.Add(1)
		return nil
	case callConnected:
		return nil
	default:
		return fmt.Errorf("a control message of type %d", kind)
	}
	ask, count, err := asked(p)
	if err != nil {
		return err
	}
	switch ask {
	case askEcho:
		_, err = c.Write(p)
	case askDown:
		err = sendPackets(c, count, batchPackets)
	case askUp:
		if err := c.SetReadDeadline(time.Time{}); err != nil {
			return err
		}
		buf := buffers.Get().(*[]byte)
		defer buffers.Put(buf)
		if err = takePackets(r, c, count, *buf); err == nil {
			_, err = c.Write(data(smallestAsk, askUp, count))
		}
	default:
		err = fmt.Errorf("a packet asks for %q", ask)
	}
	return err
}

// buffers take bulk: as large as helps, so that the ends cost little beside the proxy.
var buffers = sync.Pool{New: func() any { b := make([]byte, 256<<10); return &b }}

// Addr is where it listens.
func (o *Origin) Addr(_ struct{}, addr *string) error {
	*addr = o.listener.Addr().String()
	return nil
}

// Counts of all calls so far.
func (o *Origin) Counts(_ struct{}, c *OriginCounts) error {
	*c = OriginCounts{Calls: o.calls.Load(), Faults: o.faults.Load(), Echoes: o.echoes.Load()}
	return nil
}
