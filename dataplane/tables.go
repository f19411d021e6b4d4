package dataplane

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/maglev"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Sizes that the C sources fix, see bpf/consts.h.
const (
	slots         = 256
	pools         = table.MaxVIPs * table.Classes
	chunkPlaces   = 32
	chunks        = (MaxTableSize + chunkPlaces - 1) / chunkPlaces
	serverBuckets = 512
	serverWays    = 4
)

// grace is how long the tables that a flip put out of force are left alone: far
// longer than a packet can be on its way through the program.
const grace = 100 * time.Millisecond

// tables writes the doubled maps: always the half out of force, then one word
// puts it in force. Not safe for several goroutines.
type tables struct {
	coll    *ebpf.Collection
	control *controlWords
	flipped time.Time // of the last flip; the start at first, another process may just have flipped
}

// Flags of a VIP and of its backends, as in bpf/consts.h.
const (
	flagPassthrough = 1
	flagDSR         = 2
)

// word reads an IPv4 address as the program loads it.
func word(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// words reads an IPv6 address as the program loads it.
func words(a netip.Addr) bpf.PlaneIn6 {
	b := a.As16()
	return bpf.PlaneIn6{Hi: binary.NativeEndian.Uint64(b[:8]), Lo: binary.NativeEndian.Uint64(b[8:])}
}

// mask is that of the first bits of an IPv6 address, as the program loads it.
func mask(bits uint8) bpf.PlaneIn6 {
	ones := netip.AddrFrom16([16]byte(bytes.Repeat([]byte{0xff}, 16)))
	p, _ := ones.Prefix(int(min(bits, 128)))
	return words(p.Addr())
}

// validateSet reports every fault of a set at once.
func validateSet(s *table.Set) error {
	var faults []error
	fault := func(format string, args ...any) { faults = append(faults, fmt.Errorf(format, args...)) }
	if !maglev.ValidSize(s.TableSize) || s.TableSize > MaxTableSize {
		fault("table size %d: want a prime up to %d", s.TableSize, MaxTableSize)
	}
	if len(s.VIPs) > table.MaxVIPs {
		fault("%d vips: at most %d", len(s.VIPs), table.MaxVIPs)
	}
	if len(s.NotReturn) > table.MaxPrefixes {
		fault("%d prefixes that are no clients': at most %d", len(s.NotReturn), table.MaxPrefixes)
	}
	vips := make(map[uint8]bool)
	addrs := make(map[netip.Addr]bool)
	for _, v := range s.VIPs {
		if v.Index >= table.MaxVIPs || vips[v.Index] || addrs[v.Addr] || !v.Addr.IsValid() {
			fault("vip %s: index %d out of range, or index or address used twice", v.Addr, v.Index)
		}
		if v.Addr.Is6() && (v.ClientBits == 0 || v.ClientBits > 128) {
			fault("vip %s: clients are keyed by 1 to 128 bits, not %d", v.Addr, v.ClientBits)
		}
		vips[v.Index], addrs[v.Addr] = true, true
	}
	used := make(map[table.Slot]bool)
	for _, b := range s.Backends {
		if b.Slot == 0 || b.Slot > table.MaxSlots || used[b.Slot] || addrs[b.Addr] || !b.Addr.IsValid() {
			fault("backend %s: slot %d out of range, or slot or address used twice", b.Addr, b.Slot)
		}
		if !vips[b.VIP] {
			fault("backend %s: vip %d does not exist", b.Addr, b.VIP)
		}
		used[b.Slot], addrs[b.Addr] = true, true
	}
	if err := errors.Join(faults...); err != nil {
		return fmt.Errorf("check set %d: %w", s.Index, err)
	}
	return nil
}

// write puts the set in force.
func (t *tables) write(s *table.Set) error {
	if wait := time.Until(t.flipped.Add(grace)); wait > 0 {
		<-time.After(wait)
	}
	half := t.control.selector() ^ 1
	if err := t.writeServers(s, half); err != nil {
		return err
	}
	if err := t.writePools(s, half); err != nil {
		return err
	}
	if err := t.writeNotReturn(s, half); err != nil {
		return err
	}
	t.control.selectTables(half)
	t.flipped = time.Now()
	return nil
}

// servers is what the maps hold of a set beside the Maglev tables and prefixes.
type servers struct {
	rules     bpf.PlaneRules // without the serial
	backends  []bpf.PlaneBackend
	backends6 []bpf.PlaneBackend6
	servers   []bpf.PlaneServerBucket // backends by address
	servers6  []bpf.PlaneServer6Bucket
}

// renderServers is deterministic.
func renderServers(s *table.Set) (r servers, err error) {
	var vips map[uint8]table.VIP
	r.rules, vips = renderRules(s)
	r.backends, r.backends6 = renderBackends(s.Backends, vips)
	var multiplier uint64
	if r.servers, multiplier, err = spread(func(m uint64) ([]bpf.PlaneServerBucket, bool) {
		return fillServers(r.backends, uint32(m))
	}); err != nil {
		return r, err
	}
	r.rules.ServerMultiplier = uint32(multiplier)
	r.servers6, r.rules.Server6Multiplier, err = spread(func(m uint64) ([]bpf.PlaneServer6Bucket, bool) {
		return fillServers6(r.backends6, m)
	})
	return r, err
}

// writeServers writes rules, backends and the tables of backends by address.
func (t *tables) writeServers(s *table.Set, half uint32) error {
	var current bpf.PlaneRules
	if err := t.coll.Maps["plane_rules"].Lookup(half^1, &current); err != nil {
		return fmt.Errorf("read rules in force: %w", err)
	}
	r, err := renderServers(s)
	if err != nil {
		return err
	}
	r.rules.Serial = current.Serial + 1
	if err := errors.Join(
		putAll(t.coll.Maps["servers"], half*serverBuckets, r.servers),
		putAll(t.coll.Maps["servers6"], half*serverBuckets, r.servers6),
		putAll(t.coll.Maps["backends"], half*slots, r.backends),
		putAll(t.coll.Maps["backends6"], half*slots, r.backends6),
	); err != nil {
		return err
	}
	if err := t.coll.Maps["plane_rules"].Put(half, &r.rules); err != nil {
		return fmt.Errorf("write rules: %w", err)
	}
	return nil
}

// renderRules gives a generation's constants, and its VIPs by index.
func renderRules(s *table.Set) (bpf.PlaneRules, map[uint8]table.VIP) {
	rules := bpf.PlaneRules{
		Key1: binary.LittleEndian.Uint64(s.HashKey[8:]), Generation: s.Generation,
		TableSize: s.TableSize, SourceLimit: s.SourceLimit,
	}
	for c := range rules.Seed {
		rules.Seed[c] = maglev.Seed(s.HashKey, table.Class(c+1))
		rules.ClassKey[c] = maglev.ClassKey(s.HashKey, table.Class(c+1))
	}
	vips := make(map[uint8]table.VIP)
	for _, v := range s.VIPs {
		vips[v.Index] = v
		var flags uint8
		if v.Passthrough {
			flags = flagPassthrough
		}
		if v.Addr.Is4() {
			rules.Vip[rules.Vips] = bpf.PlaneVip{Address: word(v.Addr), Index: v.Index, Flags: flags}
			rules.Vips++
		} else {
			rules.Vip6[rules.Vips6] = bpf.PlaneVip6{Address: words(v.Addr), Mask: mask(v.ClientBits), Index: v.Index, Flags: flags}
			rules.Vips6++
		}
	}
	return rules, vips
}

// renderBackends gives the arrays by slot, of both families.
func renderBackends(list []table.Backend, vips map[uint8]table.VIP) ([]bpf.PlaneBackend, []bpf.PlaneBackend6) {
	v4, v6 := make([]bpf.PlaneBackend, slots), make([]bpf.PlaneBackend6, slots)
	for _, b := range list {
		vip, ok := vips[b.VIP]
		if !ok || vip.Addr.Is4() != b.Addr.Is4() {
			continue
		}
		var flags uint8
		if vip.Passthrough {
			flags |= flagPassthrough
		}
		if b.DSR {
			flags |= flagDSR
		}
		stance := [table.Classes]uint8{uint8(b.Stance[0]), uint8(b.Stance[1])}
		in, out := checksumDelta(vip.Addr, b.Addr), checksumDelta(b.Addr, vip.Addr)
		if b.Addr.Is4() {
			v4[b.Slot] = bpf.PlaneBackend{Address: word(b.Addr), VipAddress: word(vip.Addr),
				InboundDelta: in, ReturnDelta: out, Vip: b.VIP, Stance: stance, Flags: flags}
		} else {
			v6[b.Slot] = bpf.PlaneBackend6{Address: words(b.Addr), VipAddress: words(vip.Addr), Mask: mask(vip.ClientBits),
				InboundDelta: in, ReturnDelta: out, Vip: b.VIP, Stance: stance, Flags: flags}
		}
	}
	return v4, v6
}

// checksumDelta is ~old + new of an address, folded (RFC 1624, equation 3).
func checksumDelta(from, to netip.Addr) uint32 {
	var sum uint32
	old, now := from.AsSlice(), to.AsSlice()
	for i := 0; i < len(old); i += 2 {
		sum += uint32(^binary.NativeEndian.Uint16(old[i:])) + uint32(binary.NativeEndian.Uint16(now[i:]))
	}
	sum = sum&0xffff + sum>>16
	return sum&0xffff + sum>>16
}

// spread looks for a multiplier for which no bucket overflows. 255 addresses in
// 512 buckets of four: nearly every one will do.
func spread[B any](fill func(uint64) ([]B, bool)) ([]B, uint64, error) {
	multiplier := uint64(0x9e3779b97f4a7c15)
	for range 1000 {
		if buckets, ok := fill(multiplier); ok {
			return buckets, multiplier, nil
		}
		multiplier = multiplier*0x85ebca6b + 2 // stays odd
	}
	return nil, 0, errors.New("spread backend addresses: no multiplier found")
}

func fillServers(backends []bpf.PlaneBackend, multiplier uint32) ([]bpf.PlaneServerBucket, bool) {
	buckets := make([]bpf.PlaneServerBucket, serverBuckets)
	for slot, b := range backends {
		if b.Address == 0 {
			continue
		}
		bucket := &buckets[b.Address*multiplier>>23]
		way := 0
		for way < serverWays && bucket.Way[way].Slot != 0 {
			way++
		}
		if way == serverWays {
			return nil, false
		}
		bucket.Way[way].Address, bucket.Way[way].Slot = b.Address, uint32(slot)
	}
	return buckets, true
}

func fillServers6(backends []bpf.PlaneBackend6, multiplier uint64) ([]bpf.PlaneServer6Bucket, bool) {
	buckets := make([]bpf.PlaneServer6Bucket, serverBuckets)
	for slot, b := range backends {
		if b.Address.Hi|b.Address.Lo == 0 {
			continue
		}
		bucket := &buckets[(b.Address.Hi*0x9e3779b97f4a7c15^b.Address.Lo)*multiplier>>55]
		way := 0
		for way < serverWays && bucket.Way[way].Slot != 0 {
			way++
		}
		if way == serverWays {
			return nil, false
		}
		bucket.Way[way].Address, bucket.Way[way].Slot = b.Address, uint64(slot)
	}
	return buckets, true
}

// writePools writes the Maglev tables. A pool without a VIP is never read and
// keeps what it holds.
func (t *tables) writePools(s *table.Set, half uint32) error {
	for _, v := range s.VIPs {
		for class := table.Class(1); class <= table.Classes; class++ {
			if class == table.TCP && !v.Passthrough {
				continue
			}
			places := maglev.Build(s.HashKey, s.TableSize, model.Pool(s, v.Index, class))
			packed := make([]bpf.PlaneMaglevChunk, (int(s.TableSize)+chunkPlaces-1)/chunkPlaces)
			for i, slot := range places {
				packed[i/chunkPlaces].Slot[i%chunkPlaces] = uint16(slot)
			}
			first := (half*pools + uint32(v.Index)*table.Classes + uint32(class) - 1) * chunks
			if err := putAll(t.coll.Maps["maglev"], first, packed); err != nil {
				return err
			}
		}
	}
	return nil
}

// putAll writes consecutive elements of an array.
func putAll[V any](m *ebpf.Map, first uint32, values []V) error {
	keys := make([]uint32, len(values))
	for i := range keys {
		keys[i] = first + uint32(i)
	}
	if len(keys) == 0 {
		return nil
	}
	n, err := m.BatchUpdate(keys, values, nil)
	if err == nil && n != len(keys) {
		err = fmt.Errorf("stopped after %d of %d", n, len(keys))
	}
	if err != nil {
		return fmt.Errorf("write map %s: %w", m.String(), err)
	}
	return nil
}
