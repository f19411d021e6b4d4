package dataplane

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// bench is a plane on veths that stand for the fixtures' interfaces, and what
// its program remembers between packets brought to a fixture's state. VLAN devices
// are known to the plane only: this kernel may have none.
type bench struct {
	*Plane
	real     map[uint32]uint32 // fixture's interface index → kernel's
	pending  uint32
	routes   []*netlink.Route
	withheld bool // answers
	seen     []model.Sighting
}

// vlanIndexes are above all real ones.
const vlanIndexes = 900

func newBench(t testing.TB) *bench {
	newNamespace(t)
	b := &bench{real: make(map[uint32]uint32)}
	var names []string
	for _, i := range fixture.Interfaces() {
		if i.Parent != 0 {
			b.real[i.Index] = vlanIndexes + i.Index
			continue
		}
		name := fmt.Sprintf("leg%d", i.Index)
		b.real[i.Index] = uint32(newVeth(t, name, name+"p", i.MAC).Attrs().Index)
		names = append(names, name)
	}
	b.Plane = newPlane(t, newBPFFS(t), names...)
	attachPlane(t, b.Plane)
	for _, i := range fixture.Interfaces() {
		b.setInterface(t, i)
	}
	return b
}

// lower gives the kernel's index of the interface where its frames leave.
func (b *bench) lower(i model.Interface) uint32 {
	switch {
	case i.Parent != 0:
		return b.real[i.Parent]
	case i.Master != 0:
		return b.real[i.Master]
	}
	return b.real[i.Index]
}

// tag is the tag of a VLAN device as the maps have it.
func tag(i model.Interface) uint16 {
	if i.Service {
		return i.VLAN | vlanService
	}
	return i.VLAN
}

func (b *bench) setInterface(t testing.TB, i model.Interface) {
	index := b.real[i.Index]
	v := bpf.PlaneInterface{Ifindex: index, Mtu: 1500, Mac: i.MAC, Flags: b.flags(i), Lower: b.lower(i), Vlan: tag(i), Master: index}
	if i.Master != 0 {
		v.Master = b.real[i.Master]
	}
	if err := b.coll.Maps["interfaces"].Put(index%interfacePlaces, &v); err != nil {
		t.Fatal(err)
	}
	if i.Parent != 0 {
		key := bpf.PlaneVlanKey{Lower: b.lower(i), Vlan: uint32(tag(i))}
		if err := b.coll.Maps["vlans"].Put(&key, index); err != nil {
			t.Fatal(err)
		}
	}
}

func (b *bench) flags(i model.Interface) uint8 {
	var flags uint8
	if i.Partial {
		flags |= flagPartial
	}
	if i.CanTransmit {
		flags |= flagTransmit
	}
	if i.Generic {
		flags |= flagGeneric
	}
	return flags
}

// hop gives the cached form of a resolved next hop.
func (b *bench) hop(h model.Hop, to netip.Addr, vip uint8) bpf.PlaneNextHop {
	v := bpf.PlaneNextHop{Expires: 1 << 62, Serial: b.control.words().NextHopSerial, Mtu: uint16(h.MTU),
		Dmac: h.MAC, Smac: h.SourceMAC, Vip: vip, Destination: destination(to)}
	if h.MTU == 0 || h.MTU > 65535 {
		v.Mtu = 65535
	}
	if h.Direct {
		v.Flags |= flagDirect
	}
	for _, i := range fixture.Interfaces() {
		if i.Index == h.Interface {
			v.Flags |= b.flags(i)
			v.Ifindex, v.Vlan = b.lower(i), tag(i)
		}
	}
	return v
}

func destination(a netip.Addr) bpf.PlaneIn6 {
	if a.Is4() {
		return bpf.PlaneIn6{Hi: uint64(word(a))}
	}
	return words(a)
}

func putSlotHop(t testing.TB, p *Plane, slot uint32, hop bpf.PlaneNextHop) {
	t.Helper()
	putPerCPU(t, p.coll.Maps["by_slot"], slot, bpf.PlaneSlotState{Hop: hop})
}

// setHops makes the program see the fixture's next hops of servers: resolved ones
// in its cache, the others in the kernel's own tables.
func (b *bench) setHops(t testing.TB, set *table.Set, toServer map[table.Slot]model.Hop) {
	for _, r := range b.routes {
		if err := netlink.RouteDel(r); err != nil {
			t.Fatal(err)
		}
	}
	b.routes = nil
	b.control.forgetNextHops()
	for _, s := range set.Backends {
		hop := toServer[s.Slot]
		switch hop.State {
		case model.Resolved:
			putSlotHop(t, b.Plane, uint32(s.Slot), b.hop(hop, s.Addr, s.VIP))
		case model.NoNeighbour:
			b.setRoute(t, s.Addr, hop, s.DSR && !hop.Direct)
		case model.NoRoute, model.NotForwarded:
			r := &netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: netlink.NewIPNet(s.Addr.AsSlice())}
			if err := netlink.RouteAdd(r); err != nil {
				t.Fatal(err)
			}
			b.routes = append(b.routes, r)
		}
	}
}

