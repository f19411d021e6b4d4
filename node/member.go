package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/cluster/affinity"
	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/dataplane/sysctl"
	"github.com/vpnlb/vpnlb/node/config"
	"github.com/vpnlb/vpnlb/raft"
)

var (
	errLeft     = errors.New("left the cluster")
	errRejoin   = errors.New("store was set aside")
	errReverted = errors.New("the store went back in time")
)

// member is one membership of this node in a cluster, from admission (or
// start) to leaving (or stop). Its parts are made in newMember and run by run.
type member struct {
	node *Node
	cfg  *config.Config
	log  *slog.Logger
	ids  *transport.IdentityStore
	self state.NodeID

	transport *transport.Transport
	replica   *raft.Replica
	gossip    atomic.Pointer[cluster.Membership] // nil until the agreement holds a gossip key
	ring      [][]byte                           // gossip keys in use; the gossip goroutine's
	plane     *dataplane.Plane
	sync      *syncer
	prober    *health.Prober
	collector *health.Collector
	returns   *health.Returns
	learner   *affinity.Learner
	toucher   *affinity.Toucher
	expiry    *affinity.Expiry
	keeper    *gateway.Keeper
	kernel    *sysctl.Keeper
	speaker   *bgp.GoBGP // nil without neighbours
	announcer *bgp.Announcer
	contacts  *contacts
	metrics   *prometheus.Registry // of this membership; the admin API shows it
	limits    bgp.Limits
	faults    faultWatch // of services; runFacts'

	pinned      dataplane.Pinned
	first       *firstMember // set on the node that initialises, until bootstrapped
	admitted    *memberList  // that came with the admission; nil: none did
	strangers   *strangers   // who is in no list that this node has
	started     time.Time
	alive       heartbeat // notices when the process stood still
	caughtUp    atomic.Bool
	cold        atomic.Bool // cold start: forwards from the stored state
	draining    atomic.Int32
	removed     atomic.Pointer[transport.Removal]
	parked      atomic.Bool
	raftOff     context.Context // ends when this node was removed: its raft has nobody to talk to
	stopRaft    context.CancelFunc
	leftOnce    sync.Once
	quarantined atomic.Bool // the store was set aside: the parts do not run any more
	lastQuorum  atomic.Pointer[time.Time]
	unwell      *unwell
	left        chan struct{} // closed when leave has done everything but stop
	leaving     atomic.Bool
	ownEntry    chan struct{}         // holds a token while this node's entry in the member list is being changed here
	storedAt    time.Time             // when the stored state was last known good, before this start
	goodWritten time.Time             // the peers goroutine's: when that was written last
	remembers   atomic.Bool           // what the peers told is read from the store
	distrusted  bool                  // a peer found the store to be an old copy when it was in use
	vetted      map[state.NodeID]bool // the peers goroutine's: who was asked about the store as it was at the start

	// What virtual tests have another network and no kernel for.
	newCaller func() (*transport.Transport, error)
	dropAddrs func() error                     // VIPs and gateways from this host's interfaces
	cleanUp   func() error                     // everything that a membership puts into the kernel
	passed    func() (packets uint64, ok bool) // how many this node has sent on
	gossipNet func(*cluster.Deps)

	lastMembers  []state.NodeID // the contacts goroutine's
	fit          fitness        // for gateways, and as far as routers go
	firstProbes  firstProbes    // the facts goroutine's
	policyFault  fault          // of the last mending of the forward policy
	repliesFault fault          // of the last mending of rules for transparent connections
	kernelFault  fault          // of the last mending of sysctls
	setBack      fault          // sysctls that something else keeps changing
	foreign      foreignRules
	traffic      trafficWatch
	tell         chan struct{}              // a status is worth publishing at once
	blind        blindness                  // the leader duty's
	fitSince     map[state.NodeID]time.Time // the leader duty's: of members that are fit for gateways
	generation   chan struct{}              // holds a token while one change of tables is on its way, on the leader
	tookOffice   atomic.Pointer[time.Time]  // of the present leadership
	proved       atomic.Pointer[time.Time]  // when a majority last said that this node leads; nil: it does not
	keysSeen     uint64                     // the leader duty's: version of the gossip keys, and since when
	keysSince    time.Time
	ticketsSeen  uint64  // the leader duty's: version of the ticket keys,
	ticketsHeld  tickets // and what they are
	gossipFault  fault   // of the last change of the gossip key
	keysFault    fault   // of the start of the gossip
	followFault  fault   // of the last try to follow the gossip keys
	publishFault fault   // of the last status and observations
	bootFault    fault   // of keeping the boot counter
	secretFault  fault   // of the cluster secret: what the cluster has sealed does not open
	secretProved atomic.Bool
	certsFault   fault // of healing this node's own certificates
	movedFault   fault // of the last try to tell this node's new address

	offload atomic.Pointer[offload] // the TLS of SSTP; nil: this member has no such part

	unagreed complaint     // of duties
	diskBack chan struct{} // closed when the disk that raft went off for works again
}

