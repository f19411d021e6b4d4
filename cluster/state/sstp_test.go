package state

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

// offloading is a settled cluster of format 3.
func offloading(t testing.TB) *rig {
	r := settled(t)
	r.ok(PutSecret{Name: SecretOfCertificate("rsa"), Sealed: []byte("chain and key")})
	r.ok(PutCertificate{Certificate: CertificatePlace{Name: "rsa", SHA256: [32]byte{7}}})
	v := r.spec().VIPs[0]
	v.SSTP, v.Certificates, v.Transparent = SSTPOffload, []string{"vpn"}, true
	r.ok(PutVIP{VIP: v, Expect: v.Version})
	b := *r.backend(1)
	b.SSTPPort, b.Certificate = 8080, "rsa"
	r.ok(PutBackend{Backend: b, Expect: b.Version})
	return r
}

func TestFormat3(t *testing.T) {
	r := offloading(t)
	data := r.snapshot()
	golden(t, "snapshot_3", data)
	if data[7] != 3 || r.spec().Format() != 3 {
		t.Errorf("format %d", data[7])
	}
	m := NewMachine()
	if err := m.Restore(bytes.NewReader(data)); err != nil {
		t.Fatal(err)
	}
	if m.View().Hash() != r.m.View().Hash() {
		t.Error("the restored state differs")
	}
	b, _ := m.View().Spec().BackendByID(1)
	if v := m.View().Spec().VIPs[0]; !v.Transparent || !slices.Equal(v.Certificates, []string{"vpn"}) || b.SSTPPort != 8080 || b.Certificate != "rsa" {
		t.Errorf("the restored VIP is %+v, the backend %+v", v, b)
	}
	for want, all := range map[uint16][]Command{
		1: {PutVIP{}, RemoveCertificate{}, PutCertificate{}},
		2: {PutVIP{VIP: VIP{SSTP: SSTPPassthrough}}, PutBackend{Backend: Backend{Mode: ModeDSR}}},
		3: {
			PutVIP{VIP: VIP{SSTP: SSTPOffload}}, PutVIP{VIP: VIP{SSTP: SSTPReencrypt}}, PutVIP{VIP: VIP{Transparent: true}}, PutVIP{VIP: VIP{Certificates: []string{"a"}}},
			PutBackend{Backend: Backend{SSTPPort: 1}}, PutBackend{Backend: Backend{Certificate: "a", Mode: ModeDSR}}, RemoveCertificate{Secret: true},
		},
	} {
		for _, c := range all {
			if got := FormatOf(c); got != want {
				t.Errorf("%+v is of format %d, want %d", c, got, want)
			}
		}
	}
	// Whoever knows less is not admitted until the last of it is gone.
	older := memberOf(nodeC, "older")
	older.ID[1], older.Format = 9, 2
	older.PublicKey = bytes.Repeat([]byte{9}, keySize)
	r.ok(AddToken{Hash: [32]byte{77}, Life: time.Hour})
	r.refused(AdmitMember{Token: [32]byte{77}, Member: older}, NotAllowed)
	v := r.spec().VIPs[0]
	v.Certificates, v.Transparent = nil, false
	r.ok(PutVIP{VIP: v, Expect: v.Version})
	r.refused(AdmitMember{Token: [32]byte{77}, Member: older}, NotAllowed)
	b = r.backend(1)
	r.ok(PutBackend{Backend: Backend{ID: 1, Name: b.Name, Weight: b.Weight}, Expect: b.Version})
	r.ok(AdmitMember{Token: [32]byte{77}, Member: older})
	if data := r.snapshot(); data[7] != 1 {
		t.Errorf("format %d", data[7])
	}
}

