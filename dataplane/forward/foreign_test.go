package forward

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// foreignTable is what another program writes, and what is said of it.
type foreignTable struct {
	name   string
	apply  string   // shell
	tables []string // that hold an obstacle
	remedy string   // a line of it, where it cannot be run here
}

var foreignTables = []foreignTable{
	{name: "none", apply: "true"},
	{name: "Docker", tables: []string{"ip filter"},
		apply: `iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER; iptables -A DOCKER-USER -j RETURN
			iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			iptables -A FORWARD -i docker0 ! -o docker0 -j ACCEPT`},
	{name: "Docker with the lines",
		apply: `iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A FORWARD -j DOCKER-USER
			iptables -I DOCKER-USER -i in0 -o out0 -j ACCEPT; iptables -I DOCKER-USER -i out0 -o in0 -j ACCEPT`},
	{name: "ufw", tables: []string{"ip filter"}, remedy: "ufw route allow in on in0 out on out0",
		apply: `iptables -P FORWARD DROP; iptables -P INPUT DROP; iptables -N ufw-before-forward; iptables -A FORWARD -j ufw-before-forward
			iptables -A ufw-before-forward -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
			iptables -N ufw-user-input; iptables -A INPUT -j ufw-user-input; iptables -A ufw-user-input -p tcp --dport 22 -j ACCEPT`},
	{name: "firewalld", tables: []string{"inet firewalld"}, remedy: "firewall-cmd --permanent --zone=$(firewall-cmd --get-zone-of-interface=out0) --add-port=443/tcp",
		apply: `nft -f - <<'X'
table inet firewalld {
	chain filter_FORWARD {
		type filter hook forward priority filter + 10; policy accept;
		ct state { established, related } accept
		ct status dnat accept
		iifname "lo" accept
		ct state invalid drop
		jump filter_FORWARD_ZONES
		reject with icmpx type admin-prohibited
	}
	chain filter_FORWARD_ZONES {
		iifname vmap { "out0" : goto public, "in0" : goto public }
		goto public
	}
	chain public {
		meta l4proto { icmp, ipv6-icmp } accept
	}
	chain filter_INPUT {
		type filter hook input priority filter + 10; policy accept;
		ct state { established, related } accept
		iifname "lo" accept
		meta l4proto { icmp, ipv6-icmp } accept
		tcp dport { 22, 8000-8100 } ct state { new, untracked } accept
		reject with icmpx type admin-prohibited
	}
}
X`},
	{name: "plain", tables: []string{"inet mine"},
		apply: `nft add table inet mine; nft add chain inet mine forward '{ type filter hook forward priority 0; policy drop; }'
			nft add chain inet mine input '{ type filter hook input priority 0; }'; nft add rule inet mine input iifname out0 tcp dport 1-1023 drop`},
	{name: "an administrator's own that lets it through",
		apply: `nft -f - <<'X'
table inet mine {
	set servers { type ipv4_addr; flags interval; elements = { 198.51.100.96/27 } }
	chain forward {
		type filter hook forward priority filter; policy drop;
		iifname "out0" oifname "in0" ip daddr @servers udp dport { 500, 4500 } accept
		iifname { "in0", "other*" } meta nfproto ipv4 accept
		ip6 saddr 2001:db8::/32 counter accept
	}
	chain input {
		type filter hook input priority filter; policy drop;
		tcp dport 443 accept
		udp dport 9 accept
		meta l4proto ipv6-icmp accept
	}
}
X`},
}

func foreignPassages() []Passage {
	var out []Passage
	for _, p := range plans {
		client := netip.MustParseAddr(p.client)
		server, vip := netip.MustParseAddr(p.server), netip.MustParseAddr(p.vip)
		out = append(out,
			Passage{Name: "packets of clients", In: "out0", Out: "in0", Source: client, Dest: server, Protocol: unix.IPPROTO_UDP, SrcPort: 12345, DstPort: 4500},
			Passage{Name: "replies of servers", In: "in0", Out: "out0", Source: vip, Dest: client, Protocol: unix.IPPROTO_UDP, SrcPort: 4500, DstPort: 12345},
			Passage{Name: "SSTP", In: "out0", Source: client, Dest: vip,
				Protocol: unix.IPPROTO_TCP, SrcPort: 12345, DstPort: 443})
	}
	return out
}

