// Package forward keeps the node from being an open router. Forwarding must be
// on for the data plane (the kernel resolves next hops and takes over packets
// whose neighbour is not known yet), and with it the kernel would pass anything
// from the outside arm to anywhere. A small nftables table of our own lets
// through what the cluster wants and drops the rest of what comes from outside.
//
// It is one table of the inet family, so that IPv4 and IPv6 change in the same
// transaction. It knows addresses, prefixes and interfaces, and no connections:
// the XDP program carries most of the traffic past it, so connection tracking
// would see half of everything, and cost memory for it. Neighbour Discovery is
// never forwarded and needs no rule.
//
// The table stays when the daemon stops, as the data plane does.
package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the table's name, family inet. Nobody else writes it.
const TableName = "vpnlb"

// Policy is what may be forwarded from the outside arm.
type Policy struct {
	Outside, Inside string // interfaces; equal when one-armed
	// Servers are the backends of both families: our own traffic to them always
	// passes (UDP 500 and 4500, ESP, later fragments, ICMP errors).
	Servers []netip.Addr
	// TCP: some VIP passes TCP 443 through, so it is our own traffic, too.
	TCP bool
	// Prefixes are destinations behind this node, of both families, that are
	// reachable from outside in any protocol. Empty: the servers' own addresses.
	Prefixes []netip.Prefix
}

// text is a canonical form, to see whether anything changed.
func (p Policy) text() string {
	servers := slices.Clone(p.Servers)
	slices.SortFunc(servers, netip.Addr.Compare)
	prefixes := slices.Clone(p.Prefixes)
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return fmt.Sprint(p.Outside, " ", p.Inside, " ", p.TCP, slices.Compact(servers), slices.Compact(prefixes))
}

// Keeper holds the policy in the kernel. Not safe for concurrent use.
type Keeper struct{ written string }

// Mend writes the table where it is not as wanted: in one transaction, so that
// there is no moment without it. It is cheap when nothing changed; a table that
// somebody removed is written again.
func (k *Keeper) Mend(p Policy) (changed bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return false, fmt.Errorf("open nftables: %w", err)
	}
	there, err := exists(c)
	if err != nil {
		return false, err
	}
	if there && k.written == p.text() {
		return false, nil
	}
	table := &nftables.Table{Family: nftables.TableFamilyINet, Name: TableName}
	c.AddTable(table) // so that deleting it cannot fail
	c.DelTable(table)
	c.AddTable(table)
	servers, err := addServers(c, table, p.Servers)
	if err != nil {
		return false, err
	}
	forward := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	for _, r := range p.forwardRules(servers) {
		c.AddRule(&nftables.Rule{Table: table, Chain: forward, Exprs: r})
	}
	output := c.AddChain(&nftables.Chain{Name: "output", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookOutput, Priority: nftables.ChainPriorityFilter})
	for _, r := range p.outputRules() {
		c.AddRule(&nftables.Rule{Table: table, Chain: output, Exprs: r})
	}
	if err := removeFormer(c); err != nil {
		return false, err
	}
	if err := c.Flush(); err != nil {
		return false, fmt.Errorf("write the nftables table %q (does the kernel have nf_tables?): %w", TableName, err)
	}
	k.written = p.text()
	return true, nil
}

// addServers puts the servers into one set for each family: rules do not become
// more with them.
func addServers(c *nftables.Conn, table *nftables.Table, servers []netip.Addr) ([]serverSet, error) {
	list := slices.Clone(servers)
	slices.SortFunc(list, netip.Addr.Compare)
	var four, six []nftables.SetElement
	for _, s := range slices.Compact(list) {
		if s.Is4() {
			four = append(four, nftables.SetElement{Key: s.AsSlice()})
		} else {
			six = append(six, nftables.SetElement{Key: s.AsSlice()})
		}
	}
	out := []serverSet{
		{family: ipv4, set: &nftables.Set{Table: table, Name: "servers4", KeyType: nftables.TypeIPAddr}},
		{family: ipv6, set: &nftables.Set{Table: table, Name: "servers6", KeyType: nftables.TypeIP6Addr}},
	}
	for i, elements := range [][]nftables.SetElement{four, six} {
		if err := c.AddSet(out[i].set, elements); err != nil {
			return nil, fmt.Errorf("add the nftables set %s: %w", out[i].set.Name, err)
		}
	}
	return out, nil
}

// Remove takes the table away.
func Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	there, err := exists(c)
	if err != nil {
		return err
	}
	if err := removeFormer(c); err != nil {
		return err
	}
	if !there {
		return c.Flush()
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: TableName})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove the nftables table %q: %w", TableName, err)
	}
	return nil
}

// removeFormer takes away, in the same transaction, the table of IPv4 alone that
// versions before IPv6 wrote: it would go on filtering beside this one.
func removeFormer(c *nftables.Conn) error {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("list the nftables tables: %w", err)
	}
	for _, t := range tables {
		if t.Name == TableName {
			c.DelTable(t)
		}
	}
	return nil
}

func exists(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list the nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName }), nil
}

// serverSet is the set of a family's servers.
type serverSet struct {
	family family
	set    *nftables.Set
}

// forwardRules are the chain of what is forwarded, in order. Packets that are not
// from outside meet none: what servers send is not restricted.
func (p Policy) forwardRules(servers []serverSet) [][]expr.Any {
	var out [][]expr.Any
	for _, s := range servers {
		add := func(parts ...[]expr.Any) {
			r := slices.Concat(from(p.Outside), s.family.is(), slices.Concat(parts...), verdict(expr.VerdictAccept))
			out = append(out, r)
		}
		to := slices.Concat(s.family.load(s.family.destination), inSet(s.set))
		if p.Outside == p.Inside { // what comes from a server comes from inside
			add(s.family.load(s.family.source), inSet(s.set))
		}
		if len(p.Prefixes) == 0 {
			add(to)
			continue
		}
		add(to, protocol(unix.IPPROTO_ESP))
		add(to, protocol(unix.IPPROTO_UDP), port(500))
		add(to, protocol(unix.IPPROTO_UDP), port(4500))
		add(to, protocol(unix.IPPROTO_UDP), s.family.laterFragment())
		if p.TCP {
			add(to, protocol(unix.IPPROTO_TCP), port(443))
			add(to, protocol(unix.IPPROTO_TCP), s.family.laterFragment())
		}
		for _, kind := range s.family.icmpErrors {
			add(to, protocol(s.family.icmp), icmpType(kind))
		}
	}
	for _, prefix := range p.Prefixes {
		f := ipv4
		if prefix.Addr().Is6() {
			f = ipv6
		}
		out = append(out, slices.Concat(from(p.Outside), f.is(), f.to(prefix), verdict(expr.VerdictAccept)))
	}
	return append(out, slices.Concat(from(p.Outside), []expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop)))
}

// outputRules keep this host from sending IPv6 redirects (RFC 4861, section 8.2)
// on its arms: on a shared segment they would teach a server a way to its clients
// around the cluster. IPv4 has send_redirects for that; IPv6 has nothing.
func (p Policy) outputRules() [][]expr.Any {
	const redirect = 137
	var out [][]expr.Any
	for _, arm := range slices.Compact([]string{p.Outside, p.Inside}) {
		out = append(out, slices.Concat(by(arm), ipv6.is(), protocol(ipv6.icmp), icmpType(redirect),
			[]expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop)))
	}
	return out
}