// newMember makes the parts; nothing is opened but what New of a part needs.
func newMember(n *Node, ad admission) (*member, error) {
	ids := n.ids.Load()
	id := ids.Identity()
	m := &member{
		node: n, cfg: &n.cfg, ids: ids, self: id.Node,
		log:        n.log.With("id", id.Node.String()),
		first:      ad.first,
		started:    time.Now(),
		contacts:   newContacts(),
		metrics:    prometheus.NewRegistry(),
		limits:     bgp.DefaultLimits(),
		faults:     make(faultWatch),
		left:       make(chan struct{}),
		diskBack:   make(chan struct{}),
		generation: make(chan struct{}, 1), tell: make(chan struct{}, 1), blind: make(blindness), fitSince: make(map[state.NodeID]time.Time),
		ownEntry:   make(chan struct{}, 1),
		unwell:     newUnwell(),
		storedAt:   n.readLastGood(),
		distrusted: n.distrust,
		vetted:     make(map[state.NodeID]bool),
	}
	m.newCaller, m.dropAddrs, m.cleanUp, m.passed = m.makeCaller, m.dropAddresses, m.clean, m.forwarded
	m.gossipNet = func(*cluster.Deps) {}
	m.raftOff, m.stopRaft = context.WithCancel(context.Background())
	m.admitted = n.readMemberList(m.self)
	var err error
	if m.strangers, err = newStrangers(m.metrics); err != nil {
		return nil, err
	}
	if err := errors.Join(m.makeTransport(), m.makePlane(), m.makeHealth(), m.makeRoutes()); err != nil {
		return nil, err
	}
	return m, nil
}

func (m *member) makeTransport() (err error) {
	m.transport, err = transport.New(transport.Config{Addr: m.cfg.Cluster.Address.String()}, transport.Deps{
		Identity:   m.ids.Identity,
		Authorize:  m.authorize,
		Removal:    m.removalOf,
		Logger:     m.log,
		Registerer: m.metrics,
	})
	if err != nil {
		return err
	}
	id := m.ids.Identity()
	m.replica, err = raft.New(raft.Config{
		ID:        id.Node,
		Addr:      m.cfg.Cluster.Address.String(),
		Dir:       m.node.storeDir(),
		Heartbeat: m.cfg.Cluster.Heartbeat,
		Boot:      id.Boot,
	}, raft.Deps{
		Stream:  m.transport.Raft(),
		Forward: forwarder{m.transport},
		Logger:  m.log,
		Vet:     m.vetStore,
		Metrics: m.metrics,
	})
	return err
}

func (m *member) makePlane() (err error) {
	if m.plane, err = dataplane.New(PlaneConfig(m.cfg), dataplane.Deps{Log: m.log}); err != nil {
		return err
	}
	m.kernel = KernelSettings(m.cfg)
	m.sync = newSyncer(m.plane, m.view, m.log, func() {})
	m.keeper, err = gateway.New(gateway.Config{Self: m.self, Inside: m.cfg.Dataplane.Inside},
		gateway.Deps{Agreement: m.agreement, Log: m.log})
	if err != nil {
		return err
	}
	return m.metrics.Register(gatewayCollector{m.keeper})
}

