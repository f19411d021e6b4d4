package dataplane

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

const (
	// pollInterval bounds the delay of evidence, with room for the walk.
	pollInterval = 5 * time.Millisecond
	// rescanInterval is a look at pending without a sign of news: it ends
	// silences and tells unanswered evidence again.
	rescanInterval = time.Second
	// retellAfter is when evidence without an answer is delivered again.
	retellAfter = 5 * time.Second
	// quietTime is how long a refused client is not heard of.
	quietTime = 10 * time.Second
	// settleTime is how long a client is not heard of whose record is agreed but
	// not in the kernel's table: the writer is on its way, or the table is full.
	// Without it his every packet would tell the same again.
	settleTime = 2 * time.Second
	// evidenceBatch bounds one delivery.
	evidenceBatch = 1024
)

type told struct {
	value bpf.PlanePending
	at    time.Time
}

// proofs is user space's half of pending_proofs, and of the silences.
type proofs struct {
	pending  *ebpf.Map
	silences *ebpf.Map
	clock    *clock
	out      chan []table.Evidence

	again atomic.Bool // something was put back: scan at once

	mu     sync.Mutex
	told   map[bpf.PlaneClientKey]told
	silent time.Time // last look for silences that are over
}

func newProofs(coll *ebpf.Collection, c *clock, out chan []table.Evidence) *proofs {
	return &proofs{pending: coll.Maps["pending_proofs"], silences: coll.Maps["silences"], clock: c, out: out,
		told: make(map[bpf.PlaneClientKey]told)}
}

// scan walks pending and delivers what has not been told. What finds no room in
// the channel is told by the next scan.
func (p *proofs) scan(ctx context.Context, now time.Time) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Sub(p.silent) >= rescanInterval {
		p.silent = now
		if err := p.endSilences(); err != nil {
			return err
		}
	}
	seen := make(map[bpf.PlaneClientKey]bool)
	var batch []table.Evidence
	for b := range mapBatches[bpf.PlaneClientKey, bpf.PlanePending](p.pending) {
		if b.err != nil {
			return b.err
		}
		for i, k := range b.keys {
			v := b.values[i]
			seen[k] = true
			if t, ok := p.told[k]; ok && t.value == v && now.Sub(t.at) < retellAfter {
				continue
			}
			p.told[k] = told{value: v, at: now}
			if batch = append(batch, evidenceOf(k, v)); len(batch) == evidenceBatch {
				p.deliver(batch)
				batch = nil
			}
		}
	}
	p.deliver(batch)
	for k := range p.told {
		if !seen[k] {
			delete(p.told, k)
		}
	}
	return ctx.Err()
}

// endSilences forgets those that are over, because their time is half a word of
// jiffies: after weeks it would seem to lie ahead again.
func (p *proofs) endSilences() error {
	jiffies, err := p.clock.now()
	if err != nil {
		return err
	}
	for b := range mapBatches[bpf.PlaneClientKey, bpf.PlanePending](p.silences) {
		if b.err != nil {
			return b.err
		}
		for i, k := range b.keys {
			if int32(jiffies-b.values[i].QuietUntil) >= 0 {
				if err := p.silences.Delete(&k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
					return fmt.Errorf("end a silence: %w", err)
				}
			}
		}
	}
	return nil
}

func evidenceOf(k bpf.PlaneClientKey, v bpf.PlanePending) table.Evidence {
	return table.Evidence{Key: table.Key{Client: k.Client, Class: table.Class(k.Class)},
		Slot: table.Slot(v.Slot), Saw: table.Slot(v.Saw), Level: table.Confirmation(v.Level), Opening: v.Opening != 0}
}

func (p *proofs) deliver(batch []table.Evidence) {
	if len(batch) == 0 {
		return
	}
	select {
	case p.out <- batch:
	default:
		for _, e := range batch {
			delete(p.told, keyOf(e.Key))
		}
	}
}

// answer closes a pending proof, unless it has become stronger than what was
// answered: then it stays and is told again. quiet keeps the client unheard of
// for that long; 0 does not.
func (p *proofs) answer(k table.Key, e table.Evidence, quiet time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := keyOf(k)
	delete(p.told, key)
	if quiet != 0 { // before the proof goes, else the next packet tells it again
		if err := p.silence(key, e, quiet); err != nil {
			return err
		}
	}
	v, found, err := p.take(key)
	if err != nil || !found {
		return err
	}
	grown := table.Slot(v.Slot) != e.Slot || table.Slot(v.Saw) != e.Saw ||
		table.Confirmation(v.Level) > e.Level || v.Opening != 0 && !e.Opening
	if !grown {
		return nil
	}
	p.again.Store(true)
	return p.putBack(key, v)
}

func (p *proofs) silence(key bpf.PlaneClientKey, e table.Evidence, quiet time.Duration) error {
	until, err := p.clock.after(quiet)
	if err != nil {
		return err
	}
	v := bpf.PlanePending{Slot: uint16(e.Slot), Saw: uint16(e.Saw), Level: uint8(e.Level), QuietUntil: until}
	if e.Opening {
		v.Opening = 1
	}
	if err := p.silences.Put(&key, &v); err != nil {
		return fmt.Errorf("silence a proof: %w", err)
	}
	return nil
}

func (p *proofs) take(key bpf.PlaneClientKey) (v bpf.PlanePending, found bool, err error) {
	err = p.pending.LookupAndDelete(&key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return v, false, nil
	}
	if err != nil {
		return v, false, fmt.Errorf("take pending proof: %w", err)
	}
	return v, true, nil
}

// putBack returns what was taken. What the program wrote meanwhile is taken too
// and put together with it, as the program does itself.
func (p *proofs) putBack(key bpf.PlaneClientKey, v bpf.PlanePending) error {
	for range 8 { // the program writes only what has grown: it ends before
		err := p.pending.Update(&key, &v, ebpf.UpdateNoExist)
		if err == nil {
			return nil
		}
		if !errors.Is(err, ebpf.ErrKeyExist) {
			return fmt.Errorf("keep pending proof: %w", err)
		}
		newer, found, err := p.take(key)
		if err != nil {
			return err
		}
		if found {
			v = merge(v, newer)
		}
	}
	if err := p.pending.Put(&key, &v); err != nil {
		return fmt.Errorf("keep pending proof: %w", err)
	}
	return nil
}

// merge adds what an older proof of the same server said to a newer one.
func merge(older, newer bpf.PlanePending) bpf.PlanePending {
	if older.Slot == newer.Slot {
		newer.Level = max(newer.Level, older.Level)
		newer.Opening |= older.Opening
	}
	return newer
}

// pollPending scans when the program says that there is news, and every second.
func (p *Plane) pollPending(ctx context.Context) {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	var serial uint32
	var scanned time.Time
	for {
		now := time.Now()
		if s := p.control.pendingSerial(); s != serial || p.proofs.again.Swap(false) || now.Sub(scanned) >= rescanInterval {
			serial, scanned = s, now
			if err := p.proofs.scan(ctx, now); err != nil && ctx.Err() == nil {
				p.log.Warn("cannot read pending evidence", "error", err)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
