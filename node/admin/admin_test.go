package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
)

// logs is a log that a test reads.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// door is a server with a request of each kind, and its client.
type door struct {
	*Client
	path string
	logs *logs
	stop func()
}

func routes(s *Server) {
	s.Get(PathStatus, func(r *http.Request) (any, error) {
		if r.URL.Query().Get("fail") != "" {
			return nil, errors.New("the disk is full")
		}
		return Status{Node: "n1", Stage: "running"}, nil
	})
	Post(s, PathCertRotate, func(context.Context, RotateRequest) (any, error) { return Rotation{}, nil })
	Post(s, PathVIPAdd, func(_ context.Context, in VIPRequest) (any, error) {
		if in.Name == "taken" {
			return nil, &Error{Status: http.StatusConflict, Message: "somebody else changed it"}
		}
		return Changed{Index: 7, Notes: []string{in.Name + " " + in.Addr}}, nil
	})
	Stream(s, PathLeave, func(in LeaveRequest, step func(string)) error {
		step("first")
		step("second")
		if !in.Force {
			return errors.New("not without force")
		}
		return nil
	})
}

func start(t *testing.T, path string) *door {
	t.Helper()
	d := &door{path: path, Client: NewClient(path), logs: &logs{}}
	s := NewServer(path, slog.New(slog.NewTextHandler(d.logs, nil)))
	routes(s)
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- s.Run(ctx, ready) }()
	select {
	case <-ready:
	case err := <-ended:
		t.Fatal(err)
	}
	d.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
	t.Cleanup(d.stop)
	return d
}

func socket(t *testing.T) string { return filepath.Join(t.TempDir(), "run", "admin.sock") }

func TestGet(t *testing.T) {
	d := start(t, socket(t))
	var st Status
	if err := d.Get(t.Context(), PathStatus, &st); err != nil || st.Node != "n1" || st.Stage != "running" {
		t.Errorf("%+v, %v", st, err)
	}
	var known *Error
	err := d.Get(t.Context(), PathStatus+"?fail=1", &st)
	if !errors.As(err, &known) || known.Status != http.StatusInternalServerError || err.Error() != "the disk is full" {
		t.Errorf("a failed request: %v", err)
	}
	if err := d.Get(t.Context(), "/v1/nothing", &st); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("an unknown path: %v", err)
	}
	if err := d.Post(t.Context(), PathStatus, struct{}{}, &st); err == nil || !strings.Contains(err.Error(), "405") {
		t.Errorf("posting where there is only reading: %v", err)
	}
	if d.logs.String() != "" {
		t.Errorf("reading is in the log of changes: %s", d.logs)
	}
}

func TestPost(t *testing.T) {
	d := start(t, socket(t))
	var out Changed
	if err := d.Post(t.Context(), PathVIPAdd, VIPRequest{Name: "vpn", Addr: "203.0.113.10"}, &out); err != nil || out.Index != 7 || out.Notes[0] != "vpn 203.0.113.10" {
		t.Errorf("%+v, %v", out, err)
	}
	var known *Error
	err := d.Post(t.Context(), PathVIPAdd, VIPRequest{Name: "taken"}, &out)
	if !errors.As(err, &known) || known.Status != http.StatusConflict || known.Message != "somebody else changed it" {
		t.Errorf("a conflict: %v", err)
	}
	for _, want := range []string{"request=" + PathVIPAdd, "change.name=vpn change.addr=203.0.113.10 index=7", fmt.Sprintf("uid=%d", os.Getuid()), `error="somebody else changed it"`} {
		if !strings.Contains(d.logs.String(), want) {
			t.Errorf("the log of changes lacks %s:\n%s", want, d.logs)
		}
	}
}

// A request that changes nothing is no change in the log.
func TestLookIsNotAChange(t *testing.T) {
	d := start(t, socket(t))
	for _, tt := range []struct {
		in   RotateRequest
		want bool
	}{{RotateRequest{Name: "new"}, false}, {RotateRequest{Name: "new", Servers: []string{"r1"}}, true}} {
		if err := d.Post(t.Context(), PathCertRotate, tt.in, new(Rotation)); err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(d.logs.String(), "admin change"); got != tt.want {
			t.Errorf("%+v: in the log of changes %t, want %t", tt.in, got, tt.want)
		}
	}
}

