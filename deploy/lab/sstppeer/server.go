package sstppeer

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Limits of a server.
const (
	headTime   = 60 * time.Second // for TLS and the request: as long as Windows waits
	maxCalls   = 1024             // of the pool's addresses
	maxOpen    = 4096             // connections, with those before their request
	maxSeen    = 256              // distinct hashes and clients remembered
	acceptWait = 50 * time.Millisecond
	readBuffer = 64 << 10 // bytes
	poolStart  = 10       // the first address of the pool that a client gets
)

// ServerConfig is one server.
type ServerConfig struct {
	Name   string           `json:"name"`
	Listen []netip.AddrPort `json:"listen"`
	// CertFile and KeyFile are for TLS; empty: plain HTTP, behind an offloader.
	CertFile string `json:"cert_file,omitempty"`
	KeyFile  string `json:"key_file,omitempty"`
	// Hashes that clients may bind to, hex: 64 digits as in SHA256CertificateHash
	// of RRAS, 40 as in SHA1CertificateHash. Empty: the own certificate's, which
	// is what RRAS takes where no administrator has configured any.
	Hashes   []string     `json:"hashes,omitempty"`
	Password string       `json:"password"` // of every user
	Local    netip.Addr   `json:"local"`    // in the tunnel
	Pool     netip.Prefix `json:"pool"`     // of clients in the tunnel
	// Hello is how long a client may be silent before it is asked; 0: 60 s.
	Hello   time.Duration `json:"hello,omitempty"`
	Control string        `json:"control"`
}

// Server lets calls in and knows all about them.
type Server struct {
	cfg     ServerConfig
	device  io.ReadWriter // of IP packets
	cert    atomic.Pointer[tls.Certificate]
	trusted atomic.Pointer[trust]
	open    atomic.Int64 // connections

	mu     sync.Mutex
	calls  map[netip.Addr]*call // by inner address
	nextID uint64
	st     ServerStats // totals of what has ended
}

// NewServer checks the configuration and reads the certificate.
func NewServer(cfg ServerConfig, device io.ReadWriter) (*Server, error) {
	s := &Server{cfg: cfg, device: device, calls: map[netip.Addr]*call{}, st: newServerStats(cfg.Name)}
	if cfg.CertFile != "" {
		if err := s.SetCertificate(cfg.CertFile, cfg.KeyFile); err != nil {
			return nil, err
		}
	}
	if err := s.SetHashes(cfg.Hashes); err != nil {
		return nil, err
	}
	if !cfg.Local.Is4() || !cfg.Pool.Addr().Is4() || len(cfg.Listen) == 0 {
		return nil, errors.New("server: want IPv4 addresses for the tunnel, and one to listen on")
	}
	return s, nil
}

// SetCertificate is for connections from now on.
func (s *Server) SetCertificate(certFile, keyFile string) error {
	c, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return fmt.Errorf("load certificate: %w", err)
	}
	s.cert.Store(&c)
	return nil
}

// SetHashes says what clients may bind to from now on. Calls that stand are not
// asked again.
func (s *Server) SetHashes(list []string) error {
	var own []byte
	if c := s.cert.Load(); c != nil {
		own = c.Certificate[0]
	}
	t, err := newTrust(list, own)
	if err != nil {
		return err
	}
	s.trusted.Store(t)
	return nil
}

// Serve takes connections of ln until ctx ends; it closes ln.
func (s *Server) Serve(ctx context.Context, ln net.Listener) {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			if err == nil {
				c.Close()
			}
			return
		}
		if err != nil { // out of descriptors, say
			select {
			case <-ctx.Done():
			case <-time.After(acceptWait):
			}
			continue
		}
		if s.open.Add(1) > maxOpen {
			s.open.Add(-1)
			c.Close()
			continue
		}
		wg.Go(func() {
			defer s.open.Add(-1)
			s.serve(ctx, c)
		})
	}
}

