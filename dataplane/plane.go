package dataplane

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/bucket"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Sentinel errors.
var (
	// ErrForeign: the pinned maps belong to another cluster.
	ErrForeign = errors.New("pinned maps belong to another cluster: stop the service and run `vpnlb plane detach`")
	// ErrBehind: the set is older than what the maps hold.
	ErrBehind = errors.New("set is older than the pinned maps")
	// ErrNotSynced: Apply before Resync, or anything before Attach.
	ErrNotSynced = errors.New("plane has no base to apply changes to")
	// ErrFull: the affinity table has no room; the rest was written.
	ErrFull = errors.New("affinity table is full")
)

// queueLength bounds the deliveries that wait for a reader. Evidence beyond it
// stays in the kernel's map; activity waits.
const queueLength = 16

// Plane is the data plane of one node.
//
// Attach, then Run in a goroutine of its own; Resync and Apply from one other
// goroutine. Everything else may be called from anywhere, after Attach.
// Attach, Run and the rest work in the network namespace of the thread that
// called Attach.
type Plane struct {
	cfg      Config
	log      *slog.Logger
	evidence chan []table.Evidence
	activity chan []table.Activity

	// Set by Attach, then constant.
	ns      *namespace
	clock   *clock
	coll    *ebpf.Collection
	control *controlWords
	proofs  *proofs

	reading  sync.RWMutex // readers against Close
	attached atomic.Bool
	set      atomic.Pointer[table.Set]     // what the maps hold; nil before Resync
	held     atomic.Pointer[bpf.PlaneMeta] // copy of meta for readers
	synced   atomic.Bool
	tracing  atomic.Bool
	mended   atomic.Uint64
	repinned atomic.Uint64
	checked  atomic.Pointer[checkResult]

	writer     sync.Mutex // one writer of tables, entries and meta
	tables     *tables
	affinities *affinities // set by Attach; its writing is the writer's
	meta       bpf.PlaneMeta

	status      sync.Mutex // the fields of attachments, and pins
	attachments []*attachment
	byMembers   []string // bonds and teams whose members carry the program
	pins        pinKeeper
	interfaces  map[uint32]bpf.PlaneInterface // what the map holds
	drivers     map[int]string

	routed        [2]placeBits // what the map holds, by family; Attach, then Run's alone
	routedWritten bool
}

// New checks cfg. It does no I/O.
func New(cfg Config, deps Deps) (*Plane, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("data plane: %w", err)
	}
	if cfg.MaxClients == 0 {
		cfg.MaxClients = DefaultMaxClients
	}
	if cfg.SweepInterval == 0 {
		cfg.SweepInterval = DefaultSweepInterval
	}
	log := deps.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Plane{
		cfg: cfg, log: log,
		evidence:   make(chan []table.Evidence, queueLength),
		activity:   make(chan []table.Activity, queueLength),
		interfaces: make(map[uint32]bpf.PlaneInterface),
		drivers:    make(map[int]string),
	}, nil
}

// Attach takes over the pinned maps and links, or makes them. It changes
// nothing that was agreed: a pinned program goes on as it is until the first
// Resync swaps it. Pins of another cluster give ErrForeign.
func (p *Plane) Attach(clusterID [16]byte) (Pinned, error) {
	if p.attached.Load() {
		return Pinned{}, errors.New("attach: attached already")
	}
	if err := preparePinDir(p.cfg.PinDir); err != nil {
		return Pinned{}, err
	}
	before, err := pinsIn(p.cfg.PinDir)
	if err != nil {
		return Pinned{}, err
	}
	if err := p.checkOwner(before, clusterID); err != nil {
		return Pinned{}, err
	}
	meta, found, err := p.readMeta(before)
	if err != nil {
		return Pinned{}, err
	}
	out := Pinned{Found: found, Index: meta.Index, Generation: meta.Generation}
	seed := meta.AffinitySeed
	if !found {
		seed = rand.Uint64()
	}
	if err := p.open(clusterID, seed, &out); err != nil {
		p.release()
		// What was made now goes; what was there forwards on.
		for _, name := range out.Attached { // in place of a link that was dead
			delete(before, "link_"+name)
		}
		return Pinned{}, errors.Join(err, unpin(p.cfg.PinDir, before))
	}
	out.Entries = p.affinities.count()
	p.attached.Store(true)
	return out, nil
}

