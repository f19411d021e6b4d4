package dataplane

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

const (
	differentialWorlds  = 200 // tables, records, next hops, noted fragments
	differentialPackets = 520 // in each
)

// TestProgramEqualsModel sends random frames through the program and the model.
// A world's memory (notes of fragments) goes on from frame to frame; ticks and
// evidence are taken back after each.
func TestProgramEqualsModel(t *testing.T) {
	b := newBench(t)
	for _, name := range fixture.SetNames() {
		rng := rand.New(rand.NewPCG(1, uint64(len(name))))
		for world := range differentialWorlds / len(fixture.SetNames()) {
			f := fixture.Generate(rng)
			for f.SetName != name {
				f = fixture.Generate(rng)
			}
			if !b.world(t, rng, &f) {
				t.Fatalf("set %s, world %d", name, world)
			}
		}
	}
}

// world runs frames against the tables of one generated fixture.
func (b *bench) world(t *testing.T, rng *rand.Rand, f *fixture.Fixture) bool {
	b.resync(t, f.Set, f.Entries)
	memory := model.NewFragments(1 << 20)
	b.setFragments(t, f.Fragments)
	for _, n := range f.Fragments {
		memory.Note(&n)
	}
	tables, err := model.FromSet(f.Set, model.Env{
		Entry: func(k table.Key) (table.Entry, bool) {
			for _, e := range f.Entries {
				if e.Key == k {
					return e, true
				}
			}
			return table.Entry{}, false
		},
		Interfaces: f.Interfaces,
		ToServer:   func(s table.Slot) model.Hop { return f.ToServer[s] },
		ToClient:   func(netip.Addr) model.Hop { return f.ToClient },
		Fragment:   memory.Fate,
	})
	if err != nil {
		t.Fatal(err)
	}
	b.worldRoutes(t, f)
	before, wanted := allCounts(t, b.Plane), [table.ReasonCount]uint64{}
	for range differentialPackets {
		g := fixture.Generate(rng)
		if !b.settle(t, f, g.Frame) {
			continue
		}
		want := model.Decide(g.Frame, g.Interface, tables)
		wanted[want.Reason]++
		if diff := b.difference(t, g.Frame, g.Interface, want); diff != "" {
			t.Errorf("set %s, interface %d, frame %x\nentries %v, to client %+v\nwant %s\n%s", f.SetName, g.Interface, g.Frame, f.Entries, f.ToClient, want.Reason, diff)
			return false
		}
		memory.Note(want.Note)
	}
	after := allCounts(t, b.Plane)
	for r, n := range wanted {
		if got := after.Reasons[r].Packets - before.Reasons[r].Packets; got != n {
			t.Errorf("counted %d packets as %s, want %d", got, table.Reason(r), n)
			return false
		}
	}
	return true
}

// worldRoutes brings the kernel to the world's next hops that are not resolved.
func (b *bench) worldRoutes(t *testing.T, f *fixture.Fixture) {
	b.setHops(t, f.Set, f.ToServer, model.Hop{}, netip.Addr{})
	if f.ToClient.State == model.NoNeighbour {
		b.setRoute(t, netip.IPv4Unspecified(), f.ToClient)
	}
	for _, s := range f.Set.Backends {
		if f.ToServer[s.Slot].State == model.NoRoute {
			r := &netlink.Route{Type: unix.RTN_UNREACHABLE, Dst: netlink.NewIPNet(s.Addr.AsSlice())}
			if err := netlink.RouteAdd(r); err != nil {
				t.Fatal(err)
			}
			b.routes = append(b.routes, r)
		}
	}
}

// settle puts the next hop of the frame's destination into the cache. False: the
// kernel has an opinion of its own about that destination.
func (b *bench) settle(t *testing.T, f *fixture.Fixture, frame []byte) bool {
	src, dst := addressesOf(frame)
	b.source = vipOf(f.Set, src)
	if b.source == 0 {
		return true
	}
	if f.ToClient.State == model.Resolved {
		b.setClientHop(t, f.ToClient, dst)
		return true
	}
	first := dst.As4()[0]
	return first > 0 && first < 224 && first != 127
}

// difference is compare without the counters, which are summed by world.
func (b *bench) difference(t *testing.T, frame []byte, ifindex uint32, want model.Decision) string {
	diff := b.compareOut(t, frame, ifindex, want)
	src, dst := addressesOf(frame)
	client := src
	if b.source != 0 {
		client = dst
	}
	if !client.Is4() {
		return diff
	}
	c, s := b.ticks(t, client)
	if c != want.ClientTick || s != want.ServerTick {
		diff += fmt.Sprintf("ticks: client %t, server %t; want %t, %t", c, s, want.ClientTick, want.ServerTick)
	}
	if c || s {
		b.clearClient(t, client)
	}
	return diff
}

func (b *bench) clearClient(t *testing.T, client netip.Addr) {
	key, _ := key4(table.Key{Client: client.As16(), Class: table.IKE})
	var v bpf.PlaneAffinity
	if err := b.affinities.m.Lookup(&key, &v); err != nil {
		t.Fatal(err)
	}
	v.ClientTick, v.ServerTick = 0, 0
	if err := b.affinities.m.Update(&key, &v, ebpf.UpdateExist); err != nil {
		t.Fatal(err)
	}
}
