package lab

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Counting tables. Router and servers count by nftables, each IP packet once,
// fragments too: nothing there puts them together.
const (
	countTable   = "lab_count"
	countTo      = "to_vip"
	countFrom    = "from_vip"
	countBare    = "not_from_vip"
	countClients = "clients"
)

// header says where the addresses lie in an IP header.
func headerOf(vip netip.Addr) (kind nftables.TableFamily, src, dst uint32) {
	if vip.Is6() {
		return nftables.TableFamilyIPv6, 8, 24
	}
	return nftables.TableFamilyIPv4, 12, 16
}

// begins lets packets on whose address field begins with these bytes.
func begins(offset uint32, begin []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(begin))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: begin},
	}
}

// matching counts packets whose address field begins with these bytes.
func matching(offset uint32, begin []byte) []expr.Any {
	return append(begins(offset, begin), &expr.Counter{})
}

// within is a prefix of whole bytes as the beginning of an address.
func within(p netip.Prefix) []byte { return p.Addr().AsSlice()[:p.Bits()/8] }

// notICMP ends a chain for ICMP: such an error may come from anybody, and whose it is
// says what it quotes.
func notICMP(f family, t *nftables.Table, ch *nftables.Chain) *nftables.Rule {
	return &nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{icmpProto(f)}},
		&expr.Verdict{Kind: expr.VerdictReturn},
	}}
}

// sources are the prefixes that clients have, or that forged packets say they come from.
func (f family) sources() []netip.Prefix {
	if f.clients.Overlaps(f.spoofed) {
		return []netip.Prefix{f.clients}
	}
	return []netip.Prefix{f.clients, f.spoofed}
}

func icmpProto(f family) byte {
	if f.vip.Is6() {
		return icmp6Proto
	}
	return 1
}

// addCounters makes the tables of router and servers.
func (l *Lab) addCounters() error {
	o := l.st.Options
	err := l.inside(roleRouter, func() error {
		return counting(o, func(c *nftables.Conn, t *nftables.Table, f family) {
			_, src, dst := headerOf(f.vip)
			to := c.AddChain(&nftables.Chain{Name: countTo, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityFilter})
			c.AddRule(&nftables.Rule{Table: t, Chain: to, Exprs: matching(dst, f.vip.AsSlice())})
			from := c.AddChain(&nftables.Chain{Name: countFrom, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter})
			c.AddRule(&nftables.Rule{Table: t, Chain: from, Exprs: matching(src, f.vip.AsSlice())})
			bare := c.AddChain(&nftables.Chain{Name: countBare, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter})
			c.AddRule(notICMP(f, t, bare))
			for i := range o.Servers {
				for _, p := range f.sources() {
					rule := append(begins(src, f.server(i+1).AsSlice()), matching(dst, within(p))...)
					c.AddRule(&nftables.Rule{Table: t, Chain: bare, Exprs: rule})
				}
			}
		})
	})
	if err != nil {
		return err
	}
	for i := range o.Servers {
		err := l.inside(serverName(i+1), func() error {
			return counting(o, func(c *nftables.Conn, t *nftables.Table, f family) {
				_, src, _ := headerOf(f.vip)
				ch := c.AddChain(&nftables.Chain{Name: countClients, Table: t, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter})
				c.AddRule(notICMP(f, t, ch))
				for _, p := range f.sources() {
					c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: matching(src, within(p))})
				}
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func counting(o Options, add func(*nftables.Conn, *nftables.Table, family)) error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	for _, f := range o.families() {
		kind, _, _ := headerOf(f.vip)
		add(c, c.AddTable(&nftables.Table{Family: kind, Name: countTable}), f)
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("add counters: %w", err)
	}
	return nil
}

// counted reads one chain's counters of every family, in the calling namespace.
func counted(o Options, chain string) (n int64, err error) {
	c, err := nftables.New()
	if err != nil {
		return 0, fmt.Errorf("open nftables: %w", err)
	}
	for _, f := range o.families() {
		kind, _, _ := headerOf(f.vip)
		t := &nftables.Table{Family: kind, Name: countTable}
		rules, err := c.GetRules(t, &nftables.Chain{Name: chain, Table: t})
		if err != nil {
			return 0, fmt.Errorf("read counters: %w", err)
		}
		found := false
		for _, r := range rules {
			for _, e := range r.Exprs {
				if x, ok := e.(*expr.Counter); ok {
					n += int64(x.Packets)
					found = true
				}
			}
		}
		if !found {
			return 0, errors.New("read counters: there are none")
		}
	}
	return n, nil
}

func (l *Lab) routerCounts() (to, from int64, err error) {
	err = l.inside(roleRouter, func() error {
		var err error
		if to, err = counted(l.st.Options, countTo); err != nil {
			return err
		}
		from, err = counted(l.st.Options, countFrom)
		return err
	})
	return to, from, err
}

// bareCount is how many packets servers sent to clients that arrived at the router
// under the servers' own addresses: a client takes none of them for an answer.
func (l *Lab) bareCount() (n int64, err error) {
	err = l.inside(roleRouter, func() error {
		var err error
		n, err = counted(l.st.Options, countBare)
		return err
	})
	return n, err
}

func (l *Lab) serverCounts() (n int64, err error) {
	for i := range l.st.Options.Servers {
		err := l.inside(serverName(i+1), func() error {
			one, err := counted(l.st.Options, countClients)
			n += one
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return n, nil
}
