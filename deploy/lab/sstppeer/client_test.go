package sstppeer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"
)

// testClient speaks the client's side by hand: the proof that the server
// refuses what it should, which no real client would say.
type testClient struct {
	t        *testing.T
	conn     net.Conn
	in       *bufio.Reader
	buf      [maxPacket]byte
	link     *link
	nonce    [nonceSize]byte
	protocol byte // offered by the server
}

const clientTime = 10 * time.Second // for a test's call as a whole

func dialTest(t *testing.T, addr string, cfg *tls.Config) *testClient {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(clientTime))
	if cfg != nil {
		conn = tls.Client(conn, cfg)
	}
	c := &testClient{t: t, conn: conn, in: bufio.NewReader(conn)}
	c.link = newLink(clientLink(), func(protocol uint16, body []byte) { c.write(appendData(nil, protocol, body)) })
	return c
}

func (c *testClient) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatal(err)
	}
}

func (c *testClient) say(k kind, attrs ...attribute) {
	c.t.Helper()
	c.write(message{kind: k, attrs: attrs}.encode())
}

// ask sends a request and gives the first line of the answer.
func (c *testClient) ask(request string) string {
	c.t.Helper()
	c.write([]byte(request))
	first, err := c.in.ReadString('\n')
	if err != nil {
		c.t.Fatal(err)
	}
	for {
		row, err := c.in.ReadString('\n')
		if err != nil {
			c.t.Fatal(err)
		}
		if row == "\r\n" {
			return strings.TrimSpace(first)
		}
	}
}

const goodRequest = "SSTP_DUPLEX_POST /sra_{BA195980-CD49-458b-9E23-C84EE0ADCD75}/ HTTP/1.1\r\nHost: test\r\n" +
	"Content-Length: 18446744073709551615\r\nSSTPCORRELATIONID: {429D39C0-A4E0-A318-4E73F5D9}\r\n\r\n"

// next reads packets, answers PPP, and gives the first control message.
func (c *testClient) next() message {
	c.t.Helper()
	for {
		p, err := readPacket(c.in, &c.buf)
		if err != nil {
			c.t.Fatal(err)
		}
		if p.control {
			m, err := parseMessage(p)
			if err != nil {
				c.t.Fatal(err)
			}
			return m
		}
		c.ppp(p)
	}
}

func (c *testClient) ppp(p packet) {
	c.t.Helper()
	protocol, body, ok := splitFrame(p.body())
	if !ok || protocol == protoIPv4 {
		return
	}
	if err := c.link.receive(time.Now(), protocol, bytes.Clone(body)); err != nil {
		c.t.Fatal(err)
	}
}

// begin asks for a call and reads the server's nonce.
func (c *testClient) begin() {
	c.t.Helper()
	if got := c.ask(goodRequest); got != "HTTP/1.1 200" {
		c.t.Fatalf("%q", got)
	}
	c.say(callConnectRequest, attribute{attrProtocol, []byte{0, protocolPPP}})
	m := c.next()
	v, ok := m.attr(attrBindingReq)
	if m.kind != callConnectAck || !ok || len(v) != 4+nonceSize {
		c.t.Fatalf("%+v", m)
	}
	c.protocol = v[3]
	copy(c.nonce[:], v[4:])
}

// login lets PPP run until the link is up.
func (c *testClient) login() {
	c.t.Helper()
	c.link.start(time.Now())
	for !c.link.up() {
		p, err := readPacket(c.in, &c.buf)
		if err != nil {
			c.t.Fatal(err)
		}
		c.ppp(p)
	}
}

// bind sends Call Connected, spoilt by change, about a certificate.
func (c *testClient) bind(protocol byte, der []byte, change func(*binding)) {
	c.t.Helper()
	b := binding{protocol: protocol, nonce: c.nonce, hash: certHash(protocol, der)}
	raw := message{kind: callConnected, attrs: []attribute{b.encode()}}.encode()
	b.mac = compoundMAC(protocol, c.link.login.authKey(c.link.nt), raw)
	if change != nil {
		change(&b)
	}
	c.say(callConnected, b.encode())
}

// memDevice is a TUN device without a kernel.
type memDevice struct {
	in  chan []byte // to the tunnel
	out chan []byte // from it
}

func (d *memDevice) Read(b []byte) (int, error) {
	p, ok := <-d.in
	if !ok {
		return 0, os.ErrClosed
	}
	return copy(b, p), nil
}

func (d *memDevice) Write(b []byte) (int, error) {
	select {
	case d.out <- bytes.Clone(b):
		return len(b), nil
	default:
		return 0, io.ErrShortWrite
	}
}

// testServerOn serves on loopback until the test ends.
func testServerOn(t *testing.T, cfg ServerConfig) (*Server, *memDevice, string) {
	t.Helper()
	cfg.Name, cfg.Password, cfg.Local, cfg.Pool = "s1", testPassword, serverInner, netip.MustParsePrefix("198.19.0.0/20")
	cfg.Listen = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:0")}
	dev := &memDevice{in: make(chan []byte), out: make(chan []byte, 64)}
	s, err := NewServer(cfg, dev)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := listen(t.Context(), cfg.Listen[0])
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{}, 2)
	go func() {
		s.Serve(ctx, ln)
		done <- struct{}{}
	}()
	go func() {
		if err := s.FromDevice(); err != nil {
			t.Error(err)
		}
		done <- struct{}{}
	}()
	t.Cleanup(func() {
		cancel()
		close(dev.in)
		<-done
		<-done
	})
	return s, dev, ln.Addr().String()
}

// eventually polls with a bound.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), clientTime)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("waited for %s", what)
		case <-tick.C:
		}
	}
}

// wantEnd reads until the server closes.
func (c *testClient) wantEnd() {
	c.t.Helper()
	for {
		if _, err := readPacket(c.in, &c.buf); err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				c.t.Errorf("the end: %v", err)
			}
			return
		}
	}
}

// ipv4 is a packet that means nothing.
func ipv4(from, to netip.Addr, text string) []byte {
	b := make([]byte, 20, 64)
	b[0], b[3] = 0x45, byte(20+len(text))
	copy(b[12:], from.AsSlice())
	copy(b[16:], to.AsSlice())
	return fmt.Append(b, text)
}
