package dataplane

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/maglev"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

func farm(t testing.TB, index uint64) *table.Set {
	t.Helper()
	set, err := fixture.Set("farm")
	if err != nil {
		t.Fatal(err)
	}
	set.Index, set.Generation = index, index
	return set
}

func clientKey(n uint32) table.Key {
	return table.Key{Client: netip.AddrFrom4([4]byte{198, 18 + byte(n>>16&1), byte(n >> 8), byte(n)}).As16(), Class: table.IKE}
}

func entries(n int, slot table.Slot) []table.Entry {
	out := make([]table.Entry, n)
	for i := range out {
		out[i] = table.Entry{Key: clientKey(uint32(i)), Slot: slot, State: table.Confirmed}
	}
	return out
}

// newSmallPlane is attached to one veth in a namespace of its own.
func newSmallPlane(t testing.TB) (*Plane, string) {
	newNamespace(t)
	newVeth(t, "leg", "legp", [6]byte{2, 0, 0, 0, 1, 1})
	dir := newBPFFS(t)
	p := newPlane(t, dir, "leg")
	attachPlane(t, p)
	return p, dir
}

func mustResync(t testing.TB, p *Plane, set *table.Set, e []table.Entry) {
	t.Helper()
	if err := p.Resync(set, slices.Values(e)); err != nil {
		t.Fatal(err)
	}
}

// collect reads all records from the kernel.
func collect(t testing.TB, p *Plane) map[table.Key]table.Entry {
	t.Helper()
	out := make(map[table.Key]table.Entry)
	for e, err := range p.Entries() {
		if err != nil {
			t.Fatal(err)
		}
		out[e.Key] = e
	}
	return out
}

func TestResyncAndApplyHoldTheSet(t *testing.T) {
	p, _ := newSmallPlane(t)
	if err := p.Apply(table.Delta{Index: 1}); !errors.Is(err, ErrNotSynced) {
		t.Fatalf("apply before resync: %v", err)
	}
	all := entries(5000, 1)
	mustResync(t, p, farm(t, 100), all)
	if got := len(collect(t, p)); got != 5000 {
		t.Fatalf("%d records, want 5000", got)
	}
	// By difference: 1000 go, 1000 change, 500 are new.
	next := append(entries(4500, 1)[1000:], table.Entry{Key: clientKey(9000), Slot: 2, State: table.EarnedSK})
	for i := range 1000 {
		next[i].Slot = 3
	}
	mustResync(t, p, farm(t, 101), next)
	got := collect(t, p)
	for _, e := range next {
		if got[e.Key] != e {
			t.Fatalf("record %v, want %v", got[e.Key], e)
		}
	}
	if len(got) != len(next) {
		t.Fatalf("%d records, want %d", len(got), len(next))
	}
	if err := p.Apply(table.Delta{Index: 102, Upsert: []table.Entry{{Key: clientKey(9000), Slot: 1, State: table.Confirmed}},
		Delete: []table.Key{clientKey(1500), clientKey(60000)}}); err != nil {
		t.Fatal(err)
	}
	if e, ok := p.LookupEntry(clientKey(9000)); !ok || e.Slot != 1 || e.State != table.Confirmed {
		t.Errorf("changed record: %v, %t", e, ok)
	}
	if _, ok := p.LookupEntry(clientKey(1500)); ok {
		t.Error("deleted record is there")
	}
	if s := p.Status(); s.Index != 102 || s.Generation != 101 || s.Entries != len(next)-1 {
		t.Errorf("status %+v", s)
	}
}

func TestNothingAgreedChangesNothing(t *testing.T) {
	p, _ := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), entries(10, 1))
	for _, set := range []*table.Set{nil, {}} {
		if err := p.Resync(set, entrySeq()); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Resync(farm(t, 99), entrySeq()); !errors.Is(err, ErrBehind) {
		t.Fatalf("older set: %v", err)
	}
	foreign := farm(t, 200)
	foreign.ClusterID[5] = 9
	if err := p.Resync(foreign, entrySeq()); !errors.Is(err, ErrForeign) {
		t.Fatalf("foreign set: %v", err)
	}
	if err := p.Apply(table.Delta{Index: 99, Delete: []table.Key{clientKey(1)}}); err != nil {
		t.Fatal(err)
	}
	if got := len(collect(t, p)); got != 10 {
		t.Errorf("%d records, want 10", got)
	}
}

