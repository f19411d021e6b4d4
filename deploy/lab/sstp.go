package lab

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
	"github.com/vpnlb/vpnlb/deploy/lab/sstppeer"
)

// SSTP in the laboratory: servers of package sstppeer beside the responders,
// and clients that are sstpc, each in a network of its own behind the router:
//
//	client c<i> 198.18.2.<4i-2>/30 -- 198.18.2.<4i-3> router
//	in the tunnels: server i is 198.19.254.<i>, its clients are of its pool
const (
	sstpClients  = 4
	sstpPassword = "Passw0rd-lab"
	sstpRedial   = 300 * time.Millisecond // between the end of a call and the next: Windows takes some seconds

	sstpServerKind = "sstpserver"
	sstpClientKind = "sstpclient"
	pppdKind       = "pppd"

	// Names of certificates: the first one of all servers (ECDSA P-256), and the one
	// to rotate to (RSA of 4096 bits).
	certOld = "old"
	certNew = "new"
)

// Ports that SSTP servers listen on.
const (
	httpsPort = 443
	httpPort  = 80 // behind an offloader
)

func sstpName(i int) string       { return "sstp" + serverName(i) }         // the process beside server i
func sstpClientName(i int) string { return fmt.Sprintf("sstpclient%d", i) } // the process of client i
func sstpRole(i int) string       { return fmt.Sprintf("c%d", i) }          // its network, and its user
func sstpInner(i int) netip.Addr  { return netip.AddrFrom4([4]byte{198, 19, 254, byte(i)}) }

func sstpLink(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 2, byte(4*i - 2)}), 30)
}

func sstpRouter(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, 2, byte(4*i - 3)}), 30)
}

// sstpRoles are the networks of SSTP clients; none where nobody speaks it.
func (o Options) sstpRoles() (out []string) {
	if o.SSTP == SSTPOff {
		return nil
	}
	for i := range sstpClients {
		out = append(out, sstpRole(i+1))
	}
	return out
}

// certFiles are the files of a certificate of a lab.
func certFiles(lab, name string) (certFile, keyFile string) {
	return filepath.Join(labDir(lab), "pki", name+".crt"), filepath.Join(labDir(lab), "pki", name+".key")
}

func (l *Lab) cert(name string) (certFile, keyFile string) { return certFiles(l.st.Options.Name, name) }

// currentCert names the certificate that servers expect: drills change it.
func (l *Lab) currentCert() string { return cmp.Or(l.st.Cert, certOld) }

// certHash is what administrators configure: the SHA-256 of the certificate.
func (l *Lab) certHash(name string) (string, error) {
	file, _ := l.cert(name)
	b, err := os.ReadFile(file)
	if err != nil {
		return "", fmt.Errorf("read certificate: %w", err)
	}
	block, _ := pem.Decode(b)
	if block == nil {
		return "", fmt.Errorf("%s holds no PEM", file)
	}
	sum := sha256.Sum256(block.Bytes)
	return hex.EncodeToString(sum[:]), nil
}

// writeSSTPKI makes the authority and the certificates, once a lab.
func (l *Lab) writeSSTPKI() error {
	if _, err := os.Stat(l.path("pki", certNew+".key")); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	p, err := newPKI(l.path("pki"))
	if err != nil {
		return err
	}
	// One key of each kind that sites have: ECDSA, and the largest of RSA.
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make key of %s: %w", certOld, err)
	}
	rsaKey, err := rsa.GenerateKey(rand.Reader, 4096)
	if err != nil {
		return fmt.Errorf("make key of %s: %w", certNew, err)
	}
	return errors.Join(p.issueTLS(l.path("pki"), certOld, serverID, ecKey), p.issueTLS(l.path("pki"), certNew, serverID, rsaKey))
}

// startSSTP starts the SSTP service of server i, in the shape that the mode needs.
func (e *embeddedPeers) startSSTP(ctx context.Context, i int) error {
	o := e.l.st.Options
	if o.SSTP == SSTPOff {
		return nil
	}
	if err := e.l.writeSSTPKI(); err != nil {
		return err
	}
	cfg := sstppeer.ServerConfig{
		Name: serverName(i), Password: sstpPassword, Local: sstpInner(i), Pool: serverPool(i), Control: e.socket(sstpName(i)),
	}
	port := uint16(httpsPort)
	if o.SSTP == SSTPOffload {
		hash, err := e.l.certHash(e.l.currentCert())
		if err != nil {
			return err
		}
		port, cfg.Hashes = httpPort, []string{hash}
	} else {
		cfg.CertFile, cfg.KeyFile = e.l.cert(e.l.currentCert())
	}
	for _, f := range o.families() {
		cfg.Listen = append(cfg.Listen, netip.AddrPortFrom(f.server(i), port))
	}
	if err := e.startPeer(sstpName(i), sstpServerKind, serverName(i), cfg); err != nil {
		return err
	}
	return e.answers(ctx, sstpName(i))
}

