package state

import (
	"fmt"
	"net/netip"
	"slices"
)

// nameFault says what is wrong with a name: "" when nothing is.
func nameFault(what, name string) string {
	if len(name) == 0 || len(name) > MaxName {
		return fmt.Sprintf("%s name %q must have 1 to %d bytes", what, name, MaxName)
	}
	for i := range len(name) {
		c := name[i]
		letter := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !letter && (i == 0 || c != '-' && c != '_' && c != '.') {
			return fmt.Sprintf("%s name %q may have letters, digits, '-', '_' and '.' only, a letter or digit first", what, name)
		}
	}
	return ""
}

// addrFault says why an address cannot be the unicast address of something.
func addrFault(what string, a netip.Addr) string {
	switch {
	case !a.IsValid():
		return what + " address is missing"
	case a.Is4In6() || a.Zone() != "":
		return fmt.Sprintf("%s address %v must be plain IPv4 or IPv6, without a zone", what, a)
	case a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return fmt.Sprintf("%s address %v is no unicast address", what, a)
	}
	return ""
}

// conflict is the answer to a wrong expected version.
func conflict(what, name string, expect, version uint64) Outcome {
	if expect == 0 {
		return refusal(Conflict, "%s %s exists already (version %d): change it instead of adding it", what, name, version)
	}
	return refusal(Conflict, "%s %s is at version %d, not %d: somebody changed it meanwhile, look at it again", what, name, version, expect)
}

// stale reports a wrong version where 0 means any: removing and the like.
func stale(expect, version uint64) bool { return expect != 0 && expect != version }

func (m *Machine) initialise(c *Init) Outcome {
	if !m.spec.ClusterID.IsZero() {
		return refusal(NotAllowed, "the cluster is initialised already as %v: join it instead", m.spec.ClusterID)
	}
	fault := ""
	switch err := c.Settings.Validate(); {
	case c.ClusterID.IsZero():
		fault = "the cluster ID is zero: draw one"
	case c.TableSize < MinTableSize || c.TableSize > MaxTableSize || !prime(c.TableSize):
		fault = fmt.Sprintf("the table size %d is no prime from %d to %d", c.TableSize, MinTableSize, MaxTableSize)
	case err != nil:
		fault = err.Error()
	case len(c.Secrets) > MaxSecrets:
		fault = fmt.Sprintf("%d secrets are more than %d", len(c.Secrets), MaxSecrets)
	default:
		fault = memberFault(&c.First, false)
	}
	for i := range c.Secrets {
		if fault == "" {
			fault = secretFault(c.Secrets[i].Name, c.Secrets[i].Sealed)
		}
	}
	if fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	s := m.spec
	s.ClusterID, s.HashKey, s.TableSize, s.Settings = c.ClusterID, c.HashKey, c.TableSize, c.Settings
	s.Settings.Version = m.index
	s.Generation = m.index
	first := c.First
	first.Joined = m.index
	first.Draining = false
	s.Members = []Member{first}
	for _, secret := range c.Secrets {
		m.keepSecret(secret.Name, secret.Sealed)
	}
	records := newShards(c.HashKey)
	records.epoch = m.records.epoch // Views were taken before
	m.records = records
	m.changed = true
	return done(0)
}

func prime(n uint32) bool {
	for d := uint32(2); d*d <= n; d++ {
		if n%d == 0 {
			return false
		}
	}
	return n > 1
}

