package dataplane

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/hopbench"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

const (
	hopRounds = 15
	hopFrames = 100_000
	// liveFrames is BPF_F_TEST_XDP_LIVE_FRAMES.
	liveFrames = 1 << 1
)

// hop is one path: the generator's and the sink's ends of three veths are in one
// namespace, what forwards is in another.
//
//	ends:      in-p ──── in        node: kernel or plane
//	          out-p ──── out
//	        floor-p ──── floor     sink
type hop struct {
	path    hopPath
	clients int
	ends    *namespace
	ifindex map[string]int // of the generator's ends
	coll    *ebpf.Collection
	plane   *Plane
	rng     *rand.Rand
}

func newHop(t testing.TB, clients int, path hopPath) *hop {
	newNamespace(t)
	ends, err := openNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ends.Close)
	newNamespace(t)
	sysctl(t, "net/ipv4/conf/all/rp_filter", "0")
	h := &hop{path: path, clients: clients, ends: ends, ifindex: make(map[string]int), rng: rand.New(rand.NewPCG(1, uint64(clients)))}
	spec, err := hopbench.LoadHop()
	if err != nil {
		t.Fatal(err)
	}
	if h.coll, err = ebpf.NewCollection(spec); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.coll.Close)
	in := h.pair(t, "in", bedMAC)
	out := h.pair(t, "out", [6]byte{0x02, 0, 0, 0, 0x01, 0x02})
	h.attach(t, "hop_sink", h.pair(t, "floor", [6]byte{0x02, 0, 0, 0, 0x01, 0x03}).Attrs().Index)
	exit := out
	if path.back {
		exit = in
	}
	bedNetwork(t, exit)
	switch {
	case path.plane:
		h.forwardByPlane(t, in, out)
	case path.kernel:
		h.forwardByKernel(t, in, out)
	case path.back:
		h.attach(t, "hop_bounce", in.Attrs().Index)
	}
	return h
}

