package sstp

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Status of a Server, for people. A value.
type Status struct {
	Services     []ServiceStatus     // by name
	Certificates []CertificateStatus // by name
	Connections  int                 // all, also those without a call
	Handshakes   int                 // under way
	Faults       []string            // of the last Apply
	Alarms       []Alarm
	Refused      []Refusal // of the last ten minutes, by reason
	Draining     bool
}

// ServiceStatus is one service.
type ServiceStatus struct {
	Name      string
	Addr      string // with its port
	Mode      Mode
	Listening bool
	Sessions  int
}

// CertificateStatus is one certificate.
type CertificateStatus struct {
	Name        string
	Hash        Hash
	NotAfter    time.Time
	Staple      string // none: no responder named, or no issuer in the chain; valid; missing; revoked
	StapleFault string // why the last question failed
}

// Alarm is something that only a person can mend.
type Alarm struct {
	Target string
	Slot   table.Slot
	Text   string
	Since  time.Time
}

// Status of now.
func (s *Server) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.plan.Load()
	out := Status{Connections: s.sources.count(), Handshakes: s.gate.under(), Faults: slices.Clone(s.faults), Alarms: s.alarms.list(), Refused: s.refused.recent(time.Now()), Draining: s.draining}
	sessions := map[string]int{}
	for _, c := range s.table.each() {
		sessions[c.service.Name]++
	}
	for addr, v := range p.services {
		at := netip.AddrPortFrom(addr, s.cfg.Port)
		out.Services = append(out.Services, ServiceStatus{Name: v.Name, Addr: at.String(), Mode: v.Mode, Listening: s.listeners[at] != nil, Sessions: sessions[v.Name]})
	}
	for _, c := range p.certs {
		staple, fault := c.entry.State()
		out.Certificates = append(out.Certificates, CertificateStatus{Name: c.name, Hash: c.hash, NotAfter: c.tls.Leaf.NotAfter, Staple: staple, StapleFault: fault})
	}
	slices.SortFunc(out.Services, func(a, b ServiceStatus) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(out.Certificates, func(a, b CertificateStatus) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Sessions lists the connections by ID.
func (s *Server) Sessions() []Session {
	tick := s.tick.Load()
	all := s.table.all()
	out := make([]Session, len(all))
	for i, c := range all {
		out[i] = c.report(tick)
	}
	return out
}
