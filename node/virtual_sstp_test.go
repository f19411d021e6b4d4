package node

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/raft"
)

// endTLS gives a virtual node the part of SSTP without its sockets: the chooser
// over the model's tables, and the way of evidence.
func (v *vnode) endTLS() *offload {
	o := &offload{
		evidence: newEvidenceBook(v.m.learner.Offer),
		chooser: &chooser{
			dump: func() *table.Set {
				v.wire.mu.Lock()
				defer v.wire.mu.Unlock()
				return v.wire.set
			},
			entry: func(k table.Key) (table.Entry, bool) {
				v.wire.mu.Lock()
				defer v.wire.mu.Unlock()
				e, ok := v.wire.entries[k]
				return e, ok
			},
		},
	}
	v.m.offload.Store(o)
	ctx, cancel := context.WithCancel(v.town.t.Context())
	v.town.t.Cleanup(cancel)
	go o.evidence.run(ctx)
	return o
}

// offloaded is a town with a VIP in mode offload.
type offloaded struct {
	*served
	place uint8
	parts []*offload // by node
}

func (tw *town) offload(nodes []*vnode, servers ...string) *offloaded {
	tw.t.Helper()
	nodes[0].propose(state.PutCertificate{Certificate: state.CertificatePlace{Name: "c", SHA256: [32]byte{1}, Path: "/c.pem"}})
	vip := state.VIP{Name: "tls", Addr: netip.MustParseAddr("203.0.113.40"), ClientBits: 64, SSTP: state.SSTPOffload, Certificates: []string{"c"}}
	out := &offloaded{served: tw.serve(nodes[1], vip, state.ModeDNAT, servers...)}
	v, _ := nodes[0].m.spec().VIPByName("tls")
	out.place = v.Place
	for _, n := range nodes {
		out.parts = append(out.parts, n.endTLS())
	}
	return out
}

// dial is where a connection of a client goes; all nodes must say the same, and
// the same as explain.
func (o *offloaded) dial(client netip.Addr) sstp.Route {
	o.tw.t.Helper()
	var first sstp.Route
	for i, p := range o.parts {
		r, ok := p.chooser.choose(o.place, client)
		if !ok {
			o.tw.t.Fatalf("node %d: client %s goes nowhere", i+1, client)
		}
		if i == 0 {
			first = r
		}
		if r != first {
			o.tw.t.Errorf("client %s goes to %+v and to %+v", client, first, r)
		}
		x, err := model.Explain(p.chooser.current(), o.vip, client, table.TCP)
		if err != nil || x.Opening.Slot != r.Slot || x.Opening.Reason.String() != r.Reason {
			o.tw.t.Errorf("explain says %+v of client %s, %v", x.Opening, client, err)
		}
	}
	return first
}

// call is a whole call through a node: acknowledged, then with data.
func (o *offloaded) call(node int, client netip.Addr) sstp.Route {
	o.tw.t.Helper()
	r := o.dial(client)
	key := table.Key{Client: state.ClientOf(client, 64), Class: table.TCP}
	for _, level := range []table.Confirmation{table.EarnedAuth, table.Confirmed} {
		o.parts[node].evidence.add(table.Evidence{Key: key, Slot: r.Slot, Saw: r.Saw, Level: level, Opening: true})
	}
	return r
}

// settled waits until nothing is pending at any node.
func (o *offloaded) settled() {
	o.tw.t.Helper()
	o.tw.eventually(20*time.Second, "answer all evidence", func() bool {
		for _, p := range o.parts {
			if n, _ := p.evidence.counts(); n > 0 {
				return false
			}
		}
		return true
	})
	o.tw.learnt()
}