func (m *member) makeHealth() (err error) {
	m.collector, m.returns = health.NewCollector(), health.NewReturns()
	probe := health.Config{Boot: m.ids.Identity().Boot}
	probe.Local4, probe.Local6 = ownOn(m.cfg.Dataplane.Inside)
	m.prober, err = health.NewProber(probe, health.Deps{Log: m.log, Metrics: m.metrics})
	if err != nil {
		return err
	}
	m.learner, err = affinity.NewLearner(affinity.LearnerDeps{
		View: func() affinity.View { return m.view() }, Proposer: m.replica, Log: m.log, Metrics: m.metrics,
		Answer: m.answer,
	})
	if err != nil {
		return err
	}
	m.toucher, err = affinity.NewToucher(affinity.ToucherDeps{
		View: func() affinity.View { return m.view() }, Proposer: m.replica, Log: m.log, Metrics: m.metrics,
		Max: int(m.cfg.Dataplane.MaxClients),
	})
	if err != nil {
		return err
	}
	m.expiry, err = affinity.NewExpiry(affinity.ExpiryDeps{
		View: func() affinity.ExpirySource { return m.view() }, Office: m.office, Proposer: m.replica, Log: m.log, Metrics: m.metrics,
	})
	return err
}

func (m *member) makeRoutes() error {
	cfg, err := bgpConfig(m.cfg)
	if err != nil || !m.cfg.BGP.Enabled() {
		return err
	}
	if m.speaker, err = bgp.NewGoBGP(cfg, bgp.Deps{Log: m.log, Metrics: m.metrics}); err != nil {
		return err
	}
	m.announcer, err = bgp.NewAnnouncer(bgp.AnnouncerConfig{Limits: m.limits, HoldUp: cfg.HoldUp}, m.speaker, bgp.Deps{Log: m.log, Metrics: m.metrics})
	return err
}

func (m *member) view() *state.View { return m.replica.View() }
func (m *member) spec() *state.Spec { return m.view().Spec() }

// run runs the membership until ctx ends, the node has left, or a part fails.
func (m *member) run(ctx context.Context) error {
	m.progress(StageStarting, "opening the store")
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	var parts sync.WaitGroup
	start := func(name string, run func(context.Context) error) {
		parts.Go(func() {
			if err := run(work); err != nil && work.Err() == nil {
				cancel(fmt.Errorf("%s: %w", name, err))
			}
		})
	}
	err := m.attach()
	if err != nil {
		return err
	}
	if err := m.makeOffload(m.node.takeInherited()); err != nil {
		return errors.Join(err, m.plane.Close())
	}
	m.serveRPC()
	start("transport", m.transport.Run)
	start("raft", m.runRaft)
	start("data plane", m.plane.Run)
	start("gossip", m.runGossip)
	start("cluster secret", m.runSecret)
	start("contacts", m.runContacts)
	start("data plane sync", func(ctx context.Context) error {
		w := m.replica.Watch()
		defer w.Close()
		return m.sync.run(ctx, w)
	})
	start("SSTP", m.runOffload)
	start("catch up", m.runCatchUp)
	start("probes", m.runProber)
	start("affinity learning", m.runLearning)
	start("gateways", m.runKeeper)
	start("leader duties", m.runLeader)
	start("forward policy", m.runForwardPolicy)
	start("rules of other programs", m.runObstacles)
	start("replies", m.runReplies)
	start("fitness", m.runFitness)
	start("status", m.runStatus)
	start("peers", m.rememberPeers)
	start("strangers", m.runStrangers)
	start("own address", m.tellMoved)
	if m.announcer != nil {
		start("bgp", m.speaker.Run)
		start("announcer", m.announcer.Run)
		start("bgp facts", m.runFacts)
	}
	select {
	case <-ctx.Done():
		m.stop()
	case <-m.diskBack:
		m.stop()
		err = errDiskBack
	case <-m.left:
		err = errLeft
	case <-work.Done():
		err = context.Cause(work)
	}
	cancel(nil)
	parts.Wait()
	return m.finish(ctx, err, m.plane.Close())
}

// attach takes over what is pinned, or attaches. It changes nothing agreed.
func (m *member) attach() error {
	if err := os.MkdirAll(m.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w", err)
	}
	pinned, err := m.plane.Attach(m.ids.Identity().Cluster())
	if err != nil {
		return fmt.Errorf("attach the data plane: %w", err)
	}
	m.pinned = pinned
	m.metrics.MustRegister(planeCollector{m.plane, m.spec})
	m.guardForwarding()
	m.mendKernel()
	m.log.Info("data plane attached", "taken_over", pinned.TakenOver, "attached", pinned.Attached, "pinned_index", pinned.Index)
	return nil
}

