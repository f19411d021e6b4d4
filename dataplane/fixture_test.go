package dataplane

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// bench is a plane on veths that stand for the fixtures' interfaces, and what
// its program remembers between packets brought to a fixture's state.
type bench struct {
	*Plane
	real    map[uint32]uint32 // fixture's interface index → kernel's
	source  uint32            // VIP of the sending backend, as a word
	pending uint32
	routes  []*netlink.Route
}

func newBench(t testing.TB) *bench {
	newNamespace(t)
	b := &bench{real: make(map[uint32]uint32)}
	var names []string
	for _, i := range fixture.Interfaces() {
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

func (b *bench) setInterface(t testing.TB, i model.Interface) {
	index := b.real[i.Index]
	v := bpf.PlaneInterface{Ifindex: index, Mtu: 1500, Mac: i.MAC, Flags: b.flags(i)}
	if err := b.coll.Maps["interfaces"].Put(index%interfacePlaces, &v); err != nil {
		t.Fatal(err)
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
	return flags
}

// hop gives the cached form of a resolved next hop.
func (b *bench) hop(h model.Hop) bpf.PlaneNextHop {
	v := bpf.PlaneNextHop{Expires: 1 << 62, Serial: b.control.words().NextHopSerial, Ifindex: b.real[h.Interface],
		Mtu: uint16(h.MTU), Dmac: h.MAC, Smac: h.SourceMAC}
	if h.MTU == 0 || h.MTU > 65535 {
		v.Mtu = 65535
	}
	for _, i := range fixture.Interfaces() {
		if i.Index == h.Interface {
			v.Flags = b.flags(i)
		}
	}
	return v
}

// setHops makes the program see the fixture's next hops: resolved ones in its
// caches, the others in the kernel's own tables.
func (b *bench) setHops(t testing.TB, set *table.Set, toServer map[table.Slot]model.Hop, toClient model.Hop, client netip.Addr) {
	for _, r := range b.routes {
		if err := netlink.RouteDel(r); err != nil {
			t.Fatal(err)
		}
	}
	b.routes = nil
	b.control.forgetNextHops()
	for _, s := range set.Backends {
		hop := toServer[s.Slot]
		if hop.State == model.Resolved {
			v := b.hop(hop)
			v.Destination = word(s.Addr)
			putNextHop(t, b.coll.Maps["next_hop_by_slot"], uint32(s.Slot), v)
		} else {
			b.setRoute(t, s.Addr, hop)
		}
	}
	if !client.Is4() {
		return
	}
	if toClient.State != model.Resolved {
		b.setRoute(t, client, toClient)
		return
	}
	b.setClientHop(t, toClient, client)
}

func (b *bench) setClientHop(t testing.TB, toClient model.Hop, client netip.Addr) {
	var rules bpf.PlaneRules
	if err := b.coll.Maps["plane_rules"].Lookup(b.control.selector(), &rules); err != nil {
		t.Fatal(err)
	}
	v := b.hop(toClient)
	v.Destination = word(client)
	// Not the rules' serial: the trie must be asked.
	v.Rules = rules.Serial - 1
	v.Source = b.source
	putNextHop(t, b.coll.Maps["next_hop_by_client"], word(client)*0x9e3779b1>>20, v)
}

// setRoute makes the kernel know a way but no neighbour; to the unspecified
// address: to all.
func (b *bench) setRoute(t testing.TB, to netip.Addr, hop model.Hop) {
	if hop.State != model.NoNeighbour {
		return
	}
	exit := b.real[hop.Interface]
	if exit == 0 {
		exit = b.real[fixture.Inside]
	}
	r := &netlink.Route{LinkIndex: int(exit), Scope: netlink.SCOPE_LINK, MTU: int(hop.MTU), MTULock: hop.MTU != 0,
		Dst: netlink.NewIPNet(to.AsSlice())}
	if to.IsUnspecified() {
		r.Dst.Mask = net.CIDRMask(0, 32)
	}
	if err := netlink.RouteAdd(r); err != nil {
		t.Fatal(err)
	}
	b.routes = append(b.routes, r)
}

func (b *bench) setFragments(t testing.TB, notes []model.FragmentNote) {
	var keys []bpf.PlaneFragmentKey
	var k bpf.PlaneFragmentKey
	var v uint32
	walk := b.coll.Maps["fragments"].Iterate()
	for walk.Next(&k, &v) {
		keys = append(keys, k)
	}
	for _, k := range keys {
		_ = b.coll.Maps["fragments"].Delete(&k)
	}
	for _, n := range notes {
		key := fragmentKey(n.Key)
		if err := b.coll.Maps["fragments"].Put(&key, uint32(n.Fate)); err != nil {
			t.Fatal(err)
		}
	}
}

func fragmentKey(k model.FragmentKey) bpf.PlaneFragmentKey {
	return bpf.PlaneFragmentKey{Source: word(k.Source), Destination: word(k.Destination), Id: swap(k.ID), Protocol: k.Protocol}
}

func swap(v uint16) uint16 {
	var b [2]byte
	binary.BigEndian.PutUint16(b[:], v)
	return binary.NativeEndian.Uint16(b[:])
}

// note reads what was remembered of a first fragment.
func (b *bench) note(k model.FragmentKey) model.Fate {
	key, v := fragmentKey(k), uint32(0)
	if b.coll.Maps["fragments"].Lookup(&key, &v) != nil {
		return model.FateUnknown
	}
	return model.Fate(v)
}

// takeEvidence reads and clears pending.
func (b *bench) takeEvidence(t testing.TB) *table.Evidence {
	if s := b.control.pendingSerial(); s == b.pending {
		return nil
	} else {
		b.pending = s
	}
	var out *table.Evidence
	for batch := range mapBatches[bpf.PlanePendingKey, bpf.PlanePending](b.coll.Maps["pending_proofs"]) {
		if batch.err != nil {
			t.Fatal(batch.err)
		}
		for i, k := range batch.keys {
			e := evidenceOf(k, batch.values[i])
			out = &e
			if err := b.coll.Maps["pending_proofs"].Delete(&k); err != nil {
				t.Fatal(err)
			}
		}
	}
	return out
}

// addresses of an IPv4 frame; invalid where it is none.
func addressesOf(frame []byte) (src, dst netip.Addr) {
	if len(frame) < 34 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return
	}
	return netip.AddrFrom4([4]byte(frame[26:30])), netip.AddrFrom4([4]byte(frame[30:34]))
}

// compare runs a frame and says where the program differs from want.
func (b *bench) compare(t testing.TB, frame []byte, ifindex uint32, want model.Decision) string {
	before := b.reasonCount(t, want.Reason)
	diff := b.compareOut(t, frame, ifindex, want)
	if b.reasonCount(t, want.Reason) != before+1 {
		diff += fmt.Sprintf("not counted as %s\n", want.Reason)
	}
	return diff
}

// compareOut is compare without the counter.
func (b *bench) compareOut(t testing.TB, frame []byte, ifindex uint32, want model.Decision) string {
	action, out := run(t, b.coll.Programs["vpnlb"], frame, b.real[ifindex])
	got := want // what the program does not tell is taken as right
	got.Out = append([]byte(nil), out...)
	switch action {
	case 1:
		got.Verdict, got.Out = model.Drop, nil
	case 2:
		got.Verdict = model.Pass
	case 3, 4:
		got.Verdict = model.Forward
	default:
		return fmt.Sprintf("action %d", action)
	}
	got.Evidence = b.takeEvidence(t)
	if want.Note != nil {
		got.Note = &model.FragmentNote{Key: want.Note.Key, Fate: b.note(want.Note.Key)}
	}
	return fixture.Diff(got, want)
}

func (b *bench) reasonCount(t testing.TB, r table.Reason) uint64 {
	var perCPU []bpf.PlaneCount
	if err := b.coll.Maps["counters"].Lookup(uint32(r), &perCPU); err != nil {
		t.Fatal(err)
	}
	var n uint64
	for _, c := range perCPU {
		n += c.Packets
	}
	return n
}

// ticks reads a client's record.
func (b *bench) ticks(t testing.TB, client netip.Addr) (fromClient, fromServer bool) {
	v, _, err := b.affinities.lookup(table.Key{Client: client.As16(), Class: table.IKE})
	if err != nil {
		t.Fatal(err)
	}
	return v.ClientTick != 0, v.ServerTick != 0
}

func (b *bench) resync(t testing.TB, set *table.Set, entries []table.Entry) {
	t.Helper()
	if err := b.Resync(set, entrySeq()); err != nil { // without entries: ticks start anew
		t.Fatal(err)
	}
	if err := b.Resync(set, entrySeq(entries...)); err != nil {
		t.Fatal(err)
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

// check runs one fixture.
func (b *bench) check(t *testing.T, f *fixture.Fixture) {
	b.resync(t, f.Set, f.Entries)
	src, dst := addressesOf(f.Frame)
	b.source = vipOf(f.Set, src)
	b.setHops(t, f.Set, f.ToServer, f.ToClient, dst)
	b.setFragments(t, f.Fragments)
	if diff := b.compare(t, f.Frame, f.Interface, f.Want); diff != "" {
		t.Errorf("%s\n%s", f.Description, diff)
	}
	client := src
	if b.source != 0 {
		client = dst
	}
	if !client.Is4() {
		return
	}
	c, s := b.ticks(t, client)
	if c != f.Want.ClientTick || s != f.Want.ServerTick {
		t.Errorf("ticks: client %t, server %t; want %t, %t", c, s, f.Want.ClientTick, f.Want.ServerTick)
	}
}

// vipOf gives the VIP of a backend's address, as a word; 0 if it is none's.
func vipOf(set *table.Set, addr netip.Addr) uint32 {
	for _, s := range set.Backends {
		if s.Addr != addr {
			continue
		}
		for _, v := range set.VIPs {
			if v.Index == s.VIP {
				return word(v.Addr)
			}
		}
	}
	return 0
}
