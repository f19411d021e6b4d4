package dataplane

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/bpf"
	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

const (
	charonPath  = "/usr/sbin/charon-systemd"
	swanctlPath = "/usr/sbin/swanctl"
	// laneOther is a second client; laneInner is behind the server.
	laneOther = "203.0.113.8"
	laneInner = "192.0.2.200"
)

const charonConf = `charon-systemd { load_modular = no
  load = random nonce openssl pem pkcs1 pkcs8 x509 pubkey revocation constraints kdf hmac sha1 sha2 md5 gcm aes drbg vici kernel-libipsec kernel-netlink socket-default eap-identity eap-mschapv2 updown
  keep_alive = 1s
  retransmit_timeout = 20
  init_limit_half_open = 0
  cookie_threshold = 0
  block_threshold = 0
  plugins { vici { socket = unix://%[1]s/vici }
    kernel-libipsec { allow_peer_ts = no } } }
swanctl { plugins { vici { socket = unix://%[1]s/vici } } }
`

const charonServer = `connections {
  certificate { version = 2
    proposals = aes256-sha256-modp2048
    encap = yes
    unique = never
    send_cert = always
    local { auth = pubkey
      certs = own.crt
      id = vpn.example.test }
    remote { auth = pubkey
      cacerts = ca.crt }
    children { net { local_ts = ` + laneInner + `/32
      esp_proposals = aes256gcm16 } } }
  eap { version = 2
    proposals = aes256-sha256-modp2048
    encap = yes
    unique = never
    send_cert = always
    local { auth = pubkey
      certs = own.crt
      id = vpn.example.test }
    remote { auth = eap-mschapv2
      eap_id = %any }
    children { net { local_ts = ` + laneInner + `/32
      esp_proposals = aes256gcm16 } } } }
secrets { eap-user { id = user
  secret = "Passw0rd-test" } }
`

// charonClient is one connection: name, address, how the client says who it is.
const charonClient = `  %[1]s { version = 2
    local_addrs = %[2]s
    remote_addrs = ` + laneVIP + `
    mobike = no
    proposals = aes256-sha256-modp2048
    encap = yes
    send_cert = always
    local { %[3]s }
    remote { auth = pubkey
      id = vpn.example.test
      cacerts = ca.crt }
    children { %[1]s { remote_ts = ` + laneInner + `/32
      esp_proposals = aes256gcm16 } } }
`

const (
	byCertificate = "auth = pubkey\n      certs = own.crt\n      id = client.example.test"
	byEAP         = "auth = eap-mschapv2\n      eap_id = user\n      id = user"
)

func needCharon(t *testing.T) {
	t.Helper()
	needRoot(t)
	for _, path := range []string{charonPath, swanctlPath} {
		if _, err := os.Stat(path); err != nil {
			if os.Getenv("CI") != "" {
				t.Fatalf("strongSwan is not installed: %v", err)
			}
			t.Skipf("strongSwan is not installed: %v", err)
		}
	}
}

// swan is a real strongSwan in one of the lane's namespaces.
type swan struct{ dir string }

func startSwan(t *testing.T, n *namespace, files map[string][]byte) *swan {
	t.Helper()
	s := &swan{dir: t.TempDir()}
	files["strongswan.conf"] = fmt.Appendf(nil, charonConf, s.dir)
	for name, b := range files {
		path := filepath.Join(s.dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(charonPath)
	log := &bytes.Buffer{}
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, s.env()
	inside(t, n, func() {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("%s", log.Bytes()[max(0, log.Len()-4000):])
		}
	})
	eventually(t, "charon's socket", func() bool {
		_, err := os.Stat(filepath.Join(s.dir, "vici"))
		return err == nil
	})
	s.ctl(t, "--load-all")
	return s
}

func (s *swan) env() []string {
	return append(os.Environ(), "STRONGSWAN_CONF="+filepath.Join(s.dir, "strongswan.conf"), "SWANCTL_DIR="+s.dir)
}

func (s *swan) ctl(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.Command(swanctlPath, append(args, "--uri", "unix://"+filepath.Join(s.dir, "vici"))...)
	cmd.Env = s.env()
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("swanctl %v: %v\n%s", args, err, out)
	}
}

// credentials makes an authority, and what its server and its clients need.
func credentials(t *testing.T) (server, client map[string][]byte) {
	t.Helper()
	serial := int64(0)
	issue := func(name string, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey, map[string][]byte) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		serial++
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true}
		if parent == nil {
			parent, by, c.IsCA, c.KeyUsage = c, key, true, x509.KeyUsageCertSign|x509.KeyUsageCRLSign
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, key.Public(), by)
		if err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		return c, key, map[string][]byte{"x509/own.crt": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
			"private/own.key": pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private})}
	}
	ca, key, files := issue("Test CA", nil, nil)
	authority := files["x509/own.crt"]
	_, _, server = issue("vpn.example.test", ca, key)
	_, _, client = issue("client.example.test", ca, key)
	server["x509ca/ca.crt"], client["x509ca/ca.crt"] = authority, authority
	return server, client
}

