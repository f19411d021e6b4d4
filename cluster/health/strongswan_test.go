package health

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	charon     = "/usr/sbin/charon-systemd"
	serverSpec = `connections { ras { version = 2
  proposals = %s
  local { auth = psk
    id = vpn.example.test }
  remote { auth = psk }
  children { net { esp_proposals = aes256-sha256 } } } }
secrets { ike { secret = "test" } }
`
	charonConf = `charon-systemd { load_modular = no
  %[2]s
  load = random nonce openssl pem pkcs1 pkcs8 x509 pubkey revocation constraints kdf hmac sha1 sha2 gcm aes drbg vici kernel-libipsec kernel-netlink socket-default updown
  plugins { vici { socket = unix://%[1]s/vici } } }
swanctl { plugins { vici { socket = unix://%[1]s/vici } } }
`
)

// TestStrongSwan probes a real IKEv2 server in a network namespace: it must
// answer on both ports, for each set of proposals, and hold no half-open SA.
func TestStrongSwan(t *testing.T) {
	needStrongSwan(t)
	s := startStrongSwan(t, "")
	six := strongSwanPair{server: netip.MustParseAddr("2001:db8:77::1"), client: netip.MustParseAddr("2001:db8:77::2")}
	s.addresses(t, six)
	for _, c := range []struct {
		proposals string
		at        strongSwanPair
		want      Opinion
	}{
		{"aes256-sha256-modp2048,aes256gcm16-prfsha384-ecp384", s.strongSwanPair, OpinionUp},
		{"aes256-sha1-modp1024", s.strongSwanPair, OpinionUp},
		{"aes128gcm16-prfsha256-modp2048", s.strongSwanPair, OpinionUp},
		{"aes256-sha256-ecp256", s.strongSwanPair, OpinionUp},
		{"aes256-sha256-curve25519,aes256-sha256-modp2048", s.strongSwanPair, OpinionUp}, // the group we send, but do not propose
		{"aes256-sha512-modp8192", s.strongSwanPair, OpinionNeutral},
		{"aes256-sha256-modp2048,aes256gcm16-prfsha384-ecp384", six, OpinionUp},
		{"aes256-sha1-modp1024", six, OpinionUp},
		{"aes256-sha512-modp8192", six, OpinionNeutral},
	} {
		t.Run(c.at.server.String()+"/"+c.proposals, func(t *testing.T) {
			s.load(t, c.proposals)
			p, err := NewProber(Config{Local4: s.client, Local6: six.client}, Deps{Listen: s.listen})
			if err != nil {
				t.Fatal(err)
			}
			p.SetTargets([]Target{{Backend: 1, Addr: c.at.server}}, Timing{Interval: 100 * time.Millisecond, Timeout: time.Second, DownAfter: 3, UpAfter: 5})
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() { done <- p.Run(ctx) }()
			limit := time.After(30 * time.Second)
			for p.Reports()[0].Opinion != c.want {
				select {
				case <-p.Changed():
				case <-limit:
					t.Fatalf("got %+v, want %v", p.Reports(), c.want)
				}
			}
			cancel()
			<-done
			if n := s.halfOpen(t); n != "0" {
				t.Errorf("%s half-open SAs are left", n)
			}
		})
	}
}

// needStrongSwan skips where a person lacks what the test needs; CI must have it.
func needStrongSwan(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("needs root")
		}
		t.Skip("strongSwan in a network namespace needs root")
	}
	if _, err := os.Stat(charon); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal("strongSwan (charon-systemd, swanctl) is not installed")
		}
		t.Skip("strongSwan (charon-systemd, swanctl) is not installed")
	}
}

type strongSwan struct {
	dir       string
	namespace string
	strongSwanPair
}

// strongSwanPair is both ends of a conversation, on one loopback interface.
type strongSwanPair struct{ server, client netip.Addr }

func (s *strongSwan) addresses(t *testing.T, p strongSwanPair) {
	t.Helper()
	for _, a := range []netip.Addr{p.server, p.client} {
		s.run(t, "ip", "-n", s.namespace, "addr", "add", netip.PrefixFrom(a, a.BitLen()).String(), "dev", "lo", "nodad")
	}
}

// startStrongSwan starts a server with these settings of strongswan.conf(5).
func startStrongSwan(t *testing.T, settings string) *strongSwan {
	s := &strongSwan{dir: t.TempDir(), namespace: fmt.Sprintf("vpnlb-thealth%d", os.Getpid()),
		strongSwanPair: strongSwanPair{server: netip.MustParseAddr("198.18.77.1"), client: netip.MustParseAddr("198.18.77.2")}}
	s.run(t, "ip", "netns", "add", s.namespace)
	t.Cleanup(func() { s.run(t, "ip", "netns", "del", s.namespace) })
	s.run(t, "ip", "-n", s.namespace, "link", "set", "lo", "up")
	s.addresses(t, s.strongSwanPair)
	s.write(t, "strongswan.conf", fmt.Sprintf(charonConf, s.dir, settings))
	cmd := exec.Command("ip", "netns", "exec", s.namespace, charon)
	cmd.Env = s.env()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for range 200 {
		if _, err := os.Stat(filepath.Join(s.dir, "vici")); err == nil {
			return s
		}
		<-tick.C
	}
	t.Fatal("charon does not open its socket")
	return nil
}

func (s *strongSwan) env() []string {
	return append(os.Environ(), "STRONGSWAN_CONF="+filepath.Join(s.dir, "strongswan.conf"), "SWANCTL_DIR="+s.dir)
}

func (s *strongSwan) write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func (s *strongSwan) run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = s.env()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (s *strongSwan) load(t *testing.T, proposals string) {
	s.write(t, "swanctl.conf", fmt.Sprintf(serverSpec, proposals))
	s.run(t, "swanctl", "--load-all", "--uri", "unix://"+filepath.Join(s.dir, "vici"))
}

var halfOpen = regexp.MustCompile(`(\d+) half-open`)

func (s *strongSwan) halfOpen(t *testing.T) string {
	out := s.run(t, "swanctl", "--stats", "--uri", "unix://"+filepath.Join(s.dir, "vici"))
	m := halfOpen.FindStringSubmatch(out)
	if m == nil {
		t.Fatalf("no statistics in %s", out)
	}
	return m[1]
}

// listen opens the socket inside the namespace; it stays there.
func (s *strongSwan) listen(local netip.AddrPort) (conn net.PacketConn, err error) {
	done := make(chan struct{})
	go func() { // the thread changes namespace and ends with this goroutine
		defer close(done)
		runtime.LockOSThread()
		f, ferr := os.Open("/run/netns/" + s.namespace)
		if ferr != nil {
			err = ferr
			return
		}
		defer f.Close()
		if err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET); err == nil {
			conn, err = Listen(local)
		}
	}()
	<-done
	return conn, err
}
