package model

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/maglev"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Interface is one of the node's interfaces with the program on it.
type Interface struct {
	Index       uint32
	MAC         [6]byte
	Partial     bool // its driver may hand over partial checksums
	Generic     bool // the program is there in generic mode: partial sums keep their mark
	CanTransmit bool // XDP frames may be sent out of it
	// Parent is the index of the interface below a VLAN device; 0: a physical one.
	// Frames of a VLAN device come in and go out on its parent's index, with a tag.
	// What holds for the parent's driver is said here again.
	Parent  uint32
	VLAN    uint16 // ID of the tag, where Parent is not 0
	Service bool   // the tag is one of 802.1ad (0x88a8), else of 802.1Q (0x8100)
	// Master is the index of the bond that the interface is in; 0: in none. Its frames
	// come in on the member's index. VLAN devices are the master's, and frames go out
	// on the master's index.
	Master uint32
}

// top is the index by which VLAN devices and exits know the interface.
func (i *Interface) top() uint32 {
	if i.Master != 0 {
		return i.Master
	}
	return i.Index
}

// HopState says what is known of a next hop.
type HopState uint8

// States of a next hop.
const (
	NoRoute     HopState = iota // the FIB refuses: unreachable, prohibited
	NoNeighbour                 // a route, but no MAC yet
	Resolved
	NotForwarded // the FIB does not forward there: an address of the node itself, or no route at all
)

// Hop is where a rewritten packet goes next.
type Hop struct {
	State     HopState
	Interface uint32 // index of the exit, which may be a VLAN device
	MTU       uint32 // of the route, bytes of IP; 0: no limit
	Direct    bool   // it is the destination itself: no router between
	MAC       [6]byte
	SourceMAC [6]byte
}

// Env is what Tables cannot take from the set: the records and the node's own facts.
// A nil function answers nothing.
type Env struct {
	Entry      func(table.Key) (table.Entry, bool)
	Interfaces []Interface
	ToServer   func(table.Slot) Hop
	ToClient   func(netip.Addr) Hop
	Fragment   func(FragmentKey) Fate // what was remembered
	// Sighted reports whether there was a sighting of this key and level before, long
	// enough ago (one to sixty seconds).
	Sighted func(table.Key, table.Confirmation) bool
	// Elsewhere remembers that a message of an IKE SA goes to a client key, and reports
	// whether the last one, within ten minutes, went to another: then nothing is
	// remembered, so that the first client stays.
	Elsewhere func(sa SA, client [16]byte) bool
	// OverLimit counts a packet of a client key, and reports whether it is above the
	// source limit. The class is always IKE: the limit is for all services together.
	OverLimit func(table.Key) bool
	// Answers counts an ICMP error of our own, and reports whether the rate allows
	// it. Nil: it does.
	Answers func() bool
}

// SA names an IKE SA by the SPIs of its header.
type SA struct{ Initiator, Responder uint64 }

type vlanKey struct {
	parent  uint32
	id      uint16
	service bool
}

type poolKey struct {
	vip   uint8
	class table.Class
}

// Tables is what Decide looks at. It is immutable, as far as Env's functions are.
type Tables struct {
	set        *table.Set
	env        Env
	vips       map[netip.Addr]*table.VIP
	vipByIndex map[uint8]*table.VIP
	bySlot     map[table.Slot]*table.Backend
	byAddr     map[netip.Addr]*table.Backend
	interfaces map[uint32]Interface
	vlans      map[vlanKey]Interface
	pools      map[poolKey][]table.Slot
}