// forger sends UDP from any address, out of the client's namespace.
type forger struct{ fd int }

func newForger(t *testing.T, l *lane) *forger {
	t.Helper()
	f := &forger{}
	inside(t, l.client, func() {
		var err error
		if f.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(f.fd) })
	return f
}

func (f *forger) send(t *testing.T, src netip.AddrPort, port uint16, payload []byte) {
	t.Helper()
	b := make([]byte, 28, 28+len(payload))
	b[0], b[8], b[9] = 0x45, 64, unix.IPPROTO_UDP
	from, to := src.Addr().As4(), netip.MustParseAddr(laneVIP).As4()
	copy(b[12:], from[:])
	copy(b[16:], to[:])
	binary.BigEndian.PutUint16(b[20:], src.Port())
	binary.BigEndian.PutUint16(b[22:], port)
	binary.BigEndian.PutUint16(b[24:], uint16(8+len(payload)))
	if err := unix.Sendto(f.fd, append(b, payload...), 0, &unix.SockaddrInet4{Addr: to}); err != nil {
		t.Fatal(err)
	}
}

// victim is the n-th address that somebody forges: nobody has it, or a route to it.
func victim(n int) netip.Addr { return netip.AddrFrom4([4]byte{198, 18, byte(n >> 8), byte(n)}) }

func victimEntry(n int) table.Entry {
	return table.Entry{Key: table.Key{Client: victim(n).As16(), Class: table.IKE}, Slot: 9, State: table.Confirmed}
}

// saInit is a request that a server accepts: proposal, key share, nonce, and NAT
// detection that finds the server behind a NAT (RFC 7296, sections 1.2 and 2.23).
func saInit(spi uint64) []byte {
	payload := func(next ike.Payload, body []byte) []byte {
		return append(binary.BigEndian.AppendUint16([]byte{byte(next), 0}, uint16(4+len(body))), body...)
	}
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = rand.Read(b)
		return b
	}
	proposal := []byte{0, 0, 0, 44, 1, 1, 0, 4,
		3, 0, 0, 12, 1, 0, 0, 12, 0x80, 14, 1, 0, // AES-CBC 256
		3, 0, 0, 8, 3, 0, 0, 12, // HMAC-SHA2-256-128
		3, 0, 0, 8, 2, 0, 0, 5, // PRF-HMAC-SHA2-256
		0, 0, 0, 8, 4, 0, 0, 14} // MODP 2048
	body := payload(ike.KeyExchange, proposal)
	body = append(body, payload(ike.Nonce, append([]byte{0, 14, 0, 0}, random(256)...))...)
	body = append(body, payload(ike.Notify, random(32))...)
	body = append(body, payload(ike.Notify, append([]byte{0, 0, 0x40, 4}, random(20)...))...)
	body = append(body, payload(ike.NoPayload, append([]byte{0, 0, 0x40, 5}, random(20)...))...)
	return ike.Message(ike.Header{InitiatorSPI: spi, NextPayload: ike.SecurityAssoc, Exchange: ike.SAInit, Flags: ike.FlagInitiator}, body)
}

