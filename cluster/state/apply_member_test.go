package state

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

func TestInitOnce(t *testing.T) {
	r := &rig{t: t, m: NewMachine()}
	r.refused(Tick{}, NotAllowed)
	bad := initOf()
	bad.TableSize = 252
	r.refused(bad, Invalid)
	bad = initOf()
	bad.First.PublicKey = []byte{1}
	r.refused(bad, Invalid)
	r.ok(initOf())
	s := r.spec()
	if s.ClusterID != initOf().ClusterID || s.Generation != r.index || s.KeyEpoch != r.index || len(s.Members) != 1 || s.Members[0].Joined != r.index {
		t.Errorf("%+v", s)
	}
	r.refused(initOf(), NotAllowed)
	if in := NewInit(memberOf(nodeA, "a")); in.ClusterID.IsZero() || in.HashKey == [16]byte{} || !prime(in.TableSize) {
		t.Errorf("%+v", in)
	}
}

func TestTokens(t *testing.T) {
	r := newRig(t)
	hash := [32]byte{1}
	r.refused(AdmitMember{Token: hash, Member: memberOf(nodeB, "b")}, NotAllowed)
	r.refused(AddToken{Hash: hash, Life: 0}, Invalid)
	r.ok(AddToken{Hash: hash, Name: "b", Life: 10 * time.Minute})
	r.refused(AddToken{Hash: hash, Life: time.Minute}, Conflict)
	r.refused(AdmitMember{Token: hash, Member: memberOf(nodeB, "c")}, NotAllowed) // another name
	keyless := memberOf(nodeB, "b")
	keyless.PublicKey = nil
	r.refused(AdmitMember{Token: hash, Member: keyless}, Invalid)
	r.ok(AdmitMember{Token: hash, Member: memberOf(nodeB, "b")})
	r.ok(AdmitMember{Token: hash, Member: memberOf(nodeB, "b")}) // the same again
	thief := memberOf(nodeB, "b")
	thief.PublicKey = memberOf(nodeC, "c").PublicKey
	r.refused(AdmitMember{Token: hash, Member: thief}, NotAllowed)
	r.refused(AdmitMember{Token: hash, Member: memberOf(nodeC, "b")}, NotAllowed) // used
	r.after(10*time.Minute).refused(AdmitMember{Token: hash, Member: memberOf(nodeB, "b")}, NotAllowed)
	for n := range byte(MaxTokens) {
		r.ok(AddToken{Hash: [32]byte{2, n}, Life: time.Minute})
	}
	r.refused(AddToken{Hash: [32]byte{3}, Life: time.Minute}, Full)
	r.after(time.Minute).ok(AddToken{Hash: [32]byte{3}, Life: time.Minute})
	if got := len(r.spec().Tokens); got != 1 {
		t.Errorf("%d tokens are left, want the live one", got)
	}
}

func (r *rig) join(n Member) {
	r.t.Helper()
	hash := [32]byte{0xee, n.ID[0], n.ID[15]}
	r.ok(AddToken{Hash: hash, Life: time.Hour})
	r.ok(AdmitMember{Token: hash, Member: n})
}

func TestMembers(t *testing.T) {
	r := newRig(t)
	r.refused(RemoveMember{ID: nodeA}, Invalid) // the last
	r.refused(RemoveMember{ID: nodeB}, NotFound)
	r.join(memberOf(nodeB, "b"))
	gw := GatewayID(r.ok(PutGateway{Addr: netip.MustParseAddr("203.0.113.254")}))
	r.refused(OwnGateway{ID: gw, Owner: nodeC}, Invalid)
	r.ok(OwnGateway{ID: gw, Owner: nodeB})
	owned := r.index
	r.refused(OwnGateway{ID: gw, Owner: nodeA}, Conflict)

	up := memberOf(nodeB, "b")
	up.Draining, up.Cluster = true, "b.example:7999"
	r.ok(UpdateMember{Member: up})
	if m, _ := r.spec().MemberByID(nodeB); !m.Draining || m.Cluster != up.Cluster || m.Joined == 0 {
		t.Errorf("%+v", m)
	}
	r.ok(UpdateMember{Member: up})
	if r.last.Delta.Spec != nil {
		t.Error("an update without news changed the spec")
	}
	up.PublicKey = memberOf(nodeC, "c").PublicKey
	r.refused(UpdateMember{Member: up}, Invalid)
	r.refused(UpdateMember{Member: memberOf(nodeC, "c")}, NotFound)

	r.ok(RemoveMember{ID: nodeB})
	if g, _ := r.spec().GatewayByID(gw); !g.Owner.IsZero() || g.Index == owned {
		t.Errorf("a removed node owns %+v", g)
	}
	if _, ok := r.spec().RemovedByID(nodeB); !ok {
		t.Error("a removed node is forgotten")
	}
	r.ok(RemoveMember{ID: nodeB}) // again
	o := r.apply(Envelope{Origin: nodeB, Boot: 1, Sequence: 1, Command: Tick{}})[0]
	if o.Code != NotAllowed || o.Detail == "" {
		t.Errorf("a removed node's command: %+v", o)
	}
	r.ok(AddToken{Hash: [32]byte{5}, Life: time.Hour})
	r.refused(AdmitMember{Token: [32]byte{5}, Member: memberOf(nodeB, "b")}, NotAllowed)
}

