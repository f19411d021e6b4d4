package dataplane

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestOffloadDecision(t *testing.T) {
	const joins, tag = "the device joins packets into frames that nobody sent", "the device takes the VLAN tag out of the frame"
	for _, c := range []struct {
		name   string
		active string
		vlan   bool
		driver string
		off    string // before the program is attached
		alarm  string // with it
	}{
		{"nothing on", "", true, "ixgbe", "", ""},
		{"software only", "rx-gro rx-checksum tx-vlan-hw-insert rx-vlan-filter", true, "ixgbe", "", ""},
		{"LRO", "rx-lro rx-gro", false, "ixgbe", "rx-lro", joins + ": run ethtool -K eth0 lro off"},
		{"both joiners", "rx-lro rx-gro-hw", false, "bnxt_en", "rx-lro rx-gro-hw", joins + ": run ethtool -K eth0 lro off rx-gro-hw off"},
		{"tags taken, nobody misses them", "rx-vlan-hw-parse", false, "veth", "", ""},
		{"tags taken below a VLAN device", "rx-vlan-hw-parse", true, "veth", "rx-vlan-hw-parse", tag + ": run ethtool -K eth0 rxvlan off"},
		{"all", "rx-lro rx-gro-hw rx-vlan-hw-parse", true, "i40e", "rx-lro rx-gro-hw rx-vlan-hw-parse",
			joins + ", " + tag + ": run ethtool -K eth0 lro off rx-gro-hw off rxvlan off"},
		{"virtio joins nothing below a program", "rx-gro-hw rx-lro", false, "virtio_net", "rx-lro rx-gro-hw", ""},
		{"virtio's tags", "rx-gro-hw rx-vlan-hw-parse", true, "virtio_net", "rx-gro-hw rx-vlan-hw-parse", tag + ": run ethtool -K eth0 rxvlan off"},
	} {
		active := make(map[string]bool)
		for _, f := range strings.Fields(c.active) {
			active[f] = true
		}
		var off []string
		for _, o := range disturbing(active, position{vlan: c.vlan}) {
			off = append(off, o.feature)
		}
		if got := strings.Join(off, " "); got != c.off {
			t.Errorf("%s: off %q, want %q", c.name, got, c.off)
		}
		if got := offloadAlarm("eth0", disturbed(active, position{vlan: c.vlan}, c.driver)); got != c.alarm {
			t.Errorf("%s: alarm %q, want %q", c.name, got, c.alarm)
		}
	}
}

// vlanOn stands for a VLAN device: the test's kernel may have none.
func vlanOn(parent netlink.Link) netlink.Link {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Index, attrs.ParentIndex = "v100", 9999, parent.Attrs().Index
	return &netlink.Vlan{LinkAttrs: attrs, VlanId: 100}
}

// A veth takes tags out of frames like hardware; that is switched off while the
// program needs them, told of while it is on, and on again in the end.
func TestOffloadVeth(t *testing.T) {
	newNamespace(t)
	dir := newBPFFS(t)
	out := newVeth(t, "out", "peer", [6]byte{2, 0, 0, 0, 7, 1})
	const strip = "rx-vlan-hw-parse"

	p := newPlane(t, dir, "out")
	attachPlane(t, p)
	on := func() bool {
		t.Helper()
		active, err := p.ns.activeFeatures("out")
		if err != nil {
			t.Fatal(err)
		}
		return active[strip]
	}
	alarm := func(more ...netlink.Link) string {
		t.Helper()
		link, err := netlink.LinkByName("out")
		if err != nil {
			t.Fatal(err)
		}
		p.checkAttachments(append(devices{link}, more...))
		return p.Status().Interfaces[0].Alarm
	}
	if !on() {
		t.Fatal("a veth without tag stripping: nothing is tested here")
	}
	if _, err := os.Readlink(offloadPin(dir, "out")); err == nil {
		t.Error("something was noted where nothing was switched")
	}
	if got := alarm(); got != "" {
		t.Errorf("alarm without a VLAN device: %q", got)
	}
	if got := alarm(vlanOn(out)); got != "the device takes the VLAN tag out of the frame: run ethtool -K out rxvlan off" {
		t.Errorf("alarm with a VLAN device: %q", got)
	}

	p.quieten("out", position{vlan: true})
	if on() {
		t.Fatal("still on")
	}
	if got := alarm(vlanOn(out)); got != "" {
		t.Errorf("alarm after the switch: %q", got)
	}
	p.quieten("out", position{vlan: true}) // nothing is on any more: the note stays as it is
	if noted, err := os.Readlink(offloadPin(dir, "out")); err != nil || noted != strip {
		t.Errorf("noted %q, %v", noted, err)
	}

	// Another process takes over: nothing is switched on in between.
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = newPlane(t, dir, "out")
	if pinned := attachPlane(t, p); !slices.Contains(pinned.TakenOver, "out") {
		t.Fatalf("not taken over: %+v", pinned)
	}
	if on() {
		t.Error("on after a takeover")
	}

	if err := Detach(p.cfg); err != nil {
		t.Fatal(err)
	}
	if !on() {
		t.Error("not on again after detaching")
	}
	if names, err := os.ReadDir(dir); err == nil {
		t.Errorf("left behind: %v", names)
	}
}

