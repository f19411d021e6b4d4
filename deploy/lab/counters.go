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
	countClients = "clients"
)

// header says where the addresses lie in an IP header.
func headerOf(vip netip.Addr) (kind nftables.TableFamily, src, dst uint32) {
	if vip.Is6() {
		return nftables.TableFamilyIPv6, 8, 24
	}
	return nftables.TableFamilyIPv4, 12, 16
}

// matching counts packets whose address field begins with these bytes.
func matching(offset uint32, begin []byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(len(begin))},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: begin},
		&expr.Counter{},
	}
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
				// An ICMP error may come from anybody: whose it is says what it quotes.
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
					&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{icmpProto(f)}},
					&expr.Verdict{Kind: expr.VerdictReturn},
				}})
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: matching(src, f.clients.Addr().AsSlice()[:f.clients.Bits()/8])})
				if !f.clients.Overlaps(f.spoofed) {
					c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: matching(src, f.spoofed.Addr().AsSlice()[:f.spoofed.Bits()/8])})
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
