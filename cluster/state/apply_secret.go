package state

import (
	"fmt"
	"slices"
	"strings"
)

// secretFault: names of secrets may have any printable character, they are
// paths in a sealed store.
func secretFault(name string, sealed []byte) string {
	if len(name) == 0 || len(name) > MaxName || slices.ContainsFunc([]byte(name), func(c byte) bool { return c <= ' ' || c > '~' }) {
		return fmt.Sprintf("secret name %q must have 1 to %d printable characters", name, MaxName)
	}
	if len(sealed) == 0 || len(sealed) > MaxSealed {
		return fmt.Sprintf("secret %s has %d bytes: 1 to %d", name, len(sealed), MaxSealed)
	}
	return ""
}

func (m *Machine) putSecret(c *PutSecret) Outcome {
	old, ok := m.spec.SecretByName(c.Name)
	switch {
	case ok && c.Expect != old.Version:
		return conflict("secret", c.Name, c.Expect, old.Version)
	case !ok && c.Expect != 0:
		return refusal(NotFound, "there is no secret %s any more: add it again", c.Name)
	}
	if fault := secretFault(c.Name, c.Sealed); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if !ok && len(m.spec.Secrets) >= MaxSecrets {
		return refusal(Full, "%d secrets are the most a cluster keeps", MaxSecrets)
	}
	m.keepSecret(c.Name, c.Sealed)
	return done(0)
}

// keepSecret stores a checked secret. Sealed bytes are never changed in place.
func (m *Machine) keepSecret(name string, sealed []byte) {
	s := Secret{Name: name, Version: m.index, Sealed: sealed}
	at := slices.IndexFunc(m.spec.Secrets, func(o Secret) bool { return o.Name == name })
	if at >= 0 {
		m.spec.Secrets = edited(m.spec.Secrets, at, s)
	} else {
		m.spec.Secrets = with(m.spec.Secrets, s)
	}
	if name == SecretGossip {
		m.spec.KeyEpoch = m.index
	}
	m.changed = true
}

func (m *Machine) putCertificate(c *PutCertificate) Outcome {
	p := c.Certificate
	at := slices.IndexFunc(m.spec.Certs, func(o CertificatePlace) bool { return o.Name == p.Name })
	if fault := nameFault("certificate", p.Name); fault != "" {
		return refusal(Invalid, "%s", fault)
	}
	if len(p.Path) > MaxPath {
		return refusal(Invalid, "certificate %s has a path of %d bytes: at most %d", p.Name, len(p.Path), MaxPath)
	}
	p.Version = m.index
	switch {
	case at >= 0 && c.Expect != m.spec.Certs[at].Version:
		return conflict("certificate", p.Name, c.Expect, m.spec.Certs[at].Version)
	case at >= 0:
		m.spec.Certs = edited(m.spec.Certs, at, p)
	case c.Expect != 0:
		return refusal(NotFound, "there is no certificate %s any more: add it again", p.Name)
	case len(m.spec.Certs) >= MaxCerts:
		return refusal(Full, "%d certificates are the most a cluster keeps: remove one first", MaxCerts)
	default:
		m.spec.Certs = with(m.spec.Certs, p)
	}
	m.changed = true
	return done(0)
}

func (m *Machine) removeCertificate(c *RemoveCertificate) Outcome {
	at := slices.IndexFunc(m.spec.Certs, func(o CertificatePlace) bool { return o.Name == c.Name })
	if at < 0 {
		return refusal(NotFound, "there is no certificate %s", c.Name)
	}
	if stale(c.Expect, m.spec.Certs[at].Version) {
		return conflict("certificate", c.Name, c.Expect, m.spec.Certs[at].Version)
	}
	if users := m.spec.CertificateUsers(c.Name); len(users) > 0 {
		return refusal(Invalid, "certificate %s is used by %s: let them use another one first", c.Name, strings.Join(users, ", "))
	}
	m.spec.Certs = without(m.spec.Certs, at)
	if c.Secret {
		m.spec.Secrets = slices.DeleteFunc(slices.Clone(m.spec.Secrets), func(s Secret) bool { return s.Name == SecretOfCertificate(c.Name) })
	}
	m.changed = true
	return done(0)
}

// vipCertFault says what is wrong with the certificates of a VIP.
func (m *Machine) vipCertFault(v *VIP) string {
	if len(v.Certificates) > MaxVIPCerts {
		return fmt.Sprintf("VIP %s names %d certificates: at most %d", v.Name, len(v.Certificates), MaxVIPCerts)
	}
	for i, name := range v.Certificates {
		if _, ok := m.spec.CertificateByName(name); !ok {
			return fmt.Sprintf("VIP %s names certificate %s, which does not exist: add it first", v.Name, name)
		}
		if slices.Contains(v.Certificates[:i], name) {
			return fmt.Sprintf("VIP %s names certificate %s twice: once is enough", v.Name, name)
		}
	}
	return ""
}

// CertificateUsers says who uses a certificate: "VIP a", "backend b".
func (s *Spec) CertificateUsers(name string) []string {
	var users []string
	for i := range s.VIPs {
		if slices.Contains(s.VIPs[i].Certificates, name) {
			users = append(users, "VIP "+s.VIPs[i].Name)
		}
	}
	for i := range s.Backends {
		if s.Backends[i].Certificate == name {
			users = append(users, "backend "+s.Backends[i].Name)
		}
	}
	return users
}

// lostCertificate is a name that is used but not there; empty: none.
func (s *Spec) lostCertificate() string {
	lost := func(name string) bool {
		_, ok := s.CertificateByName(name)
		return name != "" && !ok
	}
	for i := range s.VIPs {
		for _, name := range s.VIPs[i].Certificates {
			if lost(name) {
				return name
			}
		}
	}
	for i := range s.Backends {
		if name := s.Backends[i].Certificate; lost(name) {
			return name
		}
	}
	return ""
}
