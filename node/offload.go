package node

import (
	"context"
	"fmt"
	"net"
	"os"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/certs"
	"github.com/vpnlb/vpnlb/node/config"
)

// sstpServer is what the node needs of sstp.Server.
type sstpServer interface {
	Apply(sstp.Desired) error
	Run(context.Context) error
	Drain(ctx context.Context, over time.Duration)
	CloseTarget(slot table.Slot, over time.Duration) int
	Sessions() []sstp.Session
	Activity() []table.Activity
	Listeners() map[string]*os.File
	Status() sstp.Status
}

// offload is the TLS of SSTP on this node: the server, and what it is told. run
// is its one writer.
type offload struct {
	server   sstpServer
	book     *certs.Book
	evidence *evidenceBook
	chooser  *chooser
	handover *handover

	recent   recentStatus
	told     atomic.Pointer[state.Spec] // that the server was told last; nil: none
	draining atomic.Bool

	fault   fault         // of the last Apply
	spec    *state.Spec   // that was looked at last; run's, as is all below
	desired *sstp.Desired // that was applied last, nil: none
	serving map[table.Slot]sstp.Mode
	passed  map[string]int // certificates whose expiry was logged, and at which threshold
	looked  time.Time      // when files were looked at last
	again   bool           // it is time to look at files, and to try again what failed
}

// makeOffload makes the parts of SSTP. inherited are listeners of a process
// before this one.
func (m *member) makeOffload(inherited map[string]*net.TCPListener) error {
	o := &offload{
		book:     m.newBook(),
		evidence: newEvidenceBook(m.learner.Offer),
		chooser:  &chooser{dump: m.tablesInForce(), entry: m.plane.LookupEntry},
		handover: newHandover(m.node.notify, inherited),
		passed:   make(map[string]int),
	}
	m.metrics.MustRegister(offloadCollector{o})
	server, err := sstp.New(sstp.Config{Self: m.cfg.Name}, sstp.Deps{
		Choose: o.chooser.choose, Instead: o.chooser.instead, Evidence: o.evidence.add, Inherited: inherited, Log: m.log, Metrics: m.metrics,
	})
	if err != nil {
		return err
	}
	o.server = server
	m.offload.Store(o)
	return nil
}

const (
	offloadTick  = 100 * time.Millisecond
	fileInterval = 2 * time.Second // between looks at certificate files, and tries after a failed Apply
	activityTick = 5 * time.Second
)

// runOffload keeps the server equal to the agreement. Nothing is told to it
// before the data plane holds an agreed state: until then connections wait at
// inherited sockets, as what is pinned forwards on.
func (m *member) runOffload(ctx context.Context) error {
	o := m.offload.Load()
	// The server ends last: nobody must look at its listeners any more.
	serving, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	served := make(chan error, 1)
	go func() {
		defer cancel()
		served <- o.server.Run(serving)
	}()
	var parts sync.WaitGroup
	parts.Go(func() { o.evidence.run(ctx) })
	parts.Go(func() { m.touchSSTP(ctx, o) })
	parts.Go(func() {
		for pause(ctx, offloadTick) {
			if m.holdsTables() {
				m.offer(o)
			}
		}
	})
	parts.Wait()
	stop()
	return <-served
}

// nothing is what a removed node is told: no address is its own any more.
var nothing = &state.Spec{}

// offer looks whether there is something new to tell.
func (m *member) offer(o *offload) {
	spec, now := m.spec(), time.Now()
	if m.removed.Load() != nil {
		spec = nothing
	}
	if !o.due(spec, now) {
		return
	}
	tickets, err := m.ticketKeys(spec)
	if err != nil {
		m.log.Warn("session tickets are off", "error", err.Error())
	}
	if o.tell(spec, tickets, m.cfg.SSTP) {
		m.log.Warn("SSTP", "error", o.fault.get())
	}
	m.watchExpiry(o.book.All(), o.passed, now)
}

// due reports whether there may be something new: another agreement, or time to
// look at files and to try again what failed. The leader's clock makes a new
// agreement each second, so that one does not put off the other.
func (o *offload) due(spec *state.Spec, now time.Time) bool {
	again := now.Sub(o.looked) >= fileInterval
	if spec == o.spec && !again {
		return false
	}
	o.spec, o.again = spec, again
	if again {
		o.looked = now
	}
	return true
}

// tell applies what the agreement says, if it is other than before, or did not
// succeed. It reports whether there is a fault that was not there before.
func (o *offload) tell(spec *state.Spec, tickets [][32]byte, cfg config.SSTP) (news bool) {
	defer o.told.Store(spec)
	o.book.Update(spec)
	d := RenderSSTP(spec, o.book.All(), tickets, cfg)
	failed := o.fault.get() != ""
	if o.desired != nil && reflect.DeepEqual(*o.desired, d) && !(failed && o.again) {
		return false
	}
	err := o.server.Apply(d)
	o.recent.forget()
	o.closeChanged(&d, cfg.Spread)
	o.desired = &d
	o.handOver(o.server.Listeners())
	return o.fault.set(err)
}

// handOver tells the service manager what listens. One that is on its way out
// listens on nothing, and its sockets are for the next.
func (o *offload) handOver(listeners map[string]*os.File) {
	if !o.draining.Load() { // set before the first is closed
		o.handover.update(listeners)
		return
	}
	for _, f := range listeners {
		f.Close()
	}
}

// closeChanged ends the connections of servers that are gone, or that another
// mode is meant for: nothing would bring them on. It comes after Apply, so that
// none is admitted the old way behind its back.
func (o *offload) closeChanged(d *sstp.Desired, over time.Duration) {
	serving := make(map[table.Slot]sstp.Mode, len(d.Targets))
	for _, t := range d.Targets {
		at := slices.IndexFunc(d.Services, func(s sstp.Service) bool { return s.VIP == t.VIP })
		if at >= 0 {
			serving[t.Slot] = d.Services[at].Mode
		}
	}
	for slot, mode := range o.serving {
		if serving[slot] != mode {
			o.server.CloseTarget(slot, over)
		}
	}
	o.serving = serving
}

// touchSSTP tells the agreement which clients have live calls.
func (m *member) touchSSTP(ctx context.Context, o *offload) {
	for pause(ctx, activityTick) {
		if batch := o.server.Activity(); len(batch) > 0 {
			m.toucher.Offer(batch)
		}
	}
}

// answer tells whoever asked what became of an evidence.
func (m *member) answer(e table.Evidence, a table.Answer) {
	if o := m.offload.Load(); o != nil && o.evidence.answered(e, a) {
		return
	}
	m.plane.Answer(e.Key, e, a)
}

// drainMargin is what a stop takes beside the time for calls.
const drainMargin = 30 * time.Second

// drainSSTP lets calls end, as the node file says.
func (m *member) drainSSTP() {
	o := m.offload.Load()
	if o == nil {
		return
	}
	if n := len(o.server.Sessions()); n > 0 {
		stage, _ := m.node.stageNow()
		m.node.setStage(stage, fmt.Sprintf("letting %d SSTP connections end, within %s", n, m.cfg.SSTP.Drain))
	}
	m.node.notify.busy(m.cfg.SSTP.Drain + drainMargin)
	ctx, cancel := context.WithTimeout(context.Background(), m.cfg.SSTP.Drain)
	defer cancel()
	o.draining.Store(true)
	o.server.Drain(ctx, m.cfg.SSTP.Spread)
}