// dialSSTP starts client i, which keeps a call up until it is stopped.
func (l *Lab) dialSSTP(ctx context.Context, i int) error {
	e := &embeddedPeers{l: l}
	name := sstpClientName(i)
	err := e.startPeer(name, sstpClientKind, sstpRole(i), sstppeer.DialConfig{
		Dir: l.path(name), PPPD: []string{l.st.Options.Binary, "lab-peer", pppdKind},
		Host: serverID, Addr: vipAddr, CAFile: l.path("pki", "ca.crt"),
		User: sstpRole(i), Password: sstpPassword, Redial: sstpRedial, Control: e.socket(name),
	})
	if err != nil {
		return err
	}
	return e.answers(ctx, name)
}

// sstpServer asks server i how its calls fare.
func (l *Lab) sstpServer(ctx context.Context, i int) (st sstppeer.ServerStats, err error) {
	return st, peer.Ask(ctx, (&embeddedPeers{l: l}).socket(sstpName(i)), sstppeer.PathStats, nil, &st)
}

// sstpClient asks client i.
func (l *Lab) sstpClient(ctx context.Context, i int) (st sstppeer.DialStats, err error) {
	return st, peer.Ask(ctx, (&embeddedPeers{l: l}).socket(sstpClientName(i)), sstppeer.PathStats, nil, &st)
}

const (
	sstpBound  = 20 * time.Second // until a call stands: TLS, login, a redial or two
	iperfBound = 5 * time.Second  // until its server listens
	iperfRetry = 100 * time.Millisecond
)

// trustSSTP configures the hashes that clients of server i may bind to.
func (l *Lab) trustSSTP(ctx context.Context, i int, hashes ...string) error {
	return sstppeer.Tell(ctx, (&embeddedPeers{l: l}).socket(sstpName(i)), sstppeer.PathHashes, hashes)
}

// hangUpSSTP stops client i; its call ends gently.
func (l *Lab) hangUpSSTP(ctx context.Context, i int) error { return l.stop(ctx, sstpClientName(i)) }

// pingTunnel pings the server's inner address from the client's.
func (l *Lab) pingTunnel(ctx context.Context, i int, link sstppeer.LinkState) error {
	_, err := l.command(ctx, 10*time.Second, sstpRole(i), "ping", "-n", "-c", "5", "-i", "0.1", "-W", "2", "-I", link.Device, link.Peer.String())
	return err
}

// iperfReport is what is read of iperf3's JSON.
type iperfReport struct {
	Error string `json:"error"`
	End   struct {
		Received struct {
			Rate float64 `json:"bits_per_second"`
		} `json:"sum_received"`
	} `json:"end"`
}

// iperfTunnel sends TCP through the tunnel for a time; bits a second, as received.
func (l *Lab) iperfTunnel(ctx context.Context, i int, link sstppeer.LinkState, length time.Duration) (float64, error) {
	server := int(link.Peer.As4()[3])
	name := "iperf" + serverName(server)
	err := l.start(name, serverName(server), nil, "iperf3", "--server", "--one-off", "--bind", link.Peer.String())
	if err != nil {
		return 0, err
	}
	defer l.kill(context.WithoutCancel(ctx), name)
	var r iperfReport
	err = untilEvery(ctx, iperfRetry, iperfBound, "iperf3 to be answered", func() (bool, error) {
		out, err := l.command(ctx, length+iperfBound, sstpRole(i), "iperf3", "--client", link.Peer.String(), "--bind", link.Local.String(),
			"--time", fmt.Sprint(length.Seconds()), "--json")
		r = iperfReport{}
		if jsonErr := json.Unmarshal(out, &r); jsonErr != nil { // it says in JSON that nobody listens yet
			return false, errors.Join(err, fmt.Errorf("read what iperf3 says: %w", jsonErr))
		}
		return r.Error == "", nil
	})
	if err != nil {
		return 0, fmt.Errorf("%w (%s)", err, r.Error)
	}
	return r.End.Received.Rate, nil
}

// command runs a tool in the namespace of a role and gives its output.
func (l *Lab) command(ctx context.Context, bound time.Duration, role, tool string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bound, fmt.Errorf("it took longer than %s", bound))
	defer cancel()
	cmd := exec.CommandContext(ctx, tool, args...)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := l.inside(role, cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", tool, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.Bytes(), fmt.Errorf("%s %s: %w: %.300s", tool, strings.Join(args, " "), err, bytes.TrimSpace(out.Bytes()))
	}
	return out.Bytes(), nil
}