// What a server says to somebody who has not even heard it is neither evidence, nor a
// sign that a client lives, nor one that the server does.
func TestStrangerEarnsNothing(t *testing.T) {
	needCharon(t)
	l := newLane(t)
	server, _ := credentials(t)
	server["swanctl.conf"] = []byte(charonServer)
	startSwan(t, l.server, server)
	p := newPlane(t, newBPFFS(t), "outside", "inside")
	attachPlane(t, p)
	forge := newForger(t, l)
	header := func(h ike.Header) []byte { h.InitiatorSPI |= 0x2222 << 16; return ike.Message(h, nil) }
	const victims = 40
	for _, c := range []struct {
		what     string
		from, to uint16
		payload  []byte
		silent   bool // charon says nothing
	}{
		{"header with marker", 50000, 4500, ike.Marked(header(ike.Header{InitiatorSPI: 1 << 62, NextPayload: 33, Exchange: ike.SAInit, Flags: 8})), false},
		{"header on 500", 500, 500, header(ike.Header{InitiatorSPI: 2 << 60, NextPayload: 33, Exchange: ike.SAInit, Flags: 8}), false},
		{"header without marker", 500, 4500, header(ike.Header{InitiatorSPI: 3 << 60, NextPayload: 33, Exchange: ike.SAInit, Flags: 8}), false},
		{"SPI like a marker, message ID like a protected header", 500, 4500,
			header(ike.Header{InitiatorSPI: 4, NextPayload: 33, Exchange: ike.SAInit, Flags: 8, MessageID: 46<<24 | 0x20<<16 | 35<<8 | 0x20}), true},
		{"IKE_AUTH of no SA", 500, 4500, header(ike.Header{InitiatorSPI: 5 << 60, ResponderSPI: 7, NextPayload: 46, Exchange: ike.Auth, Flags: 8}), true},
		{"version 1", 500, 4500, header(ike.Header{InitiatorSPI: 6 << 60, NextPayload: 1, Version: 0x10, Exchange: 2}), true},
		{"version 3", 500, 4500, header(ike.Header{InitiatorSPI: 7 << 60, NextPayload: 33, Version: 0x30, Exchange: ike.SAInit, Flags: 8}), true},
		{"whole IKE_SA_INIT", 500, 500, saInit(8<<60 | 0x2222<<16), false},
		{"whole IKE_SA_INIT with marker", 50000, 4500, ike.Marked(saInit(9<<60 | 0x2222<<16)), false},
	} {
		t.Run(c.what, func(t *testing.T) {
			inside := []table.Entry{victimEntry(0)}
			mustResync(t, p, laneSet(100), nil)
			mustResync(t, p, laneSet(100), inside)
			before, answered := allCounts(t, p), answers(t, p)
			at := bytes.Index(c.payload, []byte{0x22, 0x22, 0, 0}) + 2
			for n := range victims {
				binary.BigEndian.PutUint16(c.payload[at:], uint16(n)) // an SPI of its own
				forge.send(t, netip.AddrPortFrom(victim(n), c.from), c.to, c.payload)
			}
			// The last word is one that charon answers whatever came before.
			forge.send(t, netip.AddrPortFrom(victim(victims), 500), 500, header(ike.Header{InitiatorSPI: 10 << 58, NextPayload: 33, Exchange: ike.SAInit, Flags: 8}))
			want := uint64(victims + 1)
			if c.silent {
				want = 1
			}
			eventually(t, "the server's answers", func() bool {
				return answers(t, p)-answered >= want
			})
			if c.what == "whole IKE_SA_INIT with marker" { // strongSwan keeps a way open that is not a session's
				eventually(t, "keepalives", func() bool {
					return answers(t, p)-answered >= 2*want
				})
			}
			after := allCounts(t, p)
			if n := after.Events.PendingWritten - before.Events.PendingWritten; n != 0 {
				t.Errorf("%d proofs for addresses that somebody forged: %v", n, pendingOf(t, p))
			}
			if after.Returns != before.Returns {
				t.Errorf("the server's signs of life went from %+v to %+v", before.Returns[9], after.Returns[9])
			}
			r, found, err := p.affinities.lookup(inside[0].Key)
			if err != nil || !found || r.Heard {
				t.Errorf("the record of a forged address: %+v, %t, %v: want it not heard", r, found, err)
			}
			t.Logf("%d answers to %d packets", answers(t, p)-answered, victims+1)
		})
	}
}

// answers counts the server's answers to addresses that nobody has: there is no route.
func answers(t *testing.T, p *Plane) uint64 {
	c := allCounts(t, p)
	return c.Reasons[table.PassNotForwarded].Packets + c.Reasons[table.DropNoRoute].Packets
}

func pendingOf(t *testing.T, p *Plane) map[netip.Addr]bpf.PlanePending {
	t.Helper()
	out := map[netip.Addr]bpf.PlanePending{}
	for b := range mapBatches[bpf.PlaneClientKey, bpf.PlanePending](p.coll.Maps["pending_proofs"]) {
		if b.err != nil {
			t.Fatal(b.err)
		}
		for i, k := range b.keys {
			out[netip.AddrFrom16(k.Client).Unmap()] = b.values[i]
		}
	}
	return out
}

// heardRequests takes the IKE_AUTH requests that leave the client's namespace.
type heardRequests struct{ fd int }

func hearRequests(t *testing.T, l *lane) *heardRequests {
	t.Helper()
	h := &heardRequests{}
	inside(t, l.client, func() {
		var err error
		if h.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, int(htons(unix.ETH_P_ALL))); err != nil {
			t.Fatal(err)
		}
	})
	t.Cleanup(func() { unix.Close(h.fd) })
	return h
}

func htons(v uint16) uint16 { return v<<8 | v>>8 }

