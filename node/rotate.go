package node

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/node/certs"
	"github.com/vpnlb/vpnlb/node/rras"
)

// A change of certificate goes server by server: what nodes show for a server and
// the hash in its registry change while it gets no clients, and the next server
// has its turn when a call on the one before has carried data. Where it stands is
// in the agreement and in what connections of this node told; nothing is kept
// beside that, so it can be left and taken up at any time, on any node.

// rotateCertificate says where the change to a certificate stands and what is
// next; for servers that are named it switches what nodes show.
func (m *member) rotateCertificate(ctx context.Context, in admin.RotateRequest) (any, error) {
	spec := m.spec()
	place, ok := spec.CertificateByName(in.Name)
	if !ok {
		return nil, missing("no certificate is called %q: add it with 'vpnlb cert add %s --chain FILE --key FILE' first", in.Name, in.Name)
	}
	v, err := rotatedVIP(spec, in.VIP)
	if err != nil {
		return nil, err
	}
	cert, err := m.usableCertificate(spec, place)
	if err != nil {
		return nil, err
	}
	var notes []string
	for _, name := range in.Servers {
		note, err := m.switchServer(ctx, v.ID, place, name)
		if err != nil {
			return nil, err
		}
		notes = append(notes, note)
	}
	spec = m.spec()
	if v, ok = spec.VIPByID(v.ID); !ok {
		return nil, missing("the VIP was removed meanwhile")
	}
	out, err := rotation(spec, v, place, cert.Leaf().NotAfter, m.observedCalls(place.Name))
	if err != nil {
		return nil, err
	}
	if begun := slices.ContainsFunc(out.Servers, func(s admin.RotationServer) bool { return s.State != "waiting" }); !begun && place.Path != "" {
		out.Notes = append(out.Notes, "look on every node first that 'vpnlb cert list' shows "+place.Name+" without a fault: it lies in a file there")
	}
	out.Notes = slices.Concat(notes, out.Notes, m.rotationNotes(spec, v, cert))
	return out, nil
}

// rotatedVIP is the VIP that is meant: by name, else the only one whose TLS ends
// on the nodes.
func rotatedVIP(spec *state.Spec, name string) (*state.VIP, error) {
	var found []*state.VIP
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		if v.Name == name && !v.SSTP.Ends() {
			return nil, refuse("VIP %s is in mode %s: TLS does not end on the nodes, so its servers' certificates are their own affair", name, sstpWords[v.SSTP])
		}
		if v.SSTP.Ends() && (name == "" || v.Name == name) {
			found = append(found, v)
		}
	}
	switch {
	case len(found) == 1:
		return found[0], nil
	case name != "":
		return nil, missing("no VIP is called %q; 'vpnlb vip list' shows them", name)
	case len(found) == 0:
		return nil, refuse("TLS of no VIP ends on the nodes: there is no certificate to change")
	}
	return nil, refuse("TLS of %d VIPs ends on the nodes: name the one that is meant with --vip", len(found))
}

// usableCertificate is the certificate, if this node can show it.
func (m *member) usableCertificate(spec *state.Spec, place *state.CertificatePlace) (*certs.Certificate, error) {
	for _, o := range m.openedCertificates(spec) {
		if o.Name != place.Name {
			continue
		}
		if o.Certificate == nil {
			return nil, refuse("this node cannot show certificate %s: %s", o.Name, o.Fault)
		}
		if err := o.Certificate.Current(time.Now()); err != nil {
			return nil, refuse("certificate %s: %v", o.Name, err)
		}
		return o.Certificate, nil
	}
	return nil, &admin.Error{Status: http.StatusServiceUnavailable, Message: "certificate " + place.Name + " is not open on this node yet: try again"}
}

// switchServer lets nodes show a server's clients the new certificate.
func (m *member) switchServer(ctx context.Context, vip state.VIPID, place *state.CertificatePlace, name string) (note string, err error) {
	spec := m.spec()
	b, ok := spec.BackendByName(name)
	v, listed := spec.VIPByID(vip)
	if !ok || !listed || b.VIP != vip || b.Admin == state.AdminRemoved {
		return "", missing("VIP %s has no server %q; 'vpnlb backend list' shows them", v.Name, name)
	}
	if v.CertificateOf(b) == place.Name {
		return name + " had certificate " + place.Name + " already", nil
	}
	for _, other := range m.alarms() {
		if other.Target != name && m.hasCertificate(spec, v, other.Target, place.Name) {
			return "", &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("a server that was switched before has an alarm, so %s is left alone: %s", name, other.Text)}
		}
	}
	if _, err := m.useCertificate(ctx, admin.CertUseRequest{Name: place.Name, Server: name}); err != nil {
		return "", err
	}
	if b.Admin == state.AdminEnabled {
		return fmt.Sprintf("%s is switched, and takes new calls: they fail until the script has run there", name), nil
	}
	return name + " is switched", nil
}

func (m *member) hasCertificate(spec *state.Spec, v *state.VIP, server, name string) bool {
	b, ok := spec.BackendByName(server)
	return ok && b.VIP == v.ID && v.CertificateOf(b) == name
}

// observed is what connections told of one server.
type observed struct {
	calls int // that the server took, shown the new certificate
	alarm string
}

