package dataplane

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/bucket"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Dump writes what the pinned maps hold as text, one fact a line, in the words of
// package table. It needs no daemon, and changes nothing.
func Dump(cfg Config, w io.Writer) error {
	d := &dump{dir: cfg.PinDir, suffix: cfg.schemaSuffix(), w: bufio.NewWriter(w), maps: make(map[string]*ebpf.Map)}
	defer d.close()
	var meta bpf.PlaneMeta
	if err := d.get("plane_meta", 0, &meta); err != nil {
		return err
	}
	var control bpf.PlaneControl
	if err := d.get("plane_control", 0, &control); err != nil {
		return err
	}
	fmt.Fprintf(d.w, "meta schema=%d cluster=%x index=%d generation=%d selector=%d\n", meta.Schema, meta.ClusterId, meta.Index, meta.Generation, control.Selector&1)
	for _, part := range []func(half uint32, seed uint64) error{d.rules, d.maglev, d.notReturn, d.interfaces, d.affinities, d.pending, d.counters} {
		if err := part(control.Selector&1, meta.AffinitySeed); err != nil {
			return err
		}
	}
	return d.w.Flush()
}

type dump struct {
	dir, suffix string
	w           *bufio.Writer
	maps        map[string]*ebpf.Map
}

func (d *dump) close() {
	for _, m := range d.maps {
		m.Close()
	}
}

func (d *dump) open(name string) (*ebpf.Map, error) {
	if m := d.maps[name]; m != nil {
		return m, nil
	}
	m, err := ebpf.LoadPinnedMap(filepath.Join(d.dir, name+d.suffix), nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("nothing of this version is pinned in %s: is the plane attached?", d.dir)
	}
	if err != nil {
		return nil, fmt.Errorf("open pinned map %s: %w", name, err)
	}
	d.maps[name] = m
	return m, nil
}

func (d *dump) get(name string, place uint32, value any) error {
	m, err := d.open(name)
	if err != nil {
		return err
	}
	if err := m.Lookup(place, value); err != nil {
		return fmt.Errorf("read map %s: %w", name, err)
	}
	return nil
}

func addr4(w uint32) netip.Addr {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], w)
	return netip.AddrFrom4(b)
}

func addr6(w bpf.PlaneIn6) netip.Addr {
	var b [16]byte
	binary.NativeEndian.PutUint64(b[:8], w.Hi)
	binary.NativeEndian.PutUint64(b[8:], w.Lo)
	return netip.AddrFrom16(b)
}

var stanceWords = [...]string{"none", "take", "keep", "leave", "void"}

func stanceWord(s uint8) string {
	if int(s) < len(stanceWords) {
		return stanceWords[s]
	}
	return "invalid"
}

func (d *dump) rules(half uint32, _ uint64) error {
	var r bpf.PlaneRules
	if err := d.get("plane_rules", half, &r); err != nil {
		return err
	}
	fmt.Fprintf(d.w, "rules generation=%d serial=%d table_size=%d source_limit=%d\n", r.Generation, r.Serial, r.TableSize, r.SourceLimit)
	for _, v := range r.Vip[:min(r.Vips, uint32(len(r.Vip)))] {
		fmt.Fprintf(d.w, "vip %d %s passthrough=%t\n", v.Index, addr4(v.Address), v.Flags&flagPassthrough != 0)
	}
	for _, v := range r.Vip6[:min(r.Vips6, uint32(len(r.Vip6)))] {
		fmt.Fprintf(d.w, "vip %d %s passthrough=%t mask=%s\n", v.Index, addr6(v.Address), v.Flags&flagPassthrough != 0, addr6(v.Mask))
	}
	for slot := range uint32(slots) {
		var b bpf.PlaneBackend
		if err := d.get("backends", half*slots+slot, &b); err != nil {
			return err
		}
		if b.Address != 0 {
			fmt.Fprintf(d.w, "backend %d %s vip=%d ike=%s tcp=%s dsr=%t\n", slot, addr4(b.Address), b.Vip, stanceWord(b.Stance[0]), stanceWord(b.Stance[1]), b.Flags&flagDSR != 0)
		}
		var b6 bpf.PlaneBackend6
		if err := d.get("backends6", half*slots+slot, &b6); err != nil {
			return err
		}
		if b6.Address.Hi|b6.Address.Lo != 0 {
			fmt.Fprintf(d.w, "backend %d %s vip=%d ike=%s tcp=%s dsr=%t\n", slot, addr6(b6.Address), b6.Vip, stanceWord(b6.Stance[0]), stanceWord(b6.Stance[1]), b6.Flags&flagDSR != 0)
		}
	}
	return nil
}

// maglev says how many places each server has, in the pools of the VIPs in force.
func (d *dump) maglev(half uint32, _ uint64) error {
	var r bpf.PlaneRules
	if err := d.get("plane_rules", half, &r); err != nil {
		return err
	}
	one := func(vip uint8, class table.Class) error {
		count := make(map[uint16]int)
		first := (half*pools + uint32(vip)*table.Classes + uint32(class) - 1) * chunks
		for place := uint32(0); place < r.TableSize; place += chunkPlaces {
			var c bpf.PlaneMaglevChunk
			if err := d.get("maglev", first+place/chunkPlaces, &c); err != nil {
				return err
			}
			for _, slot := range c.Slot[:min(chunkPlaces, r.TableSize-place)] {
				count[slot]++
			}
		}
		for slot := range uint16(slots) {
			if count[slot] > 0 {
				fmt.Fprintf(d.w, "maglev vip=%d class=%d slot=%d places=%d\n", vip, class, slot, count[slot])
			}
		}
		return nil
	}
	pool := func(vip, flags uint8) error {
		if err := one(vip, table.IKE); err != nil || flags&flagPassthrough == 0 {
			return err
		}
		return one(vip, table.TCP)
	}
	for _, v := range r.Vip[:min(r.Vips, uint32(len(r.Vip)))] {
		if err := pool(v.Index, v.Flags); err != nil {
			return err
		}
	}
	for _, v := range r.Vip6[:min(r.Vips6, uint32(len(r.Vip6)))] {
		if err := pool(v.Index, v.Flags); err != nil {
			return err
		}
	}
	return nil
}

