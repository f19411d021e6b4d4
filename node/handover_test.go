package node

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// A supervisor as systemd is one: it keeps the sockets that a process gives it,
// by name, and starts the next process with them.
type supervisor struct {
	t    *testing.T
	at   *net.UnixConn
	dir  string
	mu   sync.Mutex
	kept map[string]*os.File
}

func newSupervisor(t *testing.T) *supervisor {
	t.Helper()
	s := &supervisor{t: t, dir: t.TempDir(), kept: map[string]*os.File{}}
	var err error
	s.at, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.path(), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	var reader sync.WaitGroup
	reader.Go(s.read)
	t.Cleanup(func() {
		s.at.Close()
		reader.Wait()
		for _, f := range s.kept {
			f.Close()
		}
	})
	return s
}

func (s *supervisor) path() string { return filepath.Join(s.dir, "notify") }

func (s *supervisor) read() {
	text, rights := make([]byte, 4096), make([]byte, 4096)
	for {
		n, m, _, _, err := s.at.ReadMsgUnix(text, rights)
		if err != nil {
			return
		}
		words := map[string]string{}
		for line := range strings.Lines(string(text[:n])) {
			k, v, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
			words[k] = v
		}
		s.take(words, rights[:m])
	}
}

func (s *supervisor) take(words map[string]string, rights []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := words["FDNAME"]
	if strings.ContainsAny(name, ":\x00\n") {
		s.t.Errorf("systemd refuses the name %q", name)
	}
	if words["FDSTOREREMOVE"] == "1" {
		if f := s.kept[name]; f != nil {
			f.Close()
			delete(s.kept, name)
		}
	}
	if words["FDSTORE"] != "1" {
		return
	}
	messages, err := unix.ParseSocketControlMessage(rights)
	if err != nil || len(messages) != 1 {
		s.t.Errorf("a socket to keep came without one: %v", err)
		return
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		s.t.Errorf("%d sockets to keep, %v", len(fds), err)
		return
	}
	if old := s.kept[name]; old != nil {
		old.Close()
	}
	s.kept[name] = os.NewFile(uintptr(fds[0]), name)
}

func (s *supervisor) holds() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name := range s.kept {
		names = append(names, name)
	}
	return names
}

// start runs this test binary as a node's process with the kept sockets. It
// returns when that serves, or says what it inherited.
func (s *supervisor) start(addr string) *exec.Cmd {
	s.t.Helper()
	cmd, out := s.spawn(addr)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || line != "serving\n" {
		s.t.Fatalf("the process says %q, %v", line, err)
	}
	go io.Copy(io.Discard, out)
	return cmd
}