// FromSet builds the tables. It reports every fault of the set at once; the set
// must not change afterwards.
func FromSet(set *table.Set, env Env) (*Tables, error) {
	t := &Tables{
		set: set, env: env,
		vips: map[netip.Addr]*table.VIP{}, vipByIndex: map[uint8]*table.VIP{},
		bySlot: map[table.Slot]*table.Backend{}, byAddr: map[netip.Addr]*table.Backend{},
		interfaces: map[uint32]Interface{}, vlans: map[vlanKey]Interface{}, pools: map[poolKey][]table.Slot{},
	}
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !maglev.ValidSize(set.TableSize) {
		fault("table size %d is not a prime that may be used", set.TableSize)
	}
	for i := range set.VIPs {
		v := &set.VIPs[i]
		if v.Index >= table.MaxVIPs || t.vipByIndex[v.Index] != nil || t.vips[v.Addr] != nil {
			fault("vip %v: index %d is out of range or something is named twice", v.Addr, v.Index)
		}
		if v.Addr.Is6() && (v.ClientBits == 0 || v.ClientBits > 128) {
			fault("vip %v: client bits %d are not 1 to 128", v.Addr, v.ClientBits)
		}
		t.vips[v.Addr], t.vipByIndex[v.Index] = v, v
	}
	for i := range set.Backends {
		b := &set.Backends[i]
		if b.Slot == 0 || b.Slot > table.MaxSlots || t.bySlot[b.Slot] != nil {
			fault("backend %v: slot %d is out of range or taken", b.Addr, b.Slot)
		}
		if t.vipByIndex[b.VIP] == nil {
			fault("backend %v: vip %d does not exist", b.Addr, b.VIP)
		}
		if t.byAddr[b.Addr] != nil || t.vips[b.Addr] != nil {
			fault("backend %v: address is taken", b.Addr)
		}
		t.bySlot[b.Slot], t.byAddr[b.Addr] = b, b
	}
	for _, i := range env.Interfaces {
		t.interfaces[i.Index] = i
		if i.Parent != 0 {
			t.vlans[vlanKey{i.Parent, i.VLAN, i.Service}] = i
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("build tables of set %d: %w", set.Index, err)
	}
	for _, v := range set.VIPs {
		for c := table.Class(1); c <= table.Classes; c++ {
			t.pools[poolKey{v.Index, c}] = maglev.Build(set.HashKey, set.TableSize, Pool(set, v.Index, c))
		}
	}
	return t, nil
}

// Pool lists who is in the Maglev table of a VIP and a class.
func Pool(set *table.Set, vip uint8, class table.Class) []maglev.Backend {
	var pool []maglev.Backend
	for _, b := range set.Backends {
		if b.VIP == vip && b.Stance[class-1] == table.Take && b.Weight > 0 {
			pool = append(pool, maglev.Backend{ID: b.ID, Slot: b.Slot, Weight: b.Weight})
		}
	}
	return pool
}

// Set is what the tables were built from.
func (t *Tables) Set() *table.Set { return t.set }

// maglev is the slot of an unknown client; 0 none.
func (t *Tables) maglev(vip uint8, class table.Class, client netip.Addr) table.Slot {
	return maglev.Pick(t.pools[poolKey{vip, class}], t.set.HashKey, class, client.As16())
}

// record is the client's record if it counts for packets of this VIP: it names a
// backend of the VIP whose entries are not void.
func (t *Tables) record(vip uint8, class table.Class, client netip.Addr) (table.Entry, *table.Backend) {
	if t.env.Entry == nil {
		return table.Entry{}, nil
	}
	e, ok := t.env.Entry(table.Key{Client: client.As16(), Class: class})
	if !ok {
		return table.Entry{}, nil
	}
	b := t.bySlot[e.Slot]
	if b == nil || b.VIP != vip || !b.Stance[class-1].Known() {
		return table.Entry{}, nil
	}
	return e, b
}

// notReturn reports whether packets of a backend to dst are no replies to clients.
func (t *Tables) notReturn(dst netip.Addr) bool {
	if t.byAddr[dst] != nil || t.vips[dst] != nil {
		return true
	}
	for _, p := range t.set.NotReturn {
		if p.Contains(dst) {
			return true
		}
	}
	return false
}

func (t *Tables) toServer(s table.Slot) Hop {
	if t.env.ToServer == nil {
		return Hop{}
	}
	return t.env.ToServer(s)
}

func (t *Tables) toClient(a netip.Addr) Hop {
	if t.env.ToClient == nil {
		return Hop{}
	}
	return t.env.ToClient(a)
}
