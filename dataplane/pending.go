package dataplane

import (
	"context"
	"encoding/binary"
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

func nativeWord(b []byte) uint32       { return binary.NativeEndian.Uint32(b) }
func putNativeWord(b []byte, v uint32) { binary.NativeEndian.PutUint32(b, v) }

type told struct {
	value bpf.PlanePending
	at    time.Time
}

// proofs is user space's half of the pending map.
type proofs struct {
	m     *ebpf.Map
	clock *clock
	out   chan []table.Evidence

	again atomic.Bool // something was put back: scan at once

	mu   sync.Mutex
	told map[bpf.PlanePendingKey]told
}

func newProofs(m *ebpf.Map, c *clock, out chan []table.Evidence) *proofs {
	return &proofs{m: m, clock: c, out: out, told: make(map[bpf.PlanePendingKey]told)}
}

func pendingKey(k table.Key) bpf.PlanePendingKey {
	return bpf.PlanePendingKey{Client: k.Client, Class: uint8(k.Class)}
}

// scan walks pending and delivers what has not been told. What finds no room in
// the channel is told by the next scan.
func (p *proofs) scan(ctx context.Context, now time.Time) error {
	jiffies, err := p.clock.now()
	if err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	seen := make(map[bpf.PlanePendingKey]bool)
	var batch []table.Evidence
	for b := range mapBatches[bpf.PlanePendingKey, bpf.PlanePending](p.m) {
		if b.err != nil {
			return b.err
		}
		for i, k := range b.keys {
			v := b.values[i]
			if v.QuietUntil != 0 {
				if int32(jiffies-v.QuietUntil) >= 0 {
					p.endSilence(k)
				}
				continue
			}
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

// endSilence forgets a refusal whose time is over, unless the program has just
// written something new in its place.
func (p *proofs) endSilence(k bpf.PlanePendingKey) {
	var v bpf.PlanePending
	if err := p.m.LookupAndDelete(&k, &v); err == nil && v.QuietUntil == 0 {
		_ = p.m.Update(&k, &v, ebpf.UpdateNoExist) // exists: the program was faster
	}
}

func evidenceOf(k bpf.PlanePendingKey, v bpf.PlanePending) table.Evidence {
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
			delete(p.told, pendingKey(e.Key))
		}
	}
}

// answer closes a pending proof, unless it has become stronger than what was
// answered: then it stays and is told again. quiet keeps the client unheard of
// for that long; 0 does not.
func (p *proofs) answer(k table.Key, e table.Evidence, quiet time.Duration) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := pendingKey(k)
	delete(p.told, key)
	var v bpf.PlanePending
	err := p.m.LookupAndDelete(&key, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("take pending proof: %w", err)
	}
	grown := table.Slot(v.Slot) != e.Slot || table.Slot(v.Saw) != e.Saw ||
		table.Confirmation(v.Level) > e.Level || v.Opening != 0 && !e.Opening
	if !grown {
		if quiet == 0 {
			return nil
		}
		if v.QuietUntil, err = p.clock.after(quiet); err != nil {
			return err
		}
	} else {
		p.again.Store(true)
	}
	// If the program wrote meanwhile, its word is newer.
	if err := p.m.Update(&key, &v, ebpf.UpdateNoExist); err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("keep pending proof: %w", err)
	}
	return nil
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
