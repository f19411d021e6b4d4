package dataplane

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

const (
	differentialWorlds  = 1000 // tables, records, next hops, noted fragments
	differentialPackets = 1050 // in each
)

// TestProgramEqualsModel sends random frames through the program and the model.
// A world's memory (notes of fragments) goes on from frame to frame; ticks and
// evidence are taken back after each.
func TestProgramEqualsModel(t *testing.T) {
	b := newBench(t)
	for _, name := range fixture.SetNames() {
		b.worlds(t, rand.New(rand.NewPCG(1, uint64(len(name)))), name, differentialWorlds/len(fixture.SetNames()))
	}
}

// worlds tries so many worlds of one set of tables.
func (b *bench) worlds(t *testing.T, rng *rand.Rand, name string, count int) {
	for world := range count {
		f := fixture.Generate(rng)
		for f.SetName != name {
			f = fixture.Generate(rng)
		}
		if !b.world(t, rng, &f) {
			t.Fatalf("set %s, world %d", name, world)
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
	f.Fragments = nil
	tables, err := f.TablesWith(memory.Fate)
	if err != nil {
		t.Fatal(err)
	}
	b.setSightings(t, f.Seen)
	b.setSAs(t, f.SAs)
	b.setHops(t, f.Set, f.ToServer)
	b.setClients(t, f.Set, f.ToClient, rng.IntN(2) == 0)
	before, wanted := allCounts(t, b.Plane), [table.ReasonCount]uint64{}
	var returns ReturnCount
	for range differentialPackets {
		frame, ifindex := fixture.GenerateFrame(rng, f)
		if len(frame) < 14 || !b.settle(t, f, frame) {
			continue
		}
		b.setLimits(t, f)
		want := model.Decide(frame, ifindex, tables)
		wanted[want.Reason]++
		switch {
		case want.Class != table.IKE || want.Proof == 0:
		case want.Proof == table.Confirmed:
			returns.ESP++
		default:
			returns.SK++
		}
		if diff := b.difference(t, f, frame, ifindex, want); diff != "" {
			t.Errorf("set %s, interface %d, frame %x\nentries %v, to client %+v\nwant %s\n%s", f.SetName, ifindex, frame, f.Entries, f.ToClient, want.Reason, diff)
			return false
		}
		memory.Note(want.Note)
	}
	after := allCounts(t, b.Plane)
	for slot, n := range after.Returns {
		returns.ESP -= n.ESP - before.Returns[slot].ESP
		returns.SK -= n.SK - before.Returns[slot].SK
	}
	if diff := b.diffSAs(t, f.SAs); diff != "" {
		t.Error(diff)
		return false
	}
	if returns != (ReturnCount{}) {
		t.Errorf("signs of life: %+v not counted", returns)
		return false
	}
	for r, n := range wanted {
		if got := after.Reasons[r].Packets - before.Reasons[r].Packets; got != n {
			t.Errorf("counted %d packets as %s, want %d", got, table.Reason(r), n)
			return false
		}
	}
	return true
}

// settle puts the next hop of the frame's destination into the cache. False: the
// kernel has an opinion of its own about that destination, or about a device that
// it does not know.
func (b *bench) settle(t *testing.T, f *fixture.Fixture, frame []byte) bool {
	b.prepare(t, f, frame)
	src, dst := addressesOf(frame)
	if tagged(frame) && !allResolved(f) {
		return false
	}
	if !dst.IsValid() || allResolved(f) {
		return true
	}
	if src.Is6() && narrow(src) {
		return false
	}
	if f.ToClient.State == model.Resolved {
		return true
	}
	if dst.Is6() {
		return !narrow(dst)
	}
	first := dst.As4()[0]
	return first > 0 && first < 224 && first != 127
}

// narrow addresses are never forwarded by the kernel.
func narrow(a netip.Addr) bool {
	return a.IsMulticast() || a.IsLoopback() || a.IsUnspecified() || a.IsLinkLocalUnicast()
}

func tagged(frame []byte) bool {
	kind := binary.BigEndian.Uint16(frame[12:])
	return kind == 0x8100 || kind == 0x88a8
}

// allResolved: the program asks the kernel about no next hop.
func allResolved(f *fixture.Fixture) bool {
	for _, s := range f.Set.Backends {
		if f.ToServer[s.Slot].State != model.Resolved {
			return false
		}
	}
	return f.ToClient.State == model.Resolved
}

// difference is compare without the counters, which are summed by world.
func (b *bench) difference(t *testing.T, f *fixture.Fixture, frame []byte, ifindex uint32, want model.Decision) string {
	diff := b.compareOut(t, frame, ifindex, want)
	c, s := b.ticks(t, f.Entries)
	if c != want.ClientTick || s != want.ServerTick {
		diff += fmt.Sprintf("ticks: client %t, server %t; want %t, %t", c, s, want.ClientTick, want.ServerTick)
	}
	return diff
}