// Both services of a client meet on one server, whichever came first and on
// whichever node; the records are confirmed, although the stronger evidence comes
// while the weaker one is on its way.
func TestVirtualOffload(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		o := tw.offload(nodes, "198.51.100.141", "198.51.100.142", "198.51.100.143")
		const clients = 60
		home := make([]table.Slot, clients)
		used := map[table.Slot]bool{}
		for i := range home {
			c := clientAddr(i)
			if i%2 == 0 { // IKE first
				home[i] = o.everywhere(c, loginIn)
				nodes[i%3].cross(o.addrs[home[i]], c, authOut)
				continue
			}
			home[i] = o.call(i%3, c).Slot
		}
		o.settled()
		for i := range home {
			c := clientAddr(i)
			used[home[i]] = true
			if i%2 == 0 {
				if r := o.call((i+1)%3, c); r.Slot != home[i] || r.Reason != table.ForwardOtherClass.String() {
					t.Errorf("client %d of %d: SSTP goes to %+v", i, home[i], r)
				}
			} else if got := o.everywhere(c, loginIn); got != home[i] {
				t.Errorf("client %d of %d: IKE goes to %d", i, home[i], got)
			}
		}
		if len(used) != 3 {
			t.Errorf("%d servers have clients", len(used))
		}
		o.settled()
		view := nodes[2].m.view()
		for i := range home {
			a, ok := view.Affinity(state.Key{Client: state.ClientOf(clientAddr(i), 64), Class: state.ClassTCP})
			b, _ := view.Spec().BackendByID(a.Backend)
			if !ok || a.State != state.Confirmed || b == nil || table.Slot(b.Slot) != home[i] {
				t.Errorf("the record of client %d is %+v", i, a)
			}
		}
		// Its TCP segments are the local stack's, not the data plane's.
		if d := nodes[0].wire.decide(tw.frame(clientAddr(1), o.vip, synIn)); d.Verdict != model.Pass || d.Reason != table.PassLocalVIP {
			t.Errorf("a SYN is %v, %v", d.Verdict, d.Reason)
		}
	})
}

// IKE is up and SSTP down on one server: tunnels stay, SSTP goes elsewhere and
// stays there, and when SSTP is back nobody is moved.
func TestVirtualOneServiceDown(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		o := tw.offload(nodes, "198.51.100.141", "198.51.100.142", "198.51.100.143")
		const clients = 60
		home := make([]table.Slot, clients)
		for i := range home {
			c := clientAddr(i)
			home[i] = o.everywhere(c, loginIn)
			nodes[i%3].cross(o.addrs[home[i]], c, authOut)
			nodes[i%3].cross(o.addrs[home[i]], c, tunnelIn)
		}
		o.settled()
		for i := range home {
			o.call(i%3, clientAddr(i))
		}
		o.settled()
		dead := home[0]
		nodes[2].judgeClass(o.names[dead], state.ClassTCP, state.VerdictDown)
		tw.agree(nodes...)
		moved := map[int]table.Slot{}
		check := func(when string) {
			t.Helper()
			for i, at := range home {
				c := clientAddr(i)
				if login, tunnel := o.everywhere(c, loginIn), o.everywhere(c, tunnelIn); login != at || tunnel != at {
					t.Errorf("%s: client %d of %d: logins go to %d, the tunnel to %d", when, i, at, login, tunnel)
				}
				r := o.dial(c)
				switch want, gone := moved[i]; {
				case at != dead && r.Slot != at:
					t.Errorf("%s: client %d of %d: SSTP goes to %+v", when, i, at, r)
				case at == dead && !gone:
					if r.Slot == dead {
						t.Errorf("%s: client %d dials the server whose SSTP is down", when, i)
					}
					moved[i] = r.Slot
				case at == dead && r.Slot != want:
					t.Errorf("%s: client %d goes to %d, then to %d", when, i, want, r.Slot)
				}
			}
		}
		check("SSTP down")
		if len(moved) == 0 {
			t.Fatal("no client was on the server")
		}
		check("before anybody dialled")
		for i := range moved {
			o.call(i%3, clientAddr(i))
		}
		o.settled()
		before := nodes[1].m.spec().Index
		check("after they dialled")
		for i := range moved { // again: nothing is left to learn
			o.call((i+1)%3, clientAddr(i))
		}
		o.settled()
		for i, at := range moved {
			a, ok := nodes[0].m.view().Affinity(state.Key{Client: state.ClientOf(clientAddr(i), 64), Class: state.ClassTCP})
			b, _ := nodes[0].m.spec().BackendByID(a.Backend)
			if !ok || b == nil || table.Slot(b.Slot) != at || a.Index > before {
				t.Errorf("the record of client %d is %+v, want slot %d, unchanged since %d", i, a, at, before)
			}
		}
		nodes[0].judgeClass(o.names[dead], state.ClassTCP, state.VerdictUp)
		tw.agree(nodes...)
		check("SSTP up again")
	})
}