// What is judged of other programs' tables is what the kernel does with real packets,
// and the lines that are proposed mend it.
func TestObstacles(t *testing.T) {
	for _, f := range foreignTables {
		t.Run(f.name, func(t *testing.T) {
			l := newLane(t)
			l.shell(f.apply)
			found := l.compare()
			var tables []string
			for i := range found {
				tables = append(tables, found[i].Table)
			}
			if tables = slices.Compact(tables); !slices.Equal(tables, f.tables) {
				t.Errorf("obstacles in %v, want %v", tables, f.tables)
			}
			if f.remedy != "" {
				said := ""
				for i := range found {
					said += found[i].Text() + "\n"
				}
				if !strings.Contains(said, f.remedy) {
					t.Errorf("%q is not in:\n%s", f.remedy, said)
				}
				return
			}
			for i := range found {
				for _, line := range found[i].Remedy() {
					l.shell(line)
				}
			}
			if left := l.compare(); len(left) > 0 {
				t.Errorf("the proposed lines do not help: %s", left[0].Text())
			}
		})
	}
}

func (l *lane) shell(script string) {
	l.t.Helper()
	l.in(l.node, func() error {
		if out, err := exec.Command("sh", "-ec", script).CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", script, err, out)
		}
		return nil
	})
}

// compare holds what is judged against what happens.
func (l *lane) compare() (found []Obstacle) {
	l.t.Helper()
	l.in(l.node, func() (err error) { found, err = Obstacles(foreignPassages()); return err })
	dropped := make(map[Passage]bool)
	for i := range found {
		for _, p := range found[i].Passages {
			dropped[p] = true
		}
	}
	for _, p := range foreignPassages() {
		passes := l.connects(p, !dropped[p])
		if p.Out != "" {
			passes = l.forwards(p)
		}
		if passes == dropped[p] {
			l.t.Errorf("%s to %s pass: %t, but judged as dropped: %t", p.Name, p.Dest, passes, dropped[p])
		}
	}
	return found
}

// forwards sends a packet like p and tells whether it comes out at the other side.
func (l *lane) forwards(p Passage) bool {
	l.t.Helper()
	ns, at, own, dest := l.client, l.ear(l.server, serverArm), "198.51.100.1", four.server
	if p.In == "in0" {
		ns, at, own, dest = l.server, l.ear(l.client, clientArm), "192.0.2.1", four.client
	}
	head := append(fromPort(p.SrcPort)[:2], udp(p.DstPort)[2:]...)
	like := func() packet {
		return datagram(p.family(), p.Source.String(), p.Dest.String(), p.Protocol, head, false)
	}
	first, second := like(), like()
	arrived := l.ear(l.node, p.In)
	l.send(ns, first)
	l.send(ns, second)
	arrived.until(second.mark) // one queue serves both: the first has been dealt with
	last := datagram(ipv4, own, dest, unix.IPPROTO_UDP, udp(9), false)
	l.send(l.node, last)
	for _, h := range at.until(last.mark) {
		if bytes.Contains(h, first.mark) {
			return true
		}
	}
	return false
}

// connects dials the VIP. Where the connection is wanted there is time for it.
func (l *lane) connects(p Passage, wanted bool) (ok bool) {
	l.t.Helper()
	if p.Out != "" {
		return false
	}
	wait := time.Second
	if wanted {
		wait = 30 * time.Second
	}
	var listener net.Listener
	l.in(l.node, func() (err error) {
		listener, err = net.Listen("tcp", netip.AddrPortFrom(p.Dest, p.DstPort).String())
		return err
	})
	defer listener.Close()
	l.in(l.client, func() error {
		c, err := net.DialTimeout("tcp", netip.AddrPortFrom(p.Dest, p.DstPort).String(), wait)
		if ok = err == nil; ok {
			c.Close()
		}
		return nil
	})
	return ok
}