// serve serves one connection and closes it.
func (s *Server) serve(ctx context.Context, raw net.Conn) {
	defer raw.Close()
	stop := context.AfterFunc(ctx, func() { raw.SetDeadline(time.Now()) })
	defer stop()
	raw.SetDeadline(time.Now().Add(headTime))
	conn := raw
	if s.cfg.CertFile != "" {
		conn = tls.Server(raw, &tls.Config{
			MinVersion:     tls.VersionTLS12,
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.cert.Load(), nil },
		})
	}
	in := bufio.NewReaderSize(conn, readBuffer)
	r, err := readRequest(in)
	if err != nil {
		s.count(func(st *ServerStats) { st.Refused++ })
		return
	}
	head, isCall := r.answer(time.Now())
	if !isCall {
		s.count(func(st *ServerStats) { st.answered(r, head) })
		io.WriteString(conn, head)
		conn.Close() // with TLS: a proper end
		return
	}
	from, _ := netip.ParseAddrPort(raw.RemoteAddr().String())
	c := s.begin(netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
	if c == nil { // as RRAS without free ports ([MS-SSTP] 4.1)
		s.count(func(st *ServerStats) { st.Full++ })
		io.WriteString(conn, "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
		conn.Close()
		return
	}
	defer s.end(c)
	if _, err := io.WriteString(conn, head); err != nil {
		c.ended(err)
		return
	}
	if !stop() {
		return // ctx ended meanwhile
	}
	raw.SetDeadline(time.Time{})
	c.run(ctx, conn, in)
}

// begin makes a call with an address of the pool; nil: none is free.
func (s *Server) begin(from netip.AddrPort) *call {
	s.mu.Lock()
	defer s.mu.Unlock()
	a := s.cfg.Pool.Masked().Addr()
	for range poolStart {
		a = a.Next()
	}
	for range maxCalls {
		if !s.cfg.Pool.Contains(a) {
			return nil
		}
		if s.calls[a] == nil {
			s.nextID++
			t := s.trusted.Load()
			c := newCall(s.nextID, from, a, sessionConfig{
				protocols: t.protocols(), hello: s.cfg.Hello,
				// Asked at the time of Call Connected: the list may be another by then.
				trusted: func(protocol byte, hash [32]byte) bool { return s.trusted.Load().holds(protocol, hash) },
				link: linkConfig{
					name: s.cfg.Name, local: s.cfg.Local, peer: a,
					password: func(string) (string, bool) { return s.cfg.Password, true },
				},
			}, func(ip []byte) { s.fromClient(a, ip) })
			s.calls[a] = c
			s.st.begun(from.Addr())
			return c
		}
		a = a.Next()
	}
	return nil
}

// end gives the address back and enters the call into the books.
func (s *Server) end(c *call) {
	st := c.stats()
	c.mu.Lock()
	reason := c.session.reason
	c.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.calls, c.inner)
	s.st.ended(st, reason)
}

func (s *Server) count(change func(*ServerStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.st)
}

// fromClient lets a packet out of a tunnel, if it is of the tunnel's address.
func (s *Server) fromClient(inner netip.Addr, ip []byte) {
	if src, ok := source(ip); ok && src == inner {
		s.device.Write(ip) // what the kernel refuses is lost, as in any router
	}
}

// FromDevice carries packets of the device to their calls until it is closed.
func (s *Server) FromDevice() error {
	buf := make([]byte, maxFrame)
	for {
		n, err := s.device.Read(buf)
		if errors.Is(err, os.ErrClosed) || errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read tun: %w", err)
		}
		to, ok := destination(buf[:n])
		if !ok {
			continue
		}
		s.mu.Lock()
		c := s.calls[to]
		s.mu.Unlock()
		if c != nil && c.up() {
			c.out.data(protoIPv4, buf[:n])
		}
	}
}

// HangUp ends the calls of a user gently; "": all of them.
func (s *Server) HangUp(user string) (n int) {
	s.mu.Lock()
	var list []*call
	for _, c := range s.calls {
		list = append(list, c)
	}
	s.mu.Unlock()
	for _, c := range list {
		if user == "" || c.stats().User == user {
			c.hangUp()
			n++
		}
	}
	return n
}
