package dataplane

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// newCheckedPlane holds a set of both families.
func newCheckedPlane(t *testing.T) *Plane {
	t.Helper()
	p, _ := newSmallPlane(t)
	set, err := fixture.Set("farm6")
	if err != nil {
		t.Fatal(err)
	}
	set.ClusterID = testCluster
	mustResync(t, p, set, nil)
	return p
}

func TestSelfCheckPassesWithoutATrace(t *testing.T) {
	p := newCheckedPlane(t)
	before := allCounts(t, p)
	var c checker
	for range 3 {
		if err := p.selfCheck(&c); err != nil {
			t.Fatal(err)
		}
	}
	if after := allCounts(t, p); after != before {
		t.Errorf("counters changed from %+v to %+v", before, after)
	}
	if len(collect(t, p)) != 0 {
		t.Error("the synthetic client has a record")
	}
}

func TestSelfCheckMendsTables(t *testing.T) {
	p := newCheckedPlane(t)
	var b bpf.PlaneBackend6
	half := p.control.selector()
	slot := p.set.Load().Backends[0].Slot
	for _, b := range p.set.Load().Backends {
		if b.Addr.Is6() {
			slot = b.Slot
		}
	}
	if err := p.coll.Maps["backends6"].Lookup(half*slots+uint32(slot), &b); err != nil || b.Vip > 15 {
		t.Fatal(err)
	}
	b.Stance[0] = 9
	if err := p.coll.Maps["backends6"].Put(half*slots+uint32(slot), &b); err != nil {
		t.Fatal(err)
	}
	var c checker
	if err := p.selfCheck(&c); err != nil {
		t.Fatal(err)
	}
	if n := allCounts(t, p).Events.TablesMended; n != 1 {
		t.Errorf("mended %d times", n)
	}
}

// Tables that nobody compares are written again when a packet comes out wrong; once
// only where that does not help.
func TestSelfCheckWritesTablesAgain(t *testing.T) {
	p := newCheckedPlane(t)
	var c checker
	if err := p.selfCheck(&c); err != nil {
		t.Fatal(err)
	}
	mended := func() uint64 { return allCounts(t, p).Events.TablesMended }
	spoil := func() {
		half := p.control.selector()
		empty := make([]bpf.PlaneMaglevChunk, pools*chunks)
		if err := putAll(p.coll.Maps["maglev"], half*pools*chunks, empty); err != nil {
			t.Fatal(err)
		}
	}
	for n := range uint64(2) {
		spoil()
		if err := p.selfCheck(&c); err != nil || mended() != n+1 {
			t.Errorf("an empty Maglev table: %v, mended %d times", err, mended())
		}
	}
	noServers := make([]bpf.PlaneServer6Bucket, serverBuckets)
	if err := putAll(p.coll.Maps["servers6"], p.control.selector()*serverBuckets, noServers); err != nil {
		t.Fatal(err)
	}
	if err := p.selfCheck(&c); err != nil || mended() != 3 {
		t.Errorf("no servers by address: %v, mended %d times", err, mended())
	}
	for vip := range c.slots { // what no writing mends: nobody is wanted
		c.slots[vip] = 0
	}
	for range 3 {
		if err := p.selfCheck(&c); err == nil {
			t.Error("a server was accepted where none is wanted")
		}
	}
	if mended() != 4 {
		t.Errorf("mended %d times, want one more", mended())
	}
	// A program that is not this binary's is noticed before.
	if err := p.attachments[0].link.Update(p.coll.Programs["vpnlb_check"]); err != nil {
		t.Fatal(err)
	}
	if err := p.selfCheck(&c); err == nil || !strings.Contains(err.Error(), "runs program") {
		t.Errorf("another program: %v", err)
	}
}

func TestJudgeCheck(t *testing.T) {
	p := newCheckedPlane(t)
	set := p.set.Load()
	var c checker
	for _, v := range set.VIPs {
		slot := c.wanted(set)[v.Index]
		if slot == 0 {
			continue
		}
		i := slices.IndexFunc(set.Backends, func(b table.Backend) bool { return b.Slot == slot })
		good := checkFrame(&entrance{mac: [6]byte{2}}, checkClient(v), set.Backends[i].Addr, false)
		if err := judgeCheck(set, v, way{slot, table.ForwardMaglev}, table.ForwardMaglev, good); err != nil {
			t.Error(err)
		}
		for name, out := range map[string][]byte{
			"checksum": append(good[:len(good)-1:len(good)-1], good[len(good)-1]^1),
			"address":  checkFrame(&entrance{mac: [6]byte{2}}, checkClient(v), v.Addr, false),
			"short":    good[:30],
		} {
			if err := judgeCheck(set, v, way{slot, table.ForwardMaglev}, table.ForwardMaglev, out); err == nil {
				t.Errorf("%s: nothing found", name)
			}
		}
		if err := judgeCheck(set, v, way{slot, table.ForwardMaglev}, table.PassOther, good); err == nil {
			t.Error("a wrong reason was accepted")
		}
		if err := judgeCheck(set, v, way{0, table.DropNoBackend}, table.DropNoBackend, nil); err != nil {
			t.Error(err)
		}
	}
}

