package lab

import (
	"context"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

const pathTable = "lab_paths"

// reachLimit is how long the packets of a node may be lost whose way to the servers
// is broken while its links are up: four misses, 5 s at most, until the node knows
// that it is alone with that, and then what a move of gateways and a withdrawal take,
// and servers' learning of it.
const reachLimit = 7500 * time.Millisecond

// blockServers drops, at the inside switch, what passes between a node and any
// server. Links keep their carrier, and the nodes hear each other.
func (l *Lab) blockServers(node string, block bool) error {
	o := l.st.Options
	return l.inside(roleInside, func() error {
		c, err := nftables.New()
		if err != nil {
			return fmt.Errorf("open nftables: %w", err)
		}
		t := c.AddTable(&nftables.Table{Family: nftables.TableFamilyBridge, Name: pathTable})
		if !block {
			c.DelTable(t) // added just now, if it was not there
		} else {
			ch := c.AddChain(&nftables.Chain{
				Name: "pass", Table: t, Type: nftables.ChainTypeFilter,
				Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
			})
			port := insidePort(node)
			for _, f := range o.families() {
				_, src, dst := headerOf(f.vip)
				for i := range o.Servers {
					addr := f.server(i + 1).AsSlice()
					for _, exprs := range [][]expr.Any{onBridge(expr.MetaKeyIIFNAME, port, f, matching(dst, addr)), onBridge(expr.MetaKeyOIFNAME, port, f, matching(src, addr))} {
						c.AddRule(&nftables.Rule{Table: t, Chain: ch, Exprs: append(exprs, &expr.Verdict{Kind: expr.VerdictDrop})})
					}
				}
			}
		}
		if err := c.Flush(); err != nil {
			return fmt.Errorf("set filter of the inside switch: %w", err)
		}
		return nil
	})
}

// onBridge narrows a match down to frames of a family at one port.
func onBridge(key expr.MetaKey, port string, f family, match []expr.Any) []expr.Any {
	name := make([]byte, 16) // IFNAMSIZ
	copy(name, port)
	kind := []byte{0x08, 0x00}
	if f.vip.Is6() {
		kind = []byte{0x86, 0xdd}
	}
	return append([]expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		&expr.Meta{Key: expr.MetaKeyPROTOCOL, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: kind},
	}, match...)
}

// insidePath breaks the way between the servers and a node that owns a gateway: it
// must give up its gateways and its routes, although nothing that it sees of itself
// is wrong but that no server answers.
func (d *drill) insidePath(ctx context.Context) error {
	node, _, err := d.l.gatewayOwner(ctx)
	if err != nil {
		return err
	}
	d.l.say("  breaking the way between %s and the servers, links up", node)
	start := time.Now()
	if err := d.l.blockServers(node, true); err != nil {
		return err
	}
	defer d.l.blockServers(node, false) // again below; here for the ways out
	moved, err := d.gatewaysLeave(ctx, node, start)
	if err != nil {
		return err
	}
	d.within("gateways of "+node+" elsewhere", moved, reachLimit)
	if err := d.l.waitHops(ctx, healBound, without(d.l.members(), node)...); err != nil {
		return err
	}
	took := time.Since(start)
	d.within("route via "+node+" gone", took, reachLimit)
	d.converged(took)
	if err := flow(ctx, settleTime); err != nil {
		return err
	}
	s, err := d.l.peers.snapshot(ctx)
	if err != nil {
		return err
	}
	v := d.before.compare(s, d.permits)
	d.notef("%d packets lost", v.lost)
	d.within("longest window of losses", v.longest, reachLimit)
	if v.lost == 0 {
		d.failf("nobody lost a packet: the way was not broken")
	}
	d.l.say("  mending it")
	if err := d.l.blockServers(node, false); err != nil {
		return err
	}
	return d.heal(ctx, node, s)
}
