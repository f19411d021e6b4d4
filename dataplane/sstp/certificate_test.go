package sstp

import (
	"crypto/tls"
	"testing"
)

// shown is the certificate that a client sees.
func (b *bed) shown(config *tls.Config) Hash {
	b.t.Helper()
	c := b.mustDial(config)
	defer c.Close()
	return hashOf(c)
}

func hashOf(c *client) Hash {
	return Hash(sha(c.ConnectionState().PeerCertificates[0].Raw))
}

// A client sees the certificate of the server that it belongs to, whatever it
// asks for; so certificates can change one server at a time.
func TestServerBeforeCertificate(t *testing.T) {
	f := newFarEnd(t, nil)
	before, after := newCert(t, "old", ecdsaKey(t), name), newCert(t, "new", ecdsaKey(t), name)
	d := Desired{Certificates: []Certificate{before, after}, Targets: []Target{
		{Slot: 1, VIP: 3, Name: "rras1", Addr: f.addr(), Certificate: "old"},
		{Slot: 2, VIP: 3, Name: "rras2", Addr: f.addr(), Certificate: "old"},
	}}
	b := newBed(t, d, nil)
	standing := b.mustDial(nil).open()
	if got := hashOf(standing); got != before.Hash {
		t.Errorf("shown %x", got)
	}
	b.desired.Targets[1].Certificate = "new"
	if err := b.Apply(b.desired); err != nil {
		t.Fatal(err)
	}
	if got := b.shown(nil); got != before.Hash {
		t.Errorf("server 1 was not switched, and shows %x", got)
	}
	b.route(Route{Slot: 2}, true)
	if got := b.shown(nil); got != after.Hash {
		t.Errorf("server 2 was switched, and shows %x", got)
	}
	standing.send("hello")
	standing.want("hello")
}

// An RSA certificate is shown where the server pins that, to clients of both
// versions, and to one that dials another name.
func TestRSA(t *testing.T) {
	f := newFarEnd(t, nil)
	cert := newCert(t, "a", rsaKey(), name)
	b := newBed(t, Desired{Certificates: []Certificate{newCert(t, "b", ecdsaKey(t), "other.example.test"), cert},
		Targets: []Target{{Slot: 1, VIP: 3, Name: "rras1", Addr: f.addr(), Certificate: "a"}}}, nil)
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		config := trusting()
		config.MinVersion, config.MaxVersion = version, version
		if got := b.shown(config); got != cert.Hash {
			t.Errorf("%s: shown %x", tls.VersionName(version), got)
		}
		config.ServerName, config.InsecureSkipVerify = "other.example.test", true
		if got := b.shown(config); got != cert.Hash {
			t.Errorf("%s, another name: shown %x", tls.VersionName(version), got)
		}
	}
}

// What old or odd clients offer is refused, and what Windows 10 offers is taken.
func TestVersionsAndSuites(t *testing.T) {
	f := newFarEnd(t, nil)
	b := newBed(t, oneTarget(t, f), nil)
	refused := func(what string, change func(*tls.Config)) {
		config := trusting()
		change(config)
		if c, err := b.dial(config); err == nil {
			t.Errorf("%s: taken as %s", what, tls.VersionName(c.ConnectionState().Version))
		}
	}
	refused("TLS 1.1", func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 })
	refused("CBC", func(c *tls.Config) {
		c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256}
	})
	for _, curve := range []tls.CurveID{tls.X25519, tls.CurveP256, tls.CurveP384} {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			config := trusting()
			config.MinVersion, config.MaxVersion, config.CurvePreferences = version, version, []tls.CurveID{curve}
			b.mustDial(config).open()
		}
	}
	config := trusting()
	config.MaxVersion = tls.VersionTLS12
	if curve := b.mustDial(config).ConnectionState().CurveID; curve != tls.CurveP256 {
		t.Errorf("TLS 1.2 agreed on %v", curve)
	}
}

// resumes makes two connections with one session cache, through two servers of
// the same cluster, and tells whether the second one resumed.
func resumes(t *testing.T, version uint16, first, second *bed) bool {
	t.Helper()
	config := trusting()
	config.MinVersion, config.MaxVersion = version, version
	config.ClientSessionCache = tls.NewLRUClientSessionCache(10)
	one := first.mustDial(config).open() // reading brings the ticket
	one.send("x")
	one.want("x")
	return second.mustDial(config).open().ConnectionState().DidResume
}

func TestResumption(t *testing.T) {
	f := newFarEnd(t, nil)
	old, renewed := newCert(t, "old", ecdsaKey(t), name), newCert(t, "new", ecdsaKey(t), name)
	node := func(cert string, keys ...[32]byte) *bed {
		d := Desired{Certificates: []Certificate{old, renewed}, TicketKeys: keys,
			Targets: []Target{{Slot: 1, VIP: 3, Name: "rras1", Addr: f.addr(), Certificate: cert}}}
		return newBed(t, d, nil)
	}
	k1, k2, k3 := [32]byte{1}, [32]byte{2}, [32]byte{3}
	one, two, rotated, foreign, other, without := node("old", k1), node("old", k1), node("old", k2, k1), node("old", k3), node("new", k1), node("old")
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, c := range []struct {
			name          string
			first, second *bed
			want          bool
		}{
			{"the same node", one, one, true},
			{"another node", one, two, true},
			{"after a rotation", one, rotated, true},
			{"other keys", one, foreign, false},
			// The client would answer the crypto binding with the certificate of its
			// session, which is not the one that this server's hash is of.
			{"another certificate", one, other, false},
			{"no keys", without, without, false},
		} {
			if got := resumes(t, version, c.first, c.second); got != c.want {
				t.Errorf("%s, %s: resumed %v, want %v", tls.VersionName(version), c.name, got, c.want)
			}
		}
	}
	// New keys by Apply: what the old ones sealed opens while they are listed.
	config := trusting()
	config.ClientSessionCache = tls.NewLRUClientSessionCache(10)
	standing := one.mustDial(config).open()
	standing.send("x")
	standing.want("x")
	one.desired.TicketKeys = [][32]byte{k3, k1}
	if err := one.Apply(one.desired); err != nil {
		t.Fatal(err)
	}
	c := one.mustDial(config).open()
	if !c.ConnectionState().DidResume {
		t.Error("not resumed after Apply")
	}
	if all := one.Sessions(); all[len(all)-1].Certificate != "old" {
		t.Errorf("a resumed session shows %+v", all[len(all)-1])
	}
	standing.send("y")
	standing.want("y")
}
