package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"reflect"
	"time"

	"golang.org/x/sys/unix"
)

// Server listens on the admin socket. Who may connect is decided by the
// socket's mode (0660) and its folder; who did is written to the log with
// every change.
type Server struct {
	path string
	mux  *http.ServeMux
	log  *slog.Logger
	long operations
}

// NewServer returns a server for the socket at path; nothing is opened yet.
func NewServer(path string, log *slog.Logger) *Server {
	return &Server{path: path, mux: http.NewServeMux(), log: log}
}

// Get serves a reading request. fn's value is sent as JSON.
func (s *Server) Get(path string, fn func(*http.Request) (any, error)) {
	s.mux.HandleFunc("GET "+path, func(w http.ResponseWriter, r *http.Request) {
		v, err := fn(r)
		reply(w, v, err)
	})
}

// Handle serves path with a handler that answers in another form than JSON.
func (s *Server) Handle(path string, h http.Handler) { s.mux.Handle("GET "+path, h) }

// looker is a request that may ask only: it tells whether this one does. A request
// that changes nothing does not go into the log of changes.
type looker interface{ Looks() bool }

// Post serves a changing request whose body is In.
func Post[In any](s *Server, path string, fn func(context.Context, In) (any, error)) {
	s.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := decode(w, r, &in); err != nil {
			reply(w, nil, err)
			return
		}
		v, err := fn(r.Context(), in)
		if look, ok := any(in).(looker); !ok || !look.Looks() {
			s.audit(r, in, v, err)
		}
		reply(w, v, err)
	})
}

// Stream serves a long operation: fn reports steps, each is sent at once.
// The operation goes on when the caller goes away (fn's context is not the
// request's): join and leave are resumed by asking again, and whoever asks
// while it runs follows it; who asks for something else is refused.
func Stream[In any](s *Server, path string, fn func(in In, step func(string)) error) {
	s.mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
		var in In
		if err := decode(w, r, &in); err != nil {
			reply(w, nil, err)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		enc := json.NewEncoder(w)
		flush := http.NewResponseController(w)
		send := func(p Progress) {
			enc.Encode(p) // the caller may be gone; the operation is not
			flush.Flush()
		}
		step := func(step string) { send(Progress{Step: step}) }
		op, fresh := s.long.begin(path, in)
		var err error
		switch {
		case fresh:
			err = s.long.run(path, func() error { return fn(in, func(text string) { op.step(text); step(text) }) })
			s.audit(r, in, nil, err)
		case !reflect.DeepEqual(op.in, any(in)):
			err = &Error{Status: http.StatusConflict, Message: "this is under way already, as it was asked for with other arguments: repeat those to follow it, or wait until it has ended"}
		default:
			step("this is under way already: following it")
			err = op.follow(r.Context(), step)
		}
		if err != nil {
			send(Progress{Error: err.Error(), Status: statusOf(err)})
			return
		}
		send(Progress{Done: true})
	})
}

func decode(w http.ResponseWriter, r *http.Request, in any) error {
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, MaxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(in); err != nil && !errors.Is(err, io.EOF) {
		return &Error{Status: http.StatusBadRequest, Message: fmt.Sprintf("read the request's JSON body: %v", err)}
	}
	return nil
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		w.WriteHeader(statusOf(err))
		v = &Error{Message: err.Error()}
	}
	json.NewEncoder(w).Encode(v) // a caller that is gone needs no answer
}

func statusOf(err error) int {
	var known *Error
	if errors.As(err, &known) {
		return known.Status
	}
	return http.StatusInternalServerError
}

type peerKey struct{}

// audit writes who changed what, and at which log index; secrets and clients'
// addresses in a request hide themselves (LogValue).
func (s *Server) audit(r *http.Request, in, out any, err error) {
	uid := "unknown"
	if cred, ok := r.Context().Value(peerKey{}).(*unix.Ucred); ok {
		uid = fmt.Sprint(cred.Uid)
	}
	attrs := []any{"request", r.URL.Path, "uid", uid, "change", in}
	if changed, ok := out.(Changed); ok {
		attrs = append(attrs, "index", changed.Index)
	}
	if err != nil {
		attrs = append(attrs, "error", auditError(in, err))
	}
	s.log.Info("admin change", attrs...)
}

// Run listens until ctx ends. A socket left by a dead process is replaced; one
// that still answers belongs to a running node and is an error.
func (s *Server) Run(ctx context.Context, ready chan<- struct{}) error {
	if err := os.MkdirAll(filepath.Dir(s.path), 0o755); err != nil {
		return fmt.Errorf("make the admin socket's folder: %w", err)
	}
	if c, err := net.Dial("unix", s.path); err == nil {
		c.Close()
		return fmt.Errorf("admin socket %s is answered by another running node: stop it, or set another admin_socket", s.path)
	}
	if info, err := os.Lstat(s.path); err == nil && info.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("admin socket %s is something else already: move it away, or set another admin_socket", s.path)
	}
	if err := os.Remove(s.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the old admin socket: %w", err)
	}
	ln, err := listen(s.path)
	if err != nil {
		return err
	}
	defer os.Remove(s.path)
	close(ready)
	srv := &http.Server{Handler: s.mux, ReadHeaderTimeout: 10 * time.Second, MaxHeaderBytes: 16 << 10, ConnContext: peerCredentials}
	stop := context.AfterFunc(ctx, func() { srv.Close() })
	defer stop()
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve the admin socket: %w", err)
	}
	return nil
}

// listen makes the socket under another name and gives it its own only when
// its mode is right: nobody can connect in between.
func listen(path string) (net.Listener, error) {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove an unfinished admin socket: %w", err)
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on the admin socket: %w", err)
	}
	ln.SetUnlinkOnClose(false)
	if err = os.Chmod(fresh, 0o660); err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		ln.Close()
		os.Remove(fresh)
		return nil, fmt.Errorf("set the admin socket's mode and name: %w", err)
	}
	return ln, nil
}

// peerCredentials notes who is at the other end (SO_PEERCRED, unix(7)).
func peerCredentials(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *unix.Ucred
	raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err != nil || cred == nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, cred)
}
