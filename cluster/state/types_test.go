package state

import (
	"net/netip"
	"testing"
)

func TestNodeIDText(t *testing.T) {
	id := NewNodeID()
	if id == NewNodeID() || id[6]>>4 != 4 || id[8]>>6 != 2 {
		t.Errorf("%v is no random UUID", id)
	}
	text, _ := id.MarshalText()
	var back NodeID
	if err := back.UnmarshalText(text); err != nil || back != id {
		t.Errorf("got %v, %v", back, err)
	}
	cluster := NewClusterID()
	text, _ = cluster.MarshalText()
	var again ClusterID
	if err := again.UnmarshalText(text); err != nil || again != cluster {
		t.Errorf("got %v, %v", again, err)
	}
	for _, bad := range []string{"", "0a000000-0000-0000-0000-00000000000", "0a000000x0000-0000-0000-000000000001", "0a000000-0000-0000-0000-00000000000g"} {
		if _, err := ParseNodeID(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
		if again.UnmarshalText([]byte(bad)) == nil {
			t.Errorf("%q is accepted as a cluster ID", bad)
		}
	}
}

func TestClientOf(t *testing.T) {
	tests := []struct {
		addr string
		bits int
		want string
	}{
		{"198.51.100.7", 64, "198.51.100.7"},
		{"::ffff:198.51.100.7", 64, "198.51.100.7"},
		{"2001:db8:1:2:3:4:5:6", 64, "2001:db8:1:2::"},
		{"2001:db8:1:2:3:4:5:6", 128, "2001:db8:1:2:3:4:5:6"},
	}
	for _, tt := range tests {
		if got := ClientOf(netip.MustParseAddr(tt.addr), tt.bits).String(); got != tt.want {
			t.Errorf("%s/%d: %s, want %s", tt.addr, tt.bits, got, tt.want)
		}
	}
}

func TestWords(t *testing.T) {
	for s, want := range map[interface{ String() string }]string{
		ClassIKE: "ike", ClassTCP: "tcp", Class(9): "class(9)",
		StanceNone: "none", StanceTake: "take", StanceKeep: "keep", StanceLeave: "leave", StanceVoid: "void", Stance(9): "stance(9)",
	} {
		if s.String() != want {
			t.Errorf("%v, want %s", s, want)
		}
	}
}

func TestLookups(t *testing.T) {
	s := settled(t).spec()
	if b, ok := s.BackendBySlot(2); !ok || b.ID != 2 {
		t.Errorf("slot 2 holds %+v", b)
	}
	if _, ok := s.BackendBySlot(0); ok {
		t.Error("slot 0 names a backend")
	}
	if n, ok := s.MemberByName("b"); !ok || n.ID != nodeB {
		t.Errorf("b is %+v", n)
	}
	if _, ok := s.MemberByName("c"); ok {
		t.Error("a removed node is found")
	}
	if c, ok := s.CertificateByName("vpn"); !ok || c.Path == "" {
		t.Errorf("vpn is %+v", c)
	}
	if g, ok := s.GatewayByID(1); !ok || g.Owner != nodeB {
		t.Errorf("gateway 1 is %+v", g)
	}
	if _, ok := s.VIPByID(77); ok {
		t.Error("VIP 77 is found")
	}
}