// setClients makes the program see the next hop of all clients. spread: each has
// a place of his own, as where the routing table is not simple.
func (b *bench) setClients(t testing.TB, set *table.Set, hop model.Hop, spread bool) {
	var places placeBits
	if spread {
		places.setAll()
	}
	for family := range uint32(2) {
		if err := b.coll.Maps["routed_places"].Put(family, &places.PlanePlaces); err != nil {
			t.Fatal(err)
		}
	}
	if hop.State != model.Resolved {
		b.refuseClients(t, hop)
		b.setRoute(t, netip.IPv4Unspecified(), hop, false)
		b.setRoute(t, netip.IPv6Unspecified(), hop, false)
		return
	}
	for _, v := range set.VIPs {
		for i := range uint32(16) {
			putPerCPU(t, b.coll.Maps["next_hop_by_vip"], uint32(v.Index)*16+i, b.hop(hop, netip.IPv4Unspecified(), v.Index))
		}
	}
}

// refuseClients: a route that says no is not the same as none, which is what
// [model.NotForwarded] needs.
func (b *bench) refuseClients(t testing.TB, hop model.Hop) {
	if hop.State != model.NoRoute {
		return
	}
	for _, to := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
		r := &netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: &net.IPNet{IP: to.AsSlice(), Mask: net.CIDRMask(0, to.BitLen())}}
		if err := netlink.RouteAdd(r); err != nil {
			t.Fatal(err)
		}
		b.routes = append(b.routes, r)
	}
}

// setClient fills the place of one client, for a packet of a backend.
func (b *bench) setClient(t testing.TB, set *table.Set, hop model.Hop, client netip.Addr, vip uint8) {
	if hop.State != model.Resolved {
		return
	}
	var rules bpf.PlaneRules
	if err := b.coll.Maps["plane_rules"].Lookup(b.control.selector(), &rules); err != nil {
		t.Fatal(err)
	}
	v := b.hop(hop, client, vip)
	v.Rules = rules.Serial - 1 // the trie must be asked
	putPerCPU(t, b.coll.Maps["next_hop_by_client"], clientPlace(client)>>20, v)
}

// clientPlace is client_place of bpf/outbound.h.
func clientPlace(a netip.Addr) uint32 {
	if a.Is4() {
		return word(a) * 0x9e3779b1
	}
	w := words(a)
	return uint32((w.Hi*0x9e3779b97f4a7c15 ^ w.Lo) * 0xff51afd7ed558ccd >> 32)
}

// setRoute makes the kernel know a way but no neighbour; to the unspecified
// address: to all.
func (b *bench) setRoute(t testing.TB, to netip.Addr, hop model.Hop, router bool) {
	if hop.State != model.NoNeighbour {
		return
	}
	exit := b.real[hop.Interface]
	if exit == 0 || exit > vlanIndexes {
		exit = b.real[fixture.Inside]
	}
	r := &netlink.Route{LinkIndex: int(exit), Scope: netlink.SCOPE_LINK, MTU: int(hop.MTU), MTULock: hop.MTU != 0,
		Dst: netlink.NewIPNet(to.AsSlice())}
	if to.Is6() {
		r.Scope = netlink.SCOPE_UNIVERSE
		r.MTULock = false
	}
	if router {
		gateway := netip.MustParseAddr("198.51.100.250")
		if to.Is6() {
			gateway = netip.MustParseAddr("2001:db8:ff::250")
		}
		r.Gw, r.Flags, r.Scope = gateway.AsSlice(), unix.RTNH_F_ONLINK, netlink.SCOPE_UNIVERSE
	}
	if to.IsUnspecified() {
		r.Dst.Mask = net.CIDRMask(0, to.BitLen())
	}
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatal(err)
	}
	b.routes = append(b.routes, r)
}

// The kernel sends nothing by itself over the bench's interfaces: what the program counts
// is the test's. A router reports its multicast groups as soon as an interface is up.
func TestBenchIsSilent(t *testing.T) {
	newBench(t)
	for _, i := range fixture.Interfaces() {
		if i.Parent != 0 {
			continue
		}
		l, err := netlink.LinkByName(fmt.Sprintf("leg%d", i.Index))
		if err != nil {
			t.Fatal(err)
		}
		if n := l.Attrs().Statistics.RxPackets; n != 0 {
			t.Errorf("%s got %d packets from the kernel", l.Attrs().Name, n)
		}
	}
}

