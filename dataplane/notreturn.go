package dataplane

import (
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// writeNotReturn makes the half of both tries hold exactly the set's prefixes, its
// VIPs and its backends, and says in which places of destinations there is one.
func (t *tables) writeNotReturn(s *table.Set, half uint32) error {
	want, want6 := make(map[bpf.PlaneNotReturnKey]bool), make(map[bpf.PlaneNotReturn6Key]bool)
	var places [2]placeBits
	add := func(p netip.Prefix) {
		p = p.Masked()
		if p.Addr().Is4() {
			want[bpf.PlaneNotReturnKey{Prefixlen: 32 + uint32(p.Bits()), Selector: half, Address: word(p.Addr())}] = true
			places[0].add(p)
		} else {
			want6[bpf.PlaneNotReturn6Key{Prefixlen: 32 + uint32(p.Bits()), Selector: half, Address: p.Addr().As16()}] = true
			places[1].add(p)
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
	err := mendTrie(t.coll.Maps["not_return"], want, func(k bpf.PlaneNotReturnKey) bool { return k.Selector == half })
	if err == nil {
		err = mendTrie(t.coll.Maps["not_return6"], want6, func(k bpf.PlaneNotReturn6Key) bool { return k.Selector == half })
	}
	if err != nil {
		return err
	}
	for family := range places {
		if err := t.coll.Maps["not_return_places"].Put(half*2+uint32(family), &places[family].PlanePlaces); err != nil {
			return fmt.Errorf("write places of prefixes that are no clients': %w", err)
		}
	}
	return nil
}

// mendTrie makes what of a trie is ours hold exactly want, which it uses up.
func mendTrie[K comparable](m *ebpf.Map, want map[K]bool, ours func(K) bool) error {
	var stale []K
	var key K
	var one uint32
	walk := m.Iterate()
	for walk.Next(&key, &one) {
		if !ours(key) {
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
