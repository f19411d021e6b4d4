package dataplane

import (
	"net"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// bondOf is a bond with one member as netlink tells of it, made of two real veths: the
// kernel may have no bonding, but it answers for both indexes.
func bondOf(bond, member netlink.Link) devices {
	above, below := *bond.Attrs(), *member.Attrs()
	above.Name, below.MasterIndex = "bond0", above.Index
	vlan := netlink.NewLinkAttrs()
	vlan.Name, vlan.Index, vlan.ParentIndex, vlan.HardwareAddr, vlan.MTU = "bond0.100", 501, above.Index, above.HardwareAddr, 1500
	return devices{&netlink.Bond{LinkAttrs: above, Mode: netlink.BOND_MODE_802_3AD}, &netlink.Device{LinkAttrs: below},
		&netlink.Vlan{LinkAttrs: vlan, VlanId: 100, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}}
}

// The kernel attaches a bond's program to its members, so a frame's interface is the
// member's. VLAN devices, routes and forwarding are the bond's.
func TestBondMemberStandsForItsBond(t *testing.T) {
	newNamespace(t)
	mac := [6]byte{2, 0, 0, 0, 1, 1}
	bond, member := newVeth(t, "bond", "bondp", mac), newVeth(t, "leg", "legp", mac)
	setAddr(t, bond, "203.0.113.254/24")
	defaultRoute(t, "bond", "203.0.113.1", 0)
	permanentNeighbour(t, "bond", "203.0.113.1")
	p := newPlane(t, newBPFFS(t), "leg")
	attachPlane(t, p)
	mustResync(t, p, farm(t, 100), nil)

	seen := bondOf(bond, member)
	real := p.attachments
	p.attachments = []*attachment{{name: "bond0", index: bond.Attrs().Index, mode: Native}}
	defer func() { p.attachments = real }()
	want := p.renderInterfaces(seen)
	if err := p.mendVLANs(want); err != nil {
		t.Fatal(err)
	}
	for place, v := range want {
		if err := p.coll.Maps["interfaces"].Put(place, &v); err != nil {
			t.Fatal(err)
		}
	}
	at := want[uint32(member.Attrs().Index%interfacePlaces)]
	if int(at.Master) != bond.Attrs().Index || int(at.Lower) != bond.Attrs().Index {
		t.Errorf("the member's entry is %+v: want the bond, %d, as master and exit", at, bond.Attrs().Index)
	}
	if at.Flags&flagXDPTX != 0 || at.Flags&flagPartial == 0 {
		t.Errorf("the member's flags are %b: want partial sums (a veth), and a redirect to the bond instead of XDP_TX", at.Flags)
	}

	// A bond is what forwards; its member need not.
	sysctl(t, "net/ipv4/conf/all/forwarding", "0")
	sysctl(t, "net/ipv4/conf/bond/forwarding", "1")
	for name, text := range map[string]string{
		"untagged":       "eth router > outside | ip client > vip | udp 4500 > 4500 | esp size=100",
		"on a VLAN":      "eth router > outside | vlan 100 | ip client > vip | udp 4500 > 4500 | esp size=100",
		"another VLAN":   "eth router > outside | vlan 101 | ip client > vip | udp 4500 > 4500 | esp size=100",
		"a provider tag": "eth router > outside type=0x88a8 | vlan 100 | ip client > vip | udp 4500 > 4500 | esp size=100",
	} {
		frame, err := fixture.Build(text)
		if err != nil {
			t.Fatal(err)
		}
		before := allCounts(t, p)
		run(t, p.coll.Programs["vpnlb"], frame, uint32(member.Attrs().Index))
		after := allCounts(t, p)
		ours := after.Reasons[table.PassNotIP].Packets == before.Reasons[table.PassNotIP].Packets
		if name == "untagged" && after.Reasons[table.PassCannotTransmit].Packets+after.Reasons[table.ForwardMaglev].Packets ==
			before.Reasons[table.PassCannotTransmit].Packets+before.Reasons[table.ForwardMaglev].Packets {
			t.Errorf("%s: the routes of the bond were not used", name)
		}
		if wanted := name == "untagged" || name == "on a VLAN"; ours != wanted {
			t.Errorf("%s: taken for a packet of the bond %t, want %t", name, ours, wanted)
		}
	}
	var index uint32
	if err := p.coll.Maps["vlans"].Lookup(&bpf.PlaneVlanKey{Lower: uint32(bond.Attrs().Index), Vlan: 100}, &index); err != nil || index != 501 {
		t.Errorf("VLAN 100 of the bond means device %d, %v: want 501", index, err)
	}
}

// A virtual function lies below hv_netvsc, which may be in a bond.
func TestMasterOfStackedDevices(t *testing.T) {
	dev := func(index, master int) netlink.LinkAttrs { return netlink.LinkAttrs{Index: index, MasterIndex: master} }
	seen := devices{
		&netlink.Device{LinkAttrs: dev(2, 3)}, // the virtual function
		&netlink.Device{LinkAttrs: dev(3, 4)}, // hv_netvsc
		&netlink.Bond{LinkAttrs: dev(4, 0)},
		&netlink.Bridge{LinkAttrs: dev(5, 0)},
		&netlink.Device{LinkAttrs: dev(6, 5)},  // a bridge's port
		&netlink.Device{LinkAttrs: dev(7, 99)}, // its master is in another namespace
	}
	for index, want := range map[int]int{2: 4, 3: 4, 4: 4, 5: 5, 6: 6, 7: 7} {
		if got := seen.master(seen.at(index)).Attrs().Index; got != want {
			t.Errorf("device %d stands for %d, want %d", index, got, want)
		}
	}
	var carriers []int
	for _, d := range seen.carriers(seen.at(4)) {
		carriers = append(carriers, d.Attrs().Index)
	}
	if len(carriers) != 2 || carriers[0] != 2 || carriers[1] != 3 {
		t.Errorf("frames of the bond come in on %v, want 2 and 3", carriers)
	}
}

// What the program cannot carry is refused by name.
func TestPhysicalRefuses(t *testing.T) {
	dev := func(index int, name string, master, parent int) netlink.LinkAttrs {
		return netlink.LinkAttrs{Index: index, Name: name, MasterIndex: master, ParentIndex: parent, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 1}}
	}
	seen := devices{
		&netlink.Device{LinkAttrs: dev(2, "eth0", 4, 0)},
		&netlink.Vlan{LinkAttrs: dev(3, "eth0.5", 0, 2)},
		&netlink.Bond{LinkAttrs: dev(4, "bond0", 0, 0)},
		&netlink.Vlan{LinkAttrs: dev(5, "bond0.5", 0, 4)},
		&netlink.Vlan{LinkAttrs: dev(6, "bond0.5.6", 0, 5)},
		&netlink.Bridge{LinkAttrs: dev(7, "br0", 0, 0)},
		&netlink.Vlan{LinkAttrs: dev(8, "br0.5", 0, 7)},
		&netlink.Vlan{LinkAttrs: dev(9, "away", 0, 77)},
	}
	for name, want := range map[string]string{
		"bond0": "bond0", "bond0.5": "bond0", "br0": "br0",
		"eth0":      "interface eth0 is a member of bond0: name bond0 instead",
		"eth0.5":    "interface eth0 is a member of bond0: name bond0 instead",
		"bond0.5.6": "interface bond0.5.6 is a VLAN device on VLAN device bond0.5: one tag is supported, not two",
		"br0.5":     "interface br0.5 is a VLAN device on bridge br0, which loses the tag: put it on the card or bond",
		"away":      "find the device that away is on: it is in another network namespace",
	} {
		got, err := seen.physical(seen.named(name))
		switch {
		case err != nil && err.Error() != want:
			t.Errorf("%s: %v, want %s", name, err, want)
		case err == nil && got.Attrs().Name != want:
			t.Errorf("%s: the program goes to %s, want %s", name, got.Attrs().Name, want)
		}
	}
}

