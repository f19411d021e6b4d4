package node

import (
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
)

// serviceFault says why this node does not serve SSTP of a VIP whose TLS it
// should end; empty: it does.
func (m *member) serviceFault(spec *state.Spec, v *state.VIP) string {
	o := m.offload.Load()
	if o == nil || !v.SSTP.Ends() {
		return ""
	}
	if f := sstpFault(spec, v, o.book.All()); f != "" {
		return f
	}
	return m.listenFault(v)
}

// listenFault says why the port of a VIP is not open; empty: it is.
func (m *member) listenFault(v *state.VIP) string {
	o := m.offload.Load()
	st := o.recent.get(o.server)
	at := slices.IndexFunc(st.Services, func(s sstp.ServiceStatus) bool { return s.Name == v.Name })
	switch {
	case at < 0:
		return "TCP 443 is not open yet"
	case !st.Services[at].Listening && !st.Draining:
		return "TCP 443 is not open: " + strings.Join(st.Faults, "; ")
	}
	return ""
}

// routeFault reports whether a VIP's routes should suffer from a fault of its
// service here. It judges the spec that the server was told: of a newer one the
// server knows nothing yet, and its silence is no fault. It is for runFacts alone.
func (m *member) routeFault(v *state.VIP, announced bool, now time.Time) bool {
	o := m.offload.Load()
	if o == nil || !v.SSTP.Ends() {
		delete(m.faults, v.ID)
		return false
	}
	found := notJudged
	if told := o.told.Load(); told != nil {
		if tv, ok := told.VIPByID(v.ID); ok && tv.SSTP.Ends() {
			found = serves
			if m.serviceFault(told, tv) != "" {
				found = fails
			}
		}
	}
	return m.faults.count(v.ID, found, announced, now)
}

// found is what is known of a service.
type found uint8

const (
	notJudged found = iota // the server was not told of it yet
	serves
	fails
)

// faultPatience is how long a service must fail before the routes of a VIP that
// is announced change: the whole VIP goes, IKE included, and all nodes see a
// change of the spec at the same time.
const faultPatience = 2 * time.Second

// faultWatch remembers by VIP since when its service fails, and whether that
// counts: then it does until the service works.
type faultWatch map[state.VIPID]lasting

type lasting struct {
	since  time.Time
	counts bool
}

// count reports whether what was found counts for the routes. A VIP that is not
// announced has nobody to lose: its fault counts at once, and it waits until its
// service is known to work.
func (f faultWatch) count(vip state.VIPID, what found, announced bool, now time.Time) bool {
	old, failed := f[vip]
	if what == serves || what == notJudged && announced && !old.counts {
		delete(f, vip)
		return false
	}
	if !failed {
		old.since = now
	}
	old.counts = old.counts || !announced || now.Sub(old.since) >= faultPatience
	f[vip] = old
	return old.counts
}

// recentStatus keeps a status for a moment: the facts of routes are gathered ten
// times a second, and a status counts all connections.
type recentStatus struct {
	mu     sync.Mutex
	at     time.Time
	status sstp.Status
}

const statusAge = 500 * time.Millisecond

func (r *recentStatus) get(server sstpServer) sstp.Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	if now := time.Now(); r.at.IsZero() || now.Sub(r.at) >= statusAge {
		r.at, r.status = now, server.Status()
	}
	return r.status
}

// forget makes the next get ask: the server was told something new.
func (r *recentStatus) forget() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.status = time.Time{}, sstp.Status{}
}