func TestFullTableKeepsTheRest(t *testing.T) {
	newNamespace(t)
	newVeth(t, "leg", "legp", [6]byte{2, 0, 0, 0, 1, 1})
	p, err := New(Config{PinDir: newBPFFS(t), Interfaces: []InterfaceConfig{{"leg"}}, MaxClients: 1}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	attachPlane(t, p)
	const clients = 4000 // more than two buckets and the stash hold
	if err := p.Resync(farm(t, 100), slices.Values(entries(clients, 1))); !errors.Is(err, ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	full, held := allCounts(t, p).Events.AffinityFull, p.Status().Entries
	if full == 0 || int(full)+held != clients || len(collect(t, p)) != held || p.Status().Index != 100 {
		t.Errorf("%d did not fit, %d did, of %d", full, held, clients)
	}
}

// An unknown client gets the same server from every plane with the same set,
// and the one that package maglev says.
func TestUnknownClientsAgree(t *testing.T) {
	newNamespace(t)
	newVeth(t, "leg1", "leg1p", [6]byte{2, 0, 0, 0, 1, 1})
	newVeth(t, "leg2", "leg2p", [6]byte{2, 0, 0, 0, 1, 1})
	set := farm(t, 100)
	set.TableSize = maglev.DefaultSize
	places := maglev.Build(set.HashKey, set.TableSize, model.Pool(set, 0, table.IKE))
	var planes []*Plane
	for _, name := range []string{"leg1", "leg2"} {
		p := newPlane(t, newBPFFS(t), name)
		attachPlane(t, p)
		mustResync(t, p, farm(t, 99), nil) // so that the halves differ between the planes
		if name == "leg2" {
			mustResync(t, p, farm(t, 98+1), nil)
			shuffled := *set
			shuffled.Backends = slices.Clone(set.Backends)
			slices.Reverse(shuffled.Backends)
			mustResync(t, p, &shuffled, nil)
		} else {
			mustResync(t, p, set, nil)
		}
		for slot := range uint32(slots) {
			putSlotHop(t, p, slot, bpf.PlaneNextHop{Expires: 1 << 62, Mtu: 1500, Ifindex: 1,
				Serial: p.control.words().NextHopSerial, Flags: flagTransmit, Destination: bpf.PlaneIn6{Hi: uint64(serverWord(set, slot))}})
		}
		planes = append(planes, p)
	}
	frame, err := fixture.Build("eth router > outside | ip client > vip | udp 500 > 500 | ike sa_init | fill 100")
	if err != nil {
		t.Fatal(err)
	}
	counts := map[table.Slot]int{}
	for n := range uint32(5000) {
		k := clientKey(n * 13)
		copy(frame[26:30], k.Client[12:])
		want := maglev.Pick(places, set.HashKey, table.IKE, k.Client)
		counts[want]++
		for i, p := range planes {
			_, out := run(t, p.coll.Programs["vpnlb"], frame, p.InterfaceIndex(fmt.Sprintf("leg%d", i+1)))
			if got := nativeWord(out[30:34]); got != serverWord(set, uint32(want)) {
				t.Fatalf("plane %d sends client %d to %x, want slot %d", i, n, got, want)
			}
		}
	}
	if counts[1] < 2000 || counts[2] < 2000 {
		t.Errorf("uneven: %v", counts)
	}
}

func serverWord(set *table.Set, slot uint32) uint32 {
	for _, b := range set.Backends {
		if uint32(b.Slot) == slot {
			return word(b.Addr)
		}
	}
	return 0
}

func TestRestartTakesOver(t *testing.T) {
	p, dir := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), entries(100, 1))
	old := p.Status().Interfaces[0].ProgramID
	p.Close()

	other := newPlane(t, dir, "leg")
	if _, err := other.Attach([16]byte{7}); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), "vpnlb plane detach") {
		t.Fatalf("foreign cluster: %v", err)
	}
	q := newPlane(t, dir, "leg")
	pinned := attachPlane(t, q)
	if !pinned.Found || pinned.Index != 100 || pinned.Entries != 100 || !slices.Equal(pinned.TakenOver, []string{"leg"}) {
		t.Errorf("found %+v", pinned)
	}
	if id := q.Status().Interfaces[0].ProgramID; id != old {
		t.Errorf("attach swapped the program %d for %d", old, id)
	}
	if err := q.Resync(&table.Set{}, entrySeq()); err != nil || len(collect(t, q)) != 100 {
		t.Errorf("records are gone before anything was agreed: %v", err)
	}
	mustResync(t, q, farm(t, 101), entries(50, 1))
	if id := q.Status().Interfaces[0].ProgramID; id == old || id == 0 {
		t.Errorf("program %d is still the old one", id)
	}
	if got := len(collect(t, q)); got != 50 {
		t.Errorf("%d records, want 50", got)
	}
}

