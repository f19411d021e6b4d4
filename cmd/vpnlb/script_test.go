package main

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/cluster/transport"
)

func TestMain(m *testing.M) { testscript.Main(m, map[string]func(){"vpnlb": main}) }

var commands = map[string]func(*testscript.TestScript, bool, []string){
	"exits":    exits,
	"poll":     poll,
	"makecert": makecert,
}

// exits CODE PROG ARGS... runs a program that must exit with this code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE PROG ARGS...")
	}
	err := ts.Exec(args[1], args[2:]...)
	code := 0
	if exit, ok := err.(*exec.ExitError); ok {
		code = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(code) != args[0] {
		ts.Fatalf("exit code %d, want %s", code, args[0])
	}
}

// poll REGEXP PROG ARGS... runs a program until its output matches.
func poll(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: poll REGEXP PROG ARGS...")
	}
	want := regexp.MustCompile(args[0])
	deadline, tick := time.NewTimer(20*time.Second), time.NewTicker(100*time.Millisecond)
	defer deadline.Stop()
	defer tick.Stop()
	for {
		if ts.Exec(args[1], args[2:]...) == nil && want.MatchString(ts.ReadFile("stdout")) {
			return
		}
		select {
		case <-deadline.C:
			ts.Fatalf("no output that matches %s within 20 s", args[0])
		case <-tick.C:
		}
	}
}

// makecert NAME HOST ecdsa|rsa DAYS writes NAME.pem and NAME.key.
func makecert(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: makecert NAME HOST ecdsa|rsa DAYS")
	}
	days, err := strconv.Atoi(args[3])
	ts.Check(err)
	var key crypto.Signer
	if args[2] == "rsa" {
		key, err = rsa.GenerateKey(rand.Reader, 2048)
	} else {
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	}
	ts.Check(err)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: args[1]}, DNSNames: []string{args[1]},
		NotBefore: time.Now().Add(-365 * 24 * time.Hour), NotAfter: time.Now().Add(time.Duration(days)*24*time.Hour - time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	ts.Check(err)
	raw, err := x509.MarshalPKCS8PrivateKey(key)
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	ts.Check(os.WriteFile(ts.MkAbs(args[0]+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}), 0o600))
}

// TestCommand runs what needs no node.
func TestCommand(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", Cmds: commands, ContinueOnError: true, RequireUniqueNames: true,
		Setup: func(e *testscript.Env) error {
			quick(e)
			e.Setenv("VPNLB_SOCKET", filepath.Join(e.WorkDir, "none.sock"))
			return nil
		},
	})
}

// TestNode runs a real node in a network namespace of its own.
func TestNode(t *testing.T) {
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("a node in a network namespace needs root")
		}
		t.Skip("a node in a network namespace needs root")
	}
	testscript.Run(t, testscript.Params{Dir: "testdata/node", Cmds: commands, ContinueOnError: true, RequireUniqueNames: true, Setup: setupNode})
}

// quick takes the second off that a program built with -race waits at its end.
func quick(e *testscript.Env) { e.Setenv("GORACE", "atexit_sleep_ms=0") }

var namespaces atomic.Int32 // scripts run side by side

// setupNode makes the namespace, with an interface to each side that nobody
// is behind, and a bpffs.
func setupNode(e *testscript.Env) error {
	quick(e)
	ns := fmt.Sprintf("vpnlb-tcli%d-%d", os.Getpid(), namespaces.Add(1))
	bpffs := filepath.Join(e.WorkDir, "bpf")
	if err := os.Mkdir(bpffs, 0o700); err != nil {
		return err
	}
	if err := unix.Mount("bpf", bpffs, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount bpffs: %w", err)
	}
	// The node may still run when a script failed: nothing waits for it.
	e.Defer(func() { unix.Unmount(bpffs, unix.MNT_DETACH) })
	e.Defer(func() { unix.Unmount(filepath.Join(e.WorkDir, "disk"), unix.MNT_DETACH) }) // where a script has one of its own
	if err := run0("ip", "netns", "add", ns); err != nil {
		return err
	}
	e.Defer(func() { run0("ip", "netns", "delete", ns) })
	for _, args := range [][]string{
		{"link", "set", "lo", "up"},
		{"link", "add", "out0", "type", "veth", "peer", "name", "out1"},
		{"link", "add", "in0", "type", "veth", "peer", "name", "in1"},
		{"addr", "add", "192.0.2.11/24", "dev", "out0"},
		{"addr", "add", "198.51.100.1/24", "dev", "in0"},
		{"link", "set", "out0", "up"}, {"link", "set", "out1", "up"},
		{"link", "set", "in0", "up"}, {"link", "set", "in1", "up"},
	} {
		if err := run0("ip", append([]string{"-n", ns}, args...)...); err != nil {
			return err
		}
	}
	e.Setenv("NETNS", ns)
	e.Setenv("TOKEN", transport.NewToken().String())
	e.Setenv("HASH", strings.Repeat("ab", 32))
	e.Setenv("VPNLB_SOCKET", filepath.Join(e.WorkDir, "run", "admin.sock"))
	file := fmt.Sprintf(`name: n1
data_dir: %[1]s/data
admin_socket: %[1]s/run/admin.sock
cluster:
  address: 198.51.100.1:7950
dataplane:
  pin_dir: %[1]s/bpf/vpnlb
  outside: out0
  inside: in0
  max_clients: 4096
`, e.WorkDir)
	return os.WriteFile(filepath.Join(e.WorkDir, "node.yaml"), []byte(file), 0o600)
}

func run0(name string, args ...string) error {
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, bytes.TrimSpace(out))
	}
	return nil
}
