package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// inKernelVM is set where the tests run in a kernel that was chosen for them, which has
// bonding and VLAN devices: nothing is skipped there.
const inKernelVM = "VPNLB_KERNEL_VM"

// bondBed is a lane whose outside arm is a bond, or a VLAN device on one: the client's
// end joins the peers of its members in a bond of its own, or, where the members need
// nothing at the other end, in a bridge.
type bondBed struct {
	*lane
	mode    netlink.BondMode
	outside string
	ping    *pinger
	plane   *Plane
	sent    uint32
}

// needDevice makes a link, and says why there is no test where the kernel cannot.
func needDevice(t *testing.T, l netlink.Link) netlink.Link {
	t.Helper()
	err := netlink.LinkAdd(l)
	if errors.Is(err, unix.EOPNOTSUPP) && os.Getenv(inKernelVM) == "" {
		t.Skipf("this kernel has no %s devices: make kernels runs this test in one that has", l.Type())
	}
	if err != nil {
		t.Fatalf("make %s: %v", l.Type(), err)
	}
	return up(t, l.Attrs().Name)
}

func newBond(name string, mode netlink.BondMode) netlink.Link {
	b := netlink.NewLinkBond(netlink.LinkAttrs{Name: name})
	b.Mode, b.Miimon = mode, 10
	if mode == netlink.BOND_MODE_802_3AD {
		b.LacpRate = netlink.BOND_LACP_RATE_FAST
	}
	return b
}

func setMaster(t testing.TB, name, master string) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	above, err := netlink.LinkByName(master)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(l); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMaster(l, above); err != nil {
		t.Fatalf("put %s into %s: %v", name, master, err)
	}
	up(t, name)
}

func setLink(t testing.TB, name string, on bool) {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	set := netlink.LinkSetDown
	if on {
		set = netlink.LinkSetUp
	}
	if err := set(l); err != nil {
		t.Fatal(err)
	}
}

// addMember joins a veth "m"+n of the node's bond with "r"+n at the client's end.
func (b *bondBed) addMember(t testing.TB, n string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "m" + n
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "r" + n, PeerNamespace: netlink.NsFd(b.client.handle)}); err != nil {
		t.Fatal(err)
	}
	inside(t, b.client, func() {
		// A tag that is still beside the frame would not be in what a veth's program sees.
		if err := b.client.setFeatures("r"+n, []string{"tx-vlan-hw-insert"}, false); err != nil {
			t.Fatal(err)
		}
		setMaster(t, "r"+n, "rb")
		l, err := netlink.LinkByName("r" + n)
		if err != nil {
			t.Fatal(err)
		}
		passAll(t, l)
	})
	setMaster(t, "m"+n, "bond0")
}