func TestUnconfiguredInterfaceIsLeft(t *testing.T) {
	p, dir := newSmallPlane(t)
	newVeth(t, "other", "otherp", [6]byte{2, 0, 0, 0, 1, 9})
	mustResync(t, p, farm(t, 100), nil)
	p.Close()
	q := newPlane(t, dir, "other")
	attachPlane(t, q)
	if _, err := os.Stat(dir + "/link_leg"); err != nil {
		t.Fatalf("attach took the program off: %v", err)
	}
	mustResync(t, q, farm(t, 101), nil)
	if _, err := os.Stat(dir + "/link_leg"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("program is still on an interface that is not configured: %v", err)
	}
}

func TestDetachRemovesAll(t *testing.T) {
	p, dir := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	p.Close()
	if err := Detach(p.cfg); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("pin directory is still there: %v", err)
	}
	// A link's end reaches the device a moment after its last reference.
	eventually(t, "program gone", func() bool {
		dev, err := netlink.LinkByName("leg")
		return err == nil && (dev.Attrs().Xdp == nil || !dev.Attrs().Xdp.Attached)
	})
	if err := Detach(p.cfg); err != nil {
		t.Errorf("second detach: %v", err)
	}
}

func TestAttachFailsCleanly(t *testing.T) {
	newNamespace(t)
	newVeth(t, "leg", "legp", [6]byte{2, 0, 0, 0, 1, 1})
	dir := newBPFFS(t)
	if _, err := newPlane(t, dir, "leg", "nowhere").Attach(testCluster); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Fatalf("missing interface: %v", err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("leftovers in the pin directory: %v", err)
	}
	if _, err := newPlane(t, t.TempDir()+"/x", "leg").Attach(testCluster); err == nil || !strings.Contains(err.Error(), "bpffs") {
		t.Errorf("no bpffs: %v", err)
	}
	eventually(t, "attach after failures", func() bool {
		p := newPlane(t, dir, "leg")
		defer p.Close()
		_, err := p.Attach(testCluster)
		return err == nil
	})
}

// takeBatch waits for a delivery, with a bound.
func takeBatch[T any](t testing.TB, c <-chan []T) []T {
	t.Helper()
	select {
	case b := <-c:
		return b
	case <-time.After(10 * time.Second):
		t.Fatal("nothing was delivered")
		return nil
	}
}

func runPlane(t testing.TB, p *Plane) {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); done.Wait() })
}

func buildFrame(t testing.TB, text string) []byte {
	t.Helper()
	frame, err := fixture.Build(text)
	if err != nil {
		t.Fatal(err)
	}
	return frame
}

func TestEvidenceIsToldUntilAnswered(t *testing.T) {
	p, _ := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	runPlane(t, p)
	leg := p.InterfaceIndex("leg")
	send := func(text string) { run(t, p.coll.Programs["vpnlb"], buildFrame(t, text), leg) }
	auth := "eth s1 > outside | ip s1 > client | udp 4500 > 4500 | marker | ike auth response next=46 id=1 | fill 80"
	esp := "eth s1 > outside | ip s1 > client | udp 4500 > 4500 | esp size=100"

	send(auth)
	e := takeBatch(t, p.Evidence())[0]
	if e.Slot != 1 || e.Saw != 0 || e.Level != table.EarnedSK || !e.Opening {
		t.Fatalf("evidence %+v", e)
	}
	// It grew before the answer came: told again, and the opening is not lost.
	send(esp)
	grown := takeBatch(t, p.Evidence())[0]
	if grown.Level != table.Confirmed || !grown.Opening {
		t.Fatalf("grown evidence %+v", grown)
	}
	p.Answer(e.Key, e, table.Stored)
	if again := takeBatch(t, p.Evidence())[0]; again != grown {
		t.Fatalf("answering the weaker one gave %+v", again)
	}
	// Refused: quiet, though the client goes on proving the same.
	p.Answer(e.Key, grown, table.Refused)
	written := allCounts(t, p).Events.PendingWritten
	send(esp)
	if c := allCounts(t, p).Events; c.PendingWritten != written {
		t.Error("a refused proof was written again")
	}
	// Another server's opening is news.
	send(strings.Replace(strings.Replace(auth, "s1", "s2", 1), "ip s1", "ip s2", 1))
	if other := takeBatch(t, p.Evidence())[0]; other.Slot != 2 {
		t.Fatalf("other server's evidence %+v", other)
	} else {
		p.Answer(other.Key, other, table.Stored)
	}
	// Stored: the record is there, nothing is left to learn.
	if err := p.Apply(table.Delta{Index: 101, Upsert: []table.Entry{{Key: e.Key, Slot: 1, State: table.Confirmed}}}); err != nil {
		t.Fatal(err)
	}
	written = allCounts(t, p).Events.PendingWritten
	send(esp)
	if c := allCounts(t, p); c.Events.PendingWritten != written || c.Returns[1].ESP < 3 || c.Returns[1].SK < 1 {
		t.Errorf("events %+v, returns %+v", c.Events, c.Returns[1])
	}
}