func TestReplaceMember(t *testing.T) {
	r := newRig(t)
	r.join(memberOf(nodeB, "b"))
	anew := memberOf(nodeB, "b")
	anew.ID = nodeC
	wrong := memberOf(nodeC, "b")
	r.refused(ReplaceMember{Old: nodeB, Member: wrong}, NotAllowed) // another key
	r.refused(ReplaceMember{Old: NodeID{99}, Member: anew}, NotFound)
	r.ok(ReplaceMember{Old: nodeB, Member: anew})
	r.ok(ReplaceMember{Old: nodeB, Member: anew}) // again
	s := r.spec()
	if _, ok := s.MemberByID(nodeC); !ok || len(s.Members) != 2 {
		t.Errorf("members %+v", s.Members)
	}
	if _, ok := s.RemovedByID(nodeB); !ok {
		t.Error("the old ID may come back")
	}
}

func TestSecretsAndCertificates(t *testing.T) {
	r := newRig(t)
	v := r.spec().Secrets[1].Version
	r.refused(PutSecret{Name: SecretGossip, Sealed: []byte("x")}, Conflict)
	r.ok(PutSecret{Name: SecretGossip, Sealed: []byte("x"), Expect: v})
	if s := r.spec(); s.KeyEpoch != r.index || s.Secrets[1].Version != r.index {
		t.Error("a new gossip key makes no key epoch")
	}
	r.ok(PutSecret{Name: "tls/vpn", Sealed: []byte("y")})
	if r.spec().KeyEpoch == r.index {
		t.Error("another secret makes a key epoch")
	}
	r.refused(PutSecret{Name: "tls/other", Sealed: []byte("y"), Expect: 4}, NotFound)
	r.refused(PutSecret{Name: "a b", Sealed: []byte("y")}, Invalid)
	p := CertificatePlace{Name: "vpn", SHA256: [32]byte{1}, Path: "/etc/vpnlb/vpn.pem"}
	r.ok(PutCertificate{Certificate: p})
	at := r.index
	r.refused(PutCertificate{Certificate: p}, Conflict)
	r.ok(PutCertificate{Certificate: p, Expect: at})
	r.refused(RemoveCertificate{Name: "vpn", Expect: at}, Conflict)
	r.ok(RemoveCertificate{Name: "vpn", Expect: r.spec().Certs[0].Version})
	r.refused(RemoveCertificate{Name: "vpn"}, NotFound)
	s := DefaultSettings()
	r.refused(SetSettings{Settings: s}, Conflict)
	s.AffinityTimeout = 0
	r.refused(SetSettings{Settings: s, Expect: r.spec().Settings.Version}, Invalid)
}

func TestClusterTimeNeverGoesBack(t *testing.T) {
	r := newRig(t)
	r.after(time.Minute).ok(Tick{})
	r.now = 5 * second
	r.ok(Tick{})
	if got := r.spec().Now; got != 60*second {
		t.Errorf("cluster time %v, want the highest stamp", got)
	}
}

func TestDeduplication(t *testing.T) {
	r := newRig(t)
	r.farm(1, 1)
	send := func(boot, sequence uint64, c Command) Outcome {
		return r.apply(Envelope{Origin: nodeB, Boot: boot, Sequence: sequence, Command: c})[0]
	}
	put := PutGateway{Addr: netip.MustParseAddr("203.0.113.254")}
	first := send(1, 2, put)
	if first.Code != OK {
		t.Fatalf("%+v", first)
	}
	if again := send(1, 2, put); again.Code != OK || again.Index != first.Index || again.ID != first.ID {
		t.Errorf("the same command again: %+v, want %+v", again, first)
	}
	if o := send(1, 1, put); o.Code != Conflict { // batches overtake each other
		t.Errorf("an overtaken command: %+v", o)
	}
	l := Learn{Records: []Learned{{Key: client4(1), Backend: 1, State: Confirmed}, {Key: client4(1), Backend: 9, State: Confirmed}}}
	send(1, 3, l)
	r.ok(Forget{Keys: []Key{client4(1)}})
	if o := send(1, 3, l); len(o.Learns) != 2 || o.Learns[0] != LearnStored || o.Learns[1] != LearnRefused {
		t.Errorf("the same learn again: %+v", o)
	}
	if r.m.View().Len() != 0 {
		t.Error("a command was applied twice")
	}
	send(1, 2+ResultWindow, Tick{})
	if o := send(1, 2, put); o.Code != TooOld || o.Detail == "" {
		t.Errorf("below the window: %+v", o)
	}
	if o := send(1, 3, l); o.Code != OK {
		t.Errorf("the last in the window: %+v", o)
	}
	send(2, 1, Tick{})
	if o := send(1, 5000, Tick{}); o.Code != TooOld || o.Detail == "" {
		t.Errorf("of an older boot: %+v", o)
	}
	if o := send(2, 0, Tick{}); o.Code != Invalid {
		t.Errorf("without a sequence: %+v", o)
	}
}

