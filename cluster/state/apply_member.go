package state

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// maxTokenLife bounds join tokens: a forgotten one must not stay good.
const maxTokenLife = 30 * 24 * time.Hour

// keySize is that of an Ed25519 public key (RFC 8032, section 5.1.5).
const keySize = 32

// memberFault says what is wrong with a member's own words. The first node may
// leave its key out (then nobody can replace it).
func memberFault(n *Member, keyed bool) string {
	if n.ID.IsZero() {
		return "the node has no ID: draw one"
	}
	if fault := nameFault("node", n.Name); fault != "" {
		return fault
	}
	switch {
	case n.Role != RoleNode && n.Role != RoleWitness:
		return fmt.Sprintf("node %s has no role %d: node or witness", n.Name, n.Role)
	case len(n.PublicKey) != keySize && (keyed || len(n.PublicKey) > 0):
		return fmt.Sprintf("node %s has a public key of %d bytes: Ed25519 has %d", n.Name, len(n.PublicKey), keySize)
	case len(n.Addrs) > MaxAddrs:
		return fmt.Sprintf("node %s has %d addresses: at most %d", n.Name, len(n.Addrs), MaxAddrs)
	case len(n.Cluster) > MaxText || len(n.Gossip) > MaxText:
		return fmt.Sprintf("node %s has a cluster or gossip address of more than %d bytes", n.Name, MaxText)
	case slices.ContainsFunc(n.Addrs, func(a netip.Addr) bool { return !a.IsValid() }):
		return fmt.Sprintf("node %s lists an invalid address", n.Name)
	}
	return ""
}

// memberClash says which other member stands in the way; except is left out.
func (s *Spec) memberClash(n *Member, except NodeID) string {
	for i := range s.Members {
		o := &s.Members[i]
		switch {
		case o.ID == except:
		case o.Name == n.Name:
			return fmt.Sprintf("node name %s is taken by %v: choose another or remove that node first", n.Name, o.ID)
		case n.Cluster != "" && o.Cluster == n.Cluster:
			return fmt.Sprintf("cluster address %s belongs to node %s: replace or remove that node first", n.Cluster, o.Name)
		case len(n.PublicKey) > 0 && bytes.Equal(o.PublicKey, n.PublicKey):
			return fmt.Sprintf("the public key belongs to node %s: replace that node", o.Name)
		}
	}
	return ""
}

// formatFault says why a node cannot read what the cluster uses already.
func (s *Spec) formatFault(n *Member) string {
	if lowest := s.Format(); n.Format < lowest {
		return fmt.Sprintf("node %s understands command format %d, and the cluster uses %d: install a newer version there", n.Name, n.Format, lowest)
	}
	return ""
}

func (m *Machine) addToken(c *AddToken) Outcome {
	if c.Name != "" {
		if fault := nameFault("node", c.Name); fault != "" {
			return refusal(Invalid, "%s", fault)
		}
	}
	if c.Life <= 0 || c.Life > maxTokenLife {
		return refusal(Invalid, "a join token lives up to %v, not %v", maxTokenLife, c.Life)
	}
	if _, ok := m.spec.TokenByHash(c.Hash); ok {
		return refusal(Conflict, "the join token exists already: draw another")
	}
	live := slices.DeleteFunc(slices.Clone(m.spec.Tokens), func(t Token) bool { return t.Expires <= m.spec.Now })
	if len(live) >= MaxTokens {
		return refusal(Full, "%d join tokens are outstanding: wait until one expires", len(live))
	}
	m.spec.Tokens = append(live, Token{Hash: c.Hash, Name: c.Name, Expires: m.spec.Now.Add(c.Life)})
	m.changed = true
	return done(0)
}

func (m *Machine) admitMember(c *AdmitMember) Outcome {
	n := c.Member
	at, refused := m.spec.admission(c, m.spec.Now, NodeID{})
	if at < 0 {
		return refused
	}
	t := m.spec.Tokens[at]
	if t.UsedBy == n.ID {
		return done(0) // the same join again
	}
	t.UsedBy = n.ID
	m.spec.Tokens = edited(m.spec.Tokens, at, t)
	m.enrol(n)
	return done(0)
}

// MayAdmit tells what Apply would answer to c at this time: Code OK, or the
// refusal. Ask before proposing: anybody may ask to join, and what is refused
// should not be in the log. first is a member that is removed by a command
// before c in the same entry; zero: none.
func (s *Spec) MayAdmit(c AdmitMember, now Time, first NodeID) Outcome {
	at, refused := s.admission(&c, now, first)
	if at < 0 {
		return refused
	}
	return done(0)
}

