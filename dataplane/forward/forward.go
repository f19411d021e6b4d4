// Package forward keeps the node from being an open router. Forwarding must be
// on for the data plane (the kernel resolves next hops and takes over packets
// whose neighbour is not known yet), and with it the kernel would pass anything
// from the outside arm to anywhere. A small nftables table of our own lets
// through what the cluster wants and drops the rest of what comes from outside.
//
// It knows prefixes and interfaces, nothing else. The table stays when the
// daemon stops, as the data plane does.
package forward

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the table's name, family ip. Nobody else writes it.
const TableName = "vpnlb"

// Policy is what may be forwarded from the outside arm.
type Policy struct {
	Outside, Inside string // interfaces; equal when one-armed
	// Servers are the backends: our own traffic to them always passes (UDP 500
	// and 4500, ESP, later fragments).
	Servers []netip.Addr
	// Prefixes are destinations behind this node that are reachable from
	// outside in any protocol. Empty: the servers' own addresses.
	Prefixes []netip.Prefix
}

// text is a canonical form, to see whether anything changed.
func (p Policy) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", p.Outside, p.Inside)
	servers := slices.Clone(p.Servers)
	slices.SortFunc(servers, netip.Addr.Compare)
	prefixes := slices.Clone(p.Prefixes)
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	fmt.Fprint(&b, servers, prefixes)
	return b.String()
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
	table := &nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName}
	c.AddTable(table) // so that deleting it cannot fail
	c.DelTable(table)
	c.AddTable(table)
	chain := c.AddChain(&nftables.Chain{Name: "forward", Table: table, Type: nftables.ChainTypeFilter,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter})
	for _, r := range p.rules() {
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: r})
	}
	if err := c.Flush(); err != nil {
		return false, fmt.Errorf("write the nftables table %q (does the kernel have nf_tables?): %w", TableName, err)
	}
	k.written = p.text()
	return true, nil
}

// Remove takes the table away.
func Remove() error {
	c, err := nftables.New()
	if err != nil {
		return fmt.Errorf("open nftables: %w", err)
	}
	there, err := exists(c)
	if err != nil || !there {
		return err
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyIPv4, Name: TableName})
	if err := c.Flush(); err != nil {
		return fmt.Errorf("remove the nftables table %q: %w", TableName, err)
	}
	return nil
}

func exists(c *nftables.Conn) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if errors.Is(err, unix.ENOENT) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("list the nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName }), nil
}

// rules are the chain, in order. Packets that are not from outside meet none.
func (p Policy) rules() [][]expr.Any {
	var out [][]expr.Any
	add := func(parts ...[]expr.Any) { out = append(out, slices.Concat(parts...)) }
	accept, drop := verdict(expr.VerdictAccept), append([]expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop)...)
	for _, s := range p.Servers {
		if p.Outside == p.Inside {
			add(from(p.Outside), match(source, netip.PrefixFrom(s, s.BitLen())), accept)
		}
		host := netip.PrefixFrom(s, s.BitLen())
		add(from(p.Outside), match(destination, host), protocol(unix.IPPROTO_ESP), accept)
		add(from(p.Outside), match(destination, host), laterFragment(), accept)
		for _, port := range []uint16{500, 4500} {
			add(from(p.Outside), match(destination, host), protocol(unix.IPPROTO_UDP), port16(port), accept)
		}
		if len(p.Prefixes) == 0 {
			add(from(p.Outside), match(destination, host), accept)
		}
	}
	for _, prefix := range p.Prefixes {
		if prefix.Addr().Is4() {
			add(from(p.Outside), match(destination, prefix), accept)
		}
	}
	add(from(p.Outside), drop)
	return out
}

// Offsets in the IPv4 header (RFC 791, section 3.1).
const (
	fragment    = 6
	proto       = 9
	source      = 12
	destination = 16
)

func verdict(k expr.VerdictKind) []expr.Any { return []expr.Any{&expr.Verdict{Kind: k}} }

func from(iface string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, iface)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
	}
}

func match(offset uint32, p netip.Prefix) []expr.Any {
	addr := p.Masked().Addr().As4()
	mask := [4]byte{}
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: mask[:], Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr[:]},
	}
}

func protocol(p byte) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: proto, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{p}},
	}
}

// laterFragment: the fragment offset is not 0.
func laterFragment() []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: fragment, Len: 2},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 2, Mask: []byte{0x1f, 0xff}, Xor: []byte{0, 0}},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: []byte{0, 0}},
	}
}

func port16(port uint16) []expr.Any {
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
	}
}