func TestActivityIsSwept(t *testing.T) {
	p, _ := newSmallPlane(t)
	p.cfg.SweepInterval = 50 * time.Millisecond
	client := netip.MustParseAddr("203.0.113.7")
	key := table.Key{Client: client.As16(), Class: table.IKE}
	mustResync(t, p, farm(t, 100), append(entries(9000, 1), table.Entry{Key: key, Slot: 1, State: table.Confirmed}))
	runPlane(t, p)
	leg := p.InterfaceIndex("leg")
	frame := buildFrame(t, "eth router > outside | ip client > vip | udp 4500 > 4500 | keepalive")
	run(t, p.coll.Programs["vpnlb"], frame, leg)
	a := takeBatch(t, p.Activity())
	if len(a) != 1 || a[0].Key != key || a[0].Slot != 1 || a[0].Heard || a[0].Age > 2 {
		t.Fatalf("activity %+v", a)
	}
	run(t, p.coll.Programs["vpnlb"], buildFrame(t, "eth s1 > outside | ip s1 > client | udp 4500 > 4500 | esp size=100"), leg)
	eventually(t, "server heard", func() bool {
		select {
		case a = <-p.Activity():
			return a[0].Heard
		default:
			return false
		}
	})
	// A change of server forgets that the old one was heard.
	if err := p.Apply(table.Delta{Index: 101, Upsert: []table.Entry{{Key: key, Slot: 2, State: table.Confirmed}}}); err != nil {
		t.Fatal(err)
	}
	if v, _, err := p.affinities.lookup(key); err != nil || v.Heard || v.Tick == 0 {
		t.Errorf("after the change: %+v, %v", v, err)
	}
}

// Packets see the old server or the new one, never another, while a writer
// moves records and flips tables under them.
func TestWriterUnderTraffic(t *testing.T) {
	p, _ := newSmallPlane(t)
	set := farm(t, 100)
	const clients = 64
	mustResync(t, p, set, entries(clients, 1))
	for slot := range uint32(slots) {
		putSlotHop(t, p, slot, bpf.PlaneNextHop{Expires: 1 << 62, Mtu: 1500, Ifindex: 1,
			Serial: p.control.words().NextHopSerial, Flags: flagTransmit, Destination: bpf.PlaneIn6{Hi: uint64(serverWord(set, slot))}})
	}
	stop := make(chan struct{})
	var done sync.WaitGroup
	done.Go(func() {
		for i := uint64(1); ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			d := table.Delta{Index: 100 + i, Upsert: entries(clients, table.Slot(1+i%2))}
			if i%50 == 0 {
				d.Set = farm(t, 100+i)
				d.Set.TableSize = []uint32{251, 241}[i/50%2]
			}
			if err := p.Apply(d); err != nil {
				t.Error(err)
				return
			}
		}
	})
	leg := p.InterfaceIndex("leg")
	frame := buildFrame(t, "eth router > outside | ip client > vip | udp 4500 > 4500 | esp size=100")
	deadline := time.Now().Add(1500 * time.Millisecond)
	for n := 0; time.Now().Before(deadline); n++ {
		k := clientKey(rand.Uint32N(clients))
		copy(frame[26:30], k.Client[12:])
		action, out := run(t, p.coll.Programs["vpnlb"], frame, leg)
		if got := nativeWord(out[30:34]); action != 4 || got != serverWord(set, 1) && got != serverWord(set, 2) {
			t.Fatalf("packet %d: action %d, server %x", n, action, got)
		}
	}
	close(stop)
	done.Wait()
	c := allCounts(t, p)
	if c.Reasons[table.ForwardMaglev].Packets != 0 || c.Reasons[table.ForwardAffinity].Packets == 0 {
		t.Errorf("%d packets did not see a record", c.Reasons[table.ForwardMaglev].Packets)
	}
	t.Logf("%d packets, index %d", c.Reasons[table.ForwardAffinity].Packets, p.Status().Index)
}
