package forward

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// Keeper holds the policy in the kernel. Not safe for concurrent use.
type Keeper struct {
	written string // Policy.text of what this Keeper wrote
	size    size   // of it
}

// size is how much a table holds: whoever flushed a part of it changed that.
type size struct{ forward, output, elements int }

// Mend writes the table where it is not as wanted: in one transaction, so that
// there is no moment without it. It is cheap when nothing changed; a table that
// somebody removed or flushed is written again.
func (k *Keeper) Mend(p Policy) (changed bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	if k.written != "" && k.written == p.text() {
		have, err := measure(c)
		if err != nil || have == k.size {
			return false, err
		}
	}
	if k.size, err = write(c, p); err != nil {
		return false, err
	}
	k.written = p.text()
	return true, nil
}

// Guard writes the policy where there is none, and leaves one that is there alone:
// for a node that does not know yet what was agreed, and must not be an open router
// meanwhile.
func Guard(p Policy) (written bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	have, err := measure(c)
	if err != nil || have.forward > 0 {
		return false, err
	}
	if _, err := write(c, p); err != nil {
		return false, err
	}
	return true, nil
}

// The parts of the table. Sets are of both families, IPv4 first.
var (
	ownTable       = &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	forwardChain   = &nftables.Chain{Name: "forward", Table: ownTable, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter}
	outputChain    = &nftables.Chain{Name: "output", Table: ownTable, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter}
	serverSetNames = [2]string{"servers4", "servers6"}
	vipSetNames    = [2]string{"vips4", "vips6"}
)

// measure counts what the kernel's table holds. No table, chain or set: 0.
func measure(c *nftables.Conn) (s size, err error) {
	there, err := exists(c)
	if err != nil || !there {
		return s, err
	}
	for _, at := range []struct {
		chain *nftables.Chain
		count *int
	}{{forwardChain, &s.forward}, {outputChain, &s.output}} {
		rules, err := c.GetRules(ownTable, at.chain)
		if err != nil {
			return s, fmt.Errorf("list the rules of the nftables table %q: %w", TableName, err)
		}
		*at.count = len(rules)
	}
	sets, err := c.GetSets(ownTable)
	if err != nil {
		return s, fmt.Errorf("list the sets of the nftables table %q: %w", TableName, err)
	}
	for _, set := range sets {
		elements, err := c.GetSetElements(set)
		if err != nil {
			return s, fmt.Errorf("list the nftables set %s: %w", set.Name, err)
		}
		s.elements += len(elements)
	}
	return s, nil
}

// write puts the table in force, in place of the one that is there.
func write(c *nftables.Conn, p Policy) (s size, err error) {
	c.AddTable(ownTable) // so that deleting it cannot fail
	c.DelTable(ownTable)
	c.AddTable(ownTable)
	servers, err := addSets(c, serverSetNames, sorted(p.Servers))
	if err != nil {
		return s, err
	}
	s.elements = len(sorted(p.Servers))
	var vips []addressSet
	if p.oneArmed() {
		if vips, err = addSets(c, vipSetNames, sorted(p.VIPs)); err != nil {
			return s, err
		}
		s.elements += len(sorted(p.VIPs))
	}
	forward, output := p.forwardRules(servers, vips), p.outputRules()
	s.forward, s.output = len(forward), len(output)
	addChain(c, forwardChain, forward)
	addChain(c, outputChain, output)
	if err := removeFormer(c); err != nil {
		return s, err
	}
	if err := c.Flush(); err != nil {
		return s, fmt.Errorf("write the nftables table %q (does the kernel have nf_tables?): %w", TableName, err)
	}
	return s, nil
}

func addChain(c *nftables.Conn, chain *nftables.Chain, rules [][]expr.Any) {
	c.AddChain(chain)
	for _, r := range rules {
		c.AddRule(&nftables.Rule{Table: ownTable, Chain: chain, Exprs: r})
	}
}

// addressSet is a set of addresses of one family.
type addressSet struct {
	family family
	set    *nftables.Set
}

// addSets puts addresses into one set for each family: rules do not become more
// with them.
func addSets(c *nftables.Conn, names [2]string, addrs []netip.Addr) ([]addressSet, error) {
	var four, six []nftables.SetElement
	for _, a := range addrs {
		if a.Is4() {
			four = append(four, nftables.SetElement{Key: a.AsSlice()})
		} else {
			six = append(six, nftables.SetElement{Key: a.AsSlice()})
		}
	}
	out := []addressSet{
		{family: ipv4, set: &nftables.Set{Table: ownTable, Name: names[0], KeyType: nftables.TypeIPAddr}},
		{family: ipv6, set: &nftables.Set{Table: ownTable, Name: names[1], KeyType: nftables.TypeIP6Addr}},
	}
	for i, elements := range [][]nftables.SetElement{four, six} {
		if err := c.AddSet(out[i].set, elements); err != nil {
			return nil, fmt.Errorf("add the nftables set %s: %w", out[i].set.Name, err)
		}
	}
	return out, nil
}
