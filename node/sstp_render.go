package node

import (
	"net/netip"
	"slices"

	"github.com/vpnlb/vpnlb/cluster/health"
	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/dataplane/table"
	"github.com/vpnlb/vpnlb/node/certs"
	"github.com/vpnlb/vpnlb/node/config"
)

// RenderSSTP says what the TLS of SSTP on this node should be: what the cluster
// agreed, with the certificates that this node could open and the keys of
// session tickets. It is pure.
//
// Each server is told the one certificate that it pins, by name, so that neither
// the name a client dials nor the keys it takes choose another. Names of
// certificates that could not be opened stay there: a connection to such a server
// fails rather than show a certificate that it does not expect. VIPs lose them.
func RenderSSTP(spec *state.Spec, opened []certs.Opened, tickets [][32]byte, cfg config.SSTP) sstp.Desired {
	d := sstp.Desired{TicketKeys: tickets, Limits: sstp.Limits{Connections: cfg.Connections, PerSource: cfg.PerSource}}
	usable := func(name string) bool {
		return slices.ContainsFunc(opened, func(o certs.Opened) bool { return o.Name == name && o.Certificate != nil })
	}
	used := map[string]bool{}
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		if !v.SSTP.Ends() {
			continue
		}
		s := sstp.Service{VIP: v.Place, Name: v.Name, Addr: v.Addr, Mode: sstp.Offload, ClientBits: v.ClientBits, Transparent: v.Transparent}
		if v.SSTP == state.SSTPReencrypt {
			s.Mode = sstp.Reencrypt
		}
		for _, name := range v.Certificates {
			if usable(name) {
				s.Certificates, used[name] = append(s.Certificates, name), true
			}
		}
		d.Services = append(d.Services, s)
	}
	for i := range spec.Backends {
		b := &spec.Backends[i]
		v, ok := spec.VIPByID(b.VIP)
		if !ok || !v.SSTP.Ends() || b.Purged {
			continue
		}
		pinned := certificateOf(v, b)
		used[pinned] = true
		d.Targets = append(d.Targets, sstp.Target{
			Slot: table.Slot(b.Slot), VIP: v.Place, Name: b.Name,
			Addr: netip.AddrPortFrom(b.Addr, spec.SSTPPort(b)), Certificate: pinned,
			Refuse: b.Admin == state.AdminRemoved, // its calls go on while a record names it
		})
	}
	for _, o := range opened {
		if o.Certificate != nil && used[o.Name] {
			d.Certificates = append(d.Certificates, sstp.Certificate{Name: o.Name, Hash: o.Certificate.Hash, TLS: o.Certificate.TLS})
		}
	}
	return d
}

// certificateOf names the certificate whose hash a server pins; empty: its VIP
// has none.
func certificateOf(v *state.VIP, b *state.Backend) string {
	if b.Certificate != "" || len(v.Certificates) == 0 {
		return b.Certificate
	}
	return v.Certificates[0]
}

// probeTargets is what to probe, with port and certificate of SSTP.
func probeTargets(spec *state.Spec) []health.Target {
	targets := health.TargetsOf(spec)
	for i := range targets {
		b, ok := spec.BackendByID(targets[i].Backend)
		if !ok || targets[i].SSTP == nil {
			continue
		}
		v, ok := spec.VIPByID(b.VIP)
		if !ok || !v.SSTP.Ends() {
			continue
		}
		check := *targets[i].SSTP
		check.Port = spec.SSTPPort(b)
		if v.SSTP == state.SSTPReencrypt {
			if place, ok := spec.CertificateByName(certificateOf(v, b)); ok {
				check.Leaf, check.LeafName = place.SHA256, place.Name
			}
		}
		targets[i].SSTP = &check
	}
	return targets
}

// sstpFault says why this node cannot serve SSTP of a VIP: a certificate that is
// needed cannot be shown. Empty: it can. Other nodes may have the file.
func sstpFault(spec *state.Spec, v *state.VIP, opened []certs.Opened) string {
	fault := func(name string) string {
		at := slices.IndexFunc(opened, func(o certs.Opened) bool { return o.Name == name })
		switch {
		case at < 0:
			return "certificate " + name + " is not open yet"
		case opened[at].Certificate == nil:
			return "certificate " + name + ": " + opened[at].Fault
		}
		return ""
	}
	if len(v.Certificates) == 0 {
		return "the VIP has no certificate: 'vpnlb cert use NAME --vip " + v.Name + "'"
	}
	if !slices.ContainsFunc(v.Certificates, func(name string) bool { return fault(name) == "" }) {
		return fault(v.Certificates[0])
	}
	for i := range spec.Backends {
		b := &spec.Backends[i]
		if b.VIP == v.ID && spec.Stance(b, state.ClassTCP).MayTake() {
			if f := fault(certificateOf(v, b)); f != "" {
				return "for server " + b.Name + ": " + f
			}
		}
	}
	return ""
}
