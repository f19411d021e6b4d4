package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/certs"
	"github.com/vpnlb/vpnlb/node/config"
)

// recorder is a server of SSTP without sockets.
type recorder struct {
	applied []sstp.Desired
	order   []string // of calls
	closed  []table.Slot
	fail    error
	calls   []sstp.Session
	status  sstp.Status
}

func (r *recorder) Apply(d sstp.Desired) error {
	r.applied, r.order = append(r.applied, d), append(r.order, "apply")
	return r.fail
}

func (r *recorder) CloseTarget(slot table.Slot, _ time.Duration) int {
	r.closed, r.order = append(r.closed, slot), append(r.order, "close")
	return 1
}

func (r *recorder) Run(ctx context.Context) error        { <-ctx.Done(); return nil }
func (r *recorder) Drain(context.Context, time.Duration) {}
func (r *recorder) Sessions() []sstp.Session             { return r.calls }
func (r *recorder) Activity() []table.Activity           { return nil }
func (r *recorder) Listeners() map[string]*os.File       { return nil }
func (r *recorder) Status() sstp.Status                  { return r.status }
func recording(server sstpServer) *offload {
	return &offload{server: server, book: certs.NewBook(nil), handover: newHandover(newNotifier(""), nil), passed: map[string]int{}}
}

// The server is told what is new, once; what fails is tried again.
func TestTellSSTP(t *testing.T) {
	r := tlsWorld(t)
	server := &recorder{}
	o := recording(server)
	now := time.Now()
	look := func(applied int, why string) {
		t.Helper()
		if spec := r.spec(); o.due(spec, now) {
			o.tell(spec, nil, config.SSTP{})
		}
		if len(server.applied) != applied {
			t.Fatalf("%s: applied %d times, want %d", why, len(server.applied), applied)
		}
	}
	look(1, "at first")
	look(1, "nothing new")
	r.learn("198.18.0.77", 1)
	look(1, "a record is nothing new for it")
	now = now.Add(fileInterval)
	look(1, "files are as they were")
	v, _ := r.spec().VIPByName("lab")
	put := func(mode state.SSTPMode) {
		v, _ = r.spec().VIPByName("lab")
		p := state.PutVIP{VIP: *v, Expect: v.Version}
		p.VIP.SSTP = mode
		r.do(p)
	}
	server.fail = errors.New("address in use")
	put(state.SSTPOffload)
	look(2, "another mode")
	if f := o.fault.get(); f != "address in use" {
		t.Error("the fault is not told")
	}
	l1, _ := r.spec().BackendByName("l1")
	if !slices.Equal(server.closed, []table.Slot{table.Slot(l1.Slot)}) {
		t.Errorf("the connections of %v end, want those of l1", server.closed)
	}
	if n := len(server.order); n < 2 || !slices.Equal(server.order[n-2:], []string{"apply", "close"}) {
		t.Errorf("order %v: what is admitted between close and apply stays", server.order)
	}
	look(2, "not again at once")
	server.fail = nil
	for i := range 2 * fileInterval / time.Second { // the leader's clock alone makes a new agreement each second
		now = now.Add(time.Second)
		r.learn(fmt.Sprintf("198.18.0.%d", 80+i), 1)
		if o.due(r.spec(), now) {
			o.tell(r.spec(), nil, config.SSTP{})
		}
	}
	look(3, "tried again, once")
	if o.fault.get() != "" {
		t.Error("the fault stays")
	}
	server.closed = nil
	put(state.SSTPPassthrough)
	look(4, "the data plane's now")
	r.do(state.RemoveBackend{ID: 1, Purge: true})
	look(5, "a server gone")
	slices.Sort(server.closed)
	if !slices.Equal(server.closed, []table.Slot{1, table.Slot(l1.Slot)}) {
		t.Errorf("the connections of %v end", server.closed)
	}
	// On its way out it takes nothing back of what the next process wants.
	o.handover.kept = []string{"sstp-192.0.2.10-443"}
	o.draining.Store(true)
	o.handOver(nil)
	if len(o.handover.kept) != 1 {
		t.Error("the sockets of the next process are taken back")
	}
	o.draining.Store(false)
	if o.handOver(nil); len(o.handover.kept) != 0 {
		t.Error("a socket that nobody serves is kept")
	}
	if d := server.applied[4]; len(d.Services) != 1 || slices.ContainsFunc(d.Targets, func(t sstp.Target) bool { return t.Name == "r1" || t.Name == "l1" }) {
		t.Errorf("it is told %s", desiredText(&d))
	}
}