// A certificate stays while somebody uses it, and its secret goes with it.
func TestCertificateInUse(t *testing.T) {
	r := offloading(t)
	for _, name := range []string{"vpn", "rsa"} {
		o := r.do(RemoveCertificate{Name: name, Secret: true})
		who := map[string]string{"vpn": "VIP v1", "rsa": "backend s1-1"}[name]
		if o.Code != Invalid || !strings.Contains(o.Detail, who) {
			t.Errorf("%s: %+v", name, o)
		}
	}
	v := r.spec().VIPs[0]
	put := func(names ...string) PutVIP {
		v := v
		v.Certificates = names
		return PutVIP{VIP: v, Expect: v.Version}
	}
	r.refused(put("vpn", "nobody"), Invalid)
	r.refused(put("vpn", "vpn"), Invalid)
	r.refused(put(strings.Split(strings.Repeat("vpn,", MaxVIPCerts+1), ",")...), Invalid)
	b := *r.backend(1)
	b.Certificate = "nobody"
	r.refused(PutBackend{Backend: b, Expect: b.Version}, Invalid)
	r.refused(PutBackend{Backend: Backend{VIP: 1, Name: "new", Addr: netip.MustParseAddr("203.0.113.78"), Certificate: "nobody"}}, Invalid)

	// A removed server uses none, although clients still name it.
	r.ok(RemoveBackend{ID: 1})
	if got := r.backend(1).Certificate; got != "" {
		t.Errorf("a removed backend uses certificate %s", got)
	}
	if got := r.spec().CertificateUsers("rsa"); len(got) != 0 {
		t.Errorf("used by %v", got)
	}
	r.ok(RemoveCertificate{Name: "rsa", Secret: true})
	if _, ok := r.spec().SecretByName(SecretOfCertificate("rsa")); ok {
		t.Error("the sealed key outlives its certificate")
	}
	if _, ok := r.spec().SecretByName(SecretGossip); !ok {
		t.Error("another secret went with it")
	}
	// Revived, it has what the administrator says now.
	old := r.backend(1)
	id := r.ok(PutBackend{Backend: Backend{VIP: 1, Name: old.Name, Addr: old.Addr, SSTPPort: 81, Certificate: "vpn"}})
	if b := r.backend(BackendID(id)); b.ID != 1 || b.SSTPPort != 81 || b.Certificate != "vpn" {
		t.Errorf("it came back as %+v", b)
	}
}

func TestRestoreRefusesLostCertificate(t *testing.T) {
	for name, spoil := range map[string]func(*Spec){
		"of a VIP":     func(s *Spec) { s.VIPs[0].Certificates = []string{"gone"} },
		"of a backend": func(s *Spec) { s.Backends[0].Certificate = "gone" },
	} {
		t.Run(name, func(t *testing.T) {
			forged := *offloading(t).m.View()
			spec := *forged.spec
			spec.VIPs, spec.Backends = slices.Clone(spec.VIPs), slices.Clone(spec.Backends)
			spoil(&spec)
			forged.spec = &spec
			var data bytes.Buffer
			if _, err := forged.WriteTo(&data); err != nil {
				t.Fatal(err)
			}
			if err := NewMachine().Restore(&data); err == nil || !strings.Contains(err.Error(), "certificate gone") {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestSSTPPortAndDemotion(t *testing.T) {
	r := newRig(t)
	id := r.farm(1, 1)[0]
	for _, tt := range []struct {
		mode SSTPMode
		port uint16
		want uint16
		t1   time.Duration
	}{
		{SSTPPassthrough, 0, 443, 5 * time.Second},
		{SSTPOffload, 0, 80, time.Minute},
		{SSTPReencrypt, 0, 443, time.Minute},
		{SSTPOffload, 8080, 8080, time.Minute},
	} {
		v := r.spec().VIPs[0]
		v.SSTP = tt.mode
		r.ok(PutVIP{VIP: v, Expect: v.Version})
		b := *r.backend(id)
		b.SSTPPort = tt.port
		r.ok(PutBackend{Backend: b, Expect: b.Version})
		if got := r.spec().SSTPPort(r.backend(id)); got != tt.want {
			t.Errorf("mode %d: port %d, want %d", tt.mode, got, tt.want)
		}
		if got := r.spec().DemoteAfter(); got != tt.t1 {
			t.Errorf("mode %d: T1 %v, want %v", tt.mode, got, tt.t1)
		}
	}
	set := r.spec().Settings
	set.Demote = 7 * time.Second
	r.ok(SetSettings{Settings: set, Expect: set.Version})
	if got := r.spec().DemoteAfter(); got != 7*time.Second {
		t.Errorf("T1 %v, although it was set", got)
	}
}
