package node

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/node/config"
)

// refused checks that an answer of the admin API is a refusal with these words.
func refused(t *testing.T, what string, err error, status int, words ...string) {
	t.Helper()
	var known *admin.Error
	if !errors.As(err, &known) || known.Status != status {
		t.Errorf("%s: %v, want a refusal with status %d", what, err, status)
		return
	}
	for _, w := range words {
		if !strings.Contains(known.Message, w) {
			t.Errorf("%s: %q has no %q", what, known.Message, w)
		}
	}
}

// What is a member's or a router's own cannot be the cluster's: all nodes would
// put it on themselves, and no command undoes that.
func TestVirtualOwnedAddressesRefused(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		asked, ctx := nodes[0].m, t.Context()
		asked.cfg.BGP.Neighbours = []config.Neighbour{{Address: netip.MustParseAddr("192.0.2.250")}}
		before := asked.view().Index()
		for _, a := range []struct{ addr, owner string }{{"192.0.2.3", "node n3"}, {"192.0.2.1", "node n1"}, {"192.0.2.250", "a router"}} {
			_, err := asked.addVIP(ctx, admin.VIPRequest{Name: "oops", Addr: a.addr})
			refused(t, "VIP "+a.addr, err, http.StatusBadRequest, a.addr, a.owner)
			_, err = asked.addVIP(ctx, admin.VIPRequest{Name: "vpn", Addr: a.addr, Readdress: true})
			refused(t, "VIP moved to "+a.addr, err, http.StatusBadRequest, a.addr, a.owner)
			_, err = asked.addGateway(ctx, admin.GatewayRequest{Addr: a.addr})
			refused(t, "gateway "+a.addr, err, http.StatusBadRequest, a.addr, a.owner)
			_, err = asked.addBackend(ctx, admin.BackendRequest{Name: "oops", Addr: a.addr})
			refused(t, "backend "+a.addr, err, http.StatusBadRequest, a.addr, a.owner)
		}
		for i := range asked.spec().VIPs {
			if v := &asked.spec().VIPs[i]; v.Name == "oops" || v.Addr != vipAddr {
				t.Errorf("VIP %s has %s at index %d (%d before)", v.Name, v.Addr, asked.view().Index(), before)
			}
		}
	})
}

// A VIP with servers keeps its address unless somebody insists.
func TestVirtualReaddress(t *testing.T) {
	inTown(t, func(t *testing.T, tw *town, nodes []*vnode) {
		asked, ctx := nodes[1].m, t.Context()
		in := admin.VIPRequest{Name: "vpn", Addr: "203.0.113.77"}
		_, err := asked.addVIP(ctx, in)
		refused(t, "another address", err, http.StatusConflict, "VIP vpn has address 203.0.113.10", "--readdress", "all tunnels would break")
		if _, err := asked.addVIP(ctx, admin.VIPRequest{Name: "vpn", Addr: "203.0.113.10", SSTP: "passthrough"}); err != nil {
			t.Errorf("the same address: %v", err)
		}
		in.Readdress = true
		out, err := asked.addVIP(ctx, in)
		if err != nil || !strings.Contains(strings.Join(out.(admin.Changed).Notes, " "), "VIP vpn was 203.0.113.10: the tunnels of its ") {
			t.Errorf("with --readdress: %+v, %v", out, err)
		}
		// A server that is gone between the look and the change is named, not numbered.
		_, err = asked.changeBackend(ctx, "r9", state.SetBackendAdmin{ID: 99, Admin: state.AdminEnabled})
		refused(t, "a server that was reaped", err, http.StatusNotFound, "backend r9 had been removed, and is gone for good by now: 'vpnlb backend add r9 ADDR'")
		// One without servers is nobody's.
		for _, addr := range []string{"203.0.113.78", "203.0.113.79"} {
			if _, err := asked.addVIP(context.WithoutCancel(ctx), admin.VIPRequest{Name: "empty", Addr: addr}); err != nil {
				t.Errorf("a VIP without servers at %s: %v", addr, err)
			}
		}
	})
}

func TestJoinClash(t *testing.T) {
	r := newRig(t)
	vip := r.vip("vpn", "203.0.113.10")
	r.backend("r1", "198.51.100.101", vip)
	r.do(state.PutGateway{Addr: netip.MustParseAddr("198.51.100.251")})
	addrs := func(text ...string) (out []netip.Addr) {
		for _, a := range text {
			out = append(out, netip.MustParseAddr(a))
		}
		return out
	}
	for _, c := range []struct {
		in   joinRequest
		want string
	}{
		{joinRequest{Cluster: "198.51.100.2:7950", Gossip: "198.51.100.2:7946", Addrs: addrs("198.51.100.2")}, ""},
		{joinRequest{Cluster: "203.0.113.10:7950", Gossip: "198.51.100.2:7946"}, "its address 203.0.113.10 is VIP vpn"},
		{joinRequest{Cluster: "198.51.100.2:7950", Gossip: "198.51.100.251:7946"}, "its address 198.51.100.251 is a floating gateway"},
		{joinRequest{Cluster: "198.51.100.101:7950", Gossip: "198.51.100.2:7946"}, "its address 198.51.100.101 is server r1"},
		{joinRequest{Cluster: "198.51.100.2:7950", Gossip: "198.51.100.2:7946", Addrs: addrs("198.51.100.2", "198.51.100.101")}, "it has address 198.51.100.101, which is server r1"},
		// Left from a membership before.
		{joinRequest{Cluster: "198.51.100.2:7950", Gossip: "198.51.100.2:7946", Addrs: addrs("203.0.113.10", "198.51.100.251")}, ""},
	} {
		if got := joinClash(r.spec(), &c.in); (c.want == "") != (got == "") || !strings.HasPrefix(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.in, got, c.want)
		}
	}
}
