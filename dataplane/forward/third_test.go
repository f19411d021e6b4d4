package forward

import (
	"net"
	"net/netip"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	keeper "github.com/vpnlb/vpnlb/dataplane/sysctl"
)

// third adds a host behind an interface of the node that no policy names.
func (l *lane) third() netns.NsHandle {
	l.t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		l.t.Fatal(err)
	}
	host, err := netns.New()
	if err != nil {
		l.t.Fatal(err)
	}
	if err := netns.Set(home); err != nil {
		l.t.Fatal(err)
	}
	runtime.UnlockOSThread()
	l.t.Cleanup(func() { host.Close() })
	l.wire("vpnlbfw2", host, []string{"198.18.9.2/24", "2001:db8:9::2/64"}, l.node, "mgmt0", []string{"198.18.9.1/24", "2001:db8:9::1/64"})
	l.in(host, func() error {
		if err := defaultVia("198.18.9.1"); err != nil {
			return err
		}
		return defaultVia("2001:db8:9::1")
	})
	l.knows("mgmt0", host, "vpnlbfw2", "198.18.9.2", "2001:db8:9::2")
	return host
}

// The settings for IPv6 switch forwarding on for every interface. A host behind
// an interface of neither side must not reach the servers' segment or the
// clients' side by that.
func TestThirdInterfaceReachesNeitherSide(t *testing.T) {
	l := newLane(t)
	host := l.third()
	inside, outside := l.ear(l.server, serverArm), l.ear(l.client, clientArm)
	l.in(l.node, func() error {
		s := keeper.New("/proc/thread-self/root/proc/sys", filepath.Join(t.TempDir(), "s"), keeper.Wanted([]string{"out0", "in0"}))
		_, err := s.Mend(keeper.IPv6([]string{"out0", "in0"})...)
		return err
	})
	var k Keeper
	check := func(when string, toServer, toPrefix, toClient bool) {
		t.Helper()
		for i, p := range plans {
			from := []string{"198.18.9.2", "2001:db8:9::2"}[i]
			// The node's own packet passes under every policy and is the last.
			own := []string{"198.51.100.1", "2001:db8:2::1"}[i]
			l.expectThird(when+", inside, "+p.name, host, inside, datagram(p.family, own, p.server, unix.IPPROTO_UDP, udp(9), false), []probe{
				{"RDP of a server", datagram(p.family, from, p.server, unix.IPPROTO_TCP, tcp(3389), false), toServer},
				{"IKE of a server", datagram(p.family, from, p.server, unix.IPPROTO_UDP, udp(500), false), toServer},
				{"RDP of another host", datagram(p.family, from, p.other, unix.IPPROTO_TCP, tcp(3389), false), toPrefix},
			})
			own = []string{"192.0.2.1", "2001:db8:1::1"}[i]
			l.expectThird(when+", outside, "+p.name, host, outside, datagram(p.family, own, p.client, unix.IPPROTO_UDP, udp(9), false), []probe{
				{"a client", datagram(p.family, from, p.client, unix.IPPROTO_UDP, udp(53), false), toClient},
			})
		}
	}
	const yes, no = true, false
	check("without a policy", yes, yes, yes)
	vips := []netip.Addr{netip.MustParseAddr(four.vip), netip.MustParseAddr(six.vip)}
	l.mend(&k, Policy{Outside: []string{"out0"}, Inside: []string{"in0"}, VIPs: vips, Servers: servers()})
	check("default", no, no, no)
	l.mend(&k, Policy{Outside: []string{"in0"}, Inside: []string{"in0"}, VIPs: vips, Servers: servers()})
	check("one interface, the other unnamed", no, no, yes)
	l.mend(&k, strict())
	check("with prefixes", no, yes, no)
	// Several interfaces of a side are named like one.
	l.mend(&k, Policy{Outside: []string{"out0", "mgmt0"}, Inside: []string{"in0"}, VIPs: vips, Servers: servers()})
	check("named outside", yes, no, no)
	l.mend(&k, Policy{Outside: []string{"out0"}, Inside: []string{"in0", "mgmt0"}, VIPs: vips, Servers: servers()})
	check("named inside", yes, yes, yes)
}

// expectThird sends probes from the third host and then one of the node itself, which
// passes under every policy. In between a packet of the third host reaches a socket
// of the node: one queue serves both, so the probes were forwarded or dropped by then.
func (l *lane) expectThird(when string, host netns.NsHandle, at *ear, last packet, probes []probe) {
	l.t.Helper()
	for _, p := range probes {
		l.send(host, p.packet)
	}
	l.passed(host)
	l.send(l.node, last)
	l.judge(when, at.until(last.mark), probes)
}

// passed waits until a packet from the third host has reached the node.
func (l *lane) passed(host netns.NsHandle) {
	l.t.Helper()
	var socket net.PacketConn
	l.in(l.node, func() (err error) { socket, err = net.ListenPacket("udp", "198.18.9.1:0"); return err })
	defer socket.Close()
	l.in(host, func() error {
		c, err := net.Dial("udp", socket.LocalAddr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write([]byte("x"))
		return err
	})
	socket.SetReadDeadline(time.Now().Add(30 * time.Second))
	if _, _, err := socket.ReadFrom(make([]byte, 16)); err != nil {
		l.t.Fatal(err)
	}
}