func TestFixtures(t *testing.T) {
	all, err := fixture.All()
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t)
	for _, f := range all {
		t.Run(f.Name, func(t *testing.T) {
			if len(f.Frame) < 14 {
				t.Skip("the kernel's test run takes no shorter frames")
			}
			if err := b.ns.do(func() error { b.check(t, &f); return nil }); err != nil {
				t.Fatal(err)
			}
		})
	}
	if len(all) == 0 {
		t.Fatal("no fixtures")
	}
}

// check runs one fixture, with its clients' next hops shared and not.
func (b *bench) check(t *testing.T, f *fixture.Fixture) {
	if tagged(f.Frame) && !allResolved(f) {
		return // the kernel cannot be asked about a device that it does not have: the model alone says this
	}
	for _, spread := range []bool{false, true} {
		b.resync(t, f.Set, f.Entries)
		b.setHops(t, f.Set, f.ToServer)
		b.setClients(t, f.Set, f.ToClient, spread)
		b.prepare(t, f, f.Frame)
		b.setFragments(t, f.Fragments)
		b.setSightings(t, f.Seen)
		b.setSAs(t, f.SAs)
		b.setLimits(t, f)
		if diff := b.compare(t, f.Frame, f.Interface, f.Want); diff != "" {
			t.Errorf("spread %t: %s\n%s", spread, f.Description, diff)
		}
		c, s := b.ticks(t, f.Entries)
		if c != f.Want.ClientTick || s != f.Want.ServerTick {
			t.Errorf("ticks: client %t, server %t; want %t, %t", c, s, f.Want.ClientTick, f.Want.ServerTick)
		}
	}
}

// setSightings makes the program remember them, as of some seconds ago.
func (b *bench) setSightings(t testing.TB, seen []model.Sighting) {
	clearMap[bpf.PlaneClientKey, uint32](t, b.coll.Maps["sightings"])
	b.seen = seen
	now, err := b.clock.now()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range seen {
		key := keyOf(s.Key)
		key.Level = uint8(s.Level)
		if err := b.coll.Maps["sightings"].Put(&key, now-4*b.clock.hz); err != nil {
			t.Fatal(err)
		}
	}
}

// setLimits uses up what a fixture says is used up, for the next second.
func (b *bench) setLimits(t testing.TB, f *fixture.Fixture) {
	if f.Set.SourceLimit == 0 && !f.NoAnswers {
		if b.withheld {
			b.setAnswers(t, bpf.PlaneAllowance{})
			b.withheld = false
		}
		return
	}
	b.withheld = f.NoAnswers
	now, err := b.clock.whole()
	if err != nil {
		t.Fatal(err)
	}
	used := bpf.PlaneAllowance{Since: now, Used: 1 << 40}
	clearMap[bpf.PlaneClientKey, bpf.PlaneAllowance](t, b.coll.Maps["sources"])
	for _, k := range f.Over {
		key := bpf.PlaneClientKey{Client: k.Client, Class: uint8(table.IKE)}
		if err := b.coll.Maps["sources"].Put(&key, &used); err != nil {
			t.Fatal(err)
		}
	}
	if f.NoAnswers {
		b.setAnswers(t, used)
	} else {
		b.setAnswers(t, bpf.PlaneAllowance{})
	}
}

func (b *bench) setAnswers(t testing.TB, a bpf.PlaneAllowance) {
	for kind := range uint32(4) {
		putPerCPU(t, b.coll.Maps["answers"], kind, a)
	}
}

// sighted reads a sighting, and forgets one of just now.
func (b *bench) sighted(s *model.Sighting) bool {
	key := keyOf(s.Key)
	key.Level = uint8(s.Level)
	if slices.Contains(b.seen, *s) {
		var at uint32
		return b.coll.Maps["sightings"].Lookup(&key, &at) == nil
	}
	return b.coll.Maps["sightings"].Delete(&key) == nil
}

// prepare fills the place of the client that a frame goes to, whatever VIP it is
// for: a backend's, or that of the backend that an ICMP error quotes.
func (b *bench) prepare(t testing.TB, f *fixture.Fixture, frame []byte) {
	now, err := b.clock.now()
	if err != nil {
		t.Fatal(err)
	}
	b.control.live(now)
	src, dst := addressesOf(frame)
	if !dst.IsValid() {
		return
	}
	for _, s := range f.Set.Backends {
		if s.Addr == src {
			b.setClient(t, f.Set, f.ToClient, dst, s.VIP)
			return
		}
	}
	for _, s := range f.Set.Backends {
		if s.Addr.Is4() == dst.Is4() && bytes.LastIndex(frame, s.Addr.AsSlice()) >= 34+s.Addr.BitLen()/8 {
			b.setClient(t, f.Set, f.ToClient, dst, s.VIP)
		}
	}
}