// Keys of session tickets are agreed where TLS ends on the nodes, the same
// everywhere; all are new when a node was removed.
func TestVirtualTickets(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		keys := func(v *vnode) [][ticketBytes]byte {
			t.Helper()
			k, err := v.m.ticketKeys(v.m.spec())
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		if _, ok := nodes[0].m.spec().SecretByName(state.SecretTickets); ok || keys(nodes[0]) != nil {
			t.Error("there are ticket keys although no TLS ends here")
		}
		tw.offload(nodes, "198.51.100.141")
		tw.eventually(10*time.Second, "make ticket keys", func() bool { return len(keys(nodes[1])) == 2 })
		tw.agree(nodes...)
		first := keys(nodes[0])
		for _, v := range nodes[1:] {
			if got := keys(v); len(got) != 2 || got[0] != first[0] || got[1] != first[1] {
				t.Errorf("%s has other keys", v.host)
			}
		}
		leader := tw.leader(nodes...)
		gone := nodes[0]
		if gone == leader {
			gone = nodes[1]
		}
		leader.propose(state.RemoveMember{ID: gone.m.self})
		tw.eventually(10*time.Second, "change all keys", func() bool {
			now := keys(leader)
			return len(now) == 2 && now[0] != first[0] && now[0] != first[1] && now[1] != first[0] && now[1] != first[1]
		})
	})
}

// A certificate whose key moves from the agreement into files leaves no key behind.
func TestVirtualCertificateMovesToFiles(t *testing.T) {
	dir := t.TempDir()
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		chain, key := pairPEM(t)
		m, name := nodes[1].m, state.SecretOfCertificate("c")
		add := func(in admin.CertRequest) {
			t.Helper()
			if _, err := m.addCertificate(t.Context(), in); err != nil {
				t.Fatal(err)
			}
			tw.agree(nodes...)
		}
		add(admin.CertRequest{Name: "c", Chain: chain, Key: key})
		if text, err := nodes[2].m.openSecret(name); err != nil || !strings.Contains(string(text), "PRIVATE KEY") {
			t.Errorf("sealed: %d bytes, %v", len(text), err)
		}
		path := filepath.Join(dir, "c.pem")
		if err := os.WriteFile(path, []byte(chain+key), 0o600); err != nil {
			t.Fatal(err)
		}
		add(admin.CertRequest{Name: "c", Path: path})
		if text, err := nodes[2].m.openSecret(name); err != nil || len(text) != 0 {
			t.Errorf("in files: the secret holds %d bytes, %v", len(text), err)
		}
		s, _ := m.spec().SecretByName(name)
		add(admin.CertRequest{Name: "c", Path: path})
		if again, _ := m.spec().SecretByName(name); again.Version != s.Version {
			t.Error("what holds nothing is sealed again")
		}
		add(admin.CertRequest{Name: "c", Chain: chain, Key: key})
		if text, err := nodes[2].m.openSecret(name); err != nil || len(text) == 0 {
			t.Errorf("sealed again: %d bytes, %v", len(text), err)
		}
		if _, err := m.removeCertificate(t.Context(), admin.NameRequest{Name: "c"}); err != nil {
			t.Fatal(err)
		}
		tw.agree(nodes...)
		if _, ok := m.spec().SecretByName(name); ok {
			t.Error("the secret stays when the certificate is gone")
		}
	})
}

// The leader judges whether all members understand a command, also one that waits
// for nothing: who was asked may not know all of them.
func TestVirtualLeaderJudgesFormat(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		leader := tw.leader(nodes...)
		asked := nodes[0]
		if asked == leader {
			asked = nodes[1]
		}
		drop := state.RemoveCertificate{Name: "c", Secret: true}
		for cmd, want := range map[state.Command]bool{
			drop: true, state.RemoveCertificate{Name: "c"}: false, state.RemoveVIP{ID: 1}: false, state.SetBackendAdmin{ID: 1, Admin: state.AdminDrain}: true,
		} {
			if byLeader(cmd) != want {
				t.Errorf("%+v: by the leader %v", cmd, !want)
			}
		}
		asked.propose(state.PutCertificate{Certificate: state.CertificatePlace{Name: "c", SHA256: [32]byte{1}}})
		asked.propose(state.PutSecret{Name: state.SecretOfCertificate("c"), Sealed: []byte{1}})
		old := memberOf(state.NodeID{99}, "old")
		old.Format = 2
		token := transport.NewToken()
		asked.propose(state.AddToken{Hash: token.Hash(), Life: time.Minute})
		asked.propose(state.AdmitMember{Token: token.Hash(), Member: old})
		tw.agree(nodes...)
		body := state.EncodeBatch(state.Batch{Envelopes: []state.Envelope{{Origin: asked.m.self, Command: drop}}})
		var refused *transport.StatusError
		if _, err := leader.m.serveChange(t.Context(), body); !errors.As(err, &refused) || refused.Code != http.StatusConflict || !strings.Contains(refused.Reason, "node old runs a version") {
			t.Errorf("with a member that does not know it: %v", err)
		}
		if _, err := leader.m.proposeNow(t.Context(), drop); err == nil || !strings.Contains(err.Error(), "node old runs a version") {
			t.Errorf("at its last moment: %v", err)
		}
		if _, err := asked.m.proposeNow(t.Context(), drop); !errors.Is(err, raft.ErrNotLeader) {
			t.Errorf("by another node than the leader: %v", err)
		}
		asked.propose(state.RemoveMember{ID: old.ID})
		tw.agree(nodes...)
		if o, err := asked.m.proposeChange(t.Context(), drop); err != nil || o.Code != state.OK {
			t.Errorf("when all know it: %+v, %v", o, err)
		}
		tw.agree(nodes...)
		if _, ok := asked.m.spec().SecretByName(state.SecretOfCertificate("c")); ok {
			t.Error("the secret is there still")
		}
	})
}

