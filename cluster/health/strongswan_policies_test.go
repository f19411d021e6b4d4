package health

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// windowsPolicies are the 168 policies that Set-VpnServerConfiguration can make, in
// the words of swanctl.conf(5): seven ciphers, four hashes, six groups.
func windowsPolicies() []string {
	var all []string
	for _, cipher := range []string{"des", "3des", "aes128", "aes192", "aes256", "aes128gcm16", "aes256gcm16"} {
		for _, hash := range []string{"md5", "sha1", "sha256", "sha384"} {
			for _, group := range []string{"modp768", "modp1024", "modp2048", "ecp256", "ecp384", "modp2048s256"} {
				digest := hash
				if strings.HasSuffix(cipher, "gcm16") { // the cipher authenticates, the hash is the PRF's alone
					digest = "prf" + hash
				}
				all = append(all, cipher+"-"+digest+"-"+group)
			}
		}
	}
	return all
}

// TestStrongSwanWindowsPolicies probes 168 servers, each with one policy that a
// Windows server may have: all must be up, and none hold a half-open SA. So must they
// be where the server asks everybody for a cookie first.
func TestStrongSwanWindowsPolicies(t *testing.T) {
	needStrongSwan(t)
	t.Run("plain", func(t *testing.T) {
		s := startStrongSwan(t, "cookie_threshold = 1000\n cookie_threshold_ip = 1000\n block_threshold = 1000")
		probePolicies(t, s, s.loadPolicies(t), 0)
	})
	t.Run("cookies", func(t *testing.T) {
		s := startStrongSwan(t, "cookie_threshold = 1\n block_threshold = 1000")
		targets := s.loadPolicies(t)
		s.openHalf(t, targets[slices.Index(windowsPolicies(), "aes256-sha256-modp2048")].Addr)
		probePolicies(t, s, targets, 1)
	})
}

// loadPolicies gives each policy an address of its own, and a connection there.
func (s *strongSwan) loadPolicies(t *testing.T) []Target {
	t.Helper()
	policies := windowsPolicies()
	var connections strings.Builder
	var targets []Target
	for i, policy := range policies {
		at := netip.AddrFrom4([4]byte{198, 18, 78, byte(i + 1)})
		s.run(t, "ip", "-n", s.namespace, "addr", "add", netip.PrefixFrom(at, 32).String(), "dev", "lo")
		fmt.Fprintf(&connections, "p%d { version = 2\n local_addrs = %s\n proposals = %s\n"+
			" local { auth = psk\n id = vpn.example.test }\n remote { auth = psk }\n"+
			" children { net { esp_proposals = aes256-sha256 } } }\n", i, at, policy)
		targets = append(targets, Target{Backend: state.BackendID(i + 1), Addr: at})
	}
	s.write(t, "swanctl.conf", "connections {\n"+connections.String()+"}\nsecrets { ike { secret = \"test\" } }\n")
	s.run(t, "swanctl", "--load-all", "--uri", "unix://"+filepath.Join(s.dir, "vici"))
	return targets
}

// openHalf leaves one half-open SA, as a client that goes away does: from then on
// this server asks for cookies.
func (s *strongSwan) openHalf(t *testing.T, server netip.Addr) {
	t.Helper()
	conn, err := s.listen(netip.AddrPortFrom(s.client, 0))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	request := appendInit(nil, newSPI(), offers[0], wrongGroup{modp2048, 256}, false)
	if _, err := conn.WriteTo(request, net.UDPAddrFromAddrPort(netip.AddrPortFrom(server, 500))); err != nil {
		t.Fatal(err)
	}
	ticks, limit := time.NewTicker(50*time.Millisecond), time.After(10*time.Second)
	defer ticks.Stop()
	for s.halfOpen(t) != "1" {
		select {
		case <-ticks.C:
		case <-limit:
			t.Fatal("the server holds no half-open SA")
		}
	}
}

// probePolicies probes until all are up, for a minute at most.
func probePolicies(t *testing.T, s *strongSwan, targets []Target, halfOpen int) {
	t.Helper()
	policies := windowsPolicies()
	p, err := NewProber(Config{Local4: s.client}, Deps{Listen: s.listen})
	if err != nil {
		t.Fatal(err)
	}
	timing := Timing{Interval: 3 * time.Second, Timeout: 10 * time.Second, DownAfter: 3, UpAfter: 1}
	p.SetTargets(targets, timing)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	ticks, limit := time.NewTicker(100*time.Millisecond), time.After(time.Minute)
	defer ticks.Stop()
	up := 0
wait:
	for up < len(policies) {
		select {
		case <-ticks.C:
		case <-limit:
			break wait
		}
		up = 0
		for _, r := range p.Reports() {
			if r.Opinion == OpinionUp {
				up++
			}
		}
	}
	cancel()
	<-done
	t.Logf("%d of %d policies are up", up, len(policies))
	if up < len(policies) {
		for i, r := range p.Reports() {
			if r.Opinion != OpinionUp {
				t.Errorf("%s: %v, %v", policies[i], r.Opinion, r.Ports[0].Note)
			}
		}
	}
	if n := s.halfOpen(t); n != strconv.Itoa(halfOpen) {
		t.Errorf("%s half-open SAs, want %d", n, halfOpen)
	}
}