func TestOriginsAreBounded(t *testing.T) {
	r := newRig(t)
	r.join(memberOf(nodeB, "b"))
	r.apply(Envelope{Origin: nodeB, Boot: 4, Sequence: 1, Command: Tick{}})
	for n := range 2 * MaxOrigins {
		r.apply(Envelope{Origin: NodeID{1, byte(n)}, Boot: 1, Sequence: 1, Command: Tick{}})
	}
	if got := len(r.m.windows); got != MaxOrigins {
		t.Errorf("%d origins are remembered, want %d", got, MaxOrigins)
	}
	if r.m.windows[nodeB] == nil || r.m.windows[NodeID{1, 0}] != nil || r.m.windows[NodeID{1, 2*MaxOrigins - 1}] == nil {
		t.Error("not the longest silent stranger was forgotten")
	}
}

func TestMemberRefusals(t *testing.T) {
	r := newRig(t)
	r.join(memberOf(nodeB, "b"))
	r.ok(AddToken{Hash: [32]byte{5}, Life: time.Hour})
	change := func(f func(*Member)) Member {
		n := memberOf(nodeC, "c")
		f(&n)
		return n
	}
	tests := []struct {
		name string
		n    Member
	}{
		{"no ID", change(func(n *Member) { n.ID = NodeID{} })},
		{"no name", change(func(n *Member) { n.Name = "" })},
		{"no role", change(func(n *Member) { n.Role = 0 })},
		{"short key", change(func(n *Member) { n.PublicKey = n.PublicKey[:31] })},
		{"too many addresses", change(func(n *Member) { n.Addrs = make([]netip.Addr, MaxAddrs+1) })},
		{"invalid address", change(func(n *Member) { n.Addrs = []netip.Addr{{}} })},
		{"name of another", change(func(n *Member) { n.Name = "b" })},
		{"cluster address of another", change(func(n *Member) { n.Cluster = "b.example:7950" })},
		{"key of another", change(func(n *Member) { n.PublicKey = memberOf(nodeB, "b").PublicKey })},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r.t = t
			r.refused(AdmitMember{Token: [32]byte{5}, Member: tt.n}, Invalid)
		})
	}
	r.t = t
	r.ok(AdmitMember{Token: [32]byte{5}, Member: memberOf(nodeC, "c")})
	for n := byte(20); len(r.spec().Members) < MaxMembers; n++ {
		r.join(memberOf(NodeID{n, 15: n}, fmt.Sprintf("n%d", n)))
	}
	r.ok(AddToken{Hash: [32]byte{6}, Life: time.Hour})
	r.refused(AdmitMember{Token: [32]byte{6}, Member: memberOf(NodeID{77}, "more")}, Full)
}

// A join that was cut short is taken up under another ID: the old one goes in
// the same entry, before its name, address and key are asked for again.
func TestAdmitInPlaceOf(t *testing.T) {
	r := newRig(t)
	r.join(memberOf(nodeB, "b"))
	token := [32]byte{7}
	r.ok(AddToken{Hash: token, Life: time.Hour})
	anew := memberOf(nodeB, "b")
	anew.ID = nodeC
	admit := AdmitMember{Token: token, Member: anew}
	if o := r.spec().MayAdmit(admit, r.now, NodeID{}); o.Code != Invalid {
		t.Errorf("beside its old self: %+v", o)
	}
	if o := r.spec().MayAdmit(admit, r.now, nodeB); o.Code != OK {
		t.Errorf("in its place: %+v", o)
	}
	if o := r.spec().MayAdmit(admit, r.now.Add(time.Hour), nodeB); o.Code != NotAllowed {
		t.Errorf("with a token that is over by then: %+v", o)
	}
	for i, o := range r.batch(RemoveMember{ID: nodeB}, admit) {
		if o.Code != OK {
			t.Errorf("command %d: %+v", i, o)
		}
	}
	if tok, _ := r.spec().TokenByHash(token); tok.UsedBy != nodeC || len(r.spec().Members) != 2 {
		t.Errorf("%+v, %d members", tok, len(r.spec().Members))
	}
	for i := byte(2); len(r.spec().Members) < MaxMembers; i++ { // memberOf(nodeA..C) are there or gone
		r.join(memberOf(NodeID{0x20 + i, 15: i}, fmt.Sprintf("m%d", i)))
	}
	r.ok(AddToken{Hash: [32]byte{8}, Life: time.Hour})
	late := AdmitMember{Token: [32]byte{8}, Member: memberOf(NodeID{0xee}, "late")}
	r.refused(late, Full)
	if o := r.spec().MayAdmit(late, r.now, nodeC); o.Code != OK {
		t.Errorf("in the place of one of %d: %+v", MaxMembers, o)
	}
}