// A node that stands still for a moment, a suspended virtual machine say, keeps the
// route of a VIP whose TLS it ends, as it does without a leader: to withdraw it would
// end its calls. Other VIPs lose nothing by it.
func TestVirtualStandstillKeepsCalls(t *testing.T) {
	inStreet(t, nil, func(t *testing.T, s *street, nodes []*vnode) {
		s.offload(nodes, "198.51.100.141")
		tls := netip.MustParseAddr("203.0.113.40")
		routes := func(v *vnode) map[netip.Addr]bgp.VIPStatus {
			out := map[netip.Addr]bgp.VIPStatus{}
			for _, st := range v.m.announcer.Status() {
				out[st.VIP] = st
			}
			return out
		}
		for _, v := range nodes {
			v.m.offload.Store(nil) // its service is not what is judged
			s.eventually(20*time.Second, "announce both", func() bool {
				r := routes(v)
				return r[tls].Announced == bgp.Announce && r[vipAddr].Announced == bgp.Announce
			})
		}
		v := nodes[2]
		s.isolate(v)
		v.m.alive.mu.Lock()
		v.m.alive.last = time.Now().Add(-2 * lease)
		v.m.alive.mu.Unlock()
		s.eventually(2*time.Second, "the route goes that no connection ends with", func() bool { return routes(v)[vipAddr].Announced != bgp.Announce })
		if r := routes(v)[tls]; r.Announced != bgp.Announce {
			t.Errorf("after a standstill of %v: %v because of %v, and its calls end", 2*lease, r.Announced, r.Decision.Reason)
		}
		time.Sleep(30 * time.Second)
		if r := routes(v)[tls]; r.Announced != bgp.Announce {
			t.Errorf("half of t1 after it: %v because of %v", r.Announced, r.Decision.Reason)
		}
		s.eventually(60*time.Second, "t1 is over", func() bool { return routes(v)[tls].Announced != bgp.Announce })
		s.rejoin(v)
		s.eventually(30*time.Second, "announce again", func() bool {
			r := routes(v)
			return r[tls].Announced == bgp.Announce && r[vipAddr].Announced == bgp.Announce
		})
	})
}

// Where a server's port is dead, new clients go to another one that takes some, by
// every node's word to the same.
func TestVirtualInsteadOfADeadPort(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		o := tw.offload(nodes, "198.51.100.151", "198.51.100.152", "198.51.100.153")
		for i := range 20 {
			client := clientAddr(i)
			dead := o.dial(client).Slot
			avoid := func(s table.Slot) bool { return s == dead }
			var first sstp.Route
			for n, p := range o.parts {
				r, ok := p.chooser.instead(o.place, client.As16(), avoid)
				if n == 0 {
					first = r
				}
				if !ok || r != first || r.Slot == dead || r.Saw != 0 || o.addrs[r.Slot] == (netip.Addr{}) {
					t.Errorf("node %d: client %s goes to %+v (%v) instead of %d, by node 1 to %+v", n+1, client, r, ok, dead, first)
				}
			}
		}
		if r, ok := o.parts[0].chooser.instead(o.place, clientAddr(1).As16(), func(table.Slot) bool { return true }); ok {
			t.Errorf("all are dead, yet %+v", r)
		}
	})
}
