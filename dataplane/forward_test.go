package dataplane

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// lane is a client, the node and two servers, each in a namespace, joined by
// veths. The test's thread is in the node's.
type lane struct {
	client, server *namespace
}

const (
	laneVIP    = "192.0.2.100"
	laneClient = "203.0.113.7"
	laneServer = "198.51.100.11"
	payloadLen = 32
)

// place makes a namespace with one end of a veth in it and gives a handle to it.
func place(t testing.TB, name, nodeEnd, nodeAddr, addr string) *namespace {
	t.Helper()
	node, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer node.Close()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = nodeEnd
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: name}); err != nil {
		t.Fatal(err)
	}
	near := up(t, nodeEnd)
	setAddr(t, near, nodeAddr)
	peer, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	own, err := netns.New() // this thread is in it now
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	n, err := openNamespace()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.Close)
	if err := netns.Set(node); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetNsFd(peer, int(own)); err != nil {
		t.Fatal(err)
	}
	inside(t, n, func() {
		up(t, "lo")
		l := up(t, name)
		setAddr(t, l, addr)
		gateway, _, _ := net.ParseCIDR(nodeAddr)
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Gw: gateway}); err != nil {
			t.Fatal(err)
		}
		passAll(t, l)
	})
	return n
}

// inside runs f in a namespace on the test's own thread, so that it may fail.
func inside(t testing.TB, n *namespace, f func()) {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	home, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer home.Close()
	if err := netns.Set(n.handle); err != nil {
		t.Fatal(err)
	}
	f()
	if err := netns.Set(home); err != nil {
		t.Fatal(err)
	}
}

func setAddr(t testing.TB, l netlink.Link, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		t.Fatal(err)
	}
}

// passAll puts a program that passes everything on a veth: without one, frames
// redirected to its peer are lost.
func passAll(t testing.TB, l netlink.Link) {
	t.Helper()
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "MIT",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	x, err := link.AttachXDP(link.XDPOptions{Program: prog, Interface: l.Attrs().Index, Flags: link.XDPDriverMode})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { x.Close() })
}

func newLane(t testing.TB) *lane {
	newNamespace(t)
	for _, s := range []string{"all", "default"} {
		sysctl(t, "net/ipv4/conf/"+s+"/accept_local", "1")
		sysctl(t, "net/ipv4/conf/"+s+"/rp_filter", "0")
		sysctl(t, "net/ipv4/conf/"+s+"/send_redirects", "0")
	}
	return &lane{
		client: place(t, "c0", "outside", "203.0.113.1/24", laneClient+"/24"),
		server: place(t, "s0", "inside", "198.51.100.1/24", laneServer+"/24"),
	}
}

func laneSet(index uint64) *table.Set {
	return &table.Set{ClusterID: testCluster, Index: index, Generation: index, TableSize: 251,
		VIPs: []table.VIP{{Index: 3, Addr: netip.MustParseAddr(laneVIP)}},
		Backends: []table.Backend{{Slot: 9, ID: 5, VIP: 3, Addr: netip.MustParseAddr(laneServer), Weight: 1,
			Stance: [table.Classes]table.Stance{table.Take, table.None}}},
		NotReturn: []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}}
}

// listen opens a UDP socket in a namespace.
func listen(t testing.TB, n *namespace, addr string) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	inside(t, n, func() {
		var err error
		if c, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(addr))); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// echo answers every datagram until its socket is closed.
func echo(c *net.UDPConn) {
	b := make([]byte, 2048)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		_, _ = c.WriteToUDPAddrPort(b[:n], from)
	}
}

// pinger sends numbered datagrams to the VIP and counts what comes back.
type pinger struct {
	conn *net.UDPConn
	mu   sync.Mutex
	seen map[uint32]bool
	from netip.AddrPort
}

