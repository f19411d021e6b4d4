package node

import (
	"net/http"
	"net/netip"
	"slices"

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
// fails rather than show a certificate that it does not expect.
func RenderSSTP(spec *state.Spec, opened []certs.Opened, tickets [][32]byte, cfg config.SSTP) sstp.Desired {
	d := sstp.Desired{TicketKeys: tickets, Limits: sstp.Limits{Connections: cfg.Connections, PerSource: cfg.PerSource}}
	used := map[string]bool{}
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		if !v.SSTP.Ends() {
			continue
		}
		s := sstp.Service{VIP: v.Place, Name: v.Name, Addr: v.Addr, Mode: sstp.Offload, ClientBits: v.ClientBits, Transparent: v.Transparent}
		if len(cfg.Decoy) > 0 {
			s.Decoy = sstp.Decoy{Status: http.StatusOK, Type: "text/html; charset=utf-8", Body: cfg.Decoy}
		}
		if v.SSTP == state.SSTPReencrypt {
			s.Mode = sstp.Reencrypt
		}
		d.Services = append(d.Services, s)
	}
	for i := range spec.Backends {
		b := &spec.Backends[i]
		v, ok := spec.VIPByID(b.VIP)
		if !ok || !v.SSTP.Ends() || b.Purged {
			continue
		}
		pinned := v.CertificateOf(b)
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
	judged := false
	for i := range spec.Backends {
		b := &spec.Backends[i]
		if b.VIP != v.ID || !spec.Stance(b, state.ClassTCP).MayTake() {
			continue
		}
		judged = true
		if f := fault(v.CertificateOf(b)); f != "" {
			return "for server " + b.Name + ": " + f
		}
	}
	if !judged {
		return fault(v.Certificates[0])
	}
	return ""
}
