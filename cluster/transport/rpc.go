package transport

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"strings"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// headerRemoved carries a signed removal (base64) in the refusal of a node that
// was removed.
const headerRemoved = "Vpnlb-Removed"

const pathPing = "/transport/ping"

type pong struct {
	Cluster state.ClusterID `json:"cluster"`
	Node    state.NodeID    `json:"node"`
	Role    state.Role      `json:"role"`
}

type connKey struct{}

// HandleRPC serves pattern (as http.ServeMux) to members; PeerOf tells who
// calls. It may be called before and while Run runs, once per pattern. A call
// can arrive twice (Call sends again when a kept connection turns out to be
// dead), so handlers must be idempotent.
func (t *Transport) HandleRPC(pattern string, h http.Handler) { t.mux.Handle(pattern, h) }

// PeerOf returns who sent an RPC request, from the request's context.
func PeerOf(ctx context.Context) (Peer, bool) {
	c, ok := ctx.Value(connKey{}).(*conn)
	if !ok || c.proto != protoRPC {
		return Peer{}, false
	}
	return c.peer, true
}

func (t *Transport) rpcServer(ctx context.Context) *http.Server {
	s := t.server(ctx, http.HandlerFunc(t.serveRPC))
	s.ReadTimeout = callTimeout  // of a request; net/http ends its handler's context with it
	s.IdleTimeout = 2 * idleConn // the client's end closes first
	return s
}

func (t *Transport) server(ctx context.Context, h http.Handler) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: t.cfg.HandshakeTimeout,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          log.New(debugWriter{t.log}, "", 0),
		BaseContext:       func(net.Listener) context.Context { return ctx },
		ConnState: func(_ net.Conn, st http.ConnState) {
			switch st {
			case http.StateNew:
				t.served.Add(1)
			case http.StateClosed:
				t.served.Done()
			}
		},
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c)
		},
	}
}

func (t *Transport) serveRPC(w http.ResponseWriter, r *http.Request) {
	peer, ok := PeerOf(r.Context())
	if !ok {
		writeError(w, &StatusError{Code: http.StatusForbidden, Reason: "no peer"})
		return
	}
	if err := t.deps.Authorize(peer.Node, peer.PublicKey); err != nil {
		t.refuse(w, peer, err)
		return
	}
	select {
	case t.calls <- struct{}{}:
		defer func() { <-t.calls }()
	default:
		t.met.overload.Inc()
		writeError(w, &StatusError{Code: http.StatusServiceUnavailable, Reason: "too many calls at once"})
		return
	}
	r.Body = http.MaxBytesReader(w, r.Body, t.cfg.MaxBody)
	t.mux.ServeHTTP(w, r)
}

// refuse tells a caller that it is not a member, or not any more.
func (t *Transport) refuse(w http.ResponseWriter, peer Peer, why error) {
	w.Header().Set("Connection", "close")
	if t.deps.Removal != nil {
		if st := t.deps.Removal(peer.Node); st != nil {
			w.Header().Set(headerRemoved, base64.StdEncoding.EncodeToString(st))
		}
	}
	t.log.Debug("call refused", "node", peer.Node.String(), "remote", peer.Addr, "err", why)
	writeError(w, &StatusError{Code: http.StatusForbidden, Reason: why.Error()})
}

// Bytes makes an RPC handler of a function from body to body. Its error goes
// back as a StatusError (500 unless it is one).
func Bytes(f func(ctx context.Context, peer Peer, in []byte) ([]byte, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		in, err := io.ReadAll(r.Body)
		if err != nil {
			writeError(w, bodyError(err))
			return
		}
		peer, _ := PeerOf(r.Context()) // zero for join
		out, err := f(r.Context(), peer, in)
		if err != nil {
			writeError(w, err)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		w.Write(out)
	})
}

// JSON is Bytes with JSON bodies. An empty body is the zero In.
func JSON[In, Out any](f func(ctx context.Context, peer Peer, in In) (Out, error)) http.Handler {
	return Bytes(func(ctx context.Context, peer Peer, b []byte) ([]byte, error) {
		var in In
		if len(b) > 0 {
			if err := json.Unmarshal(b, &in); err != nil {
				return nil, &StatusError{Code: http.StatusBadRequest, Reason: "decode request: " + err.Error()}
			}
		}
		out, err := f(ctx, peer, in)
		if err != nil {
			return nil, err
		}
		return json.Marshal(out)
	})
}

func bodyError(err error) error {
	var big *http.MaxBytesError
	if errors.As(err, &big) {
		return &StatusError{Code: http.StatusRequestEntityTooLarge, Reason: fmt.Sprintf("request is larger than %d bytes", big.Limit)}
	}
	return &StatusError{Code: http.StatusBadRequest, Reason: "read request: " + err.Error()}
}

func writeError(w http.ResponseWriter, err error) {
	var se *StatusError
	if !errors.As(err, &se) || se.Code < 400 || se.Code > 599 {
		se = &StatusError{Code: http.StatusInternalServerError, Reason: err.Error()}
	}
	b, _ := json.Marshal(se) // of strings and a number: cannot fail
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(se.Code)
	w.Write(b)
}

// readError makes an error of a response that is not 2xx.
func readError(resp *http.Response) error {
	if st, err := base64.StdEncoding.DecodeString(resp.Header.Get(headerRemoved)); err == nil && len(st) > 0 {
		return &RemovedError{Statement: st}
	}
	const enough = 16 << 10
	b, _ := io.ReadAll(io.LimitReader(resp.Body, enough))
	se := &StatusError{}
	if json.Unmarshal(b, se) != nil || se.Reason == "" {
		se = &StatusError{Reason: fmt.Sprintf("answer %s: %s", resp.Status, bytes.TrimSpace(b))}
	}
	se.Code = resp.StatusCode
	return se
}

// debugWriter takes the log lines of net/http: they are about single
// connections, so they are for debugging only.
type debugWriter struct{ log *slog.Logger }

func (w debugWriter) Write(p []byte) (int, error) {
	w.log.Debug("http server", "text", strings.TrimSpace(string(p)))
	return len(p), nil
}