func TestPostRefusesBadBodies(t *testing.T) {
	d := start(t, socket(t))
	var known *Error
	for name, body := range map[string]any{
		"unknown field": map[string]string{"name": "vpn", "adress": "203.0.113.10"},
		"wrong type":    map[string]int{"name": 7},
		"too large":     VIPRequest{Name: strings.Repeat("x", MaxBody)},
	} {
		err := d.Post(t.Context(), PathVIPAdd, body, nil)
		if !errors.As(err, &known) || known.Status != http.StatusBadRequest || !strings.Contains(err.Error(), "JSON body") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := d.Post(t.Context(), PathVIPAdd, map[string]string{"adress": "x"}, nil); !strings.Contains(err.Error(), "adress") {
		t.Errorf("the unknown field is not named: %v", err)
	}
	if strings.Contains(d.logs.String(), "admin change") {
		t.Errorf("a body that was not read is in the log of changes: %s", d.logs)
	}
}

func TestStream(t *testing.T) {
	d := start(t, socket(t))
	var steps []string
	step := func(s string) { steps = append(steps, s) }
	if err := d.Stream(t.Context(), PathLeave, LeaveRequest{Force: true}, step); err != nil {
		t.Error(err)
	}
	if !slices.Equal(steps, []string{"first", "second"}) {
		t.Errorf("steps %q", steps)
	}
	steps = nil
	if err := d.Stream(t.Context(), PathLeave, LeaveRequest{}, step); err == nil || err.Error() != "not without force" || len(steps) != 2 {
		t.Errorf("steps %q, %v", steps, err)
	}
	if err := d.Stream(t.Context(), PathLeave, map[string]bool{"farce": true}, step); err == nil || !strings.Contains(err.Error(), "farce") {
		t.Errorf("an unknown field: %v", err)
	}
}

// A node that dies in the middle of a long operation is not taken for success.
func TestStreamCutShort(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, `{"step":"first"}`)
	})}
	go srv.Serve(ln)
	defer srv.Close()
	err = NewClient(path).Stream(t.Context(), PathJoin, JoinRequest{}, func(string) {})
	if err == nil || !strings.Contains(err.Error(), "run the command again") {
		t.Errorf("%v", err)
	}
}

func TestSocketMode(t *testing.T) {
	d := start(t, socket(t))
	info, err := os.Stat(d.path)
	if err != nil || info.Mode().Perm() != 0o660 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	d.stop()
	if err := d.Get(t.Context(), PathStatus, nil); err == nil || !strings.Contains(err.Error(), "no vpnlb node is running at "+d.path) {
		t.Errorf("after the end: %v", err)
	}
}

func TestStaleSocketIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Bind(fd, &syscall.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	syscall.Close(fd) // as a killed process leaves it
	if err := NewClient(path).Get(t.Context(), PathStatus, nil); err == nil || !strings.Contains(err.Error(), "no vpnlb node is running") {
		t.Errorf("a dead socket: %v", err)
	}
	var st Status
	if err := start(t, path).Get(t.Context(), PathStatus, &st); err != nil {
		t.Error(err)
	}
}

// A slip in the node file must not cost a file.
func TestOtherFileIsKept(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vpnlb.yaml")
	if err := os.WriteFile(path, []byte("name: n1"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := NewServer(path, slog.New(slog.DiscardHandler)).Run(t.Context(), make(chan struct{})); err == nil || !strings.Contains(err.Error(), "something else") {
		t.Errorf("run: %v", err)
	}
	if b, err := os.ReadFile(path); err != nil || string(b) != "name: n1" {
		t.Errorf("the file is %q, %v", b, err)
	}
}

func TestLiveSocketIsRefused(t *testing.T) {
	d := start(t, socket(t))
	err := NewServer(d.path, slog.New(slog.DiscardHandler)).Run(t.Context(), make(chan struct{}))
	if err == nil || !strings.Contains(err.Error(), "another running node") {
		t.Errorf("a second server: %v", err)
	}
	var st Status
	if err := d.Get(t.Context(), PathStatus, &st); err != nil {
		t.Errorf("the first one was disturbed: %v", err)
	}
}

func TestNoNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none.sock")
	err := NewClient(path).Get(t.Context(), PathStatus, nil)
	want := "no vpnlb node is running at " + path + ": start it with 'vpnlb serve --config FILE', or name another --socket"
	if err == nil || err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
}

// Keys of certificates pass through the API, and never into the log.
func TestCertRequestHidesItsKey(t *testing.T) {
	var out bytes.Buffer
	in := CertRequest{Name: "vpn", Chain: "chain-and-key", Key: "the-key"}
	slog.New(slog.NewTextHandler(&out, nil)).Info("admin change", "change", in)
	if got := out.String(); strings.Contains(got, "key") || !strings.Contains(got, "vpn") {
		t.Errorf("logged as %s", got)
	}
}
