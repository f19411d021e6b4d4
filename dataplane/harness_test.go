package dataplane

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

var testCluster = [16]byte{0xfe, 1}

var namespaces atomic.Int32

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("CI") != "" {
		t.Fatal("this test needs root")
	}
	t.Skip("this test needs root")
}

// newNamespace moves the test's thread to a network namespace of its own.
func newNamespace(t testing.TB) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	name := fmt.Sprintf("vpnlb-tdp%d-%d", os.Getpid(), namespaces.Add(1))
	own, err := netns.NewNamed(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netns.Set(home); err != nil {
			t.Fatal(err)
		}
		own.Close()
		home.Close()
		if err := netns.DeleteNamed(name); err != nil {
			t.Error(err)
		}
		runtime.UnlockOSThread()
	})
	pin(t)
	sysctl(t, "net/ipv4/ip_forward", "1")
	// Nobody talks but the test: no link-local address, no solicitation.
	sysctl(t, "net/ipv6/conf/default/addr_gen_mode", "1")
	sysctl(t, "net/ipv6/conf/default/accept_dad", "0")
	sysctl(t, "net/ipv6/conf/default/router_solicitations", "0")
	sysctl(t, "net/ipv6/conf/all/forwarding", "1")
	up(t, "lo")
}

// pin keeps the test's locked thread on one CPU. The program's caches and counters are
// per CPU: a thread that wanders between two runs would find them empty.
func pin(t testing.TB) {
	t.Helper()
	was, err := pinThread()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.SchedSetaffinity(0, &was); err != nil {
			t.Fatal(err)
		}
	})
}

// pinThread binds the calling thread to the last CPU that it may use: interrupts tend to
// go to the first. It returns the CPUs that the thread could use before.
func pinThread() (was unix.CPUSet, err error) {
	if err := unix.SchedGetaffinity(0, &was); err != nil {
		return was, fmt.Errorf("read affinity of the thread: %w", err)
	}
	last := -1
	for cpu := range len(was) * 64 {
		if was.IsSet(cpu) {
			last = cpu
		}
	}
	var one unix.CPUSet
	one.Set(last)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return was, fmt.Errorf("pin the thread: %w", err)
	}
	return was, nil
}

func sysctl(t testing.TB, name, value string) {
	t.Helper()
	if err := os.WriteFile("/proc/sys/"+name, []byte(value), 0o644); err != nil {
		t.Fatal(err)
	}
}

// newBPFFS mounts a bpffs for the test and gives a pin directory on it.
func newBPFFS(t testing.TB) string {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return dir + "/pins"
}

// newVeth makes a pair, both ends up; the address is the first one's MAC. The peer has no
// IPv6: its reports of multicast groups would be counted with the test's frames.
func newVeth(t testing.TB, name, peer string, mac [6]byte) netlink.Link {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = name, net.HardwareAddr(mac[:])
	attrs.NumRxQueues, attrs.NumTxQueues = 1, 1
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer}); err != nil {
		t.Fatal(err)
	}
	sysctl(t, "net/ipv6/conf/"+peer+"/disable_ipv6", "1")
	up(t, peer)
	return up(t, name)
}

func up(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	return l
}

func newPlane(t testing.TB, pinDir string, interfaces ...string) *Plane {
	t.Helper()
	cfg := Config{PinDir: pinDir, Mode: Native, MaxClients: 100_000, answers: 1 << 30}
	for _, i := range interfaces {
		cfg.Interfaces = append(cfg.Interfaces, InterfaceConfig{Name: i})
	}
	p, err := New(cfg, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func attachPlane(t testing.TB, p *Plane) Pinned {
	t.Helper()
	pinned, err := p.Attach(testCluster)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return pinned
}

// xdpMD is the context of BPF_PROG_TEST_RUN.
type xdpMD struct{ Data, DataEnd, DataMeta, Ifindex, RXQueue, Egress uint32 }

// run puts one frame through the program as if it came in at an interface.
func run(t testing.TB, prog *ebpf.Program, frame []byte, ifindex uint32) (action uint32, out []byte) {
	t.Helper()
	out = make([]byte, len(frame)+64)
	o := &ebpf.RunOptions{Data: frame, DataOut: out, Context: xdpMD{DataEnd: uint32(len(frame)), Ifindex: ifindex}}
	action, err := prog.Run(o)
	if err != nil {
		t.Fatal(err)
	}
	return action, o.DataOut
}

func entrySeq(entries ...table.Entry) func(func(table.Entry) bool) {
	return func(yield func(table.Entry) bool) {
		for _, e := range entries {
			if !yield(e) {
				return
			}
		}
	}
}

// allCounts sums the counters of all reasons.
func allCounts(t testing.TB, p *Plane) Counters {
	t.Helper()
	c, err := p.Counters()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// putPerCPU fills an element of a per-CPU map on every CPU.
func putPerCPU[V any](t testing.TB, m *ebpf.Map, place uint32, value V) {
	t.Helper()
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		t.Fatal(err)
	}
	values := make([]V, cpus)
	for i := range values {
		values[i] = value
	}
	if err := m.Put(place, values); err != nil {
		t.Fatal(err)
	}
}

// eventually polls until ok, with a bound: for what the kernel does by itself.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-deadline:
			t.Fatalf("not in time: %s", what)
		case <-tick.C:
		}
	}
}

// permanentNeighbour makes an address resolved for good.
func permanentNeighbour(t testing.TB, device, addr string) {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, IP: net.ParseIP(addr),
		HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 7, 9}, State: netlink.NUD_PERMANENT}); err != nil {
		t.Fatal(err)
	}
}

// defaultRoute sets the way to everybody, with a locked MTU if it is not 0.
func defaultRoute(t testing.TB, device, gateway string, mtu int) {
	t.Helper()
	l, err := netlink.LinkByName(device)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteReplace(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: net.ParseIP(gateway), MTU: mtu, MTULock: mtu != 0,
		Dst: &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}}); err != nil {
		t.Fatal(err)
	}
}
