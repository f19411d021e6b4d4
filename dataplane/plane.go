package dataplane

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Sentinel errors.
var (
	// ErrForeign: the pinned maps belong to another cluster.
	ErrForeign = errors.New("pinned maps belong to another cluster: run `vpnlb plane detach`")
	// ErrBehind: the set is older than what the maps hold.
	ErrBehind = errors.New("set is older than the pinned maps")
	// ErrNotSynced: Apply before Resync, or anything before Attach.
	ErrNotSynced = errors.New("plane has no base to apply changes to")
	// ErrFull: the affinity table has no room; the rest was written.
	ErrFull = errors.New("affinity table is full")
)

// Plane is the data plane of one node.
//
// Attach, then Run in a goroutine of its own; Resync and Apply from one other
// goroutine. Everything else may be called from anywhere, after Attach.
// Attach, Run and the rest work in the network namespace of the thread that
// called Attach.
type Plane struct {
	cfg Config
	log *slog.Logger
}

// New checks cfg. It does no I/O.
func New(cfg Config, deps Deps) (*Plane, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("data plane: %w", err)
	}
	return &Plane{cfg: cfg, log: deps.Log}, nil
}

// Attach takes over the pinned maps and links, or makes them. It changes
// nothing that was agreed: a pinned program goes on as it is until the first
// Resync swaps it. Pins of another cluster give ErrForeign.
func (p *Plane) Attach(clusterID [16]byte) (Pinned, error) { return Pinned{}, nil }

// Run follows the kernel's routes, neighbours and links, polls the pending
// evidence and sweeps for activity, until ctx ends. The program and the maps
// stay: forwarding goes on without Run.
func (p *Plane) Run(ctx context.Context) error { return nil }

// Apply writes one change, in log order; affinity changes before the flip.
// ErrFull: some entries had no room, all else is written. Any other error: the
// maps may hold part of the change; call Resync.
func (p *Plane) Apply(d table.Delta) error { return nil }

// Resync makes the maps hold exactly set and entries, by difference: entries
// added and changed first, then tables and permits in one flip, deletions last.
// A nil set or one with Index 0 (nothing agreed is known yet) changes nothing.
// A set older than the maps gives ErrBehind and changes nothing. At the first
// success the interfaces get this binary's program.
func (p *Plane) Resync(set *table.Set, entries iter.Seq[table.Entry]) error { return nil }

// Evidence delivers what servers' packets proved, within 10 ms. Evidence that
// is not answered is delivered again after some seconds.
func (p *Plane) Evidence() <-chan []table.Evidence { return nil }

// Answer closes a pending evidence. Evidence that grew stronger since it was
// delivered stays pending and is delivered again.
func (p *Plane) Answer(k table.Key, e table.Evidence, a table.Answer) {}

// Activity delivers, once per sweep interval and in bounded batches, the records
// with packets since the sweep before. After a start the first sweep delivers
// all that were active in the last hours, with their age.
func (p *Plane) Activity() <-chan []table.Activity { return nil }

// Counters reads the per-CPU counters.
func (p *Plane) Counters() (Counters, error) { return Counters{}, nil }

// Status tells what is attached and what the maps hold.
func (p *Plane) Status() Status { return Status{} }

// Dump gives the set that the maps hold now; nil before the first Resync.
func (p *Plane) Dump() *table.Set { return nil }

// LookupEntry reads one affinity record from the kernel's map.
func (p *Plane) LookupEntry(k table.Key) (table.Entry, bool) { return table.Entry{}, false }

// Entries walks the affinity records of the kernel's map. The error, if any,
// comes last. Order is the map's; concurrent changes may be missed.
func (p *Plane) Entries() iter.Seq2[table.Entry, error] {
	return func(func(table.Entry, error) bool) {}
}

// InterfaceIndex gives the kernel's index of a configured interface, 0 if it
// has none.
func (p *Plane) InterfaceIndex(name string) uint32 { return 0 }

// Close closes this process's handles. Pins stay: forwarding goes on.
func (p *Plane) Close() error { return nil }

// Detach removes the program from all interfaces and all pinned maps under
// cfg.PinDir, of any cluster and schema version. Forwarding ends.
func Detach(cfg Config) error { return nil }