// open does Attach's work; on an error the caller releases.
func (p *Plane) open(clusterID [16]byte, seed uint64, out *Pinned) (err error) {
	p.raiseMemlock()
	if err := probe(); err != nil {
		return err
	}
	if p.ns, err = openNamespace(); err != nil {
		return err
	}
	if p.clock, err = newClock(); err != nil {
		return err
	}
	p.meta = bpf.PlaneMeta{Schema: schema, Index: out.Index, Generation: out.Generation, ClusterId: clusterID, AffinitySeed: seed}
	if err := p.load(out.Found); err != nil {
		return err
	}
	p.tables = &tables{coll: p.coll, control: p.control, flipped: time.Now()}
	if p.affinities, err = openAffinities(p.coll, seed, time.Now); err != nil {
		return err
	}
	p.publish()
	p.proofs = newProofs(p.coll, p.clock, p.evidence)
	if err := p.readInterfaces(); err != nil {
		return err
	}
	if _, err := p.mendRouted(); err != nil {
		p.log.Warn("cannot read the routing table: next hops are cached by client", "error", err)
	}
	if err := p.attachAll(out); err != nil {
		return err
	}
	_, err = p.refreshInterfaces()
	p.control.trace(0) // of a process that is gone
	p.control.forgetNextHops()
	return err
}

// Run follows the kernel's routes, neighbours and links, polls the pending
// evidence and sweeps for activity, until ctx ends. The program and the maps
// stay: forwarding goes on without Run.
func (p *Plane) Run(ctx context.Context) error {
	if !p.attached.Load() {
		return ErrNotSynced
	}
	var all sync.WaitGroup
	for _, f := range []func(context.Context){p.watch, p.keepNeighbours, p.pollPending, p.sweepAll, p.checkAll} {
		all.Go(func() { f(ctx) })
	}
	all.Wait()
	return nil
}

func (p *Plane) sweepAll(ctx context.Context) {
	tick := time.NewTicker(p.cfg.SweepInterval)
	defer tick.Stop()
	var s sweeper
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if err := p.sweep(ctx, &s); err != nil && ctx.Err() == nil {
			p.log.Warn("cannot sweep the affinity table", "error", err)
		}
	}
}

// Apply writes one change, in log order; affinity changes before the flip.
// ErrFull: some entries had no room, all else is written. Any other error: the
// maps may hold part of the change; call Resync. A change older than what the
// maps hold is in them already and is left out.
func (p *Plane) Apply(d table.Delta) error {
	p.writer.Lock()
	defer p.writer.Unlock()
	if !p.attached.Load() || !p.synced.Load() {
		return ErrNotSynced
	}
	if d.Index < p.meta.Index {
		return nil
	}
	defer p.publish()
	full := p.affinities.putAll(slices.Values(d.Upsert))
	if full != nil && !errors.Is(full, ErrFull) {
		return full
	}
	for _, k := range d.Delete {
		if err := p.affinities.remove(k); err != nil {
			return err
		}
	}
	if d.Set != nil {
		if err := p.writeSet(d.Set); err != nil {
			return err
		}
	}
	if err := p.stamp(d.Index, d.Set); err != nil {
		return err
	}
	return full
}

// Resync makes the maps hold exactly set and entries, by difference: entries
// added and changed first, then tables and permits in one flip, deletions last.
// A nil set or one with Index 0 (nothing agreed is known yet) changes nothing.
// A set older than the maps gives ErrBehind and changes nothing. At the first
// success the interfaces get this binary's program.
func (p *Plane) Resync(set *table.Set, entries iter.Seq[table.Entry]) error {
	p.writer.Lock()
	defer p.writer.Unlock()
	if !p.attached.Load() {
		return ErrNotSynced
	}
	if set == nil || set.Index == 0 {
		return nil
	}
	if set.Index < p.meta.Index {
		return fmt.Errorf("resync to index %d, maps hold %d: %w", set.Index, p.meta.Index, ErrBehind)
	}
	if set.ClusterID != p.meta.ClusterId {
		return fmt.Errorf("resync: set of cluster %x: %w", set.ClusterID, ErrForeign)
	}
	if err := validateSet(set); err != nil {
		return err
	}
	defer p.publish()
	stale, full := p.affinities.resync(entries)
	if full != nil && !errors.Is(full, ErrFull) {
		return full
	}
	if err := p.writeSet(set); err != nil {
		return err
	}
	for _, k := range stale {
		if err := p.affinities.remove(k); err != nil {
			return err
		}
	}
	if err := p.stamp(set.Index, set); err != nil {
		return err
	}
	p.synced.Store(true)
	if err := p.adoptLocked(); err != nil {
		return err
	}
	return full
}

func (p *Plane) adoptLocked() error {
	p.status.Lock()
	defer p.status.Unlock()
	return p.adopt()
}

// writeSet puts a set in force, if it differs from the one in force in more than
// its index.
func (p *Plane) writeSet(set *table.Set) error {
	if have := p.set.Load(); have != nil {
		same := *have
		same.Index = set.Index
		if reflect.DeepEqual(&same, set) {
			p.set.Store(set)
			return nil
		}
	}
	if err := validateSet(set); err != nil {
		return err
	}
	if err := p.tables.write(set); err != nil {
		return fmt.Errorf("write tables of index %d: %w", set.Index, err)
	}
	p.set.Store(set)
	return nil
}

// stamp stores how far the maps are, after everything else.
func (p *Plane) stamp(index uint64, set *table.Set) error {
	p.meta.Index = index
	if set != nil {
		p.meta.Generation = set.Generation
	}
	return p.writeMeta(p.meta)
}

