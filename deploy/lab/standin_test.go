package lab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// These tests prove the laboratory itself, with no vpnlb in it: the nodes are
// kernels that forward by a stateless hash of the client address. A lab that
// cannot see a client change its server would prove nothing about nodes.

// standInFrame is a lab with its topology and nothing that runs in it.
func standInFrame(t *testing.T, o Options) *Lab {
	t.Helper()
	needRoot(t)
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), o.Name); err != nil {
		t.Fatal(err)
	}
	lock, err := lockLab(o.Name)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{dir: labDir(o.Name), lock: lock, out: t.Output(), st: labState{
		Options: o, Processes: map[string]proc{}, Members: map[string]bool{}, NextClient: o.Clients,
	}}
	l.peers = newPeers(l)
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Errorf("remove lab: %v", err)
		}
		if left, _ := namespacesOf(o.Name); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	if err := l.buildFrame(); err != nil {
		t.Fatal(err)
	}
	return l
}

// standInLab is a lab of stand-in nodes with static ECMP and gateways.
func standInLab(t *testing.T, o Options) *Lab {
	t.Helper()
	l := standInFrame(t, o)
	o = l.st.Options
	for i := range o.Nodes {
		n := nodeName(i + 1)
		if err := l.standIn(n, 1); err != nil {
			t.Fatal(err)
		}
		for _, f := range o.families() {
			if err := l.inside(n, func() error { return addGatewayHere(f.gateway(i + 1)) }); err != nil {
				t.Fatal(err)
			}
		}
	}
	err := l.inside(roleRouter, func() error {
		for _, f := range o.families() {
			r := &netlink.Route{Dst: host(f.vip), Priority: 20} // better than what floats
			for i := range o.Nodes {
				r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: f.nodeOutside(i + 1).AsSlice()})
			}
			if err := netlink.RouteAdd(r); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if o.Peers == Real {
		if err := l.peers.startRouter(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i := range o.Servers {
		if o.IPv6 && !o.DSR { // stand-ins do not rewrite IPv6
			if err := l.inside(serverName(i+1), func() error { return addLoopback([]netip.Addr{vip6Addr}) }); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.peers.startServer(t.Context(), i+1); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func addGatewayHere(a netip.Addr) error {
	link, err := netlink.LinkByName(insideName)
	if err != nil {
		return fmt.Errorf("find inside interface: %w", err)
	}
	return addAddr(link, netip.PrefixFrom(a, a.BitLen()))
}

// pause lets traffic flow; a netns test has no virtual time.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(d):
	}
}

func TestStandInCountsNothingWhenNothingHappens(t *testing.T) {
	l := standInLab(t, Options{Name: "tquiet", Nodes: 3, Clients: 60})
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	pause(t, 3*time.Second)
	s, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := s.totals()
	if sum.Up != 60 || sum.Lost != 0 || sum.Sent < 60*20 || len(s.Strays) != 0 {
		t.Errorf("totals %+v, strays %v: want 60 up, none lost, no strays", sum, s.Strays)
	}
	for i := range 3 {
		if n := len(s.on(i + 1)); n < 5 {
			t.Errorf("server %d serves %d of 60 clients", i+1, n)
		}
	}
	wantFragments(t, l)
}

func TestStandInSeesWhoIsRehomed(t *testing.T) {
	l := standInLab(t, Options{Name: "trehome", Nodes: 2, Clients: 60, LossAfter: time.Second})
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	before, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 2 { // another seed: about two thirds get another server
		if err := l.standIn(nodeName(i+1), 2); err != nil {
			t.Fatal(err)
		}
	}
	pause(t, 2500*time.Millisecond)
	if err := l.allServed(t.Context(), loginBound); err != nil {
		t.Fatal(err)
	}
	after, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	changed := 0
	for a, c := range after.Clients {
		if c.Server != before.Clients[a].Server {
			changed++
		}
	}
	v := before.compare(after, nil)
	if changed < 20 || len(v.rehomed) != changed || v.lost == 0 || len(v.moved) != 0 {
		t.Errorf("%d clients changed server, %d counted as re-homed, %d as moved, %d packets lost", changed, len(v.rehomed), len(v.moved), v.lost)
	}
	permits := permits{1: before.At, 2: before.At, 3: before.At}
	if v := before.compare(after, permits); len(v.moved) != changed || len(v.rehomed) != 0 {
		t.Errorf("with permits %d moved and %d re-homed, want %d and 0", len(v.moved), len(v.rehomed), changed)
	}
}

func TestStandInForgedTrafficHarmsNobody(t *testing.T) {
	l := standInLab(t, Options{Name: "tspoof", Nodes: 2, Clients: 40})
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := &drill{l: l, permits: permits{}}
	var err error
	if d.before, err = l.peers.snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.flood(t.Context(), 5000, 5000); err != nil {
		t.Fatal(err)
	}
	if err := d.unharmed(t.Context()); err != nil || len(d.res.Details) > 0 {
		t.Error(err, d.res.Details)
	}
	s, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	strays := 0
	for a := range s.Strays {
		if spoofPrefix.Contains(a) {
			strays++
		}
	}
	if strays < 100 {
		t.Errorf("forged packets of %d clients reached the servers, want most of 5000/6", strays)
	}
}

// wantFragments checks that logins really travelled in IP fragments, both ways.
func wantFragments(t *testing.T, l *Lab) {
	t.Helper()
	if err := l.fragmented(); err != nil {
		t.Errorf("fragments: %v", err)
	}
}

func TestStandInScatterSeesOneServerForEachClient(t *testing.T) {
	l := standInLab(t, Options{Name: "tscatter", Nodes: 3})
	if err := l.startScatter(20, 6, 100); err != nil { // neighbours
		t.Fatal(err)
	}
	if _, err := l.endScatter(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, odd := range []bool{false, true} {
		if odd { // one node decides otherwise: that must show
			if err := l.standIn(nodeName(2), 2); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.startScatter(1000, 6, 2000); err != nil {
			t.Fatal(err)
		}
		r, err := l.endScatter(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if r.Answered < 990 || r.Answers < 5900 || r.Servers != 3 || (r.Split > 0) != odd {
			t.Errorf("odd node %t: %+v", odd, r)
		}
		t.Logf("odd node %t: %+v", odd, r)
	}
}

// A node that forwards replies as servers sent them serves nobody: whatever is
// before a client drops such packets. Clients must count them as lost, and the
// drill must say what they are.
func TestStandInSeesRepliesOfAnotherAddress(t *testing.T) {
	l := standInLab(t, Options{Name: "tbare", Nodes: 2, Clients: 30})
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	d := &drill{l: l, permits: permits{}}
	var err error
	if d.before, err = l.peers.snapshot(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.judgeSources(d.before.compare(d.before, nil)); err != nil || len(d.res.Details) > 0 {
		t.Fatal(err, d.res.Details)
	}
	if err := l.forgetReturn(nodeName(2)); err != nil {
		t.Fatal(err)
	}
	// A step of the demo in which nothing happens does not pass so either.
	d.res.Pass = true
	if err := demoSteps()[0].run(d, t.Context()); err != nil || d.res.Pass {
		t.Errorf("the step %q passes where packets are lost: %v", demoSteps()[0].Name, err)
	}
	d.res.Details = nil
	s, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v := d.before.compare(s, nil)
	// Gateway 2 is node 2, and server 2 uses it; one second of packets is not judged yet.
	if on := len(d.before.on(2)); on == 0 || len(v.losers) != on || v.lost < int64(10*on) || v.foreign < v.lost {
		t.Errorf("%d clients of server 2, %d lost %d packets and got %d from another address", on, len(v.losers), v.lost, v.foreign)
	}
	if err := d.judgeSources(v); err != nil || len(d.res.Details) != 2 {
		t.Errorf("%v, want two reasons to fail: %v", err, d.res.Details)
	}
}

// What a node that left forgot to take away is found, each kind of it.
func TestStandInSeesWhatALeaverLeft(t *testing.T) {
	l := standInFrame(t, Options{Name: "tleft", Nodes: 1, Servers: 1, IPv6: true})
	n := nodeName(1)
	if err := os.MkdirAll(l.path(bpfDir, n), 0o700); err != nil {
		t.Fatal(err)
	}
	if left, err := l.leftovers(n); err != nil || len(left) > 0 {
		t.Fatalf("of a node that did nothing: %v, %v", left, err)
	}
	err := l.inside(n, func() error {
		link, err := netlink.LinkByName(outsideName)
		if err != nil {
			return err
		}
		return errors.Join(attachPass(link), addLoopback([]netip.Addr{vip6Addr}), addGatewayHere(gatewayAddr(1)))
	})
	if err := errors.Join(err, l.standIn(n, 1), os.Symlink("nothing", l.path(bpfDir, n, "affinity_v9"))); err != nil {
		t.Fatal(err)
	}
	left, err := l.leftovers(n)
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(left)
	want := []string{"XDP program on eth0", "address 198.51.100.201 on eth1", "address 2001:db8:0:ff::10 on lo", "packet filter standin", "packet filter standin", "pin affinity_v9"}
	if !slices.Equal(left, want) {
		t.Errorf("%q, want %q", left, want)
	}
}
