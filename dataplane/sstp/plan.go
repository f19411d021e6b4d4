package sstp

import (
	"cmp"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// plan is a Desired made ready to use. It is not changed once stored.
type plan struct {
	services map[netip.Addr]*service
	targets  map[table.Slot]*target
	certs    map[string]*certificate
	limits   *Limits // apart: a connection keeps it, and should not keep the rest
}

type service struct{ Service }

type target struct {
	Target
	service *service
	cert    *certificate
}

// Limits that a Desired may have at most.
const (
	maxServices     = table.MaxVIPs
	maxTargets      = table.MaxSlots
	maxCertificates = 64
	maxTicketKeys   = 8
)

func (l Limits) withDefaults() Limits {
	l.Connections = cmp.Or(l.Connections, 20000)
	l.PerSource = cmp.Or(l.PerSource, 256)
	l.Handshakes = cmp.Or(l.Handshakes, 4096)
	l.HandshakeTimeout = cmp.Or(l.HandshakeTimeout, 10*time.Second)
	l.HeadTimeout = cmp.Or(l.HeadTimeout, 10*time.Second)
	l.ResponseTimeout = cmp.Or(l.ResponseTimeout, 60*time.Second)
	l.DialTimeout = cmp.Or(l.DialTimeout, 5*time.Second)
	l.IdleTimeout = cmp.Or(l.IdleTimeout, 300*time.Second)
	return l
}

func (l Limits) check() error {
	if min(l.Connections, l.PerSource, l.Handshakes) < 0 ||
		min(l.HandshakeTimeout, l.HeadTimeout, l.ResponseTimeout, l.DialTimeout, l.IdleTimeout) < 0 {
		return errors.New("sstp limits must not be negative")
	}
	if t := l.withDefaults().IdleTimeout; t <= 120*time.Second {
		return fmt.Errorf("sstp idle timeout %v would end living calls: peers send echoes every 60 s and wait 120 s, set more than 120 s", t)
	}
	return nil
}

// newPlan makes the plan of d: all that is not faulty, and all faults.
func (s *Server) newPlan(d *Desired) (*plan, error) {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if len(d.Services) > maxServices || len(d.Targets) > maxTargets || len(d.Certificates) > maxCertificates || len(d.TicketKeys) > maxTicketKeys {
		return nil, fmt.Errorf("sstp: more than %d services, %d servers, %d certificates or %d ticket keys",
			maxServices, maxTargets, maxCertificates, maxTicketKeys)
	}
	p := &plan{services: map[netip.Addr]*service{}, targets: map[table.Slot]*target{}, limits: s.plan.Load().limits}
	if err := d.Limits.check(); err != nil {
		errs = append(errs, err)
	} else {
		limits := d.Limits.withDefaults()
		p.limits = &limits
	}
	certs, err := s.certificates(d)
	errs = append(errs, err)
	p.certs = certs
	byVIP := map[uint8]*service{}
	for _, want := range d.Services {
		made, err := newService(want)
		if err != nil {
			fault("sstp service %s: %w", want.Name, err)
		}
		switch {
		case made == nil:
		case byVIP[want.VIP] != nil || p.services[want.Addr] != nil:
			fault("sstp service %s: address %v or index %d stands twice", want.Name, want.Addr, want.VIP)
		default:
			byVIP[want.VIP], p.services[want.Addr] = made, made
		}
	}
	for _, want := range d.Targets {
		t := &target{Target: want, service: byVIP[want.VIP]}
		switch {
		case want.Slot == 0 || p.targets[want.Slot] != nil:
			fault("sstp server %s: slot %d is 0 or stands twice", want.Name, want.Slot)
			continue
		case !want.Addr.IsValid() || want.Addr.Port() == 0:
			fault("sstp server %s: %v is no address with a port", want.Name, want.Addr)
			continue
		case t.service == nil: // its service is faulty, and said so
			continue
		}
		if t.cert = certs[want.Certificate]; t.cert == nil {
			fault("sstp server %s: its certificate %q is not there", want.Name, want.Certificate)
			continue
		}
		p.targets[want.Slot] = t
	}
	return p, errors.Join(errs...)
}

// newService checks a service, and tells all its faults.
func newService(want Service) (*service, error) {
	want.Addr = want.Addr.Unmap()
	var errs []error
	switch {
	case !want.Addr.IsValid():
		errs = append(errs, errors.New("it has no address"))
	case want.Addr.Is6() && (want.ClientBits == 0 || want.ClientBits > 128):
		errs = append(errs, fmt.Errorf("%d is no prefix length to know IPv6 clients by", want.ClientBits))
	}
	if want.Mode != Offload && want.Mode != Reencrypt {
		errs = append(errs, fmt.Errorf("mode %d is not known", want.Mode))
	}
	if s := want.Decoy.Status; s != 0 && (s < 200 || s > 599) || len(want.Decoy.Body) > MaxDecoyBytes || !printableField(want.Decoy.Type) {
		errs = append(errs, fmt.Errorf("its decoy needs a status from 200 to 599, a printable type, and at most %d bytes", MaxDecoyBytes))
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return &service{want}, nil
}

// certificates makes those that can be used, by name.
func (s *Server) certificates(d *Desired) (map[string]*certificate, error) {
	var errs []error
	good := make([]Certificate, 0, len(d.Certificates))
	seen := map[string]bool{}
	for _, c := range d.Certificates {
		switch {
		case c.Name == "" || seen[c.Name]:
			errs = append(errs, fmt.Errorf("sstp certificate %q: its name is empty or stands twice", c.Name))
		case c.TLS == nil || c.TLS.Leaf == nil || c.TLS.PrivateKey == nil || len(c.TLS.Certificate) == 0:
			errs = append(errs, fmt.Errorf("sstp certificate %s: chain, leaf or key is missing", c.Name))
		case sha256.Sum256(c.TLS.Certificate[0]) != c.Hash:
			errs = append(errs, fmt.Errorf("sstp certificate %s: its hash is not that of its leaf", c.Name))
		default:
			seen[c.Name] = true
			good = append(good, c)
		}
	}
	chains := make([]*tls.Certificate, len(good))
	for i, c := range good {
		chains[i] = c.TLS
	}
	out := make(map[string]*certificate, len(good))
	for i, entry := range s.staples.Set(chains) {
		out[good[i].Name] = newCertificate(good[i], entry, d.TicketKeys)
	}
	return out, errors.Join(errs...)
}

// clientKey is what a client is known by: its address, or its IPv6 prefix.
func (v *service) clientKey(addr netip.Addr) [16]byte {
	if addr.Is6() {
		if p, err := addr.Prefix(int(v.ClientBits)); err == nil {
			addr = p.Addr()
		}
	}
	return addr.As16()
}