// publish hands the writer's numbers to readers that do not wait for it.
func (p *Plane) publish() {
	meta := p.meta
	p.held.Store(&meta)
}

// Evidence delivers what servers' packets proved, within 10 ms. Evidence that
// is not answered is delivered again after some seconds.
func (p *Plane) Evidence() <-chan []table.Evidence { return p.evidence }

// Answer closes a pending evidence. Evidence that grew stronger since it was
// delivered stays pending and is delivered again.
func (p *Plane) Answer(k table.Key, e table.Evidence, a table.Answer) {
	p.reading.RLock()
	defer p.reading.RUnlock()
	if !p.attached.Load() {
		return
	}
	quiet := time.Duration(0)
	if a == table.Refused {
		quiet = quietTime
	} else if r, found, err := p.affinities.lookup(k); err == nil && !answered(e, r, found) {
		quiet = settleTime
	}
	if err := p.proofs.answer(k, e, quiet); err != nil {
		p.log.Warn("cannot answer evidence", "error", err)
	}
}

// answered reports whether the kernel's record leaves nothing to learn from
// this evidence, so that the program will not tell it again.
func answered(e table.Evidence, r bucket.Record, found bool) bool {
	if !found {
		return false
	}
	if r.Slot == e.Slot {
		return r.State >= e.Level
	}
	return r.Slot != e.Saw // as seen: the change is still on its way
}

// Activity delivers, once per sweep interval and in bounded batches, the records
// with packets since the sweep before. After a start the first sweep delivers
// all that were active in the last hours, with their age.
func (p *Plane) Activity() <-chan []table.Activity { return p.activity }

// Status tells what is attached and what the maps hold.
func (p *Plane) Status() Status {
	p.reading.RLock()
	defer p.reading.RUnlock()
	if !p.attached.Load() {
		return Status{}
	}
	held := p.held.Load()
	s := Status{Attached: true, Synced: p.synced.Load(), Index: held.Index, Generation: held.Generation}
	s.Entries4, s.Entries6 = p.affinities.tables[0].Len(), p.affinities.tables[1].Len()
	s.Entries, s.Capacity = s.Entries4+s.Entries6, p.affinities.capacity
	s.HZ, s.HZSource = int(p.clock.hz), p.clock.hzSource
	s.Interfaces = p.interfaceStatus()
	return s
}

// Dump gives the set that the maps hold now; nil before the first Resync.
func (p *Plane) Dump() *table.Set { return p.set.Load() }

// LookupEntry reads one affinity record from the kernel's map.
func (p *Plane) LookupEntry(k table.Key) (table.Entry, bool) {
	p.reading.RLock()
	defer p.reading.RUnlock()
	if !p.attached.Load() {
		return table.Entry{}, false
	}
	r, found, err := p.affinities.lookup(k)
	if err != nil || !found {
		return table.Entry{}, false
	}
	return r.Entry, true
}

// Entries walks the affinity records of the kernel's map. The error, if any,
// comes last. Order is the map's; concurrent changes may be missed.
func (p *Plane) Entries() iter.Seq2[table.Entry, error] {
	return func(yield func(table.Entry, error) bool) {
		p.reading.RLock()
		defer p.reading.RUnlock()
		if !p.attached.Load() {
			yield(table.Entry{}, ErrNotSynced)
			return
		}
		for r, err := range p.affinities.all() {
			if !yield(r.Entry, err) {
				return
			}
		}
	}
}

// InterfaceIndex gives the kernel's index of a configured interface, 0 if it
// has none.
func (p *Plane) InterfaceIndex(name string) uint32 {
	p.status.Lock()
	defer p.status.Unlock()
	for _, a := range p.attachments {
		if a.name == name {
			return uint32(a.index)
		}
	}
	return 0
}

// Close closes this process's handles, after Run has ended. Pins stay:
// forwarding goes on.
func (p *Plane) Close() error {
	p.reading.Lock()
	defer p.reading.Unlock()
	p.writer.Lock() // after reading: a writer waits for no reader
	defer p.writer.Unlock()
	if !p.attached.Swap(false) {
		return nil
	}
	p.release()
	return nil
}

// release closes what open opened, whatever it got to.
func (p *Plane) release() {
	p.status.Lock()
	defer p.status.Unlock()
	for _, a := range p.attachments {
		if a.link != nil {
			a.link.Close()
		}
	}
	p.attachments = nil
	clear(p.interfaces)
	p.set.Store(nil)
	p.routedWritten = false
	p.synced.Store(false)
	if p.affinities != nil {
		p.affinities.Close()
		p.affinities = nil
	}
	if p.control != nil {
		p.control.Close()
		p.control = nil
	}
	if p.coll != nil {
		p.coll.Close()
		p.coll = nil
	}
	if p.clock != nil {
		p.clock.Close()
		p.clock = nil
	}
	if p.ns != nil {
		p.ns.Close()
		p.ns = nil
	}
}