// KernelSettings keeps the sysctls that forwarding needs; their original
// values lie beside the node's data.
func KernelSettings(cfg *config.Config) *sysctl.Keeper {
	return sysctl.New(sysctl.Root, filepath.Join(cfg.DataDir, "sysctl.json"), sysctl.Wanted(cfg.Dataplane.Interfaces()))
}

// mendKernel sets what is not as it must be. What cannot be set is a warning
// in status: forwarding may still work.
func (m *member) mendKernel() {
	var more []sysctl.Setting
	if hasIPv6(m.spec()) {
		more = sysctl.IPv6(m.cfg.Dataplane.Interfaces())
	}
	if slices.ContainsFunc(m.spec().VIPs, func(v state.VIP) bool { return v.SSTP.Ends() }) {
		more = append(more, sysctl.Connections()...)
	}
	changed, err := m.kernel.Mend(more...)
	if len(changed) > 0 {
		m.log.Info("kernel settings changed", "keys", changed)
	}
	if m.kernelFault.set(err) {
		m.log.Warn("kernel settings", "error", err.Error())
	}
	if err := contested(m.kernel.Contested(), time.Now()); m.setBack.set(err) {
		m.log.Warn("kernel settings", "error", err.Error())
	}
}

// park records that this node is out of consensus until somebody acts. Nothing
// that happens later changes the stage but leaving and stopping.
func (m *member) park(why string) {
	m.parked.Store(true)
	m.node.setStage(StageParked, why)
	m.node.notify.ready()
}

// progress records a stage on the way up.
func (m *member) progress(s Stage, why string) {
	if !m.parked.Load() {
		m.node.setStage(s, why)
	}
}

// runRaft runs consensus. When it has to go off (a hung disk, an entry of a
// newer version), forwarding goes on; a restart of the process is the way back:
// the node ends by itself when its disk works again (parked.go), the rest is for
// an administrator.
func (m *member) runRaft(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	context.AfterFunc(m.raftOff, stop)
	watch, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-watch.Done():
		case <-m.replica.Parked():
			st := m.replica.Status()
			m.sitOut(watch, st.Parked, st.StoreFailed, func() error { return probeDisk(m.node.storeDir()) })
		}
	}()
	if m.first != nil {
		go m.bootstrap(watch)
	}
	err := m.replica.Run(ctx)
	var quarantine *raft.QuarantineError
	if err == nil || errors.As(err, &quarantine) || ctx.Err() != nil {
		return err
	}
	// A disk that is full, read-only or broken: what is pinned forwards on.
	m.log.Error("the store cannot be opened", "error", err.Error())
	m.sitOut(ctx, "the store cannot be opened: "+err.Error(), true, func() error {
		return errors.Join(os.MkdirAll(m.node.storeDir(), 0o700), probeDisk(m.node.storeDir()))
	})
	<-ctx.Done()
	return nil
}

// bootstrap makes the first log entry of a cluster. It is repeated until it is
// there: a crash in between is mended by the next start, from the file that
// init left behind.
func (m *member) bootstrap(ctx context.Context) {
	select {
	case <-ctx.Done():
		return
	case <-m.replica.Started():
	}
	for {
		err := m.replica.Bootstrap(ctx, m.first.init)
		if err == nil || errors.Is(err, raft.ErrBootstrapped) {
			m.node.forgetFirst()
			return
		}
		m.log.Warn("bootstrap the cluster", "error", err.Error())
		if !pause(ctx, time.Second) {
			return
		}
	}
}

// runKeeper keeps the addresses, and begins anew when its interface or its
// packet socket fails: packets are forwarded meanwhile.
func (m *member) runKeeper(ctx context.Context) error {
	for {
		if err := m.keeper.Run(ctx); err != nil {
			m.log.Error("gateway addresses", "error", err.Error())
		}
		if !pause(ctx, time.Second) {
			return nil
		}
	}
}