func (m *Machine) putVIP(c *PutVIP) Outcome {
	v := c.VIP
	if v.ClientBits == 0 {
		v.ClientBits = 64
	}
	var old *VIP
	var found bool
	if v.ID != 0 {
		if old, found = m.spec.VIPByID(v.ID); !found {
			return refusal(NotFound, "there is no VIP %d", v.ID)
		}
	} else {
		old, found = m.spec.VIPByName(v.Name)
	}
	if found && c.Expect != old.Version {
		return conflict("VIP", old.Name, c.Expect, old.Version)
	}
	if !found && c.Expect != 0 {
		return refusal(NotFound, "there is no VIP %s any more: add it again", v.Name)
	}
	if fault := m.vipFault(&v, old); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	v.Version = m.index
	m.changed, m.unsettled = true, true
	if found {
		v.ID, v.Place = old.ID, old.Place
		at := slices.IndexFunc(m.spec.VIPs, func(o VIP) bool { return o.ID == v.ID })
		m.spec.VIPs = edited(m.spec.VIPs, at, v)
		return done(uint64(v.ID))
	}
	if len(m.spec.VIPs) >= MaxVIPs {
		return refusal(Full, "%d VIPs are the most a cluster has: remove one first", MaxVIPs)
	}
	m.last.vip++
	v.ID = m.last.vip
	for slices.ContainsFunc(m.spec.VIPs, func(o VIP) bool { return o.Place == v.Place }) {
		v.Place++
	}
	m.spec.VIPs = with(m.spec.VIPs, v)
	return done(uint64(v.ID))
}

func (m *Machine) vipFault(v, old *VIP) string {
	if fault := nameFault("VIP", v.Name); fault != "" {
		return fault
	}
	if fault := addrFault("VIP", v.Addr); fault != "" {
		return fault
	}
	if v.ClientBits < 32 || v.ClientBits > 128 {
		return fmt.Sprintf("VIP %s keys IPv6 clients by 32 to 128 bits, not %d", v.Name, v.ClientBits)
	}
	if v.SSTP > SSTPReencrypt {
		return fmt.Sprintf("VIP %s has no SSTP mode %d", v.Name, v.SSTP)
	}
	if fault := m.vipCertFault(v); fault != "" {
		return fault
	}
	for i := range m.spec.VIPs {
		o := &m.spec.VIPs[i]
		switch {
		case o == old:
		case o.Name == v.Name:
			return fmt.Sprintf("VIP name %s is taken: choose another", v.Name)
		case o.Addr == v.Addr:
			return fmt.Sprintf("address %v is VIP %s already", v.Addr, o.Name)
		}
	}
	if b, ok := m.spec.BackendByAddr(v.Addr); ok {
		return fmt.Sprintf("address %v is backend %s: a VIP needs an address of its own", v.Addr, b.Name)
	}
	if _, ok := m.spec.GatewayByAddr(v.Addr); ok {
		return fmt.Sprintf("address %v is a gateway: a VIP needs an address of its own", v.Addr)
	}
	for i := range m.spec.Backends {
		b := &m.spec.Backends[i]
		if old != nil && b.VIP == old.ID && b.Addr.Is4() != v.Addr.Is4() {
			return fmt.Sprintf("VIP %s has backend %s (%v): it cannot change to another address family", v.Name, b.Name, b.Addr)
		}
	}
	return ""
}

func (m *Machine) removeVIP(c *RemoveVIP) Outcome {
	at := slices.IndexFunc(m.spec.VIPs, func(v VIP) bool { return v.ID == c.ID })
	if at < 0 {
		return refusal(NotFound, "there is no VIP %d", c.ID)
	}
	v := &m.spec.VIPs[at]
	if stale(c.Expect, v.Version) {
		return conflict("VIP", v.Name, c.Expect, v.Version)
	}
	count, removed := 0, 0
	for i := range m.spec.Backends {
		if b := &m.spec.Backends[i]; b.VIP == c.ID {
			count++
			if b.Admin == AdminRemoved {
				removed++
			}
		}
	}
	if count > 0 {
		return refusal(Invalid, "VIP %s has %d backends, %d of them removed but still named by clients: remove them first (with --purge to forget their clients)", v.Name, count, removed)
	}
	m.spec.VIPs = without(m.spec.VIPs, at)
	m.changed, m.unsettled = true, true
	return done(uint64(c.ID))
}

func (m *Machine) setSettings(c *SetSettings) Outcome {
	if c.Expect != m.spec.Settings.Version {
		return refusal(Conflict, "the settings are at version %d, not %d: somebody changed them meanwhile, look at them again", m.spec.Settings.Version, c.Expect)
	}
	if err := c.Settings.Validate(); err != nil {
		return refusal(Invalid, "%s", err.Error())
	}
	m.spec.Settings = c.Settings
	m.spec.Settings.Version = m.index
	m.changed = true
	return done(0)
}
