package forward

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

var plans = []struct {
	name string
	plan
}{{"ipv4", four}, {"ipv6", six}}

func servers() []netip.Addr {
	return []netip.Addr{netip.MustParseAddr(four.server), netip.MustParseAddr(six.server)}
}

// strict lets nothing to the servers but our own traffic.
func strict() Policy {
	return Policy{Outside: []string{"out0"}, Inside: []string{"in0"}, Servers: servers(),
		Prefixes: []netip.Prefix{netip.MustParsePrefix("198.51.100.48/29"), netip.MustParsePrefix("2001:db8:2::50/124")}}
}

// toServer is what a client sends; own: what our own traffic may do, tcp: with
// TCP, rest: everything else.
func (p plan) toServer(own, tcp443, rest bool) []probe {
	to := func(name string, proto byte, head []byte, later, want bool) probe {
		return probe{name, datagram(p.family, p.client, p.server, proto, head, later), want}
	}
	out := []probe{
		to("IKE", unix.IPPROTO_UDP, udp(500), false, own),
		to("IKE behind NAT", unix.IPPROTO_UDP, udp(4500), false, own),
		to("later fragment of UDP", unix.IPPROTO_UDP, udp(1), true, own),
		to("ESP", unix.IPPROTO_ESP, []byte{0, 0, 0, 1, 0, 0, 0, 1}, false, own),
		to("later fragment of ESP", unix.IPPROTO_ESP, nil, true, own),
		to("TCP 443", unix.IPPROTO_TCP, tcp(443), false, tcp443),
		to("later fragment of TCP", unix.IPPROTO_TCP, tcp(1), true, tcp443),
		to("TCP 3389", unix.IPPROTO_TCP, tcp(3389), false, rest),
		to("RADIUS", unix.IPPROTO_UDP, udp(1812), false, rest),
		to("GRE", unix.IPPROTO_GRE, []byte{0, 0, 8, 0}, false, rest),
		to("later fragment of GRE", unix.IPPROTO_GRE, []byte{0, 0, 8, 0}, true, rest),
		to("echo request", p.icmp, icmp(echo(p.family), 0), false, rest),
	}
	kinds := []byte{3, 11, 12}
	if p.number == unix.NFPROTO_IPV6 {
		kinds = []byte{1, 2, 3, 4}
	}
	for _, kind := range kinds {
		out = append(out, to(fmt.Sprint("ICMP error ", kind), p.icmp, icmp(kind, 0), false, own))
	}
	return out
}

func echo(f family) byte {
	if f.number == unix.NFPROTO_IPV4 {
		return 8
	}
	return 128
}

func (p plan) toOther(want bool) []probe {
	return []probe{
		{"DNS elsewhere", datagram(p.family, p.client, p.other, unix.IPPROTO_UDP, udp(53), false), want},
		{"IKE elsewhere", datagram(p.family, p.client, p.other, unix.IPPROTO_UDP, udp(500), false), want},
	}
}

func TestPolicy(t *testing.T) {
	l := newLane(t)
	inside, outside := l.ear(l.server, serverArm), l.ear(l.client, clientArm)
	var k Keeper
	check := func(when string, own, tcp443, rest, other bool) {
		t.Helper()
		for _, p := range plans {
			last := datagram(p.family, p.client, p.server, unix.IPPROTO_UDP, udp(4500), false)
			l.expect(when+", "+p.name, l.client, inside, last, append(p.toServer(own, tcp443, rest), p.toOther(other)...))
			// The way back: replies carry the VIP, which is on lo of the node.
			last = datagram(p.family, p.server, p.client, unix.IPPROTO_UDP, udp(4500), false)
			l.expect(when+", back, "+p.name, l.server, outside, last, []probe{
				{"a reply", datagram(p.family, p.vip, p.client, unix.IPPROTO_UDP, udp(4500), false), true},
				{"ESP of a reply", datagram(p.family, p.vip, p.client, unix.IPPROTO_ESP, nil, false), true},
				{"TCP of a reply", datagram(p.family, p.vip, p.client, unix.IPPROTO_TCP, tcp(12345), false), true},
				{"a fragment of a reply", datagram(p.family, p.vip, p.client, unix.IPPROTO_UDP, udp(1), true), true},
				{"an error", datagram(p.family, p.vip, p.client, p.icmp, icmp(p.icmpErrors[0], 0), false), true},
				{"DNS of a server", datagram(p.family, p.server, p.client, unix.IPPROTO_UDP, udp(53), false), true},
				{"of another host", datagram(p.family, p.other, p.client, unix.IPPROTO_TCP, tcp(80), false), true},
			})
		}
	}
	const yes, no = true, false
	check("without a policy", yes, yes, yes, yes)

	p := Policy{Outside: []string{"out0"}, Inside: []string{"in0"}, Servers: servers()}
	if !l.mend(&k, p) {
		t.Error("the first Mend changed nothing")
	}
	if l.mend(&k, p) {
		t.Error("the second Mend wrote again")
	}
	check("default", yes, yes, yes, no)

	p = strict()
	l.mend(&k, p)
	check("with prefixes", yes, no, no, yes)
	p.TCP = true
	if !l.mend(&k, p) {
		t.Error("TCP changed nothing")
	}
	check("with TCP", yes, yes, no, yes)

	// Somebody removes the table: it comes back.
	l.in(l.node, Remove)
	check("removed", yes, yes, yes, yes)
	if !l.mend(&k, p) {
		t.Error("a removed table was not written again")
	}
	check("mended", yes, yes, no, yes)
	l.in(l.node, Remove)
	l.in(l.node, Remove) // twice is no error
}

