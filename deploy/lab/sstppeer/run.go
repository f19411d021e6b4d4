package sstppeer

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

// Paths of a server's control socket.
const (
	PathStats       = "/stats"
	PathHashes      = "/hashes"      // POST a list of hashes: what may be bound to from now on
	PathCertificate = "/certificate" // POST a CertificateFiles
	PathHangUp      = "/hangup"      // POST a user, or "": its calls are ended gently
)

// CertificateFiles name a chain and its key.
type CertificateFiles struct {
	CertFile string `json:"cert_file"`
	KeyFile  string `json:"key_file"`
}

// byeTime is how long calls may take to end when the server stops.
const byeTime = 3 * time.Second

// RunServer serves in the process' namespace until ctx ends; calls are ended
// gently then.
func RunServer(ctx context.Context, cfg ServerConfig) error {
	device, _, err := openTUN(cfg.Local, cfg.Pool)
	if err != nil {
		return err
	}
	defer device.Close()
	s, err := NewServer(cfg, device)
	if err != nil {
		return err
	}
	running, end := context.WithCancelCause(context.WithoutCancel(ctx))
	defer end(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer end(nil)
	for _, a := range cfg.Listen {
		ln, err := listen(ctx, a)
		if err != nil {
			return err
		}
		wg.Go(func() { s.Serve(running, ln) })
	}
	wg.Go(func() {
		if err := s.FromDevice(); err != nil {
			end(err)
		}
	})
	wg.Go(func() { end(peer.ServeControl(running, cfg.Control, s.handler())) })
	select {
	case <-ctx.Done():
		s.sayGoodbye(running)
	case <-running.Done():
	}
	end(nil)
	device.Close() // ends FromDevice
	if err := context.Cause(running); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func listen(ctx context.Context, a netip.AddrPort) (net.Listener, error) {
	lc := net.ListenConfig{}
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(ctx, "tcp", a.String())
	if err != nil {
		return nil, fmt.Errorf("listen for SSTP: %w", err)
	}
	return ln, nil
}

// sayGoodbye ends all calls and waits for them, bounded.
func (s *Server) sayGoodbye(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, byeTime)
	defer cancel()
	s.HangUp("")
	t := time.NewTicker(tickEvery)
	defer t.Stop()
	for len(s.Stats().Calls) > 0 {
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

// handler answers on the control socket.
func (s *Server) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+PathStats, func(w http.ResponseWriter, _ *http.Request) { peer.Reply(w, s.Stats()) })
	command(mux, PathHashes, s.SetHashes)
	command(mux, PathCertificate, func(f CertificateFiles) error { return s.SetCertificate(f.CertFile, f.KeyFile) })
	command(mux, PathHangUp, func(user string) error { s.HangUp(user); return nil })
	return mux
}

// command takes a JSON value and acts on it.
func command[T any](mux *http.ServeMux, path string, act func(T) error) {
	mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var v T
		err := peer.Decode(r, &v)
		if err == nil {
			err = act(v)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
}

// Tell sends a command to the control socket of a server or a dialer.
func Tell(ctx context.Context, socket, path string, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode command: %w", err)
	}
	return peer.Ask(ctx, socket, path, bytes.NewReader(b), nil)
}
