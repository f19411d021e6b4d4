package node

import (
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane"
)

// Clients' packets that go to a server and draw no answer, and routes that bring no
// packet, are warnings. They decide nothing: the probes of such a server are answered,
// because it answers a node of its own segment without its default gateway.

const (
	oneWayPackets = 20               // to a server, since its last packet to a client
	oneWayFor     = 10 * time.Second // since the first of them
	// idleFor is for how long an announced node gets no packet, while servers answer
	// clients, before that is a warning. With idleClients records the routers' hash
	// leaves one of three nodes without any about once in 3,000 cases.
	idleFor     = time.Minute
	idleClients = 20
)

// trafficWatch compares what goes to the servers with what comes back. The prober's
// goroutine writes, status reads.
type trafficWatch struct {
	mu      sync.Mutex
	servers map[state.BackendID]*oneWay
	in      uint64 // packets of clients to all servers
	arrived time.Time
	back    uint64 // packets of servers, of all nodes
	came    time.Time
}

// oneWay is one server's. A zero time: no such packet since the last answer.
type oneWay struct {
	in, back uint64 // as counted at the last look
	from     uint64 // in, at the last answer
	since    time.Time
}

// look takes this node's counters, and elsewhere: what other nodes say that servers sent
// through them.
func (w *trafficWatch) look(spec *state.Spec, own *dataplane.Counters, elsewhere map[state.BackendID]uint64, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := make(map[state.BackendID]*oneWay, len(spec.Backends))
	var in, back uint64
	for i := range spec.Backends {
		b := &spec.Backends[i]
		n := oneWay{in: own.In[b.Slot].Packets, back: own.Out[b.Slot].Packets + elsewhere[b.ID]}
		in, back = in+n.in, back+n.back
		was := w.servers[b.ID]
		n.from = n.in
		if was != nil && n.back == was.back && n.in >= was.in {
			n.from, n.since = was.from, was.since
			if n.since.IsZero() && n.in > n.from {
				n.since = now
			}
		}
		next[b.ID] = &n
	}
	first := w.servers == nil
	w.servers = next
	if first || in != w.in {
		w.arrived = now
	}
	if !first && back > w.back {
		w.came = now
	}
	w.in, w.back = in, back
}

// silent reports how many packets of clients a server has left without an answer, if
// they are enough for a warning.
func (w *trafficWatch) silent(id state.BackendID, now time.Time) (packets uint64, long time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.servers[id]
	if s == nil || s.since.IsZero() {
		return 0, 0, false
	}
	packets, long = s.in-s.from, now.Sub(s.since)
	return packets, long, packets >= oneWayPackets && long >= oneWayFor
}

// idle reports for how long no packet of a client has come, if servers have answered
// clients within the last 10 s.
func (w *trafficWatch) idle(now time.Time) (long time.Duration, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	long = now.Sub(w.arrived)
	return long, !w.arrived.IsZero() && long >= idleFor && !w.came.IsZero() && now.Sub(w.came) < oneWayFor
}

// watchTraffic looks at the counters. What other nodes say of servers' packets is their
// count of ESP and of protected IKE.
func (m *member) watchTraffic(spec *state.Spec, own *dataplane.Counters) {
	elsewhere := make(map[state.BackendID]uint64)
	for _, h := range m.hints() {
		for _, a := range h.Status.Activity {
			elsewhere[a.Backend] += a.ESP + a.SK
		}
	}
	m.traffic.look(spec, own, elsewhere, time.Now())
}

// trafficWarnings speaks of servers that clients' packets reach and whose answers do not
// come back, and of a node that routers send nothing.
func (m *member) trafficWarnings(add func(string, ...any)) {
	spec, now := m.spec(), time.Now()
	clients := 0
	for i := range spec.Backends {
		b := &spec.Backends[i]
		records := int(b.Entries[state.ClassIKE-1])
		clients += records
		// One client that has gone away is no fault of the server. Where no record was
		// ever earned the clients are not known.
		known := records == 0 || records >= 2
		packets, long, ok := m.traffic.silent(b.ID, now)
		if ok && known && b.Mode != state.ModeDSR && b.Health[state.ClassIKE-1].Verdict == state.VerdictUp {
			add("server %s has had %d packets of clients in %s and no packet of it comes back, though it answers probes: "+
				"its default gateway must be a gateway of the cluster ('vpnlb gateway list'), and no firewall between may drop its answers",
				b.Name, packets, long.Round(time.Second))
		}
	}
	if long, ok := m.traffic.idle(now); ok && clients >= idleClients && m.announcedInFull() {
		add("routers are told to send clients here, but no packet of a client has come for %s while servers answer %d clients: "+
			"look at the routers' routes to the VIPs (multipath, filters) and at what is between them and the outside interface",
			long.Round(time.Second), clients)
	}
}
