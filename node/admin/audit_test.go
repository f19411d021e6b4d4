package admin

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// What was set is in the log of changes, in both formats.
func TestAuditShowsValues(t *testing.T) {
	weight, limit, bits, certs := uint16(7), uint32(300), uint8(56), []string{"a", "b"}
	for want, in := range map[string]any{
		"change.name=r1 change.addr=198.51.100.101 change.weight=7 change.limit=300":            BackendRequest{Name: "r1", Addr: "198.51.100.101", Weight: &weight, Limit: &limit},
		"change.name=r1 change.addr=198.51.100.101 change.vip=vpn change.mode=dsr":              BackendRequest{Name: "r1", Addr: "198.51.100.101", VIP: "vpn", Mode: "dsr"},
		`change.name=v change.addr=2001:db8::1 change.client_bits=56 change.sstp_certs="[a b]"`: VIPRequest{Name: "v", Addr: "2001:db8::1", Bits: &bits, Certificates: &certs},
		"change.name=v change.addr=203.0.113.10 change.sstp=passthrough change.readdress=true":  VIPRequest{Name: "v", Addr: "203.0.113.10", SSTP: "passthrough", Readdress: true},
	} {
		var text, js bytes.Buffer
		slog.New(slog.NewTextHandler(&text, nil)).Info("admin change", "change", in)
		slog.New(slog.NewJSONHandler(&js, nil)).Info("admin change", "change", in)
		if got := strings.TrimSpace(text.String()); !strings.HasSuffix(got, `msg="admin change" `+want) {
			t.Errorf("%s\nwant %s", got, want)
		}
		if strings.Contains(text.String()+js.String(), "0x") {
			t.Errorf("pointers are logged: %s %s", text.String(), js.String())
		}
	}
}

// Clients are personal data: not in the log at info level, whatever became of the request.
func TestAuditHidesClients(t *testing.T) {
	d := &door{path: socket(t), logs: &logs{}}
	s := NewServer(d.path, slog.New(slog.NewTextHandler(d.logs, nil)))
	Post(s, PathAffinityForget, func(_ context.Context, in ForgetRequest) (any, error) {
		if in.Name == "198.18.0.2" {
			return nil, errors.New("client 198.18.0.2 has no record")
		}
		return Changed{Index: 3}, nil
	})
	ready := make(chan struct{})
	go s.Run(t.Context(), ready)
	<-ready
	c := NewClient(d.path)
	for _, client := range []string{"198.18.0.1", "198.18.0.2"} {
		c.Post(t.Context(), PathAffinityForget, ForgetRequest{Name: client}, &Changed{})
	}
	if got := d.logs.String(); strings.Contains(got, "198.18.") || !strings.Contains(got, "index=3") || !strings.Contains(got, "error=refused") {
		t.Errorf("%s", got)
	}
}

// A node that accepts and says nothing is told from one that is not there.
func TestSilentNode(t *testing.T) {
	path := filepath.Join(t.TempDir(), "admin.sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close() // it never accepts: the kernel does
	c := NewClient(path)
	c.patience = 50 * time.Millisecond
	for what, err := range map[string]error{
		"get":  c.Get(t.Context(), PathStatus, &Status{}),
		"post": c.Post(t.Context(), PathSet, SetRequest{}, &Changed{}),
	} {
		if err == nil || !strings.Contains(err.Error(), "holds the socket "+path+" but does not answer: hung?") {
			t.Errorf("%s: %v", what, err)
		}
	}
	// A person's own interrupt is another thing.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.Get(ctx, PathStatus, &Status{}); err == nil || strings.Contains(err.Error(), "hung") {
		t.Errorf("interrupted: %v", err)
	}
}

// Who asks again for what is under way follows it, and gets its end.
func TestStreamFollows(t *testing.T) {
	path := socket(t)
	s := NewServer(path, slog.New(slog.DiscardHandler))
	runs, began, goOn := 0, make(chan struct{}), make(chan struct{})
	failed := errors.New("no quorum")
	Stream(s, PathLeave, func(_ LeaveRequest, step func(string)) error {
		runs++
		step("first")
		close(began)
		<-goOn
		step("second")
		return failed
	})
	ready := make(chan struct{})
	go s.Run(t.Context(), ready)
	<-ready
	c := NewClient(path)
	ctx, interrupt := context.WithCancel(t.Context())
	first := make(chan error, 1)
	go func() { first <- c.Stream(ctx, PathLeave, LeaveRequest{}, func(string) {}) }()
	<-began
	interrupt()
	if err := <-first; err == nil || !strings.Contains(err.Error(), "goes on in the background") {
		t.Errorf("interrupted: %v", err)
	}
	err := c.Stream(t.Context(), PathLeave, LeaveRequest{Force: true}, func(string) { t.Error("a step of what was not asked for") })
	if err == nil || !strings.Contains(err.Error(), "with other arguments") {
		t.Errorf("another request: %v", err)
	}
	var steps []string
	err = c.Stream(t.Context(), PathLeave, LeaveRequest{}, func(text string) {
		steps = append(steps, text)
		if text == "first" {
			close(goOn)
		}
	})
	if err == nil || err.Error() != failed.Error() {
		t.Errorf("the follower got %v", err)
	}
	if want := []string{"this is under way already: following it", "first", "second"}; !slices.Equal(steps, want) || runs != 1 {
		t.Errorf("%d runs, steps %q", runs, steps)
	}
}
