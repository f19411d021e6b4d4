package dataplane

import (
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

const esp1 = "eth s1 > outside | ip s1 > client | udp 4500 > 4500 | esp size=100"

// A record that is agreed but not in the kernel's table (the writer lags, or
// the table is full) must not make every packet tell the same again.
func TestStoredButNotWrittenIsQuiet(t *testing.T) {
	p, _ := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	runPlane(t, p)
	leg := p.InterfaceIndex("leg")
	send := func() { run(t, p.coll.Programs["vpnlb"], buildFrame(t, esp1), leg) }
	send()
	e := takeBatch(t, p.Evidence())[0]
	p.Answer(e.Key, e, table.Stored)
	written := allCounts(t, p).Events.PendingWritten
	for range 20 {
		send()
	}
	if now := allCounts(t, p).Events.PendingWritten; now != written {
		t.Errorf("evidence was written %d times more", now-written)
	}
}

// What a server returned before a restart must be there from the first reading
// on: totals that appear later would look like signs of life.
func TestReturnCountersSurviveARestart(t *testing.T) {
	p, dir := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	run(t, p.coll.Programs["vpnlb"], buildFrame(t, esp1), p.InterfaceIndex("leg"))
	before := allCounts(t, p).Returns[1]
	if before.ESP == 0 {
		t.Fatal("nothing was counted")
	}
	p.Close()
	again := newPlane(t, dir, "leg")
	attachPlane(t, again)
	if after := allCounts(t, again).Returns[1]; after != before {
		t.Errorf("before the first set %+v, want %+v", after, before)
	}
	without := farm(t, 101) // a slot that is free may be used again
	without.Backends = without.Backends[1:]
	mustResync(t, again, without, nil)
	if after := allCounts(t, again).Returns[1]; after != before {
		t.Errorf("in a free slot %+v, want %+v", after, before)
	}
}

// Readers (status, metrics) may come while the node closes the plane.
func TestCloseUnderReaders(t *testing.T) {
	p, _ := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), entries(100, 1))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	started := make(chan struct{}, 6)
	for _, read := range []func(){
		func() { p.Counters() }, // an error after Close is right
		func() { p.Status() },
		func() { p.LookupEntry(clientKey(1)) },
		func() { p.InterfaceIndex("leg") },
		func() {
			for range p.Entries() {
			}
		},
		func() { p.Apply(table.Delta{Index: 100, Upsert: entries(1, 1)}) },
	} {
		readers.Go(func() {
			started <- struct{}{}
			for {
				select {
				case <-stop:
					return
				default:
					read()
				}
			}
		})
	}
	for range 6 {
		<-started
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if st := p.Status(); st.Attached {
		t.Error("attached after Close")
	}
	close(stop)
	readers.Wait()
}

// An Attach that fails removes what it made itself, never what forwarded before.
func TestFailedAttachKeepsOldPins(t *testing.T) {
	p, dir := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), nil)
	p.Close()
	if err := os.Remove(p.mapPin("plane_meta")); err != nil { // as a newer schema would find it
		t.Fatal(err)
	}
	before, err := pinsIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := newPlane(t, dir, "leg", "nowhere").Attach(testCluster); err == nil || !strings.Contains(err.Error(), "nowhere") {
		t.Fatalf("missing interface: %v", err)
	}
	after, err := pinsIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name := range before {
		if !after[name] {
			t.Errorf("%s is gone; left: %v", name, slices.Sorted(func(yield func(string) bool) {
				for n := range after {
					if !yield(n) {
						return
					}
				}
			}))
		}
	}
}

// Pins of another cluster are refused, whatever schema they are of; the own ones
// of another schema go when this binary's program is in force.
func TestPinsOfAnotherSchema(t *testing.T) {
	newNamespace(t)
	newVeth(t, "leg", "legp", [6]byte{2, 0, 0, 0, 1, 1})
	dir := newBPFFS(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	meta := bpf.PlaneMeta{Schema: 9, ClusterId: [16]byte{7}}
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 48, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	write := func() {
		b := make([]byte, 48)
		copy(b[24:], meta.ClusterId[:])
		if err := m.Put(uint32(0), b); err != nil {
			t.Fatal(err)
		}
	}
	write()
	if err := m.Pin(dir + "/plane_meta_v9"); err != nil {
		t.Fatal(err)
	}
	if _, err := newPlane(t, dir, "leg").Attach(testCluster); !errors.Is(err, ErrForeign) {
		t.Fatalf("foreign pins of another schema: %v", err)
	}
	meta.ClusterId = testCluster
	write()
	p := newPlane(t, dir, "leg")
	attachPlane(t, p)
	if _, err := os.Stat(dir + "/plane_meta_v9"); err != nil {
		t.Errorf("gone before anything was agreed: %v", err)
	}
	mustResync(t, p, farm(t, 100), nil)
	if _, err := os.Stat(dir + "/plane_meta_v9"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("still there: %v", err)
	}
}
