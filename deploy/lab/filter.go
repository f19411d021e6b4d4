package lab

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

const probeTable = "lab_probes"

// blockProbes drops what nodes themselves send to server i; forwarded packets
// carry their clients' addresses and go on.
func (l *Lab) blockProbes(i int, block bool) error {
	o := l.st.Options
	return l.inside(serverName(i), func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		for _, f := range o.families() {
			kind, src, _ := headerOf(f.vip)
			t := c.AddTable(&nftables.Table{Family: kind, Name: probeTable})
			if !block {
				c.DelTable(t) // added just now, if it was not there
				continue
			}
			ch := c.AddChain(&nftables.Chain{
				Name: "in", Table: t, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookInput, Priority: nftables.ChainPriorityFilter,
			})
			for n := range o.Nodes + o.Spares {
				rule := matching(src, f.nodeInside(n+1).AsSlice())
				c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(rule, &expr.Verdict{Kind: expr.VerdictDrop})})
			}
			if f.vip.Is6() { // neighbour discovery is no probe
				c.InsertRule(&nftables.Rule{Table: t, Chain: ch, Exprs: []expr.Any{
					&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
					&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{icmp6Proto}},
					&expr.Verdict{Kind: expr.VerdictAccept},
				}})
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("set probe filter: %w", err)
		}
		return nil
	})
}

const icmp6Proto = 58
