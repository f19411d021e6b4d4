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
	"golang.org/x/sys/unix"
)

// TableName is the table's name, family inet. Nobody else writes it.
const TableName = "vpnlb"

// Policy is what may be forwarded. One that names the interfaces and nothing else
// lets nothing through from outside.
type Policy struct {
	// Outside and Inside are the interfaces towards clients and towards servers. An
	// interface in both lists is one-armed. A packet that comes in by an interface in
	// neither list (management, a container bridge) reaches neither side, except the
	// destinations in Prefixes.
	Outside, Inside []string
	// VIPs are those of both families. With one arm for both sides a reply comes
	// from outside, too, and when the kernel gets it (its next hop is not known yet,
	// or it must be fragmented) it carries the VIP already.
	VIPs []netip.Addr
	// Servers are the backends of both families: our own traffic to them always
	// passes (UDP 500 and 4500, ESP, later fragments, ICMP errors).
	Servers []netip.Addr
	// TCP: some VIP passes TCP 443 through, so it is our own traffic, too.
	TCP bool
	// Prefixes are destinations behind this node, of both families, that are
	// reachable by every interface in any protocol. Empty: the servers' own
	// addresses, from outside alone.
	Prefixes []netip.Prefix
}

// text is a canonical form, to see whether anything changed.
func (p Policy) text() string {
	prefixes := slices.Clone(p.Prefixes)
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	return fmt.Sprint(p.Outside, " ", p.Inside, " ", p.TCP, sorted(p.VIPs), sorted(p.Servers), slices.Compact(prefixes))
}

func sorted(addrs []netip.Addr) []netip.Addr {
	out := slices.Clone(addrs)
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// oneArmed reports whether an interface is outside and inside at once.
func (p Policy) oneArmed() bool {
	return slices.ContainsFunc(p.Outside, func(name string) bool { return slices.Contains(p.Inside, name) })
}

// interfaces lists the distinct interfaces of both sides, outside first.
func (p Policy) interfaces() []string {
	out := slices.Clone(p.Outside)
	for _, name := range p.Inside {
		if !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
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