// observedCalls counts proven calls only: "connected" is what a client says, and
// one that has not logged in can say it, too.
func (m *member) observedCalls(certificate string) map[string]observed {
	out := make(map[string]observed)
	o := m.offload.Load()
	if o == nil {
		return out
	}
	for _, s := range o.server.Sessions() {
		if s.Proven && s.Certificate == certificate {
			seen := out[s.Target]
			seen.calls++
			out[s.Target] = seen
		}
	}
	for _, a := range m.alarms() {
		seen := out[a.Target]
		seen.alarm = a.Text
		out[a.Target] = seen
	}
	return out
}

// rotation is pure: where the change stands, by the agreement and by what was
// observed, and the next step.
func rotation(spec *state.Spec, v *state.VIP, place *state.CertificatePlace, until time.Time, seen map[string]observed) (admin.Rotation, error) {
	out := admin.Rotation{Name: place.Name, VIP: v.Name, Servers: []admin.RotationServer{}}
	var facts []rras.Facts
	old := ""
	next := -1
	for i := range spec.Backends {
		b := &spec.Backends[i]
		if b.VIP != v.ID || b.Admin == state.AdminRemoved {
			continue
		}
		s := admin.RotationServer{Name: b.Name, Certificate: v.CertificateOf(b), Admin: adminWords[b.Admin], Calls: seen[b.Name].calls, Alarm: seen[b.Name].alarm}
		switch {
		case s.Certificate != place.Name:
			s.State, s.Alarm = "waiting", ""
			old = s.Certificate
		case s.Alarm != "":
			s.State = "failing"
		case s.Calls > 0:
			s.State = "verified"
		default:
			s.State = "switched"
		}
		out.Servers = append(out.Servers, s)
		facts = append(facts, rrasFacts(spec, v, b, place, until))
	}
	if len(v.Certificates) > 0 && v.Certificates[0] != place.Name {
		old = v.Certificates[0]
	}
	// One that was begun comes before one that was not.
	for _, state := range []string{"failing", "switched", "waiting"} {
		if next < 0 {
			next = slices.IndexFunc(out.Servers, func(s admin.RotationServer) bool {
				return s.State == state && (state != "switched" || s.Admin != "enabled")
			})
		}
	}
	if len(facts) == 0 {
		return out, refuse("VIP %s has no servers", v.Name)
	}
	steps, err := rras.Plan(old, facts)
	if err != nil {
		return out, refuse("%v", err)
	}
	if next >= 0 && out.Servers[next].State == "waiting" {
		for _, s := range out.Servers {
			if s.State == "switched" {
				out.Notes = append(out.Notes, fmt.Sprintf("no call on %s has stayed up for ten seconds through this node since it was switched: wait for one, or look on the other nodes ('vpnlb sstp sessions'), before %s has its turn", s.Name, out.Servers[next].Name))
			}
		}
	}
	switch {
	case next >= 0:
		out.Next = serverStep(&out.Servers[next], steps[1+3*next:], facts[next].Switch())
	case len(v.Certificates) > 0 && v.Certificates[0] != place.Name:
		out.Next = step(&steps[1+3*len(facts)])
	default:
		out.Done = true
	}
	return out, nil
}

// serverStep picks the step of a server's three that is next.
func serverStep(s *admin.RotationServer, steps []rras.Step, after string) *admin.RotationStep {
	switch {
	case s.State == "failing":
		out := step(&steps[1])
		out.Title, out.Before, out.After = s.Name+" refuses calls: run the script again", []string{}, []string{}
		out.Until = "the alarm is gone: " + s.Alarm
		return out
	case s.State == "switched":
		return step(&steps[2])
	case s.Admin == adminWords[state.AdminEnabled]:
		return step(&steps[0])
	}
	out := step(&steps[1])
	if s.Admin == adminWords[state.AdminOffline] {
		out.Before = []string{}
	}
	out.After = []string{after}
	return out
}

func step(s *rras.Step) *admin.RotationStep {
	return &admin.RotationStep{Title: s.Title, Before: append([]string{}, s.Node...), Server: s.Server, Script: s.Script, After: append([]string{}, s.After...), Until: s.Until}
}

// rotationNotes tell what an administrator may have overlooked.
func (m *member) rotationNotes(spec *state.Spec, v *state.VIP, cert *certs.Certificate) (notes []string) {
	for _, o := range m.openedCertificates(spec) {
		if len(v.Certificates) == 0 || o.Name != v.Certificates[0] || o.Certificate == nil {
			continue
		}
		var lost []string
		for _, name := range o.Certificate.Names() {
			if !slices.Contains(cert.Names(), name) {
				lost = append(lost, name)
			}
		}
		if len(lost) > 0 {
			notes = append(notes, fmt.Sprintf("the new certificate does not name %s, which %s does: clients that dial that name will refuse it", strings.Join(lost, ", "), o.Name))
		}
	}
	return append(notes, certNotes(cert, time.Now())...)
}

func rrasFacts(spec *state.Spec, v *state.VIP, b *state.Backend, place *state.CertificatePlace, until time.Time) rras.Facts {
	f := rras.Facts{Server: b.Name, Addr: b.Addr, VIP: v.Name, Mode: v.SSTP, Port: b.SSTPPort, Transparent: v.Transparent}
	if place != nil {
		f.HasCertificate, f.Certificate, f.Hash, f.NotAfter = true, place.Name, place.SHA256, until
	}
	return f
}
