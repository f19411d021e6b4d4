package node

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// served is a VIP with servers of its own in a town.
type served struct {
	tw    *town
	vip   netip.Addr
	slots map[netip.Addr]table.Slot // of the servers
	names map[table.Slot]string
	addrs map[table.Slot]netip.Addr
}

// serve adds a VIP and servers that are up for IKE, and for TCP where the VIP
// has SSTP.
func (tw *town) serve(v *vnode, vip state.VIP, mode state.Mode, servers ...string) *served {
	tw.t.Helper()
	v.propose(state.PutVIP{VIP: vip})
	tw.agree(tw.nodes...)
	at, _ := v.m.spec().VIPByName(vip.Name)
	s := &served{tw: tw, vip: vip.Addr, slots: map[netip.Addr]table.Slot{}, names: map[table.Slot]string{}, addrs: map[table.Slot]netip.Addr{}}
	for i, text := range servers {
		name, addr := fmt.Sprintf("%s-%d", vip.Name, i+1), netip.MustParseAddr(text)
		v.propose(state.PutBackend{Backend: state.Backend{Name: name, Addr: addr, VIP: at.ID, Mode: mode, Weight: 100}})
		tw.agree(tw.nodes...)
		v.judge(name, state.VerdictUp)
		if vip.SSTP != state.SSTPOff {
			tw.agree(tw.nodes...)
			v.judgeClass(name, state.ClassTCP, state.VerdictUp)
		}
		b, _ := v.m.spec().BackendByName(name)
		slot := table.Slot(b.Slot)
		s.slots[addr], s.names[slot], s.addrs[slot] = slot, name, addr
	}
	tw.agree(tw.nodes...)
	return s
}

// frame makes a packet: its layers above IP are in the words of the fixtures.
func (tw *town) frame(from, to netip.Addr, layers string) []byte {
	tw.t.Helper()
	ip := "ip"
	if from.Is6() {
		ip = "ip6"
	}
	f, err := fixture.Build(fmt.Sprintf("eth router > outside | %s %s > %s | %s", ip, from, to, layers))
	if err != nil {
		tw.t.Fatal(err)
	}
	copy(f, mac[:])
	return f
}

// cross lets a packet cross a node; what it proves is learnt.
func (v *vnode) cross(from, to netip.Addr, layers string) model.Decision {
	v.town.t.Helper()
	d := v.wire.decide(v.town.frame(from, to, layers))
	if d.Verdict != model.Forward {
		v.town.t.Errorf("%s: %s > %s %s was not forwarded: %v", v.host, from, to, layers, d.Reason)
	}
	if d.Evidence != nil {
		v.m.learner.Offer([]table.Evidence{*d.Evidence})
	}
	return d
}

// learnt waits until nothing is left to learn.
func (tw *town) learnt() {
	tw.t.Helper()
	tw.eventually(10*time.Second, "learn", func() bool {
		return !slices.ContainsFunc(tw.nodes, func(v *vnode) bool { return v.m.learner.Pending() > 0 })
	})
	tw.agree(tw.nodes...)
}

func datagram(port uint16, payload []byte) string {
	return fmt.Sprintf("udp %d > %d | bytes %s", port, port, hex.EncodeToString(payload))
}

var (
	loginIn  = datagram(500, saInit)
	tunnelIn = datagram(4500, esp)
	authOut  = datagram(4500, authEnd)
	// authIn is a client's IKE_AUTH request: it knows the server's SPI.
	authIn = datagram(4500, ike.Marked(ike.Message(ike.Header{InitiatorSPI: 7, ResponderSPI: 8, NextPayload: ike.Encrypted,
		Exchange: ike.Auth, Flags: ike.FlagInitiator, MessageID: 1}, ike.ProtectedBody(ike.NoPayload, 64))))
)

const (
	synIn   = "tcp 50000 > 443 flags=2"
	ackIn   = "tcp 50000 > 443 flags=16"
	helloIn = "tcp 443 > 50000 flags=24 | fill 90"
)

// everywhere is where a packet of a client goes; all nodes must say the same.
func (s *served) everywhere(client netip.Addr, layers string) table.Slot {
	s.tw.t.Helper()
	slot := s.tw.nodes[0].cross(client, s.vip, layers).Slot
	for _, v := range s.tw.nodes[1:] {
		if other := v.cross(client, s.vip, layers).Slot; other != slot {
			s.tw.t.Errorf("%s %s goes to %d and to %d", client, layers, slot, other)
		}
	}
	return slot
}

