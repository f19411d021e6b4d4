package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/node/config"
)

// Stage is where a node is in its life.
type Stage string

// Stages.
const (
	StageWaiting  Stage = "waiting"  // belongs to no cluster: waits for init or join; or its identity cannot be opened
	StageStarting Stage = "starting" // member, not caught up yet
	StageRunning  Stage = "running"
	StageLeaving  Stage = "leaving"
	StageStopping Stage = "stopping"
	StageParked   Stage = "parked" // out of consensus; forwarding goes on where it is attached
)

// Deps are what a node gets from outside.
type Deps struct {
	Log     *slog.Logger
	Version string
	// ForceCold lets a cold start use a stored state of any age: an administrator
	// knows that nothing newer is to be had.
	ForceCold bool
}

// Node is one vpnlb daemon.
type Node struct {
	cfg     config.Config
	deps    Deps
	log     *slog.Logger
	started time.Time
	admin   *admin.Server
	ids     atomic.Pointer[transport.IdentityStore] // nil while it cannot be opened
	host    func(ports bool) (hostFacts, error)     // what init and join look at before
	member  atomic.Pointer[member]                  // nil while it belongs to no cluster
	notify  *notifier
	process *prometheus.Registry // what Go and the kernel say of this process

	// change serialises init, join and leave.
	change   sync.Mutex
	admitted chan admission

	dial func(ctx context.Context, addr string) (net.Conn, error) // of init and join; nil: TCP

	inherited map[string]*net.TCPListener // of the process before this one, until a member takes them
	leftover  string                      // live's: what the last membership could not take back
	distrust  bool                        // live's: the store went back in time; the next membership sets it aside

	mu     sync.Mutex
	stage  Stage
	reason string
	notes  []string // of damaged files that the node goes on without
}

// admission tells Run that the identity became a member's.
type admission struct {
	first *firstMember // set by init: what to bootstrap with
}

// New checks and allocates; nothing is opened or started.
func New(cfg config.Config, deps Deps) (*Node, error) {
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	n := &Node{
		cfg:      cfg,
		deps:     deps,
		log:      deps.Log.With("node", cfg.Name),
		started:  time.Now(),
		admin:    admin.NewServer(cfg.AdminSocket, deps.Log),
		notify:   newNotifier(os.Getenv("NOTIFY_SOCKET")),
		admitted: make(chan admission, 1),
		stage:    StageWaiting,
		process:  newProcessMetrics(),

		inherited: inheritedListeners(),
	}
	if _, err := dataplane.New(PlaneConfig(&cfg), dataplane.Deps{Log: n.log}); err != nil {
		return nil, err
	}
	if _, err := bgpConfig(&cfg); err != nil {
		return nil, err
	}
	n.host = n.facts
	n.routes()
	return n, nil
}

// PlaneConfig is the data plane's part of the node file.
func PlaneConfig(cfg *config.Config) dataplane.Config {
	mode, _ := dataplane.ParseMode(string(cfg.Dataplane.Attach)) // the node file was checked
	out := dataplane.Config{PinDir: cfg.Dataplane.PinDir, MaxClients: cfg.Dataplane.MaxClients, Mode: mode}
	for _, name := range cfg.Dataplane.Interfaces() {
		out.Interfaces = append(out.Interfaces, dataplane.InterfaceConfig{Name: name})
	}
	return out
}

func (n *Node) identityDir() string { return filepath.Join(n.cfg.DataDir, "identity") }
func (n *Node) storeDir() string    { return filepath.Join(n.cfg.DataDir, "raft") }

// setStage records the stage; it is logged when it changes.
func (n *Node) setStage(s Stage, reason string) {
	n.mu.Lock()
	same := n.stage == s && n.reason == reason
	n.stage, n.reason = s, reason
	n.mu.Unlock()
	if !same {
		n.log.Info("stage", "stage", string(s), "reason", reason)
		n.notify.status(string(s) + " " + reason)
	}
}

func (n *Node) stageNow() (Stage, string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stage, n.reason
}

// Run runs the node until ctx ends (a clean stop: routes withdrawn, the data
// plane stays) or something is wrong that a restart would not mend by itself.
func (n *Node) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	var admins sync.WaitGroup
	ready := make(chan struct{})
	admins.Go(func() {
		if err := n.admin.Run(adminCtx, ready); err != nil {
			cancel(err)
		}
	})
	admins.Go(func() { n.notify.untilReady(adminCtx, startPatience) })
	defer admins.Wait()
	defer stopAdmin()
	select {
	case <-ready:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	err := n.live(ctx)
	if cause := context.Cause(ctx); err == nil && cause != nil && !errors.Is(cause, context.Canceled) {
		return cause // the admin socket's failure
	}
	return err
}

// live goes through memberships: waiting, member, left, waiting again.
func (n *Node) live(ctx context.Context) error {
	for {
		if !n.openIdentity(ctx) {
			return nil
		}
		ad := admission{}
		if !n.ids.Load().Identity().Member() {
			n.warnWaiting(ctx)
			newHandover(n.notify, n.inherited).update(nil)
			for _, ln := range n.takeInherited() {
				ln.Close() // of a membership that is over: nobody would serve it
			}
			n.setStage(StageWaiting, n.waiting())
			n.notify.ready()
			select {
			case <-ctx.Done():
				return nil
			case ad = <-n.admitted:
				n.leftover = ""
			}
		}
		if ad.first == nil {
			ad.first = n.firstOf(n.ids.Load().Identity().Cluster())
		}
		m, err := newMember(n, ad)
		if err != nil {
			return err
		}
		n.member.Store(m)
		err = m.run(ctx)
		n.member.Store(nil)
		if err := n.ended(m, err); err != nil {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
	}
}

// ended draws the consequences of a membership's end; nil: live goes on, with the
// next one or waiting for it.
func (n *Node) ended(m *member, err error) error {
	left, again := errors.Is(err, errLeft), errors.Is(err, errRejoin) || errors.Is(err, errReverted)
	if o := m.offload.Load(); o != nil && (left || again) {
		o.handover.update(nil) // this process goes on, and nobody accepts there
	}
	n.distrust = errors.Is(err, errReverted)
	switch {
	case left:
		return n.reset("left")
	case again:
		n.log.Warn("starting again", "reason", err.Error())
		return nil
	}
	return err
}

// waiting is what to do now, and what the last membership could not take back.
func (n *Node) waiting() string {
	text := "run 'vpnlb cluster init' here, or 'vpnlb cluster join'"
	if n.leftover != "" {
		text += "; the node left its cluster, but not everything could be taken back from this host: " + n.leftover + " (stop the service, run 'vpnlb plane detach', start it again)"
	}
	return text
}

// reset puts identity and store of a membership that ended aside, so that the
// node can init or join again under a new ID. Nothing is deleted.
func (n *Node) reset(why string) error {
	stamp := time.Now().UTC().Format("20060102T150405.000Z")
	for _, dir := range []string{n.storeDir(), n.identityDir()} {
		if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := os.Rename(dir, dir+"."+why+"-"+stamp); err != nil {
			return fmt.Errorf("set the old membership aside: %w", err)
		}
	}
	n.ids.Store(nil)
	ids, err := transport.OpenIdentity(n.identityDir(), false)
	if err != nil {
		n.log.Warn("make a new identity", "error", err.Error())
		return nil // live tries again
	}
	n.ids.Store(ids)
	return nil
}

// takeInherited hands the listeners of the process before this one over, once.
func (n *Node) takeInherited() map[string]*net.TCPListener {
	out := n.inherited
	n.inherited = nil
	return out
}