func newPinger(t testing.TB, l *lane) *pinger {
	p := &pinger{conn: listen(t, l.client, laneClient+":4500"), seen: make(map[uint32]bool)}
	go func() {
		b := make([]byte, 2048)
		for {
			n, from, err := p.conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			if n != payloadLen {
				continue
			}
			p.mu.Lock()
			p.seen[binary.BigEndian.Uint32(b[4:])], p.from = true, from
			p.mu.Unlock()
		}
	}()
	return p
}

// send sends one datagram that looks like ESP in UDP.
func (p *pinger) send(t testing.TB, n uint32) {
	b := make([]byte, payloadLen)
	binary.BigEndian.PutUint32(b, 0xc0ffee)
	binary.BigEndian.PutUint32(b[4:], n)
	if _, err := p.conn.WriteToUDPAddrPort(b, netip.MustParseAddrPort(laneVIP+":4500")); err != nil {
		t.Error(err)
	}
}

func (p *pinger) got() (int, netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.seen), p.from
}

// The whole way through the kernel's drivers, next hops by the kernel itself, and
// a daemon that goes and comes back: no packet is lost.
// stream sends a numbered datagram each millisecond, from 1 on, until it is stopped, which
// gives the number of all with the first one, 0.
func (p *pinger) stream(t testing.TB) (stop func() uint32) {
	end, sent := make(chan struct{}), uint32(1)
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-end:
				return
			case <-tick.C:
				p.send(t, sent)
				sent++
			}
		}
	})
	return func() uint32 {
		close(end)
		done.Wait()
		return sent
	}
}

// awaitMore waits for so many answers more than there are.
func (p *pinger) awaitMore(t testing.TB, more int) {
	t.Helper()
	n, _ := p.got()
	eventually(t, "more answers", func() bool { now, _ := p.got(); return now >= n+more })
}

func TestForwardingSurvivesTheDaemon(t *testing.T) {
	l := newLane(t)
	go echo(listen(t, l.server, laneServer+":4500"))
	ping := newPinger(t, l)
	dir := newBPFFS(t)
	p := newPlane(t, dir, "outside", "inside")
	attachPlane(t, p)
	mustResync(t, p, laneSet(100), nil)
	for _, i := range p.Status().Interfaces {
		if i.Mode != Native || i.Alarm != "" || !i.Transmit || !i.Partial || i.Driver != "veth" {
			t.Errorf("interface %+v", i)
		}
	}
	ping.send(t, 0) // the kernel resolves both next hops
	eventually(t, "first answer", func() bool { n, _ := ping.got(); return n == 1 })

	stop := ping.stream(t)
	waitFor := func(more int) { ping.awaitMore(t, more) }
	waitFor(100)
	p.Close()
	waitFor(100) // nobody is there
	q := newPlane(t, dir, "outside", "inside")
	if pinned := attachPlane(t, q); len(pinned.TakenOver) != 2 {
		t.Errorf("took over %v", pinned.TakenOver)
	}
	waitFor(100)
	mustResync(t, q, laneSet(101), nil)
	runPlane(t, q)
	waitFor(200)
	sent := stop()
	eventually(t, "all answers", func() bool { n, _ := ping.got(); return n == int(sent) })
	if _, from := ping.got(); from.String() != laneVIP+":4500" {
		t.Errorf("answers come from %s", from)
	}
	c := allCounts(t, q)
	if c.Reasons[table.ForwardMaglev].Packets < 400 || c.Reasons[table.ForwardReturn].Packets < 400 || c.Returns[9].ESP < 400 {
		t.Errorf("counted %+v", c)
	}
	for r := table.DropMalformed; r < table.ReasonCount; r++ {
		if n := c.Reasons[r].Packets; n != 0 {
			t.Errorf("%d packets %s", n, r)
		}
	}
	if e := takeBatch(t, q.Evidence())[0]; e.Slot != 9 || e.Level != table.Confirmed {
		t.Errorf("evidence %+v", e)
	}
	t.Logf("%d datagrams, %d FIB questions, %d without neighbour", sent, c.Events.NextHopMiss, c.Reasons[table.PassNoNeighbour].Packets)
}