// An IPv6 VIP: a client is its /64, whatever address it sends from, on any node.
func TestVirtualIPv6(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		four := tw.enter(60, nodes...)
		s := tw.serve(nodes[1], state.VIP{Name: "six", Addr: netip.MustParseAddr("2001:db8:10::10"), ClientBits: 64}, state.ModeDNAT,
			"2001:db8:1::101", "2001:db8:1::102", "2001:db8:1::103")
		client := func(i, host int) netip.Addr {
			return netip.MustParseAddr(fmt.Sprintf("2001:db8:c:%x::%x", i, host))
		}
		const clients = 200
		home := make([]table.Slot, clients)
		for i := range home {
			home[i] = s.everywhere(client(i, 1), loginIn)
			nodes[(i+1)%3].cross(s.addrs[home[i]], client(i, 1), authOut)
		}
		tw.learnt()
		for i := range home { // the tunnel from another address of the /64
			nodes[(i+2)%3].cross(s.addrs[home[i]], client(i, 2), tunnelIn)
		}
		tw.learnt()
		if got := nodes[0].m.spec().Affinities; got != clients+60 {
			t.Errorf("%d records of %d clients", got, clients+60)
		}
		a, ok := nodes[2].m.view().Affinity(state.Key{Client: state.ClientOf(client(7, 1), 64), Class: state.ClassIKE})
		if !ok || a.State != state.Confirmed || table.Slot(a.Backend) != home[7] {
			t.Errorf("the record of a client is %+v", a)
		}
		used := map[table.Slot]int{}
		check := func(when string, moved table.Slot) {
			t.Helper()
			for i, at := range home {
				login, tunnel := s.everywhere(client(i, 3), loginIn), s.everywhere(client(i, 4), tunnelIn)
				if tunnel != at || (login != at) != (at == moved) {
					t.Errorf("%s: client %d of %d: logins to %d, tunnel to %d", when, i, at, login, tunnel)
				}
				used[at]++
			}
			four.check(when, nil, nodes...)
		}
		check("after the login", 0)
		if len(used) != 3 {
			t.Errorf("%d servers have clients", len(used))
		}
		nodes[0].judge("six-2", state.VerdictDown)
		tw.agree(nodes...)
		dead := s.slots[netip.MustParseAddr("2001:db8:1::102")]
		check("while one is down", dead)
		for i, at := range home {
			if at == dead {
				home[i] = s.everywhere(client(i, 1), loginIn)
				nodes[i%3].cross(s.addrs[home[i]], client(i, 5), authOut)
			}
		}
		tw.learnt()
		nodes[0].judge("six-2", state.VerdictUp)
		tw.agree(nodes...)
		check("when it is back", 0)
	})
}

// DSR: what clients send earns records; a server that goes offline loses them at
// once, on all nodes, and gets nobody back.
func TestVirtualDSR(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		s := tw.serve(nodes[0], state.VIP{Name: "direct", Addr: netip.MustParseAddr("203.0.113.20"), ClientBits: 64}, state.ModeDSR,
			"198.51.100.201", "198.51.100.202")
		const clients = 60
		home := make([]table.Slot, clients)
		for i := range home {
			v := nodes[i%3]
			home[i] = s.everywhere(clientAddr(i), loginIn)
			v.cross(clientAddr(i), s.vip, authIn)
			v.cross(clientAddr(i), s.vip, tunnelIn) // proves nothing before there is a record
		}
		tw.learnt()
		time.Sleep(2 * time.Second)
		for _, packet := range []string{authIn, tunnelIn} {
			for i := range home {
				nodes[i%3].cross(clientAddr(i), s.vip, packet)
			}
			tw.learnt()
			time.Sleep(2 * time.Second)
		}
		for i := range home {
			nodes[i%3].cross(clientAddr(i), s.vip, tunnelIn)
		}
		tw.learnt()
		confirmed := 0
		counts := func() (n [2]int) {
			confirmed = 0
			for a := range nodes[2].m.view().Affinities() {
				b, _ := nodes[2].m.spec().BackendByID(a.Backend)
				if a.State == state.Confirmed {
					confirmed++
				}
				n[table.Slot(b.Slot)-s.slots[netip.MustParseAddr("198.51.100.201")]]++
			}
			return n
		}
		before := counts()
		if before[0]+before[1] != clients || before[0] == 0 || before[1] == 0 || confirmed != clients {
			t.Fatalf("records %v of %d clients, %d confirmed", before, clients, confirmed)
		}
		first := s.slots[netip.MustParseAddr("198.51.100.201")]
		nodes[1].setAdmin("direct-1", state.AdminDrain)
		tw.agree(nodes...)
		for i, at := range home {
			if got := s.everywhere(clientAddr(i), loginIn); got != at {
				t.Errorf("while it drains client %d of %d goes to %d", i, at, got)
			}
		}
		nodes[1].setAdmin("direct-1", state.AdminOffline)
		tw.agree(nodes...)
		if got := counts(); got != [2]int{0, before[1]} {
			t.Errorf("after the server went offline: %v of %v", got, before)
		}
		for i, at := range home {
			for _, packet := range []string{loginIn, authIn, tunnelIn} {
				if got := s.everywhere(clientAddr(i), packet); got == first || at != first && got != at {
					t.Errorf("client %d of %d goes to %d", i, at, got)
				}
			}
		}
		nodes[2].setAdmin("direct-1", state.AdminEnabled)
		tw.agree(nodes...)
		// Those that it lost have logged in at the other one: they stay there.
		tw.learnt()
		if got := counts(); got != [2]int{0, clients} || confirmed != before[1] {
			t.Errorf("when it is back: %v of %v, %d confirmed", got, before, confirmed)
		}
		for i := range home {
			if got := s.everywhere(clientAddr(i), tunnelIn); got == first {
				t.Errorf("when it is back client %d goes to %d", i, got)
			}
		}
	})
}

