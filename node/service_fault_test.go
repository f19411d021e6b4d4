package node

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/node/certs"
	"github.com/vpnlb/vpnlb/node/config"
)

// A fault counts for the routes of an announced VIP when it lasts, for those of
// another at once; then until the service works.
func TestFaultWatch(t *testing.T) {
	type look struct {
		after     time.Duration // since the first
		found     found
		announced bool
		want      bool
	}
	const ms = time.Millisecond
	for name, looks := range map[string][]look{
		"works":                 {{0, serves, true, false}, {time.Hour, serves, false, false}},
		"fails for good":        {{0, fails, true, false}, {1900 * ms, fails, true, false}, {2000 * ms, fails, true, true}, {2100 * ms, fails, false, true}},
		"counts while demoted":  {{0, fails, false, true}, {100 * ms, fails, true, true}, {200 * ms, serves, true, false}},
		"fails for a moment":    {{0, fails, true, false}, {1500 * ms, serves, true, false}, {2500 * ms, fails, true, false}, {4500 * ms, fails, true, true}},
		"another spec is told":  {{0, fails, true, false}, {1000 * ms, notJudged, true, false}, {2500 * ms, fails, true, false}},
		"announced, not told":   {{0, notJudged, true, false}, {time.Hour, notJudged, true, false}},
		"new, waits to be told": {{0, notJudged, false, true}, {100 * ms, notJudged, true, true}, {200 * ms, serves, true, false}},
		"withdrawn otherwise":   {{0, fails, true, false}, {100 * ms, fails, false, true}, {200 * ms, fails, true, true}},
	} {
		t.Run(name, func(t *testing.T) {
			f, start := make(faultWatch), time.Now()
			for i, l := range looks {
				if got := f.count(1, l.found, l.announced, start.Add(l.after)); got != l.want {
					t.Errorf("look %d: %v", i+1, got)
				}
				if f.count(2, serves, l.announced, start) {
					t.Error("another VIP's counts for this one")
				}
			}
		})
	}
}

// pairPEM is a certificate and its key.
func pairPEM(t *testing.T) (chain, key string) {
	t.Helper()
	c := handoverDesired(t, vipAddr).Certificates[0].TLS
	der, err := x509.MarshalPKCS8PrivateKey(c.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	encode := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return encode("CERTIFICATE", c.Certificate[0]), encode("PRIVATE KEY", der)
}

// goodBook opens what it is asked to, whatever the files hold.
func goodBook(t *testing.T, r *rig) *certs.Book {
	t.Helper()
	chain, key := pairPEM(t)
	text := []byte(chain + key)
	c, err := certs.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, old := range r.spec().Certs {
		place := state.CertificatePlace{Name: old.Name, SHA256: c.Hash}
		r.do(state.PutCertificate{Certificate: place, Expect: old.Version}, state.PutSecret{Name: state.SecretOfCertificate(old.Name), Sealed: text})
	}
	return certs.NewBook(func(_ string, sealed []byte) ([]byte, error) { return sealed, nil })
}

// A change of mode reaches the facts of routes before the server of SSTP has
// heard of it. That is no fault, and neither is what the server said before.
func TestRouteFaultOfAChange(t *testing.T) {
	r := tlsWorld(t)
	server := &recorder{}
	o := recording(server)
	o.book = goodBook(t, r)
	m := &member{faults: make(faultWatch)}
	m.offload.Store(o)
	now := time.Now()
	check := func(announced, want bool, when string) {
		t.Helper()
		v, _ := r.spec().VIPByName("six")
		if got := m.routeFault(v, announced, now); got != want {
			t.Errorf("%s: %v", when, got)
		}
	}
	tell := func(services ...sstp.ServiceStatus) {
		t.Helper()
		server.status = sstp.Status{Services: services}
		o.tell(r.spec(), nil, config.SSTP{})
	}
	other := sstp.ServiceStatus{Name: "vpn", Listening: true}
	tell(other)
	o.recent.get(server) // kept for a while
	check(true, false, "pass-through")
	v, _ := r.spec().VIPByName("six")
	p := state.PutVIP{VIP: *v, Expect: v.Version}
	p.VIP.SSTP, p.VIP.Certificates = state.SSTPOffload, []string{"ec"}
	r.do(p)
	for range 50 { // however long it takes
		check(true, false, "offload, which the server does not know yet")
		now = now.Add(factsInterval)
	}
	if f := m.serviceFault(r.spec(), &p.VIP); f == "" {
		t.Error("status does not tell that the port is not open yet")
	}
	tell(other, sstp.ServiceStatus{Name: "six", Listening: true})
	if f := m.serviceFault(r.spec(), &p.VIP); f != "" {
		t.Errorf("just told and serving: %q is what the server said before", f)
	}
	check(true, false, "offload")
	server.fail = errors.New("address in use")
	v, _ = r.spec().VIPByName("six")
	p = state.PutVIP{VIP: *v, Expect: v.Version}
	p.VIP.Certificates = []string{"rsa"}
	r.do(p)
	tell(other, sstp.ServiceStatus{Name: "six"})
	check(true, false, "the port is taken")
	now = now.Add(faultPatience)
	check(true, true, "the port is taken still")
	server.fail = nil
	o.again = true
	tell(other, sstp.ServiceStatus{Name: "six", Listening: true})
	check(false, false, "open again")
}