// admission finds the token that admits a member, used by itself where the
// same join comes again; -1: it is refused.
func (s *Spec) admission(c *AdmitMember, now Time, without NodeID) (int, Outcome) {
	n := &c.Member
	no := func(code Code, format string, args ...any) (int, Outcome) { return -1, refusal(code, format, args...) }
	at := slices.IndexFunc(s.Tokens, func(t Token) bool { return t.Hash == c.Token })
	if at < 0 {
		return no(NotAllowed, "the join token is unknown: make a new one with `vpnlb cluster token`")
	}
	t := &s.Tokens[at]
	old, known := s.MemberByID(n.ID)
	switch removed, gone := s.RemovedByID(n.ID); {
	case t.Expires <= now:
		return no(NotAllowed, "the join token has expired: make a new one with `vpnlb cluster token`")
	case known && t.UsedBy == n.ID && len(n.PublicKey) > 0 && bytes.Equal(old.PublicKey, n.PublicKey):
		return at, Outcome{}
	case !t.UsedBy.IsZero():
		return no(NotAllowed, "the join token was used by node %v: make a new one with `vpnlb cluster token`", t.UsedBy)
	case gone:
		return no(NotAllowed, "node %s was removed at index %d: join under a new ID", removed.Name, removed.Index)
	case known:
		return no(NotAllowed, "node %s is a member already", old.Name)
	case t.Name != "" && t.Name != n.Name:
		return no(NotAllowed, "the join token is for a node named %s, not %s", t.Name, n.Name)
	}
	if fault := memberFault(n, true); fault != "" {
		return no(Invalid, "%s", fault)
	}
	if fault := s.memberClash(n, without); fault != "" {
		return no(Invalid, "%s", fault)
	}
	if fault := s.formatFault(n); fault != "" {
		return no(NotAllowed, "%s", fault)
	}
	members := len(s.Members)
	if _, ok := s.MemberByID(without); ok {
		members--
	}
	if members >= MaxMembers {
		return no(Full, "%d nodes are the most a cluster has: remove one first", MaxMembers)
	}
	return at, Outcome{}
}

func (m *Machine) enrol(n Member) {
	n.Joined, n.Draining = m.index, false
	all := with(m.spec.Members, n)
	slices.SortFunc(all, byNodeID)
	m.spec.Members = all
	m.changed = true
}

func (m *Machine) updateMember(c *UpdateMember) Outcome {
	n := c.Member
	at := slices.IndexFunc(m.spec.Members, func(o Member) bool { return o.ID == n.ID })
	if at < 0 {
		if removed, gone := m.spec.RemovedByID(n.ID); gone {
			return refusal(NotAllowed, "node %s was removed at index %d", removed.Name, removed.Index)
		}
		return refusal(NotFound, "there is no node %v", n.ID)
	}
	old := m.spec.Members[at]
	if len(n.PublicKey) == 0 {
		n.PublicKey = old.PublicKey
	}
	if n.Name == "" {
		n.Name = old.Name
	}
	if n.Role == 0 {
		n.Role = old.Role
	}
	n.Joined = old.Joined
	if n.Role != old.Role || !bytes.Equal(n.PublicKey, old.PublicKey) {
		return refusal(Invalid, "node %s cannot change its role or key: remove it and join again", old.Name)
	}
	if fault := memberFault(&n, false); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if fault := m.spec.memberClash(&n, n.ID); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if n.Name == old.Name && n.Cluster == old.Cluster && n.Gossip == old.Gossip && n.Draining == old.Draining &&
		n.Format == old.Format && slices.Equal(n.Addrs, old.Addrs) {
		return done(0)
	}
	m.spec.Members = edited(m.spec.Members, at, n)
	m.changed = true
	return done(0)
}

func (m *Machine) removeMember(c *RemoveMember) Outcome {
	at := slices.IndexFunc(m.spec.Members, func(o Member) bool { return o.ID == c.ID })
	if at < 0 {
		if _, gone := m.spec.RemovedByID(c.ID); gone {
			return done(0)
		}
		return refusal(NotFound, "there is no node %v", c.ID)
	}
	if len(m.spec.Members) == 1 {
		return refusal(Invalid, "node %s is the last one: a cluster without nodes agrees on nothing", m.spec.Members[at].Name)
	}
	m.dismiss(at)
	return done(0)
}

// dismiss moves a member to Removed and takes its gateways away.
func (m *Machine) dismiss(at int) {
	n := m.spec.Members[at]
	m.spec.Members = without(m.spec.Members, at)
	removed := m.spec.Removed
	if len(removed) >= MaxRemoved {
		removed = removed[len(removed)-MaxRemoved+1:]
	}
	m.spec.Removed = with(removed, RemovedMember{ID: n.ID, Name: n.Name, Index: m.index})
	for i, g := range m.spec.Gateways {
		if g.Owner == n.ID {
			g.Owner, g.Index = NodeID{}, m.index
			m.spec.Gateways = edited(m.spec.Gateways, i, g)
		}
	}
	m.changed = true
}