// TCP 443 passed through: a record of its own beside that of IKE. Where SSTP of a
// server dies, IKE of the same clients does not feel it.
func TestVirtualPassthrough(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		s := tw.serve(nodes[0], state.VIP{Name: "both", Addr: netip.MustParseAddr("203.0.113.30"), ClientBits: 64, SSTP: state.SSTPPassthrough}, state.ModeDNAT,
			"198.51.100.221", "198.51.100.222", "198.51.100.223")
		const clients = 90
		home := make([]table.Slot, clients)
		for i := range home {
			c := clientAddr(i)
			home[i] = s.everywhere(c, loginIn)
			nodes[(i+1)%3].cross(s.addrs[home[i]], c, authOut)
			nodes[(i+1)%3].cross(s.addrs[home[i]], c, tunnelIn)
		}
		tw.learnt()
		for i := range home {
			nodes[(i+1)%3].cross(s.addrs[home[i]], clientAddr(i), tunnelIn)
		}
		tw.learnt()
		records := func(c state.Class) map[netip.Addr]state.Affinity {
			out := map[netip.Addr]state.Affinity{}
			for a := range nodes[1].m.view().Affinities() {
				if a.Class == c {
					out[a.Client.Addr()] = a
				}
			}
			return out
		}
		ikeBefore := records(state.ClassIKE)
		if len(ikeBefore) != clients || len(records(state.ClassTCP)) != 0 {
			t.Fatalf("%d records of IKE, %d of TCP", len(ikeBefore), len(records(state.ClassTCP)))
		}
		for i, at := range home { // TCP follows IKE while it has no record
			if got := s.everywhere(clientAddr(i), synIn); got != at {
				t.Errorf("client %d: TCP goes to %d, IKE to %d", i, got, at)
			}
			nodes[i%3].cross(s.addrs[at], clientAddr(i), helloIn)
		}
		tw.learnt()
		if got := records(state.ClassTCP); len(got) != clients {
			t.Errorf("%d records of TCP", len(got))
		}

		dead := home[0]
		nodes[2].judgeClass(s.names[dead], state.ClassTCP, state.VerdictDown)
		tw.agree(nodes...)
		tcpHome := slices.Clone(home)
		for i, at := range home {
			c := clientAddr(i)
			if s.everywhere(c, loginIn) != at || s.everywhere(c, tunnelIn) != at {
				t.Errorf("client %d: IKE of %d moved with its SSTP", i, at)
			}
			syn, ack := s.everywhere(c, synIn), s.everywhere(c, ackIn)
			if syn != ack || (syn == dead) || at != dead && syn != at {
				t.Errorf("client %d of %d: SYN to %d, ACK to %d", i, at, syn, ack)
			}
			tcpHome[i] = syn
			nodes[i%3].cross(s.addrs[syn], c, helloIn) // it dials again
		}
		tw.learnt()
		nodes[2].judgeClass(s.names[dead], state.ClassTCP, state.VerdictUp)
		tw.agree(nodes...)
		for i, at := range home {
			c := clientAddr(i)
			if ike, tcp := s.everywhere(c, tunnelIn), s.everywhere(c, ackIn); ike != at || tcp != tcpHome[i] {
				t.Errorf("when it is back client %d: IKE %d of %d, TCP %d of %d", i, ike, at, tcp, tcpHome[i])
			}
		}
		for c, a := range records(state.ClassIKE) {
			if was := ikeBefore[c]; a.Backend != was.Backend || a.Index != was.Index || a.State != was.State {
				t.Errorf("the record of IKE of %s went from %+v to %+v", c, was, a)
			}
		}
	})
}