// The table of a version that knew IPv4 alone goes when the policy is written.
func TestFormerTableGoes(t *testing.T) {
	l := newLane(t)
	former := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName}
	left := func() (there bool) {
		l.in(l.node, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
			there = len(tables) > 0
			return err
		})
		return there
	}
	l.in(l.node, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.AddTable(former)
		return c.Flush()
	})
	if !left() {
		t.Fatal("nothing to remove")
	}
	var k Keeper
	l.mend(&k, Policy{Outside: []string{"out0"}, Inside: []string{"in0"}, Servers: servers()})
	if left() {
		t.Error("the former table is still there")
	}
}

// A table of ours that somebody flushed, or a part of it, is written again.
func TestFlushedTableIsWrittenAgain(t *testing.T) {
	l := newLane(t)
	inside := l.ear(l.server, serverArm)
	var k Keeper
	p := strict()
	for _, flush := range []struct {
		name string
		do   func(*nftables.Conn)
		open bool // what that leaves lets everything through
	}{
		{"table", func(c *nftables.Conn) { c.FlushTable(ownTable) }, true},
		{"chain", func(c *nftables.Conn) { c.FlushChain(forwardChain) }, true},
		{"output chain", func(c *nftables.Conn) { c.FlushChain(outputChain) }, false},
		{"set", func(c *nftables.Conn) { c.FlushSet(&nftables.Set{Table: ownTable, Name: serverSetNames[0]}) }, false},
	} {
		l.mend(&k, p)
		l.in(l.node, func() error {
			c, err := nftables.New()
			if err != nil {
				return err
			}
			flush.do(c)
			return c.Flush()
		})
		toServer := func() packet {
			return datagram(six.family, six.client, six.server, unix.IPPROTO_UDP, udp(500), false)
		}
		other := func() packet {
			return datagram(four.family, four.client, four.server, unix.IPPROTO_UDP, udp(53), false)
		}
		l.expect("flushed "+flush.name, l.client, inside, toServer(), []probe{{"DNS to a server", other(), flush.open}})
		if !l.mend(&k, p) {
			t.Errorf("%s: flushed and not written again", flush.name)
		}
		l.expect("mended "+flush.name, l.client, inside, toServer(), []probe{{"DNS to a server", other(), false}})
		if l.mend(&k, p) {
			t.Errorf("%s: written twice", flush.name)
		}
	}
}

// A node that does not know what was agreed lets nothing through from outside, and
// leaves alone what it finds.
func TestGuard(t *testing.T) {
	l := newLane(t)
	inside := l.ear(l.server, serverArm)
	closed := Policy{Outside: []string{"out0"}, Inside: []string{"in0"}}
	guard := func(want bool) {
		t.Helper()
		l.in(l.node, func() error {
			written, err := Guard(closed)
			if err == nil && written != want {
				err = fmt.Errorf("written: %t, want %t", written, want)
			}
			return err
		})
	}
	guard(true)
	for _, p := range plans {
		for _, x := range append(p.toServer(false, false, false), p.toOther(false)...) {
			l.send(l.client, x.packet)
		}
	}
	// Packets do not overtake each other on a veth: this one, of the node itself, is the last.
	last := datagram(four.family, "198.51.100.1", four.server, unix.IPPROTO_UDP, udp(1), false)
	l.send(l.node, last)
	for _, h := range inside.until(last.mark) {
		if bytes.Contains(h, []byte("vpnlb:")) && !bytes.Contains(h, last.mark) {
			t.Errorf("came through a closed node: %x", h)
		}
	}
	guard(false)

	// What was agreed stays, also when a new process does not know it yet.
	var k Keeper
	l.mend(&k, strict())
	guard(false)
	for _, p := range plans {
		last := datagram(p.family, p.client, p.server, unix.IPPROTO_UDP, udp(4500), false)
		l.expect("agreed, "+p.name, l.client, inside, last, append(p.toServer(true, false, false), p.toOther(true)...))
	}
}

