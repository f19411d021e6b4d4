package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/nftables"

	"github.com/vpnlb/vpnlb/node/admin"
)

// Another program's table, as firewalld writes it.
const foreignTable, foreignChain = "firewalld", "filter_FORWARD"

// foreignBound is for the next look of a node at the rules of other programs, which
// comes every ten seconds, on a busy machine.
const foreignBound = time.Minute

// foreignRules starts and ends a firewall on a node whose forward chain drops. The
// node names the chain while it is there. Packets go on: the program sends them past it.
func (d *drill) foreignRules(ctx context.Context) error {
	node := d.l.members()[0]
	said := func(st *admin.Status) bool {
		return slices.ContainsFunc(st.Warnings, func(w string) bool {
			return strings.Contains(w, "inet "+foreignTable) && strings.Contains(w, foreignChain)
		})
	}
	for _, there := range []bool{true, false} {
		if err := d.l.setForeignRules(node, there); err != nil {
			return err
		}
		defer d.l.setForeignRules(node, false) // for the ways out
		err := until(ctx, foreignBound, "the node to see the other firewall come or go", func() (bool, error) {
			st, err := d.l.status(ctx, node)
			return err == nil && said(&st) == there, err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// setForeignRules adds or removes the table of another firewall on a node.
func (l *Lab) setForeignRules(node string, there bool) error {
	return l.inside(node, func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: foreignTable})
		if !there {
			c.DelTable(t) // added just now, if it was not there
		} else {
			drop := nftables.ChainPolicyDrop
			c.AddChain(&nftables.Chain{Name: foreignChain, Table: t, Type: nftables.ChainTypeFilter, Policy: &drop,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRef(10)})
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("set the rules of another firewall: %w", err)
		}
		return nil
	})
}
