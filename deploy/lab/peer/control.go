package peer

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync/atomic"
	"time"
)

const (
	maxControlBody = 1 << 20         // bytes of a command: a list of client addresses at most
	maxSnapshot    = 64 << 20        // bytes of an answer: 4000 clients with their windows
	controlTimeout = 5 * time.Second // of one exchange with a peer on the same machine
)

// ServeControl answers on the unix socket until ctx ends.
func ServeControl(ctx context.Context, path string, mux http.Handler) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old control socket: %w", err)
	}
	ln, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("listen on control socket: %w", err)
	}
	srv := &http.Server{Handler: mux, ReadTimeout: controlTimeout}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve control socket: %w", err)
	}
	return nil
}

// handlePause lets a peer be silent for a while: POST /pause, POST /resume.
func handlePause(mux *http.ServeMux, paused *atomic.Bool) {
	for path, value := range map[string]bool{"/pause": true, "/resume": false} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, _ *http.Request) {
			paused.Store(value)
			w.WriteHeader(http.StatusNoContent)
		})
	}
}

// Reply answers a question with a JSON value.
func Reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // a client that went away is not our concern
}

// Decode reads the JSON value of a command.
func Decode(r *http.Request, v any) error {
	return json.NewDecoder(io.LimitReader(r.Body, maxControlBody)).Decode(v)
}

// Ask sends a command (nil body: GET) to the peer behind the unix socket and
// reads its answer into out (nil: ignored).
func Ask(ctx context.Context, socket, path string, body io.Reader, out any) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	method := http.MethodGet
	if body != nil {
		method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://peer"+path, body)
	if err != nil {
		return fmt.Errorf("ask peer: %w", err)
	}
	var d net.Dialer
	tr := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return d.DialContext(ctx, "unix", socket)
	}}
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("ask peer %s: %w", path, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("ask peer %s: %s: %s", path, resp.Status, text)
	}
	if out == nil {
		return nil
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxSnapshot)).Decode(out); err != nil {
		return fmt.Errorf("read answer of peer %s: %w", path, err)
	}
	return nil
}
