package bench

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The services that each proxy offers differ by the key of their certificate.
var keys = []string{"ecdsa", "rsa"}

// Where the services are; the proxies differ by port.
var serviceIP = map[string]string{"ecdsa": "127.0.0.2", "rsa": "127.0.0.3"}

// bed is the two ends, between which proxies stand side by side.
type bed struct {
	origin, load *process
	originAddr   string
	pem          map[string]string // file by key
	profiled     *proxy            // with -profiles
}

// proxy is one of what is compared: a process of its own.
type proxy struct {
	*process
	name string
	addr map[string]string // by key
}

// mostFiles is what a proxy of the soak has open, and some: two for each session.
const mostFiles = 2*(soakIdle+soakActive) + 1000

// raiseFileLimit lets this process and its children open as many files as they may.
func raiseFileLimit(t testing.TB) {
	t.Helper()
	limit := unix.Rlimit{}
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	if limit.Max < mostFiles {
		t.Fatalf("the limit of open files is %d, want %d: raise it with ulimit -Hn", limit.Max, mostFiles)
	}
	limit.Cur = limit.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
}

// newBed starts the ends.
func newBed(t testing.TB) *bed {
	t.Helper()
	b := &bed{origin: startRole(t, "Origin"), load: startRole(t, "Load"), pem: make(map[string]string)}
	b.origin.call(t, "Addr", nil, &b.originAddr)
	for _, key := range keys {
		b.pem[key] = writeCertificate(t, key)
	}
	return b
}

func (b *bed) startHAProxy(t testing.TB) *proxy {
	t.Helper()
	p := &proxy{name: "haproxy", addr: addresses(freePort(t))}
	// -db: one process, in the foreground; threads are as many as it thinks best.
	cmd := exec.Command(findHAProxy(t), "-db", "-f", "testdata/haproxy.cfg")
	cmd.Env = append(os.Environ(), "ORIGIN_ADDR="+b.originAddr,
		"ECDSA_ADDR="+p.addr["ecdsa"], "ECDSA_PEM="+b.pem["ecdsa"], "RSA_ADDR="+p.addr["rsa"], "RSA_PEM="+b.pem["rsa"])
	p.process = startCommand(t, p.name, cmd, nil)
	p.untilUp(t)
	return p
}

func findHAProxy(t testing.TB) string {
	t.Helper()
	file, err := exec.LookPath("haproxy")
	if err != nil {
		file = "/usr/sbin/haproxy" // not in everybody's PATH
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatal("haproxy is not installed: run deploy/checks/install-bench-deps")
	}
	return file
}

func (b *bed) startVPNLB(t testing.TB, env ...string) *proxy {
	t.Helper()
	port := freePort(t)
	p := &proxy{name: "vpnlb", addr: addresses(port)}
	p.process = startRole(t, "Relay", env...)
	p.call(t, "Start", RelayArgs{Port: uint16(port), Origin: b.originAddr, PEM: b.pem}, nil)
	p.untilUp(t)
	return p
}

func (p *proxy) untilUp(t testing.TB) {
	t.Helper()
	for _, addr := range p.addr {
		until(t, p.name+" listens on "+addr, 5*time.Second, func() bool {
			c, err := net.Dial("tcp4", addr)
			if err != nil {
				return false
			}
			c.Close()
			return true
		})
	}
}

// quiet waits until the origin has no call left: what a proxy still does after the last
// answer belongs to what it is measured by.
func (b *bed) quiet(t testing.TB) {
	t.Helper()
	until(t, "connections to the origin close", 30*time.Second, func() bool {
		var c OriginCounts
		b.origin.call(t, "Counts", nil, &c)
		if c.Faults != 0 {
			t.Fatalf("the origin saw %d faults", c.Faults)
		}
		return c.Calls == 0
	})
}

func addresses(port int) map[string]string {
	all := make(map[string]string)
	for key, ip := range serviceIP {
		all[key] = net.JoinHostPort(ip, strconv.Itoa(port))
	}
	return all
}

// freePort is free on the services' addresses; the kernel gives it to nobody else soon.
func freePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp4", "0.0.0.0:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// writeCertificate makes a key, signs it by itself, and writes both into one file.
func writeCertificate(t testing.TB, key string) string {
	t.Helper()
	var signer crypto.Signer
	var err error
	switch key {
	case "ecdsa":
		signer, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case "rsa":
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
	}
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "vpn.example.com"},
		DNSNames:     []string{"vpn.example.com"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(90 * 24 * time.Hour),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if key == "rsa" {
		template.KeyUsage |= x509.KeyUsageKeyEncipherment
	}
	cert, err := x509.CreateCertificate(rand.Reader, &template, &template, signer.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})
	text = append(text, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	file := filepath.Join(t.TempDir(), key+".pem")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

// loadCertificate is what both sides of the test read.
func loadCertificate(file string) (tls.Certificate, error) { return tls.LoadX509KeyPair(file, file) }

func median[T int64 | float64 | time.Duration](v []T) T {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
