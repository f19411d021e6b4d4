package node

import (
	"net/http"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/node/certs"
	"github.com/vpnlb/vpnlb/node/rras"
)

// alarms are what connections of this node told about servers.
func (m *member) alarms() []sstp.Alarm {
	if o := m.offload.Load(); o != nil {
		return o.server.Status().Alarms
	}
	return nil
}

func (m *member) sstpSessions(*http.Request) (any, error) {
	out := []admin.SSTPSession{}
	o := m.offload.Load()
	if o == nil {
		return out, nil
	}
	now := time.Now()
	for _, s := range o.server.Sessions() {
		out = append(out, admin.SSTPSession{
			ID: s.ID, VIP: s.VIP, Server: s.Target, Client: s.Client, State: s.State, Certificate: s.Certificate, TLS: s.TLS,
			Since: ago(now.Sub(s.Since)), Idle: ago(s.Idle), SinceSeconds: seconds(now.Sub(s.Since)), IdleSeconds: seconds(s.Idle), In: s.In, Out: s.Out, Echoes: s.Echoes, EchoLost: s.EchoLost,
		})
	}
	return out, nil
}

// sessionCounts are this node's connections by VIP and by server.
func (m *member) sessionCounts() (vips, servers map[string]int) {
	vips, servers = make(map[string]int), make(map[string]int)
	if o := m.offload.Load(); o != nil {
		for _, s := range o.server.Sessions() {
			vips[s.VIP]++
			servers[s.Target]++
		}
	}
	return vips, servers
}

func (m *member) sstpStatus(*http.Request) (any, error) {
	spec := m.spec()
	out := admin.SSTPStatus{Services: []admin.SSTPService{}, Alarms: []admin.SSTPAlarm{}}
	vips, _ := m.sessionCounts()
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		if !v.SSTP.Ends() {
			continue
		}
		s := admin.SSTPService{VIP: v.Name, Addr: v.Addr, Mode: sstpWords[v.SSTP], Fault: m.serviceFault(spec, v),
			Connections: vips[v.Name], Certificates: append([]string{}, v.Certificates...)}
		if o := m.offload.Load(); o != nil {
			s.Listening = slices.ContainsFunc(o.server.Status().Services, func(s sstp.ServiceStatus) bool { return s.Name == v.Name && s.Listening })
		}
		out.Services = append(out.Services, s)
		out.Connections += s.Connections
	}
	now := time.Now()
	for _, a := range m.alarms() {
		out.Alarms = append(out.Alarms, admin.SSTPAlarm{Server: a.Target, Text: a.Text, Since: ago(now.Sub(a.Since)), SinceSeconds: seconds(now.Sub(a.Since))})
	}
	keys, err := m.ticketKeys(spec)
	out.Tickets = len(keys)
	if err != nil {
		out.Fault = err.Error()
	}
	if o := m.offload.Load(); o != nil {
		if f := o.fault.get(); f != "" {
			out.Fault = f
		}
	}
	return out, nil
}

// sstpWarnings is what status says of SSTP and its certificates.
func (m *member) sstpWarnings(spec *state.Spec, add func(format string, args ...any)) {
	if o := m.offload.Load(); o != nil {
		if f := o.fault.get(); f != "" {
			add("SSTP: %s", f)
		}
		for _, r := range o.recent.get(o.server).Refused {
			add("SSTP: %s", r.Text)
		}
	}
	m.transparentWarnings(spec, add)
	for i := range spec.VIPs {
		v := &spec.VIPs[i]
		if f := m.serviceFault(spec, v); f != "" {
			add("this node does not serve SSTP of VIP %s: %s", v.Name, f)
		}
	}
	for _, a := range m.alarms() {
		add("%s", a.Text)
	}
	staples := m.staples()
	for _, o := range m.openedCertificates(spec) {
		for _, note := range stapleNotes(staples[o.Name]) {
			add("certificate %s: %s", o.Name, note)
		}
		used := len(spec.CertificateUsers(o.Name)) > 0
		if o.Fault != "" {
			add("certificate %s: %s", o.Name, o.Fault)
		}
		if o.Certificate != nil && used {
			for _, note := range certNotes(o.Certificate, time.Now()) {
				add("certificate %s: %s", o.Name, note)
			}
		}
	}
}

// rrasAnswer says what to run and look at on one server.
func (m *member) rrasAnswer(r *http.Request) (any, error) {
	spec := m.spec()
	b, err := m.backendNamed(r.URL.Query().Get("server"))
	if err != nil {
		return nil, err
	}
	v, ok := spec.VIPByID(b.VIP)
	if !ok {
		return nil, missing("the VIP of server %s was removed meanwhile", b.Name)
	}
	var place *state.CertificatePlace
	var until time.Time
	if v.SSTP.Ends() {
		name := v.CertificateOf(b)
		if asked := r.URL.Query().Get("certificate"); asked != "" {
			name = asked
		}
		if place, ok = spec.CertificateByName(name); !ok {
			return nil, missing("no certificate is called %q; 'vpnlb cert list' shows them", name)
		}
		c, err := m.usableCertificate(spec, place)
		if err != nil {
			return nil, err
		}
		until = c.Leaf().NotAfter
	}
	f := rrasFacts(spec, v, b, place, until)
	if err := f.Check(); err != nil {
		return nil, refuse("%v", err)
	}
	return admin.RRAS{Server: b.Name, Script: rras.Script(f), Checklist: rras.Checklist(f)}, nil
}

// watchExpiry logs once when a certificate passes one of the thresholds.
func (m *member) watchExpiry(opened []certs.Opened, passed map[string]int, now time.Time) {
	for _, o := range opened {
		if o.Certificate == nil {
			continue
		}
		level := expiryLevel(o.Certificate.Leaf().NotAfter, now)
		key := o.Name + " " + string(o.SHA256[:])
		if old, ok := passed[key]; level >= 0 && (!ok || level < old) {
			passed[key] = level
			m.log.Warn("certificate", "name", o.Name, "expires", o.Certificate.Leaf().NotAfter.UTC().Format(time.DateOnly))
		}
	}
}
