package peer

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"time"
)

// TCPStats is a responder's account of TCP 443.
type TCPStats struct {
	Open    int   `json:"open"`    // streams
	Streams int64 `json:"streams"` // ever
	Probes  int64 `json:"probes"`  // answered with 401
	Refused int64 `json:"refused"` // neither
	Records int64 `json:"records"`
}

const (
	tcpHeadBound = 10 * time.Second // for TLS and the request
	maxTCPOpen   = 1 << 14          // connections
)

// tcpServer echoes numbered records.
type tcpServer struct {
	number uint16
	cfg    *tls.Config
	mu     sync.Mutex
	st     TCPStats
	open   int
}

// startTCPServer listens on every address until ctx ends.
func startTCPServer(ctx context.Context, cfg ResponderConfig, wg *sync.WaitGroup) (*tcpServer, error) {
	cert, err := selfSigned(cfg.Name)
	if err != nil {
		return nil, err
	}
	s := &tcpServer{number: cfg.Number, cfg: &tls.Config{Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12}}
	for _, a := range cfg.Addrs {
		lc := net.ListenConfig{}
		lc.SetMultipathTCP(false)
		ln, err := lc.Listen(ctx, "tcp", netip.AddrPortFrom(a, tcpPort).String())
		if err != nil {
			return nil, fmt.Errorf("listen on TCP: %w", err)
		}
		context.AfterFunc(ctx, func() { ln.Close() })
		wg.Go(func() { s.accept(ctx, ln, wg) })
	}
	return s, nil
}

func (s *tcpServer) accept(ctx context.Context, ln net.Listener, wg *sync.WaitGroup) {
	for {
		c, err := ln.Accept()
		if ctx.Err() != nil {
			if err == nil {
				c.Close()
			}
			return
		}
		if err != nil {
			wait(ctx, retryPause) // out of descriptors, say
			continue
		}
		s.mu.Lock()
		full := s.open >= maxTCPOpen
		if !full {
			s.open++
		}
		s.mu.Unlock()
		if full {
			c.Close()
			continue
		}
		wg.Go(func() {
			stop := context.AfterFunc(ctx, func() { c.Close() })
			s.serve(c)
			stop()
			c.Close()
			s.count(func(*TCPStats) { s.open-- })
		})
	}
}

func (s *tcpServer) count(change func(*TCPStats)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(&s.st)
}

func (s *tcpServer) serve(c net.Conn) {
	c.SetDeadline(time.Now().Add(tcpHeadBound))
	t := tls.Server(c, s.cfg)
	in := bufio.NewReader(t)
	line, err := readHead(in)
	if err != nil {
		s.count(func(st *TCPStats) { st.Refused++ })
		return
	}
	head, stream := answer(line)
	if _, err := t.Write([]byte(head)); err != nil || !stream {
		s.count(func(st *TCPStats) { st.Probes++ })
		t.Close()
		return
	}
	c.SetDeadline(time.Time{})
	s.count(func(st *TCPStats) { st.Streams++; st.Open++ })
	defer s.count(func(st *TCPStats) { st.Open-- })
	for {
		r, err := readRecord(in)
		if err != nil {
			return
		}
		r.server = s.number
		if _, err := t.Write(r.encode()); err != nil {
			return
		}
		s.count(func(st *TCPStats) { st.Records++ })
	}
}

func (s *tcpServer) stats() TCPStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.st
}

// selfSigned makes a certificate that nobody has to believe.
func selfSigned(name string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make key: %w", err)
	}
	now := time.Now()
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.AddDate(0, 1, 0),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}