// pair makes a veth whose peer is among the ends, with a sink there.
func (h *hop) pair(t testing.TB, name string, mac [6]byte) netlink.Link {
	t.Helper()
	dev := newVeth(t, name, name+"-p", mac)
	peer, err := netlink.LinkByName(name + "-p")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetNsFd(peer, int(h.ends.handle)); err != nil {
		t.Fatal(err)
	}
	err = h.ends.do(func() error {
		up(t, name+"-p")
		if peer, err = netlink.LinkByName(name + "-p"); err != nil {
			return err
		}
		h.ifindex[name] = peer.Attrs().Index
		h.attach(t, "hop_sink", h.ifindex[name])
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return dev
}

// attach puts one of the benchmark's programs on an interface of this thread's
// namespace.
func (h *hop) attach(t testing.TB, program string, index int) {
	t.Helper()
	l, err := link.AttachXDP(link.XDPOptions{Program: h.coll.Programs[program], Interface: index, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

func (h *hop) forwardByPlane(t testing.TB, in, out netlink.Link) {
	p, err := New(Config{PinDir: newBPFFS(t), Mode: Native, MaxClients: uint32(h.clients),
		Interfaces: []InterfaceConfig{{Name: "in"}, {Name: "out"}}}, Deps{})
	if err != nil {
		t.Fatal(err)
	}
	attachPlane(t, p)
	b := &bed{Plane: p, clients: h.clients}
	b.use(t, fillSpread)
	h.plane = p
	// As of a network card: see newBed.
	for _, dev := range []netlink.Link{in, out} {
		index := uint32(dev.Attrs().Index)
		v := bpf.PlaneInterface{Ifindex: index, Master: index, Mtu: 1500, Mac: [6]byte(dev.Attrs().HardwareAddr),
			Flags: flagTransmit | flagXDPTX | flagSeveral, Lower: index}
		if err := p.coll.Maps["interfaces"].Put(index%interfacePlaces, &v); err != nil {
			t.Fatal(err)
		}
	}
}

// forwardByKernel makes the namespace a router; with conntrack, the VIP's packets go
// to the first server, else they go where that one is.
func (h *hop) forwardByKernel(t testing.TB, in, out netlink.Link) {
	h.attach(t, "hop_pass", in.Attrs().Index)
	vip, server := netip.MustParseAddr(bedVIP4), bedServer(4, 0)
	if !h.path.conntrack {
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: out.Attrs().Index, Gw: server.AsSlice(), Dst: netlink.NewIPNet(vip.AsSlice())}); err != nil {
			t.Fatal(err)
		}
		return
	}
	c, err := nftables.New()
	if err != nil {
		t.Fatal(err)
	}
	nat := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "hop"})
	chain := c.AddChain(&nftables.Chain{Name: "prerouting", Table: nat, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
	c.AddRule(&nftables.Rule{Table: nat, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 16, Len: 4},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: vip.AsSlice()},
		&expr.Immediate{Register: 1, Data: server.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	}})
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// measure gives the medians of a frame's time, whole and beyond the floor.
func (h *hop) measure(t testing.TB) (op, net float64) {
	t.Helper()
	err := h.ends.do(func() error {
		return onOneCore(func() error { op, net = h.rounds(t); return nil })
	})
	if err != nil {
		t.Fatal(err)
	}
	return op, net
}

func (h *hop) rounds(t testing.TB) (op, net float64) {
	t.Helper()
	before := h.forwarded(t)
	through := "in"
	if h.path.name == "floor" {
		through = "floor"
	}
	warm := h.clients + h.clients/10
	h.send(t, through, warm, true) // conntrack and the caches have met everybody
	var ops, nets []float64
	for range hopRounds {
		floor := h.send(t, "floor", hopFrames, false)
		ops = append(ops, h.send(t, through, hopFrames, false))
		nets = append(nets, ops[len(ops)-1]-floor)
	}
	if n := h.forwarded(t) - before; h.path.plane && n < uint64(warm+hopRounds*hopFrames) {
		t.Fatalf("the plane forwarded %d of %d frames to known clients' servers", n, warm+hopRounds*hopFrames)
	}
	return median(ops), median(nets)
}

// forwarded is how many packets the plane sent by their records.
func (h *hop) forwarded(t testing.TB) uint64 {
	if h.plane == nil {
		return 0
	}
	return allCounts(t, h.plane).Reasons[table.ForwardAffinity].Packets
}

// send lets frames run and gives the time of one, in ns. All must arrive.
func (h *hop) send(t testing.TB, through string, frames int, sequential bool) float64 {
	t.Helper()
	frame, plan := hopPlan(t, h.ifindex[through], h.clients, sequential, h.rng.Uint32())
	plan.Frames = uint64(frames)
	if err := h.coll.Maps["plans"].Put(uint32(0), &plan); err != nil {
		t.Fatal(err)
	}
	before := h.arrived(t)
	o := &ebpf.RunOptions{Data: frame, Repeat: uint32(frames), Flags: liveFrames}
	if _, err := h.coll.Programs["hop_generate"].Run(o); err != nil {
		t.Fatal(err)
	}
	if err := h.coll.Maps["plans"].Lookup(uint32(0), &plan); err != nil {
		t.Fatal(err)
	}
	var n uint64
	arrive := func() bool { n = h.arrived(t) - before; return n >= plan.Sent }
	for deadline := time.Now().Add(time.Second); !arrive() && time.Now().Before(deadline); {
		runtime.Gosched() // what is left is ksoftirqd's
	}
	if n != plan.Sent {
		t.Fatalf("%d of %d frames arrived", n, plan.Sent)
	}
	if plan.Sent != plan.Frames { // a signal: the run began again
		return h.send(t, through, frames, sequential)
	}
	return float64(plan.Ended-plan.Began) / float64(frames)
}

// arrived is how many frames the sinks have counted.
func (h *hop) arrived(t testing.TB) (n uint64) {
	t.Helper()
	var perCPU []uint64
	if err := h.coll.Maps["arrived"].Lookup(uint32(0), &perCPU); err != nil {
		t.Fatal(err)
	}
	for _, v := range perCPU {
		n += v
	}
	return n
}

// hopPlan makes the frame of a client and tells the generator how to vary it.
func hopPlan(t testing.TB, ifindex, clients int, sequential bool, seed uint32) ([]byte, hopbench.HopHopPlan) {
	frame := espFrame(t, 4, clientAddr(4, firstKnown4), netip.MustParseAddr(bedVIP4))
	p := hopbench.HopHopPlan{Clients: uint32(clients), First: firstKnown4, Ifindex: uint32(ifindex), Seed: seed | 1}
	if sequential {
		p.Sequential = 1
	}
	bare := append([]byte(nil), frame...)
	clear(bare[24:30]) // sum and source
	clear(bare[40:42]) // UDP's sum
	p.IpSum = nativeSum(bare[14:34])
	pseudo := append([]byte{0, unix.IPPROTO_UDP}, bare[38:40]...)
	p.UdpSum = nativeSum(bare[30:]) + nativeSum(pseudo)
	p.Start = uint64(binary.NativeEndian.Uint32(bare)) | uint64(binary.NativeEndian.Uint16(bare[4:]))<<32
	for i := range p.Head {
		p.Head[i] = binary.NativeEndian.Uint64(bare[6+8*i:])
	}
	return frame, p
}

// nativeSum adds 16-bit words up as the machine loads them, folded once.
func nativeSum(b []byte) (sum uint32) {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(binary.NativeEndian.Uint16(b))
	}
	return sum&0xffff + sum>>16
}