// newBondBed: vlan 0 is none.
func newBondBed(t *testing.T, mode netlink.BondMode, vlan int, attach Mode) *bondBed {
	newNamespace(t)
	for _, s := range []string{"all", "default"} {
		sysctl(t, "net/ipv4/conf/"+s+"/accept_local", "1")
		sysctl(t, "net/ipv4/conf/"+s+"/rp_filter", "0")
		sysctl(t, "net/ipv4/conf/"+s+"/send_redirects", "0")
	}
	bond := needDevice(t, newBond("bond0", mode))
	b := &bondBed{lane: &lane{}, mode: mode, outside: "bond0"}
	b.client = place(t, "c0", "unused", "203.0.113.129/25", "203.0.113.130/25") // its first veth is not used
	b.server = place(t, "s0", "inside", "198.51.100.1/24", laneServer+"/24")
	inside(t, b.client, func() {
		far := netlink.Link(&netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "rb"}})
		if mode == netlink.BOND_MODE_802_3AD || mode == netlink.BOND_MODE_BALANCE_XOR {
			far = newBond("rb", mode)
		}
		needDevice(t, far)
	})
	b.addMember(t, "0")
	b.addMember(t, "1")
	near := bond
	if vlan != 0 {
		near, b.outside = b.tagged(t, "bond0", vlan), "bond0.7"
	}
	setAddr(t, near, "203.0.113.1/25")
	inside(t, b.client, func() {
		far, err := netlink.LinkByName("rb")
		if err != nil {
			t.Fatal(err)
		}
		if vlan != 0 {
			far = b.tagged(t, "rb", vlan)
		}
		setAddr(t, far, laneClient+"/25")
		if err := netlink.RouteReplace(&netlink.Route{LinkIndex: far.Attrs().Index, Dst: netlink.NewIPNet([]byte{192, 0, 2, 100}),
			Gw: []byte{203, 0, 113, 1}}); err != nil {
			t.Fatal(err)
		}
	})
	go echo(listen(t, b.server, laneServer+":4500"))
	b.ping = newPinger(t, b.lane)
	var err error
	if b.plane, err = New(Config{PinDir: newBPFFS(t), Mode: attach, MaxClients: 1000,
		Interfaces: []InterfaceConfig{{Name: b.outside}, {Name: "inside"}}}, Deps{Log: slog.New(slog.NewTextHandler(t.Output(), nil))}); err != nil {
		t.Fatal(err)
	}
	attachPlane(t, b.plane)
	mustResync(t, b.plane, laneSet(100), nil)
	runPlane(t, b.plane)
	return b
}

func (b *bondBed) tagged(t *testing.T, parent string, vlan int) netlink.Link {
	t.Helper()
	on, err := netlink.LinkByName(parent)
	if err != nil {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = parent+".7", on.Attrs().Index
	return needDevice(t, &netlink.Vlan{LinkAttrs: attrs, VlanId: vlan})
}

// await waits, with a generous bound: LACP agrees within seconds, an emulated machine
// takes its time.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			t.Fatalf("not within two minutes: %s", what)
		case <-tick.C:
		}
	}
}

// carries sends until so many datagrams in a row are answered, and gives what the program
// counted of these.
func (b *bondBed) carries(t *testing.T, what string, row int) (forwarded, returned uint64) {
	t.Helper()
	var before Counters
	answered := 0
	await(t, what, func() bool {
		if answered == 0 {
			before = allCounts(t, b.plane)
		}
		had, _ := b.ping.got()
		b.sent++
		b.ping.send(t, b.sent)
		for deadline := time.Now().Add(500 * time.Millisecond); time.Now().Before(deadline); {
			if now, from := b.ping.got(); now > had {
				if from.Addr().String() != laneVIP {
					t.Fatalf("answered by %s", from)
				}
				answered++
				return answered >= row
			}
			runtime.Gosched()
		}
		answered = 0
		return false
	})
	after := allCounts(t, b.plane)
	count := func(reasons ...table.Reason) (n uint64) {
		for _, r := range reasons {
			n += after.Reasons[r].Packets - before.Reasons[r].Packets
		}
		return n
	}
	return count(table.ForwardAffinity, table.ForwardMaglev), count(table.ForwardReturn)
}

// works: packets go both ways through the program alone. Replies into a bond without native
// XDP are sent on by the kernel: such a bond cannot transmit XDP frames.
func (b *bondBed) works(t *testing.T, what string) {
	t.Helper()
	b.carries(t, what, 5)
	const row = 50
	await(t, what+": by the program", func() bool {
		in, out := b.carries(t, what, row)
		return in >= row && (out >= row || b.mode == netlink.BOND_MODE_BALANCE_TLB)
	})
	var c checker
	if err := b.plane.selfCheck(&c); err != nil {
		t.Errorf("%s: self-check: %v", what, err)
	}
}

func (b *bondBed) alarms() (all []string) {
	for _, i := range b.plane.Status().Interfaces {
		if i.Alarm != "" {
			all = append(all, i.Name+": "+i.Alarm)
		}
	}
	return all
}