// last gives the UDP payload of each SA's last IKE_AUTH request: what a server repeats
// its answer to.
func (h *heardRequests) last(t *testing.T) map[uint64][]byte {
	t.Helper()
	out := map[uint64][]byte{}
	b := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(h.fd, b, 0)
		if err != nil {
			return out
		}
		if n < 28 || b[0]>>4 != 4 || b[9] != unix.IPPROTO_UDP || netip.AddrFrom4([4]byte(b[16:20])) != netip.MustParseAddr(laneVIP) {
			continue
		}
		payload := b[4*int(b[0]&15)+8 : n]
		d := ike.Classify(ike.NATPort, payload, uint32(len(payload)))
		if !d.Protected() || d.Header.Exchange != ike.Auth {
			continue
		}
		if was := out[d.Header.ResponderSPI]; was == nil || ike.Classify(ike.NATPort, was, uint32(len(was))).Header.MessageID <= d.Header.MessageID {
			out[d.Header.ResponderSPI] = bytes.Clone(payload)
		}
	}
}

// Logins by certificate and by EAP, from one address and from two, earn what they
// should. Sent again from addresses that somebody forges, their requests are answered
// and earn nothing.
func TestReplayedLoginEarnsNothing(t *testing.T) {
	needCharon(t)
	l := newLane(t)
	inside(t, l.client, func() { setAddr(t, up(t, "c0"), laneOther+"/24") })
	inside(t, l.server, func() { setAddr(t, up(t, "lo"), laneInner+"/32") })
	server, client := credentials(t)
	server["swanctl.conf"] = []byte(charonServer)
	client["swanctl.conf"] = fmt.Appendf(nil, "connections {\n%s%s%s%s}\nsecrets { eap-user { id = user\n  secret = \"Passw0rd-test\" } }\n",
		fmt.Sprintf(charonClient, "certificate", laneClient, byCertificate), fmt.Sprintf(charonClient, "eap", laneClient, byEAP),
		fmt.Sprintf(charonClient, "other", laneOther, byCertificate), fmt.Sprintf(charonClient, "other-eap", laneOther, byEAP))
	startSwan(t, l.server, server)
	clients := startSwan(t, l.client, client)
	p := newPlane(t, newBPFFS(t), "outside", "inside")
	attachPlane(t, p)
	mustResync(t, p, laneSet(100), nil)
	heard := hearRequests(t, l)
	for _, c := range []struct {
		name, from string
		level      table.Confirmation
	}{
		{"certificate", laneClient, table.EarnedSK}, {"eap", laneClient, table.EarnedAuth},
		{"other", laneOther, table.EarnedSK}, {"other-eap", laneOther, table.EarnedAuth},
	} {
		clearMap[bpf.PlaneClientKey, bpf.PlanePending](t, p.coll.Maps["pending_proofs"])
		clients.ctl(t, "--initiate", "--ike", c.name, "--timeout", "20")
		got, found := pendingOf(t, p)[netip.MustParseAddr(c.from)]
		if !found || table.Confirmation(got.Level) < c.level || got.Opening == 0 || got.Slot != 9 {
			t.Errorf("login %s of %s proved %+v (%t), want level %d and an opening", c.name, c.from, got, found, c.level)
		}
	}
	requests := heard.last(t)
	if len(requests) != 4 {
		t.Fatalf("requests of %d SAs were heard, want 4", len(requests))
	}
	clearMap[bpf.PlaneClientKey, bpf.PlanePending](t, p.coll.Maps["pending_proofs"])
	before, answered := allCounts(t, p), answers(t, p)
	forge := newForger(t, l)
	const rounds = 1000
	sent := 0
	for n := range rounds {
		was := answers(t, p)
		// charon leaves a request out while it answers another of the same SA.
		eventually(t, "an answer to a request that came again", func() bool {
			if answers(t, p) > was {
				return true
			}
			for _, r := range requests {
				forge.send(t, netip.AddrPortFrom(victim(n), 40000), 4500, r)
				sent++
			}
			return false
		})
	}
	after := allCounts(t, p)
	if n := after.Events.PendingWritten - before.Events.PendingWritten; n != 0 {
		t.Errorf("%d proofs for %d addresses that somebody forged", n, len(pendingOf(t, p)))
	}
	t.Logf("%d answers to %d requests from %d addresses, %d proofs", answers(t, p)-answered, sent, rounds,
		after.Events.PendingWritten-before.Events.PendingWritten)
	// A client that lost its answer asks again and is answered as before.
	for _, r := range requests {
		forge.send(t, netip.MustParseAddrPort(laneClient+":4500"), 4500, r)
	}
	eventually(t, "proofs of the client itself", func() bool { return len(pendingOf(t, p)) == 1 })
}