func TestTraceFollowsOneClient(t *testing.T) {
	p, _ := newSmallPlane(t)
	mustResync(t, p, farm(t, 100), entries(3, 1))
	leg := p.InterfaceIndex("leg")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	got := make(chan Traced, 8)
	ended := make(chan error, 1)
	client := netip.MustParsePrefix("203.0.113.7/32")
	go func() {
		ended <- p.Trace(ctx, client, 2, func(e Traced) error { got <- e; return nil })
	}()
	eventually(t, "tracing", func() bool { return p.control.words().Tracing == 1 })
	if err := p.Trace(ctx, client, 1, nil); !errors.Is(err, ErrTracing) {
		t.Errorf("a second trace: %v", err)
	}
	for _, frame := range []string{
		"eth router > outside | ip client2 > vip | udp 500 > 500 | ike sa_init",
		"eth router > outside | ip client > vip | udp 500 > 500 | ike sa_init",
		"eth s1 > outside | ip s1 > client2 | udp 500 > 500 | ike sa_init response",
		"eth s1 > outside | ip s1 > client | udp 500 > 500 | ike sa_init response",
	} {
		run(t, p.coll.Programs["vpnlb"], buildFrame(t, frame), leg)
	}
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	in, out := <-got, <-got
	if in.Reason.String()[:4] == "none" || in.Interface != leg || out.Slot != 1 || len(in.Head) == 0 {
		t.Errorf("traced %+v, %+v", in, out)
	}
	if p.control.words().Tracing != 0 {
		t.Error("the program still traces")
	}
}

func TestDumpNeedsNoDaemon(t *testing.T) {
	p, dir := newSmallPlane(t)
	client6 := table.Entry{Key: table.Key{Client: netip.MustParseAddr("2001:db8:1:2::").As16(), Class: table.TCP}, Slot: 2, State: table.EarnedAuth}
	mustResync(t, p, farm(t, 100), append(entries(3, 1), client6))
	p.Close()
	var out bytes.Buffer
	if err := Dump(Config{PinDir: dir}, &out); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{fmt.Sprintf("meta schema=%d ", schema), "index=100", "vip 0 192.0.2.100 ", "backend 1 198.51.100.11 vip=0 ike=take", "maglev vip=0 class=1 slot=1 places=",
		"not_return 198.51.100.1/32", "interface ", "affinity 2001:db8:1:2:: class=tcp slot=2 state=earned_auth"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("not in the dump: %s\n%s", want, out.String())
		}
	}
	if n := strings.Count(out.String(), "\naffinity "); n != 4 {
		t.Errorf("%d records in the dump", n)
	}
	if err := Dump(Config{PinDir: t.TempDir()}, &out); err == nil || !strings.Contains(err.Error(), "is the plane attached") {
		t.Errorf("nothing pinned: %v", err)
	}
}

// A detached program is noticed, and put back.
func TestDetachedProgramComesBack(t *testing.T) {
	p := newCheckedPlane(t)
	var c checker
	if err := p.attachments[0].link.(interface{ Detach() error }).Detach(); err != nil {
		t.Fatal(err)
	}
	if err := p.selfCheck(&c); err == nil || !strings.Contains(err.Error(), "detached") {
		t.Errorf("a detached program: %v", err)
	}
	runPlane(t, p)
	eventually(t, "attached again", func() bool { return p.selfCheck(&c) == nil && p.Status().Interfaces[0].Alarm == "" })
}

// A record that somebody earned for the reserved address must not stop the check, and
// with it the routes.
func TestForgedRecordOfTheReservedClient(t *testing.T) {
	p := newCheckedPlane(t)
	for _, v := range p.set.Load().VIPs {
		for class := table.Class(1); class <= table.Classes; class++ {
			k := checkKey(v)
			k.Class = class
			if err := p.affinities.put(table.Entry{Key: k, Slot: 1, State: table.EarnedSK}); err != nil {
				t.Fatal(err)
			}
		}
	}
	var c checker
	if err := p.selfCheck(&c); err != nil {
		t.Error(err)
	}
}

// Every interface is looked at, and by each a request and a reply; a record of the
// reserved client hides nothing.
func TestSelfCheckCoversInterfacesAndDirections(t *testing.T) {
	newNamespace(t)
	newVeth(t, "leg", "legp", [6]byte{2, 0, 0, 0, 1, 1})
	second := newVeth(t, "arm", "armp", [6]byte{2, 0, 0, 0, 1, 2})
	p := newPlane(t, newBPFFS(t), "leg", "arm")
	attachPlane(t, p)
	mustResync(t, p, farm(t, 100), nil)
	var c checker
	check := func(what, want string) {
		t.Helper()
		err := p.selfCheck(&c)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", what, err, want)
		}
	}
	check("all is well", "")

	place := uint32(second.Attrs().Index % interfacePlaces)
	good := p.interfaces[place]
	bad := good
	bad.Mac[5]++
	if err := p.coll.Maps["interfaces"].Put(place, &bad); err != nil {
		t.Fatal(err)
	}
	check("the second interface", "in by arm: pass_foreign_mac")
	for _, v := range p.set.Load().VIPs {
		if err := p.affinities.put(table.Entry{Key: checkKey(v), Slot: 1, State: table.Confirmed}); err != nil {
			t.Fatal(err)
		}
	}
	check("the second interface, with a record of the reserved client", "in by arm: pass_foreign_mac")
	if err := p.coll.Maps["interfaces"].Put(place, &good); err != nil {
		t.Fatal(err)
	}
	check("well again, with the record", "")

	// No table that is compared: only a reply shows it.
	half := p.control.selector()
	var places placeBits
	places.setAll()
	if err := p.coll.Maps["not_return_places"].Put(half*2, &places.PlanePlaces); err != nil {
		t.Fatal(err)
	}
	key := bpf.PlaneNotReturnKey{Prefixlen: 64, Selector: half, Address: word(checkClient4)}
	if err := p.coll.Maps["not_return"].Put(&key, uint32(1)); err != nil {
		t.Fatal(err)
	}
	c = checker{wrote: true} // writing the tables again would mend it
	check("a reply", "pass_not_return, want forward_return")
}
