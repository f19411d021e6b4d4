package forward

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Obstacle is a chain of another program's table that drops packets which must pass.
type Obstacle struct {
	Table    string // family and name, as nft(8) takes them: "ip filter"
	Chain    string // with the hook
	Where    string // the chain in which the packet is dropped; Chain by its policy
	Passages []Passage
	manager  manager
}

// manager is the program that writes a table, as far as the way to change it differs.
type manager int

const (
	plainNFT manager = iota
	docker
	ufw
	firewalld
)

// maxForeignRules bounds how many rules of one table are read.
const maxForeignRules = 5000

// Obstacles looks for chains of other programs (firewalld, Docker, ufw) that drop any
// of the passages, in the order of their tables. It reads the tables of nf_tables; rules of
// the older ip_tables interface are not seen. A table that cannot be read is an error, and the
// others are judged all the same.
func Obstacles(passages []Passage) ([]Obstacle, error) {
	c, err := nftables.New()
	if err != nil {
		return nil, fmt.Errorf("open nftables: %w", err)
	}
	chains, err := c.ListChains()
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the nftables chains: %w", err)
	}
	tables := make(map[string]*ruleset)
	var out []Obstacle
	var errs []error
	for _, chain := range chains {
		if !mayDrop(chain) {
			continue
		}
		name := tableText(chain.Table)
		if tables[name] == nil {
			r, err := load(c, chain.Table, chains)
			if err != nil {
				errs = append(errs, fmt.Errorf("read the nftables table %s: %w", name, err))
			}
			tables[name] = r
		}
		if o := tables[name].judge(chain, passages); len(o.Passages) > 0 {
			out = append(out, o)
		}
	}
	slices.SortFunc(out, func(a, b Obstacle) int {
		return cmp.Or(strings.Compare(a.Table, b.Table), strings.Compare(a.Chain, b.Chain))
	})
	return out, errors.Join(errs...)
}

// mayDrop: a base chain of a foreign table that sees packets which are forwarded, or
// those to this host.
func mayDrop(c *nftables.Chain) bool {
	if c.Hooknum == nil || c.Type != nftables.ChainTypeFilter ||
		c.Table.Name == TableName && (c.Table.Family == nftables.TableFamilyINet || c.Table.Family == nftables.TableFamilyIPv4) {
		return false
	}
	switch c.Table.Family {
	case nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet:
	default:
		return false
	}
	return *c.Hooknum == *nftables.ChainHookForward || *c.Hooknum == *nftables.ChainHookInput
}

func tableText(t *nftables.Table) string {
	family := map[nftables.TableFamily]string{nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet"}
	return family[t.Family] + " " + t.Name
}

// load reads a table: its rules by chain, and its sets.
func load(c *nftables.Conn, t *nftables.Table, chains []*nftables.Chain) (*ruleset, error) {
	r := &ruleset{table: t, chains: make(map[string][]*nftables.Rule), sets: make(map[string]*setContent), index: interfaceIndex}
	count := 0
	for _, chain := range chains {
		if chain.Table.Name != t.Name || chain.Table.Family != t.Family {
			continue
		}
		rules, err := c.GetRules(t, chain)
		if err != nil {
			return r, err
		}
		if count += len(rules); count > maxForeignRules {
			return r, fmt.Errorf("more than %d rules are not looked at", maxForeignRules)
		}
		r.chains[chain.Name] = rules
	}
	sets, err := c.GetSets(t)
	if err != nil {
		return r, err
	}
	for _, s := range sets {
		elements, err := c.GetSetElements(s)
		if err != nil {
			return r, err
		}
		slices.SortStableFunc(elements, func(a, b nftables.SetElement) int { return slices.Compare(a.Key, b.Key) })
		r.sets[s.Name] = &setContent{elements: elements, interval: s.Interval, complete: !s.Concatenation}
	}
	return r, nil
}

func interfaceIndex(name string) uint32 {
	i, err := net.InterfaceByName(name)
	if err != nil {
		return 0
	}
	return uint32(i.Index)
}

// judge sends the passages through a base chain.
func (r *ruleset) judge(chain *nftables.Chain, passages []Passage) Obstacle {
	o := Obstacle{Table: tableText(r.table), Chain: chain.Name, manager: r.manager()}
	for i := range passages {
		p := &passages[i]
		if (p.Out == "") != (*chain.Hooknum == *nftables.ChainHookInput) || !sees(r.table.Family, p) {
			continue
		}
		switch v := r.run(chain.Name, p, 0); {
		case v.kind == expr.VerdictAccept:
			continue
		case v.kind == expr.VerdictDrop:
			o.Where = cmp.Or(o.Where, v.chain)
		case chain.Policy == nil || *chain.Policy == nftables.ChainPolicyAccept:
			continue
		default:
			o.Where = cmp.Or(o.Where, chain.Name)
		}
		o.Passages = append(o.Passages, *p)
	}
	return o
}

func sees(f nftables.TableFamily, p *Passage) bool {
	switch f {
	case nftables.TableFamilyIPv4:
		return p.Source.Is4()
	case nftables.TableFamilyIPv6:
		return p.Source.Is6()
	default:
		return true
	}
}

func (r *ruleset) manager() manager {
	if r.table.Name == "firewalld" {
		return firewalld
	}
	for name := range r.chains {
		switch {
		case name == "DOCKER-USER":
			return docker
		case strings.HasPrefix(name, "ufw-") || strings.HasPrefix(name, "ufw6-"):
			return ufw
		}
	}
	return plainNFT
}
