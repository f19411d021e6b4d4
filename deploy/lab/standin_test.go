package lab

import (
	"context"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These tests prove the laboratory itself, with no vpnlb in it: the nodes are
// kernels that forward by a stateless hash of the client address. A lab that
// cannot see a client change its server would prove nothing about nodes.

// standIn makes a node forward: destination by a hash of the source address,
// source of replies back to the VIP, nothing remembered.
func (l *Lab) standIn(node string, seed uint32) error {
	return l.inside(node, func() error {
		for _, k := range []string{"net.ipv4.ip_forward", "net.ipv4.conf.all.accept_local"} {
			if err := sysctl(k, "1"); err != nil {
				return err
			}
		}
		if err := sysctl("net.ipv4.conf.all.send_redirects", "0"); err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: "standin"})
		ch := c.AddChain(&nftables.Chain{
			Name: "pre", Table: t, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-450),
		})
		servers := &nftables.Set{Table: t, Name: "servers", IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeIPAddr}
		var elements []nftables.SetElement
		for i := range l.st.Options.Servers {
			a := serverAddr(i + 1).As4()
			elements = append(elements, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: a[:]})
		}
		if err := c.AddSet(servers, elements); err != nil {
			return err
		}
		vip := vipAddr.As4()
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			load(16, 4), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: vip[:]},
			load(12, 4),
			&expr.Hash{SourceRegister: 1, DestRegister: 1, Length: 4, Modulus: uint32(l.st.Options.Servers), Seed: seed, Type: expr.HashTypeJenkins},
			&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: "servers", SetID: servers.ID},
			store(16),
		}})
		for i := range l.st.Options.Servers {
			a := serverAddr(i + 1).As4()
			c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
				load(12, 4), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a[:]},
				load(16, 2), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{198, 18}},
				&expr.Immediate{Register: 1, Data: vip[:]},
				store(12),
			}})
		}
		return c.Flush()
	})
}

func load(offset, n uint32) expr.Any {
	return &expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: n}
}

func store(offset uint32) expr.Any {
	return &expr.Payload{
		OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4,
		CsumType: expr.CsumTypeInet, CsumOffset: 10, CsumFlags: unix.NFT_PAYLOAD_L4CSUM_PSEUDOHDR,
	}
}

// standInLab is a lab of stand-in nodes with static ECMP and gateways.
func standInLab(t *testing.T, o Options) *Lab {
	t.Helper()
	needRoot(t)
	o, err := o.withDefaults()
	if err != nil {
		t.Fatal(err)
	}
	if err := Down(t.Context(), o.Name); err != nil {
		t.Fatal(err)
	}
	lock, err := lockLab(o.Name)
	if err != nil {
		t.Fatal(err)
	}
	l := &Lab{dir: labDir(o.Name), lock: lock, out: t.Output(), st: labState{
		Options: o, Processes: map[string]proc{}, Members: map[string]bool{}, NextClient: o.Clients,
	}}
	l.peers = newPeers(l)
	t.Cleanup(func() {
		if err := l.Down(context.Background()); err != nil {
			t.Errorf("remove lab: %v", err)
		}
		if left, _ := namespacesOf(o.Name); len(left) > 0 {
			t.Errorf("left behind: %v", left)
		}
	})
	if err := l.buildFrame(); err != nil {
		t.Fatal(err)
	}
	for i := range o.Nodes {
		n := nodeName(i + 1)
		if err := l.standIn(n, 1); err != nil {
			t.Fatal(err)
		}
		if err := l.inside(n, func() error { return addGatewayHere(gatewayAddr(i + 1)) }); err != nil {
			t.Fatal(err)
		}
	}
	err = l.inside(roleRouter, func() error {
		r := &netlink.Route{Dst: ipNet(netip.PrefixFrom(vipAddr, 32))}
		for i := range o.Nodes {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: nodeOutside(i + 1).AsSlice()})
		}
		return netlink.RouteAdd(r)
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range o.Servers {
		if err := l.peers.startServer(t.Context(), i+1); err != nil {
			t.Fatal(err)
		}
	}
	return l
}

func addGatewayHere(a netip.Addr) error {
	link, err := netlink.LinkByName(insideName)
	if err != nil {
		return fmt.Errorf("find inside interface: %w", err)
	}
	return addAddr(link, netip.PrefixFrom(a, 32))
}

// pause lets traffic flow; a netns test has no virtual time.
func pause(t *testing.T, d time.Duration) {
	t.Helper()
	select {
	case <-t.Context().Done():
		t.Fatal(t.Context().Err())
	case <-time.After(d):
	}
}

func TestStandInCountsNothingWhenNothingHappens(t *testing.T) {
	l := standInLab(t, Options{Name: "tquiet", Nodes: 3, Clients: 60})
	if err := l.peers.startClients(t.Context()); err != nil {
		t.Fatal(err)
	}
	pause(t, 3*time.Second)
	s, err := l.peers.snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	sum := s.totals()
	if sum.Up != 60 || sum.Lost != 0 || sum.Sent < 60*20 || len(s.Strays) != 0 {
		t.Errorf("totals %+v, strays %v: want 60 up, none lost, no strays", sum, s.Strays)
	}
	for i := range 3 {
		if n := len(s.on(i + 1)); n < 5 {
			t.Errorf("server %d serves %d of 60 clients", i+1, n)
		}
	}
}