func TestNativeModesOfBonds(t *testing.T) {
	for mode, want := range map[netlink.BondMode]bool{netlink.BOND_MODE_BALANCE_RR: true, netlink.BOND_MODE_ACTIVE_BACKUP: true,
		netlink.BOND_MODE_802_3AD: true, netlink.BOND_MODE_BALANCE_XOR: true,
		netlink.BOND_MODE_BROADCAST: false, netlink.BOND_MODE_BALANCE_TLB: false, netlink.BOND_MODE_BALANCE_ALB: false} {
		b := netlink.NewLinkBond(netlink.LinkAttrs{Name: "bond0"})
		b.Mode = mode
		if got := nativeMode(b); got != want {
			t.Errorf("mode %s: native %t, want %t", mode, got, want)
		}
		b.XmitHashPolicy = netlink.BOND_XMIT_HASH_POLICY_VLAN_SRCMAC
		if hashes := mode == netlink.BOND_MODE_802_3AD || mode == netlink.BOND_MODE_BALANCE_XOR; hashes && nativeMode(b) {
			t.Errorf("mode %s with vlan+srcmac is taken for native", mode)
		}
	}
}

// An alternative name is known to netlink and to little else: it is refused at once.
func TestAlternativeNameIsRefused(t *testing.T) {
	newNamespace(t)
	leg := newVeth(t, "leg", "legp", [6]byte{2, 0, 0, 0, 1, 1})
	if err := netlink.LinkAddAltName(leg, "uplink-to-the-routers"); err != nil {
		t.Fatal(err)
	}
	const want = "interface uplink-to-the-routers is an alternative name of leg: write leg in the node file"
	p := newPlane(t, newBPFFS(t), "uplink-to-the-routers")
	if _, err := p.Attach(testCluster); err == nil || err.Error() != want {
		t.Errorf("attach: %v", err)
	}
	faults := Preflight(p.cfg)
	if len(faults) == 0 || faults[0].Error() != want {
		t.Errorf("preflight: %v", faults)
	}
	if _, err := newPlane(t, p.cfg.PinDir, "nowhere").Attach(testCluster); err == nil || err.Error() != "interface nowhere does not exist: see ip link" {
		t.Errorf("no such interface: %v", err)
	}
}

// A former member of a bond gets back what was switched off on it.
func TestOffloadsOfAFormerMember(t *testing.T) {
	newNamespace(t)
	dir := newBPFFS(t)
	bond := newVeth(t, "bond", "bondp", [6]byte{2, 0, 0, 0, 7, 1})
	newVeth(t, "leg", "legp", [6]byte{2, 0, 0, 0, 7, 1})
	p := newPlane(t, dir, "bond")
	attachPlane(t, p)
	p.quieten("leg", position{vlan: true})
	a := p.attachments[0]
	a.carriers = map[string]position{"bond": {}, "leg": {vlan: true}}
	active := func() bool {
		t.Helper()
		all, err := p.ns.activeFeatures("leg")
		if err != nil {
			t.Fatal(err)
		}
		return all["rx-vlan-hw-parse"]
	}
	if active() {
		t.Fatal("still on")
	}
	link, err := netlink.LinkByIndex(bond.Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	p.quietenNew(devices{link}, link, a) // leg is not below it any more
	if !active() {
		t.Error("not on again at a former member")
	}
}
