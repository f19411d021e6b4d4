package dataplane

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Limits of a trace: somebody forgets to stop it.
const (
	MaxTraceTime    = 10 * time.Minute
	MaxTracePackets = 10_000
)

// ErrTracing: one trace at a time.
var ErrTracing = errors.New("somebody traces already")

// Traced is one packet of the client that is followed.
type Traced struct {
	At        time.Time
	Interface uint32 // where it came in
	Out       uint32 // where it leaves; 0 = it is dropped or passed
	Bytes     int    // of the frame as it leaves
	Reason    table.Reason
	Slot      table.Slot // of the server; 0 = none
	Head      []byte     // the frame's beginning, as it leaves
}

// Trace delivers the packets of a client, both ways, with what became of them, until
// ctx ends, for limit packets at most and MaxTraceTime. The program sees the frame as it
// leaves, so it is compared with the client's address there. Packets that nobody
// takes in time are lost and counted.
func (p *Plane) Trace(ctx context.Context, client netip.Prefix, limit int, deliver func(Traced) error) error {
	if limit < 1 || limit > MaxTracePackets {
		return fmt.Errorf("trace %s: %d packets: want 1 to %d", client, limit, MaxTracePackets)
	}
	if !p.tracing.CompareAndSwap(false, true) {
		return ErrTracing
	}
	defer p.tracing.Store(false)
	reader, err := p.beginTrace(client, limit)
	if err != nil {
		return err
	}
	defer reader.Close()
	defer p.endTrace()
	ctx, cancel := context.WithTimeout(ctx, MaxTraceTime)
	defer cancel()
	// Close does not wait for a trace: it ends at the next look, and what it reads of is
	// its own copy of the map.
	for n := 0; n < limit && ctx.Err() == nil && p.attached.Load(); {
		reader.SetDeadline(time.Now().Add(100 * time.Millisecond))
		record, err := reader.Read()
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			return fmt.Errorf("read trace: %w", err)
		}
		n++
		if err := deliver(p.traced(record.RawSample)); err != nil {
			return err
		}
	}
	return nil
}

// beginTrace empties the ring of what a former trace left, and tells the program whom
// to follow.
func (p *Plane) beginTrace(client netip.Prefix, limit int) (*ringReader, error) {
	p.reading.RLock()
	defer p.reading.RUnlock()
	if !p.attached.Load() {
		return nil, ErrNotSynced
	}
	ring, err := p.coll.Maps["trace_ring"].Clone()
	if err != nil {
		return nil, fmt.Errorf("open trace: %w", err)
	}
	reader, err := ringbuf.NewReader(ring)
	if err != nil {
		ring.Close()
		return nil, fmt.Errorf("open trace: %w", err)
	}
	r := &ringReader{Reader: reader, ring: ring}
	for err == nil {
		r.SetDeadline(time.Now())
		_, err = r.Read()
	}
	now, err := p.clock.whole()
	if err != nil {
		r.Close()
		return nil, err
	}
	filter := traceFilter(client)
	filter.Until, filter.Left = now+uint64(MaxTraceTime.Seconds())*uint64(p.clock.hz), uint64(limit)
	if err := p.coll.Maps["trace_filters"].Put(uint32(0), &filter); err != nil {
		r.Close()
		return nil, fmt.Errorf("set trace: %w", err)
	}
	p.control.trace(1)
	return r, nil
}

func (p *Plane) endTrace() {
	p.reading.RLock()
	defer p.reading.RUnlock()
	if p.attached.Load() {
		p.control.trace(0)
	}
}

// ringReader closes its map, too.
type ringReader struct {
	*ringbuf.Reader
	ring *ebpf.Map
}

// Close ends the reading.
func (r *ringReader) Close() error { return errors.Join(r.Reader.Close(), r.ring.Close()) }

func traceFilter(client netip.Prefix) bpf.PlaneTraceFilter {
	var f bpf.PlaneTraceFilter
	bits := client.Bits()
	if client.Addr().Is4() {
		bits += 96
	}
	ones := netip.AddrFrom16([16]byte(bytes.Repeat([]byte{0xff}, 16)))
	m, _ := ones.Prefix(bits)
	f.Mask = m.Addr().As16()
	f.Client = client.Masked().Addr().As16()
	return f
}

func (p *Plane) traced(raw []byte) Traced {
	p.reading.RLock()
	defer p.reading.RUnlock()
	var e bpf.PlaneTraceEvent
	binary.Read(bytes.NewReader(raw), binary.NativeEndian, &e) // a short record leaves zeros
	age := time.Duration(0)
	if !p.attached.Load() {
		return Traced{}
	}
	if now, err := p.clock.whole(); err == nil && now >= e.Jiffies {
		age = time.Duration(now-e.Jiffies) * time.Second / time.Duration(p.clock.hz)
	}
	return Traced{At: time.Now().Add(-age), Interface: e.Ifindex, Out: e.Out, Bytes: int(e.Bytes), Reason: table.Reason(e.Reason),
		Slot: table.Slot(e.Slot), Head: bytes.Clone(e.Head[:min(int(e.Bytes), len(e.Head))])}
}