func (d *dump) notReturn(half uint32, _ uint64) error {
	m, err := d.open("not_return")
	if err != nil {
		return err
	}
	var k bpf.PlaneNotReturnKey
	var one uint32
	walk := m.Iterate()
	for walk.Next(&k, &one) {
		if k.Selector == half {
			fmt.Fprintf(d.w, "not_return %s/%d\n", addr4(k.Address), k.Prefixlen-32)
		}
	}
	if err := walk.Err(); err != nil {
		return fmt.Errorf("walk map not_return: %w", err)
	}
	if m, err = d.open("not_return6"); err != nil {
		return err
	}
	var k6 bpf.PlaneNotReturn6Key
	walk = m.Iterate()
	for walk.Next(&k6, &one) {
		if k6.Selector == half {
			fmt.Fprintf(d.w, "not_return %s/%d\n", netip.AddrFrom16(k6.Address), k6.Prefixlen-32)
		}
	}
	if err := walk.Err(); err != nil {
		return fmt.Errorf("walk map not_return6: %w", err)
	}
	return nil
}

func (d *dump) interfaces(uint32, uint64) error {
	for place := range uint32(interfacePlaces) {
		var v bpf.PlaneInterface
		if err := d.get("interfaces", place, &v); err != nil {
			return err
		}
		if v.Ifindex != 0 {
			fmt.Fprintf(d.w, "interface %d mac=%s mtu=%d transmit=%t xdp_tx=%t partial=%t several=%t generic=%t lower=%d vlan=%d\n", v.Ifindex, net.HardwareAddr(v.Mac[:]), v.Mtu,
				v.Flags&flagTransmit != 0, v.Flags&flagXDPTX != 0, v.Flags&flagPartial != 0, v.Flags&flagSeveral != 0, v.Flags&flagGeneric != 0, v.Lower, v.Vlan)
		}
	}
	return nil
}

var classWords = [...]string{1: "ike", 2: "tcp"}
var stateWords = [...]string{1: "earned_sk", 2: "earned_auth", 3: "confirmed"}

func (d *dump) affinities(_ uint32, seed uint64) error {
	held, err := d.open("affinity_stash")
	if err != nil {
		return err
	}
	for i, family := range affinityFamilies {
		m, err := d.open(affinityMaps[i])
		if err != nil {
			return err
		}
		size := int(m.MaxEntries()) * family.BucketBytes()
		memory, err := unix.Mmap(m.FD(), 0, (size+os.Getpagesize()-1)/os.Getpagesize()*os.Getpagesize(), unix.PROT_READ, unix.MAP_SHARED)
		if err != nil {
			return fmt.Errorf("map %s, %d bytes: %w", affinityMaps[i], size, err)
		}
		t, err := bucket.Read(memory[:size], family, seed, &stash{m: held, family: family})
		if err == nil {
			err = d.records(t)
		}
		unix.Munmap(memory)
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *dump) records(t *bucket.Table) error {
	for r, err := range t.All() {
		if err != nil {
			return err
		}
		fmt.Fprintf(d.w, "affinity %s class=%s slot=%d state=%s tick=%d heard=%t\n", netip.AddrFrom16(r.Client).Unmap(), classWords[r.Class], r.Slot, stateWords[r.State], r.Tick, r.Heard)
	}
	return nil
}

func (d *dump) pending(uint32, uint64) error {
	for _, name := range []string{"pending_proofs", "silences"} {
		m, err := d.open(name)
		if err != nil {
			return err
		}
		for b := range mapBatches[bpf.PlaneClientKey, bpf.PlanePending](m) {
			if b.err != nil {
				return b.err
			}
			for i, k := range b.keys {
				v := b.values[i]
				fmt.Fprintf(d.w, "%s %s class=%d slot=%d saw=%d level=%d opening=%t\n", name, netip.AddrFrom16(k.Client).Unmap(), k.Class, v.Slot, v.Saw, v.Level, v.Opening != 0)
			}
		}
	}
	return nil
}

func (d *dump) counters(uint32, uint64) error {
	for r := range table.ReasonCount {
		var perCPU []bpf.PlaneCount
		if err := d.get("counters", uint32(r), &perCPU); err != nil {
			return err
		}
		var c Count
		for _, v := range perCPU {
			c.add(v)
		}
		if c.Packets > 0 {
			fmt.Fprintf(d.w, "counter %s packets=%d bytes=%d\n", r, c.Packets, c.Bytes)
		}
	}
	for slot := range uint32(slots) {
		var perCPU []bpf.PlaneSlotState
		if err := d.get("by_slot", slot, &perCPU); err != nil {
			return err
		}
		var in, out Count
		for _, v := range perCPU {
			in.add(v.In)
			out.add(v.Out)
		}
		if in.Packets+out.Packets > 0 {
			fmt.Fprintf(d.w, "backend_counter slot=%d in=%d in_bytes=%d out=%d out_bytes=%d\n", slot, in.Packets, in.Bytes, out.Packets, out.Bytes)
		}
	}
	return nil
}