func (s *supervisor) spawn(addr string) (*exec.Cmd, io.Reader) {
	s.t.Helper()
	// The shell's process becomes the test's: its ID is the one that is meant.
	cmd := exec.Command("/bin/sh", "-c", `LISTEN_PID=$$ exec "$0" -test.run='^TestHandoverProcess$'`, os.Args[0])
	cmd.Env = append(os.Environ(), "VPNLB_TEST_HANDOVER="+addr, "NOTIFY_SOCKET="+s.path())
	s.mu.Lock() // until it runs: the files must not be closed before it has them
	defer s.mu.Unlock()
	var names []string
	for name, f := range s.kept {
		names = append(names, name)
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	if len(names) > 0 {
		cmd.Env = append(cmd.Env, fmt.Sprintf("LISTEN_FDS=%d", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
	}
	cmd.Stderr = s.t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { cmd.Process.Kill() })
	return cmd, out
}

// TestHandoverProcess is the process of TestHandover: the server of SSTP with what
// a node keeps beside it.
func TestHandoverProcess(t *testing.T) {
	at := os.Getenv("VPNLB_TEST_HANDOVER")
	if at == "" {
		t.Skip("not a process of TestHandover")
	}
	addr := netip.MustParseAddrPort(at)
	inherited := inheritedListeners()
	if os.Getenv("LISTEN_FDS") != "" {
		t.Error("the environment of children still names the sockets")
	}
	h := newHandover(newNotifier(os.Getenv("NOTIFY_SOCKET")), inherited)
	server, err := sstp.New(sstp.Config{Port: addr.Port()}, sstp.Deps{
		Choose:    func(uint8, netip.Addr) (sstp.Route, bool) { return sstp.Route{Slot: 1}, true },
		Evidence:  func(table.Evidence) {},
		Inherited: inherited, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Apply(handoverDesired(t, addr.Addr())); err != nil {
		t.Fatal(err)
	}
	h.update(server.Listeners())
	fmt.Println("serving")
	server.Run(context.Background()) // until it is killed
}

func handoverDesired(t *testing.T, vip netip.Addr) sstp.Desired {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"vpn.example.com"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return sstp.Desired{
		Services:     []sstp.Service{{Name: "vpn", Addr: vip, Mode: sstp.Offload, ClientBits: 64}},
		Targets:      []sstp.Target{{Slot: 1, Name: "r1", Addr: netip.MustParseAddrPort("127.0.0.1:1"), Certificate: "c"}},
		Certificates: []sstp.Certificate{{Name: "c", Hash: sha(der), TLS: &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}}},
	}
}

// A node's process ends, however it does, and the next one starts: whoever dials
// in between waits, and nobody is refused.
func TestHandover(t *testing.T) {
	s := newSupervisor(t)
	probe, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := probe.Addr().String()
	probe.Close()
	process := s.start(at)
	waitHolds(t, s, socketName(at))

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var clients sync.WaitGroup
	var mu sync.Mutex
	shown, failed := map[string]int{}, 0
	for range 4 {
		clients.Go(func() {
			for ctx.Err() == nil {
				cert, err := dialTLS(at)
				mu.Lock()
				switch {
				case err == nil:
					shown[cert]++
				case errors.Is(err, unix.ECONNREFUSED):
					t.Errorf("refused: %v", err)
				default:
					failed++ // a handshake that a process took with it
				}
				mu.Unlock()
			}
		})
	}
	served := func(certs int) {
		t.Helper()
		deadline := time.NewTimer(20 * time.Second)
		defer deadline.Stop()
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			mu.Lock()
			n := len(shown)
			mu.Unlock()
			if n >= certs {
				return
			}
			select {
			case <-tick.C:
			case <-deadline.C:
				t.Fatalf("%d processes served clients, want %d", n, certs)
			}
		}
	}
	served(1)
	for i := range 3 { // each process has a certificate of its own
		process.Process.Kill()
		process.Wait()
		process = s.start(at)
		served(i + 2)
	}
	cancel()
	clients.Wait()
	if failed > 4*3 {
		t.Errorf("%d handshakes failed at 3 restarts with 4 clients", failed)
	}
	if got := s.holds(); len(got) != 1 {
		t.Errorf("the supervisor keeps %v", got)
	}
}

func dialTLS(at string) (string, error) {
	d := &tls.Dialer{NetDialer: &net.Dialer{Timeout: 10 * time.Second}, Config: &tls.Config{InsecureSkipVerify: true}}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := d.DialContext(ctx, "tcp", at)
	if err != nil {
		return "", err
	}
	defer c.Close()
	return string(c.(*tls.Conn).ConnectionState().PeerCertificates[0].Raw), nil
}

// What is not listened on any more is taken back.
func TestHandoverRemoves(t *testing.T) {
	s := newSupervisor(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	h := newHandover(newNotifier(s.path()), map[string]*net.TCPListener{"[2001:db8::10]:443": nil})
	other, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	s.kept["sstp-2001_db8__10-443"] = other
	s.mu.Unlock()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	at := ln.Addr().String()
	h.update(map[string]*os.File{at: f})
	waitHolds(t, s, socketName(at))
	raw, err := ln.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var flags int
	if err := errors.Join(raw.Control(func(fd uintptr) { flags, err = unix.FcntlInt(fd, unix.F_GETFL, 0) }), err); err != nil {
		t.Fatal(err)
	}
	if flags&unix.O_NONBLOCK == 0 {
		t.Error("the listener blocks now: no close would end an accept")
	}
	h.update(nil)
	waitHolds(t, s, "")
}

func waitHolds(t *testing.T, s *supervisor, want string) {
	t.Helper()
	deadline := time.NewTimer(10 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for strings.Join(s.holds(), " ") != want {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("the supervisor keeps %v, want %q", s.holds(), want)
		}
	}
}

func sha(der []byte) sstp.Hash { return sha256.Sum256(der) }
