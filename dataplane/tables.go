package dataplane

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/maglev"
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

// word reads an IPv4 address as the program loads it.
func word(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
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

// writeServers writes rules, backends and the table of backends by address.
func (t *tables) writeServers(s *table.Set, half uint32) error {
	var current bpf.PlaneRules
	if err := t.coll.Maps["plane_rules"].Lookup(half^1, &current); err != nil {
		return fmt.Errorf("read rules in force: %w", err)
	}
	rules := bpf.PlaneRules{
		Key1: binary.LittleEndian.Uint64(s.HashKey[8:]), Generation: s.Generation,
		Serial: current.Serial + 1, TableSize: s.TableSize,
	}
	for c := range rules.Seed {
		rules.Seed[c] = maglev.Seed(s.HashKey, table.Class(c+1))
	}
	vips := make(map[uint8]netip.Addr)
	for _, v := range s.VIPs {
		if !v.Addr.Is4() {
			continue
		}
		rules.Vip[rules.Vips] = bpf.PlaneVip{Address: word(v.Addr), Index: v.Index}
		rules.Vips++
		vips[v.Index] = v.Addr
	}
	backends := make([]bpf.PlaneBackend, slots)
	for _, b := range s.Backends {
		vip, ok := vips[b.VIP]
		if !ok || !b.Addr.Is4() {
			continue
		}
		e := &backends[b.Slot]
		e.Address, e.VipAddress, e.Vip = word(b.Addr), word(vip), b.VIP
		e.InboundDelta = checksumDelta(e.VipAddress, e.Address)
		e.ReturnDelta = checksumDelta(e.Address, e.VipAddress)
		for c, stance := range b.Stance {
			e.Stance[c] = uint8(stance)
		}
	}
	buckets, multiplier, err := serverTable(backends)
	if err != nil {
		return err
	}
	rules.ServerMultiplier = multiplier
	if err := putAll(t.coll.Maps["backends"], half*slots, backends); err != nil {
		return err
	}
	if err := putAll(t.coll.Maps["servers"], half*serverBuckets, buckets); err != nil {
		return err
	}
	if err := t.coll.Maps["plane_rules"].Put(half, &rules); err != nil {
		return fmt.Errorf("write rules: %w", err)
	}
	return nil
}

// checksumDelta is ~old + new of a 32-bit address, folded (RFC 1624, equation 3).
func checksumDelta(from, to uint32) uint32 {
	sum := uint32(^uint16(from)) + uint32(^uint16(from>>16)) + uint32(uint16(to)) + to>>16
	sum = sum&0xffff + sum>>16
	return sum&0xffff + sum>>16
}

// serverTable spreads the backends' addresses over buckets, with a multiplier
// for which no bucket overflows. 255 addresses in 512 buckets of four: nearly
// every multiplier will do.
func serverTable(backends []bpf.PlaneBackend) ([]bpf.PlaneServerBucket, uint32, error) {
	multiplier := uint32(0x9e3779b1)
	for range 1000 {
		buckets := make([]bpf.PlaneServerBucket, serverBuckets)
		if fillServers(buckets, backends, multiplier) {
			return buckets, multiplier, nil
		}
		multiplier = multiplier*0x85ebca6b + 2 // stays odd
	}
	return nil, 0, errors.New("spread backend addresses: no multiplier found")
}

func fillServers(buckets []bpf.PlaneServerBucket, backends []bpf.PlaneBackend, multiplier uint32) bool {
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
			return false
		}
		bucket.Way[way].Address, bucket.Way[way].Slot = b.Address, uint32(slot)
	}
	return true
}

// pool lists who is in the Maglev table of a VIP and a class.
func pool(s *table.Set, vip uint8, class table.Class) []maglev.Backend {
	var in []maglev.Backend
	for _, b := range s.Backends {
		if b.VIP == vip && b.Addr.Is4() && b.Stance[class-1] == table.Take && b.Weight > 0 {
			in = append(in, maglev.Backend{ID: b.ID, Slot: b.Slot, Weight: b.Weight})
		}
	}
	return in
}

// writePools writes the Maglev tables. A pool without a VIP is never read and
// keeps what it holds.
func (t *tables) writePools(s *table.Set, half uint32) error {
	for _, v := range s.VIPs {
		if !v.Addr.Is4() {
			continue
		}
		places := maglev.Build(s.HashKey, s.TableSize, pool(s, v.Index, table.IKE))
		packed := make([]bpf.PlaneMaglevChunk, (len(places)+chunkPlaces-1)/chunkPlaces)
		for i, slot := range places {
			packed[i/chunkPlaces].Slot[i%chunkPlaces] = uint16(slot)
		}
		first := (half*pools + uint32(v.Index)*table.Classes + uint32(table.IKE) - 1) * chunks
		if err := putAll(t.coll.Maps["maglev"], first, packed); err != nil {
			return err
		}
	}
	return nil
}

// writeNotReturn makes the trie's half hold exactly the set's prefixes, its VIPs
// and its backends.
func (t *tables) writeNotReturn(s *table.Set, half uint32) error {
	m := t.coll.Maps["not_return"]
	want := make(map[bpf.PlaneNotReturnKey]bool)
	add := func(p netip.Prefix) {
		if p.Addr().Is4() {
			p = p.Masked()
			want[bpf.PlaneNotReturnKey{Prefixlen: 32 + uint32(p.Bits()), Selector: half, Address: word(p.Addr())}] = true
		}
	}
	for _, p := range s.NotReturn {
		add(p)
	}
	for _, v := range s.VIPs {
		add(netip.PrefixFrom(v.Addr, v.Addr.BitLen()))
	}
	for _, b := range s.Backends {
		add(netip.PrefixFrom(b.Addr, b.Addr.BitLen()))
	}
	var stale []bpf.PlaneNotReturnKey
	var key bpf.PlaneNotReturnKey
	var one uint32
	walk := m.Iterate()
	for walk.Next(&key, &one) {
		if key.Selector != half {
			continue
		}
		if want[key] {
			delete(want, key)
		} else {
			stale = append(stale, key)
		}
	}
	if err := walk.Err(); err != nil {
		return fmt.Errorf("read prefixes that are no clients': %w", err)
	}
	for _, k := range stale {
		if err := m.Delete(&k); err != nil {
			return fmt.Errorf("delete prefix that is no client's: %w", err)
		}
	}
	for k := range want {
		if err := m.Put(&k, uint32(1)); err != nil {
			return fmt.Errorf("write prefix that is no client's: %w", err)
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
