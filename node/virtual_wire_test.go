package node

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// wire is a data plane of the model, and what comes and goes on it.
type wire struct {
	mu      sync.Mutex
	set     *table.Set
	tables  *model.Tables
	entries map[table.Key]table.Entry
	sighted map[model.Sighting]time.Time // first, of packets to DSR servers
}

var mac = [6]byte{2, 0, 0, 0, 0, 1}

// Resync implements planeWriter.
func (w *wire) Resync(set *table.Set, entries iter.Seq[table.Entry]) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.entries = make(map[table.Key]table.Entry)
	for e := range entries {
		w.entries[e.Key] = e
	}
	return w.install(set)
}

// Apply implements planeWriter.
func (w *wire) Apply(d table.Delta) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.entries == nil {
		w.entries = make(map[table.Key]table.Entry)
	}
	for _, e := range d.Upsert {
		w.entries[e.Key] = e
	}
	for _, k := range d.Delete {
		delete(w.entries, k)
	}
	if d.Set == nil {
		return nil
	}
	return w.install(d.Set)
}

func (w *wire) install(set *table.Set) (err error) {
	hop := model.Hop{State: model.Resolved, Interface: 1, MTU: 1500, MAC: mac, SourceMAC: mac, Direct: true}
	w.set = set
	w.tables, err = model.FromSet(set, model.Env{
		Entry:      func(k table.Key) (table.Entry, bool) { e, ok := w.entries[k]; return e, ok },
		Interfaces: []model.Interface{{Index: 1, MAC: mac, CanTransmit: true}},
		ToServer:   func(table.Slot) model.Hop { return hop },
		ToClient:   func(netip.Addr) model.Hop { return hop },
		Sighted: func(k table.Key, level table.Confirmation) bool {
			at, seen := w.sighted[model.Sighting{Key: k, Level: level}]
			return seen && !time.Now().Before(at.Add(time.Second))
		},
	})
	return err
}

// text is everything in the tables; the index of the set is when it was
// written, which may differ.
func (w *wire) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.set == nil {
		return ""
	}
	set := *w.set
	set.Index = 0
	lines := []string{}
	for k, e := range w.entries {
		lines = append(lines, fmt.Sprintf("%x %d: %d %d\n", k.Client, k.Class, e.Slot, e.State))
	}
	slices.Sort(lines)
	return setText(&set) + fmt.Sprint(lines)
}

func (w *wire) decide(frame []byte) model.Decision {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.tables == nil {
		return model.Decision{}
	}
	d := model.Decide(frame, 1, w.tables)
	if d.Sighting != nil {
		if w.sighted == nil {
			w.sighted = make(map[model.Sighting]time.Time)
		}
		if _, seen := w.sighted[*d.Sighting]; !seen {
			w.sighted[*d.Sighting] = time.Now()
		}
	}
	return d
}

// udp makes a frame (RFC 791, RFC 768; no checksums: the model checks none).
func udp(from, to netip.Addr, sport, dport uint16, payload []byte) []byte {
	var b bytes.Buffer
	b.Write(mac[:])
	b.Write(mac[:])
	b.Write([]byte{8, 0, 0x45, 0})
	binary.Write(&b, binary.BigEndian, uint16(28+len(payload)))
	b.Write([]byte{0, 1, 0, 0, 64, 17, 0, 0})
	src, dst := from.As4(), to.As4()
	b.Write(src[:])
	b.Write(dst[:])
	for _, v := range []uint16{sport, dport, uint16(8 + len(payload)), 0} {
		binary.Write(&b, binary.BigEndian, v)
	}
	b.Write(payload)
	return b.Bytes()
}