func (m *Machine) replaceMember(c *ReplaceMember) Outcome {
	n := c.Member
	if fault := memberFault(&n, true); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if o, ok := m.spec.MemberByID(n.ID); ok {
		if _, gone := m.spec.RemovedByID(c.Old); gone && bytes.Equal(o.PublicKey, n.PublicKey) {
			return done(0) // the same replacement again
		}
		return refusal(NotAllowed, "node %s is a member already: draw a new ID", o.Name)
	}
	if removed, gone := m.spec.RemovedByID(n.ID); gone {
		return refusal(NotAllowed, "node %s was removed at index %d: draw a new ID", removed.Name, removed.Index)
	}
	at := slices.IndexFunc(m.spec.Members, func(o Member) bool { return o.ID == c.Old })
	if at < 0 {
		return refusal(NotFound, "there is no node %v to replace", c.Old)
	}
	old := &m.spec.Members[at]
	if !bytes.Equal(old.PublicKey, n.PublicKey) || n.Role != old.Role {
		return refusal(NotAllowed, "node %s can be replaced by a node of the same key and role only: join with a token", old.Name)
	}
	if fault := m.spec.memberClash(&n, c.Old); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if fault := m.spec.formatFault(&n); fault != "" {
		return refusal(NotAllowed, "%s", fault)
	}
	m.dismiss(at)
	m.enrol(n)
	return done(0)
}

func (m *Machine) putGateway(c *PutGateway) Outcome {
	if fault := addrFault("gateway", c.Addr); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if g, ok := m.spec.GatewayByAddr(c.Addr); ok {
		if c.Expect == g.Version {
			return done(uint64(g.ID))
		}
		return conflict("gateway", g.Addr.String(), c.Expect, g.Version)
	}
	if c.Expect != 0 {
		return refusal(NotFound, "there is no gateway %v any more: add it again", c.Addr)
	}
	if v, ok := m.spec.VIPByAddr(c.Addr); ok {
		return refusal(Invalid, "address %v is VIP %s: a gateway needs an address of its own", c.Addr, v.Name)
	}
	if b, ok := m.spec.BackendByAddr(c.Addr); ok {
		return refusal(Invalid, "address %v is backend %s: a gateway needs an address of its own", c.Addr, b.Name)
	}
	if len(m.spec.Gateways) >= MaxGateways {
		return refusal(Full, "%d gateways are the most a cluster has: remove one first", MaxGateways)
	}
	m.last.gateway++
	m.spec.Gateways = with(m.spec.Gateways, Gateway{ID: m.last.gateway, Addr: c.Addr, Version: m.index})
	m.changed = true
	return done(uint64(m.last.gateway))
}

func (m *Machine) removeGateway(c *RemoveGateway) Outcome {
	at := slices.IndexFunc(m.spec.Gateways, func(g Gateway) bool { return g.ID == c.ID })
	if at < 0 {
		return refusal(NotFound, "there is no gateway %d", c.ID)
	}
	if g := &m.spec.Gateways[at]; stale(c.Expect, g.Version) {
		return conflict("gateway", g.Addr.String(), c.Expect, g.Version)
	}
	m.spec.Gateways = without(m.spec.Gateways, at)
	m.changed = true
	return done(uint64(c.ID))
}

func (m *Machine) ownGateway(c *OwnGateway) Outcome {
	at := slices.IndexFunc(m.spec.Gateways, func(g Gateway) bool { return g.ID == c.ID })
	if at < 0 {
		return refusal(NotFound, "there is no gateway %d", c.ID)
	}
	g := m.spec.Gateways[at]
	owner, member := m.spec.MemberByID(c.Owner)
	switch {
	case g.Index != c.Previous:
		return refusal(Conflict, "gateway %v changed its owner at index %d, not %d: judge again", g.Addr, g.Index, c.Previous)
	case !c.Owner.IsZero() && !member:
		return refusal(Invalid, "gateway %v cannot go to %v: it is no member", g.Addr, c.Owner)
	case member && owner.Role != RoleNode:
		return refusal(Invalid, "gateway %v cannot go to node %s: a witness has no data plane", g.Addr, owner.Name)
	case g.Owner == c.Owner:
		return done(uint64(g.ID))
	}
	g.Owner, g.Index = c.Owner, m.index
	m.spec.Gateways = edited(m.spec.Gateways, at, g)
	m.changed = true
	return done(uint64(g.ID))
}