// A change of a neighbour reaches the program at once, not only when its cached
// next hop is too old.
func TestNeighbourChangeIsFollowed(t *testing.T) {
	newLane(t)
	permanentNeighbour(t, "inside", laneServer) // before the plane looks after ordinary ones
	p := newPlane(t, newBPFFS(t), "outside", "inside")
	attachPlane(t, p)
	mustResync(t, p, laneSet(100), nil)
	runPlane(t, p)
	inside, err := netlink.LinkByName("inside")
	if err != nil {
		t.Fatal(err)
	}
	outside, err := netlink.LinkByName("outside")
	if err != nil {
		t.Fatal(err)
	}
	frame := buildFrame(t, "eth router > outside | ip client > vip | udp 4500 > 4500 | esp size=100")
	copy(frame, outside.Attrs().HardwareAddr)
	for n := byte(1); n <= 3; n++ {
		mac := net.HardwareAddr{2, 0, 0, 0, 7, n}
		serial := p.control.words().NextHopSerial
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: inside.Attrs().Index, IP: net.ParseIP(laneServer),
			HardwareAddr: mac, State: netlink.NUD_PERMANENT}); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		var action uint32
		var out []byte
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("address %d: action %d, frame %x", n, action, out[:min(len(out), 64)])
			}
		})
		// The cached hop is void because the plane saw the change, not because of its age.
		eventually(t, "the change is seen", func() bool { return p.control.words().NextHopSerial != serial })
		t.Logf("change %d was seen after %s", n, time.Since(began))
		action, out = run(t, p.coll.Programs["vpnlb"], frame, uint32(outside.Attrs().Index))
		if action != 4 || !bytes.Equal(out[:6], mac) {
			t.Errorf("change %d is not followed", n)
		}
	}
	if _, ok := p.LookupEntry(clientKey(1)); ok {
		t.Error("a record out of nowhere")
	}
}

// A server answers what this node sent from an address that the member record does not
// name yet (DHCP, a new privacy address): no reply to a client, so the kernel's as it is.
func TestReplyToAnOwnAddressThatIsNotAgreed(t *testing.T) {
	const fresh = "198.51.100.77"
	l := newLane(t)
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	setAddr(t, lo, fresh+"/32")
	server := listen(t, l.server, laneServer+":4500")
	inside(t, l.server, func() {
		peer, err := netlink.LinkByName("s0")
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.RouteAdd(&netlink.Route{LinkIndex: peer.Attrs().Index, Dst: netlink.NewIPNet(net.ParseIP(fresh)), Gw: net.ParseIP("198.51.100.1")}); err != nil {
			t.Fatal(err)
		}
	})
	p := newPlane(t, newBPFFS(t), "outside", "inside")
	attachPlane(t, p)
	mustResync(t, p, laneSet(100), nil)
	own, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(fresh), Port: 45000})
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	answer := append([]byte{0, 0, 0, 0}, ike.Header{InitiatorSPI: 1, NextPayload: ike.SecurityAssoc, Version: ike.MajorVersion << 4,
		Exchange: ike.SAInit, Flags: ike.FlagResponse, Length: ike.HeaderLen}.Append(nil)...)
	b := make([]byte, 2048)
	eventually(t, "the answer arrives at this node", func() bool {
		if _, err := server.WriteToUDPAddrPort(answer, netip.MustParseAddrPort(fresh+":45000")); err != nil {
			t.Fatal(err)
		}
		own.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		n, _, err := own.ReadFromUDP(b)
		return err == nil && bytes.Equal(b[:n], answer)
	})
	if n := allCounts(t, p).Reasons[table.PassNotForwarded].Packets; n == 0 {
		t.Error("not counted as pass_not_forwarded")
	}
}
