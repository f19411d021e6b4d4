package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// standIn makes a node forward by a hash of the client's key, nothing
// remembered. IPv4: the destination becomes the server, the source of replies
// the VIP. With DSR, and in IPv6, whose fragments nftables rewrites with a wrong
// sum, the packet is routed to the server as it is: the VIP is on its loopback.
func (l *Lab) standIn(node string, seed uint32) error {
	o := l.st.Options
	return l.inside(node, func() error {
		values := map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.conf.all.accept_local": "1", "net.ipv4.conf.all.send_redirects": "0"}
		if o.IPv6 {
			values["net.ipv6.conf.all.forwarding"] = "1"
		}
		if err := setAll(values); err != nil {
			return err
		}
		c, err := nftables.New()
		if err != nil {
			return err
		}
		c.FlushRuleset()
		for _, f := range o.families() {
			if o.DSR || f.vip.Is6() {
				err = standInByMark(c, f, o.Servers, seed)
			} else {
				err = standInByAddress(c, f, o.Servers, seed)
			}
			if err != nil {
				return err
			}
		}
		return c.Flush()
	})
}

// standInTable makes a table of one family with a chain that sees packets first.
func standInTable(c *nftables.Conn, f family) (*nftables.Table, *nftables.Chain) {
	kind := nftables.TableFamilyIPv4
	if f.vip.Is6() {
		kind = nftables.TableFamilyIPv6
	}
	t := c.AddTable(&nftables.Table{Family: kind, Name: "standin"})
	return t, c.AddChain(&nftables.Chain{
		Name: "pre", Table: t, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRef(-450),
	})
}

func standInByAddress(c *nftables.Conn, f family, count int, seed uint32) error {
	t, ch := standInTable(c, f)
	servers := &nftables.Set{Table: t, Name: "servers", IsMap: true, KeyType: nftables.TypeInteger, DataType: nftables.TypeIPAddr}
	var elements []nftables.SetElement
	for i := range count {
		elements = append(elements, nftables.SetElement{Key: binaryutil.NativeEndian.PutUint32(uint32(i)), Val: f.server(i + 1).AsSlice()})
	}
	if err := c.AddSet(servers, elements); err != nil {
		return err
	}
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
		load(16, 4), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: f.vip.AsSlice()},
		load(12, 4),
		&expr.Hash{SourceRegister: 1, DestRegister: 1, Length: 4, Modulus: uint32(count), Seed: seed, Type: expr.HashTypeJenkins},
		&expr.Lookup{SourceRegister: 1, DestRegister: 1, IsDestRegSet: true, SetName: "servers", SetID: servers.ID},
		store(16),
	}})
	for i := range count {
		c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
			load(12, 4), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: f.server(i + 1).AsSlice()},
			load(16, 2), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{198, 18}},
			&expr.Immediate{Register: 1, Data: f.vip.AsSlice()},
			store(12),
		}})
	}
	return nil
}

const standInMark = 100 // of the first server; also its routing table

func standInByMark(c *nftables.Conn, f family, count int, seed uint32) error {
	src, dst, key := uint32(12), uint32(16), uint32(4)
	if f.vip.Is6() {
		src, dst, key = 8, 24, 8
	}
	t, ch := standInTable(c, f)
	c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
		load(dst, uint32(f.vip.BitLen()/8)), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: f.vip.AsSlice()},
		load(src, key),
		&expr.Hash{SourceRegister: 1, DestRegister: 1, Length: key, Modulus: uint32(count), Seed: seed, Offset: standInMark, Type: expr.HashTypeJenkins},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	for i := range count {
		table := standInMark + i
		rule := netlink.NewRule()
		rule.Family, rule.Mark, rule.Table = familyOf(f.vip), uint32(table), table
		if err := netlink.RuleAdd(rule); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("add rule: %w", err)
		}
		all := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if f.vip.Is6() {
			all = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		if err := netlink.RouteReplace(&netlink.Route{Dst: ipNet(all), Gw: f.server(i + 1).AsSlice(), Table: table}); err != nil {
			return fmt.Errorf("add route to server %d: %w", i+1, err)
		}
	}
	return nil
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

// forgetReturn makes a stand-in node forward replies of IPv4 as the servers sent them.
func (l *Lab) forgetReturn(node string) error {
	return l.inside(node, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		t, ch := standInTable(c, family4)
		rules, err := c.GetRules(t, ch)
		if err != nil {
			return err
		}
		for _, r := range rules[1:] { // the first one is of requests
			if err := c.DelRule(r); err != nil {
				return err
			}
		}
		return c.Flush()
	})
}