// A node that does not serve a VIP whose TLS it should end must not attract its
// clients.
func TestServiceFault(t *testing.T) {
	r := tlsWorld(t)
	server := &recorder{}
	m := &member{}
	vpn, _ := r.spec().VIPByName("vpn")
	six, _ := r.spec().VIPByName("six")
	if got := m.serviceFault(r.spec(), vpn); got != "" {
		t.Errorf("without that part: %s", got)
	}
	o := recording(server)
	m.offload.Store(o)
	if got := m.serviceFault(r.spec(), six); got != "" {
		t.Errorf("pass-through: %s", got)
	}
	if got := m.serviceFault(r.spec(), vpn); got != "for server r1: certificate ec is not open yet" {
		t.Errorf("before anything: %q", got)
	}
	v := *vpn
	v.Certificates = nil
	spec := *r.spec()
	spec.VIPs, spec.Certs = []state.VIP{v}, nil
	o.book.Update(&spec)
	// A VIP is served when it listens, or while calls are let end.
	for _, tt := range []struct {
		status sstp.Status
		want   string
	}{
		{sstp.Status{}, "TCP 443 is not open yet"},
		{sstp.Status{Services: []sstp.ServiceStatus{{Name: "vpn", Listening: true}}}, ""},
		{sstp.Status{Services: []sstp.ServiceStatus{{Name: "vpn"}}, Faults: []string{"address in use"}}, "TCP 443 is not open: address in use"},
		{sstp.Status{Services: []sstp.ServiceStatus{{Name: "vpn"}}, Draining: true}, ""},
	} {
		server.status = tt.status
		o.recent = recentStatus{}
		if got := m.listenFault(&v); got != tt.want {
			t.Errorf("%+v: %q, want %q", tt.status, got, tt.want)
		}
	}
}

// What refuses connections is a warning, with the remedy.
func TestRefusalsAreWarnings(t *testing.T) {
	server := &recorder{status: sstp.Status{Refused: []sstp.Refusal{{Reason: "source_connections", Count: 3, Text: "3 refused: raise 'per_source'"}}}}
	m := &member{}
	m.offload.Store(recording(server))
	var got []string
	m.sstpWarnings(&state.Spec{}, func(format string, args ...any) { got = append(got, fmt.Sprintf(format, args...)) })
	if !slices.Equal(got, []string{"SSTP: 3 refused: raise 'per_source'"}) {
		t.Errorf("%q", got)
	}
}

// What a client learns from a staple, and what keeps one away, is a warning.
func TestStaplesAreWarnings(t *testing.T) {
	for _, tt := range []struct {
		staple, fault, want string
	}{
		{"valid", "", ""},
		{"valid", "no route", ""}, // it is still shown, and asked again
		{"none", "", ""},
		{"missing", "", ""}, // not asked yet
		{"missing", "no route", "without an OCSP staple, as the responder does not answer well: no route"},
		{"revoked", "no route", "REVOKED"},
	} {
		spec := &state.Spec{Certs: []state.CertificatePlace{{Name: "ec", Path: "/none"}}}
		o := recording(&recorder{status: sstp.Status{Certificates: []sstp.CertificateStatus{{Name: "ec", Staple: tt.staple, StapleFault: tt.fault}}}})
		o.book.Update(spec)
		m := &member{}
		m.offload.Store(o)
		var got string
		m.sstpWarnings(spec, func(format string, args ...any) {
			if text := fmt.Sprintf(format, args...); strings.Contains(text, "OCSP") {
				got += text
			}
		})
		if !strings.Contains(got, tt.want) || (got == "") != (tt.want == "") {
			t.Errorf("%s, %q: %q, want %q", tt.staple, tt.fault, got, tt.want)
		}
	}
}