// A family without a server or prefix gets nothing.
func TestOneFamily(t *testing.T) {
	l := newLane(t)
	inside := l.ear(l.server, serverArm)
	var k Keeper
	for i, p := range plans {
		policy := Policy{Outside: []string{"out0"}, Inside: []string{"in0"}, Servers: servers()[i : i+1], TCP: true}
		l.mend(&k, policy)
		last := datagram(p.family, p.client, p.server, unix.IPPROTO_UDP, udp(500), false)
		l.expect("own family, "+p.name, l.client, inside, last, p.toServer(true, true, true))
		none := plans[1-i].plan
		l.expect("other family than "+p.name, l.client, inside, last, append(none.toServer(false, false, false), none.toOther(false)...))
	}
}

// With one arm for both, a server is known by its address, a reply that the program
// has rewritten by the VIP and what it is; and no redirect teaches a server a way
// around the cluster.
func TestOneArmed(t *testing.T) {
	l := newLane(t)
	outside, inside := l.ear(l.client, clientArm), l.ear(l.server, serverArm)
	var k Keeper
	vips := []netip.Addr{netip.MustParseAddr(four.vip), netip.MustParseAddr(six.vip)}
	for _, tcp443 := range []bool{false, true} {
		l.mend(&k, Policy{Outside: []string{"in0"}, Inside: []string{"in0"}, VIPs: vips, Servers: servers(), TCP: tcp443})
		for _, p := range plans {
			last := datagram(p.family, p.server, p.client, unix.IPPROTO_UDP, udp(4500), false)
			from := func(name, source string, proto byte, head []byte, later, want bool) probe {
				return probe{name, datagram(p.family, source, p.client, proto, head, later), want}
			}
			l.expect(fmt.Sprintf("one arm, %s, TCP %t", p.name, tcp443), l.server, outside, last, []probe{
				from("DNS of a server", p.server, unix.IPPROTO_UDP, udp(53), false, true),
				from("of another host", p.other, unix.IPPROTO_UDP, udp(53), false, false),
				from("IKE of another host", p.other, unix.IPPROTO_UDP, fromPort(500), false, false),
				from("reply of IKE", p.vip, unix.IPPROTO_UDP, fromPort(500), false, true),
				from("reply of IKE behind NAT", p.vip, unix.IPPROTO_UDP, fromPort(4500), false, true),
				from("reply of ESP", p.vip, unix.IPPROTO_ESP, []byte{0, 0, 0, 1, 0, 0, 0, 1}, false, true),
				from("later fragment of a reply", p.vip, unix.IPPROTO_UDP, udp(1), true, true),
				from("ICMP error of a reply", p.vip, p.icmp, icmp(p.icmpErrors[0], 0), false, true),
				from("SSTP", p.vip, unix.IPPROTO_TCP, tcpFrom(443), false, tcp443),
				from("later fragment of TCP", p.vip, unix.IPPROTO_TCP, tcp(1), true, tcp443),
				from("to IKE, not from it", p.vip, unix.IPPROTO_UDP, udp(500), false, false),
				from("DNS as the VIP", p.vip, unix.IPPROTO_UDP, fromPort(53), false, false),
				from("echo as the VIP", p.vip, p.icmp, icmp(echo(p.family), 0), false, false),
			})
		}
	}
	// A router on the servers' segment knows the way to two clients.
	l.in(l.node, func() error {
		link, err := netlink.LinkByName("in0")
		if err != nil {
			return err
		}
		router := net.ParseIP("fe80::fe")
		if err := netlink.NeighSet(&netlink.Neigh{LinkIndex: link.Attrs().Index, IP: router, State: netlink.NUD_PERMANENT,
			HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 9, 9}}); err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: router,
			Dst: &net.IPNet{IP: net.ParseIP("2001:db8:4::"), Mask: net.CIDRMask(64, 128)}})
	})
	redirected := func(to string) bool {
		var heard [][]byte
		for range 2 { // the redirect is sent before the packet goes on
			p := datagram(ipv6, six.server, to, unix.IPPROTO_UDP, udp(53), false)
			l.send(l.server, p)
			heard = append(heard, inside.until(p.mark)...)
		}
		for _, h := range heard {
			if len(h) > 40 && h[6] == unix.IPPROTO_ICMPV6 && h[40] == 137 {
				return true
			}
		}
		return false
	}
	if redirected("2001:db8:4::1") {
		t.Error("a redirect was sent")
	}
	l.in(l.node, Remove)
	if !redirected("2001:db8:4::2") {
		t.Error("the kernel sends no redirect by itself: the rule can go")
	}
}