// quiet waits until nothing is wrong in the status.
func (b *bondBed) quiet(t *testing.T, what string) {
	t.Helper()
	var alarms []string
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for looks := 0; ; looks++ { // an alarm comes with a look, one a second
		if alarms = b.alarms(); len(alarms) == 0 && looks > 25 {
			return
		}
		select {
		case <-ctx.Done():
			t.Errorf("%s: alarms %q", what, alarms)
			return
		case <-tick.C:
		}
	}
}

// stripsTags waits until a member takes tags out of frames, or does not: it must not
// while a VLAN device is on the bond.
func (b *bondBed) stripsTags(t *testing.T, member string, want bool) {
	t.Helper()
	ns, err := openNamespace()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	await(t, fmt.Sprintf("%s takes tags out of frames: %t", member, want), func() bool {
		active, err := ns.activeFeatures(member)
		return err == nil && active["rx-vlan-hw-parse"] == want
	})
}

// fault takes the client's end of a member down and up.
func (b *bondBed) fault(t *testing.T, n string, on bool) {
	t.Helper()
	inside(t, b.client, func() { setLink(t, "r"+n, on) })
}

// TestBondReal needs a kernel with bonding.
func TestBondReal(t *testing.T) {
	for name, c := range map[string]struct {
		mode netlink.BondMode
		vlan int
	}{
		"active-backup":      {netlink.BOND_MODE_ACTIVE_BACKUP, 0},
		"active-backup VLAN": {netlink.BOND_MODE_ACTIVE_BACKUP, 7},
		"802.3ad VLAN":       {netlink.BOND_MODE_802_3AD, 7},
		"balance-xor":        {netlink.BOND_MODE_BALANCE_XOR, 0},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBondBed(t, c.mode, c.vlan, Native)
			b.works(t, "two members")
			b.quiet(t, "two members")
			for _, member := range []string{"m0", "m1"} {
				b.stripsTags(t, member, c.vlan == 0)
			}

			for _, member := range []string{"0", "1"} {
				b.fault(t, member, false)
				b.works(t, "member "+member+" lost")
				b.fault(t, member, true)
				b.works(t, "member "+member+" back")
			}
			b.addMember(t, "2")
			b.fault(t, "0", false)
			b.fault(t, "1", false)
			b.works(t, "on the member that was added")
			b.stripsTags(t, "m2", c.vlan == 0)
			b.quiet(t, "an added member")
			l, err := netlink.LinkByName("m1")
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkSetNoMaster(l); err != nil {
				t.Fatal(err)
			}
			b.works(t, "after a member was taken out")
			b.stripsTags(t, "m1", true)
		})
	}
}

// A bond whose mode has no native XDP: the members carry the program, in generic mode, and
// the status names the mode.
func TestBondWithoutNativeXDP(t *testing.T) {
	for name, vlan := range map[string]int{"untagged": 0, "VLAN": 7} {
		t.Run(name, func(t *testing.T) {
			b := newBondBed(t, netlink.BOND_MODE_BALANCE_TLB, vlan, Auto)
			b.works(t, "two members")
			await(t, "an alarm for each member", func() bool {
				return len(slices.DeleteFunc(b.alarms(), func(a string) bool {
					return !strings.Contains(a, "bond0 has mode balance-tlb")
				})) == 2
			})
			b.addMember(t, "2")
			await(t, "the program on the added member", func() bool { return b.plane.InterfaceIndex("m2") != 0 })
			b.fault(t, "0", false)
			b.fault(t, "1", false)
			b.works(t, "on the member that was added")
			l, err := netlink.LinkByName("m1")
			if err != nil {
				t.Fatal(err)
			}
			if err := netlink.LinkSetNoMaster(l); err != nil {
				t.Fatal(err)
			}
			await(t, "the program is off the former member", func() bool {
				l, err := netlink.LinkByName("m1")
				return err == nil && (l.Attrs().Xdp == nil || !l.Attrs().Xdp.Attached)
			})
		})
	}
}