// An interface that is configured no longer gets its offloads back with the
// program's end; one that is gone stops nobody.
func TestOffloadLeftover(t *testing.T) {
	newNamespace(t)
	dir := newBPFFS(t)
	newVeth(t, "out", "peer", [6]byte{2, 0, 0, 0, 7, 1})
	newVeth(t, "in", "peer2", [6]byte{2, 0, 0, 0, 7, 2})

	p := newPlane(t, dir, "out", "in")
	attachPlane(t, p)
	p.quieten("in", position{vlan: true})
	if err := noteOffloads(dir, "gone", []string{"rx-lro"}); err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	p = newPlane(t, dir, "out")
	attachPlane(t, p)
	if err := p.adoptLocked(); err != nil {
		t.Fatal(err)
	}
	active, err := p.ns.activeFeatures("in")
	if err != nil {
		t.Fatal(err)
	}
	if !active["rx-vlan-hw-parse"] {
		t.Error("not on again at an interface that was let go")
	}
	for _, name := range []string{"in", "gone"} {
		if noted, err := os.Readlink(offloadPin(dir, name)); err == nil {
			t.Errorf("%s: still noted %q", name, noted)
		}
	}
}

// Below a bridge or macvlan the card's own GRO comes before the program.
func TestOffloadBelowStackedDevices(t *testing.T) {
	dev := func(index int, name string, master, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Index: index, Name: name, MasterIndex: master, ParentIndex: parent}
	}
	seen := devices{
		&netlink.Device{LinkAttrs: dev(2, "eth0", 4, 0)},
		&netlink.Device{LinkAttrs: dev(3, "eth1", 4, 0)},
		&netlink.Bond{LinkAttrs: dev(4, "bond0", 0, 0)},
		&netlink.Macvlan{LinkAttrs: dev(5, "macv", 0, 4)},
		&netlink.Bridge{LinkAttrs: dev(6, "br0", 0, 0)},
		&netlink.Vlan{LinkAttrs: dev(7, "bond0.7", 6, 4)},
		&netlink.Veth{LinkAttrs: dev(8, "tap", 6, 0)},
	}
	for name, want := range map[string]string{"eth0": "", "bond0": "", "macv": "eth0 eth1", "br0": "tap eth0 eth1"} {
		var got []string
		for _, d := range seen.below(seen.named(name)) {
			got = append(got, d.Attrs().Name)
		}
		slices.Sort(got)
		wanted := strings.Fields(want)
		slices.Sort(wanted)
		if !slices.Equal(got, wanted) {
			t.Errorf("below %s: %v, want %v", name, got, wanted)
		}
	}
	gro := map[string]bool{"rx-gro": true, "rx-gro-hw": true}
	for _, c := range []struct {
		at     position
		driver string
		want   string
	}{
		{position{}, "ixgbe", "the device joins packets into frames that nobody sent: run ethtool -K eth0 rx-gro-hw off"},
		{position{below: true}, "ixgbe", "the device joins packets into frames that nobody sent: run ethtool -K eth0 rx-gro-hw off gro off"},
		{position{}, "virtio_net", ""},
		{position{below: true}, "virtio_net", "the device joins packets into frames that nobody sent: run ethtool -K eth0 rx-gro-hw off gro off"},
	} {
		if got := offloadAlarm("eth0", disturbed(gro, c.at, c.driver)); got != c.want {
			t.Errorf("%+v, %s: %q, want %q", c.at, c.driver, got, c.want)
		}
	}
}
