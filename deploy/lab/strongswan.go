package lab

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"text/template"
	"time"
)

const (
	charonPath  = "/usr/sbin/charon-systemd" // in the foreground, needs no systemd and no PID file
	swanctlPath = "/usr/sbin/swanctl"
	swanBound   = 60 * time.Second // one swanctl command; loading 300 clients takes seconds
)

// charonConf: kernel-libipsec before kernel-netlink gives ESP in user space
// over a TUN device, always inside UDP 4500.
var charonConf = template.Must(template.New("charon").Parse(`charon-systemd {
  load_modular = no
  load = random nonce openssl pem pkcs1 pkcs8 x509 pubkey revocation constraints kdf hmac sha1 sha2 md5 gcm aes drbg vici kernel-libipsec kernel-netlink socket-default eap-identity eap-mschapv2 updown
  install_routes = yes
  retransmit_tries = 3
  retransmit_timeout = 1.0
  retransmit_base = 1.3
  filelog { f { path = {{.Dir}}/charon.log
      time_format = %H:%M:%S
      time_add_ms = yes
      default = 1
      flush_line = yes } }
  plugins {
    vici { socket = unix://{{.Dir}}/vici }
    kernel-libipsec { allow_peer_ts = no }
  }
}
swanctl { plugins { vici { socket = unix://{{.Dir}}/vici } } }
`))

// swanServer: certificate and EAP logins side by side; many clients share one
// identity, so older SAs of it stay (unique = never).
var swanServer = template.Must(template.New("server").Parse(`connections {
{{range .Auths}}  {{.Name}} {
    version = 2
    proposals = aes256-sha256-modp2048,aes256-sha256-ecp256
    fragmentation = no
    mobike = no
    encap = yes
    dpd_delay = 10s
    send_cert = always
    unique = never
    pools = pool
    local { auth = pubkey
      certs = server.crt
      id = {{$.ServerID}} }
    remote { {{.Remote}} }
    children { net { local_ts = {{$.Inner}}
      esp_proposals = aes256gcm16
      start_action = none } }
  }
{{end}}}
pools { pool { addrs = {{.Pool}} } }
secrets { eap-user { id = user1
  secret = "Passw0rd-lab" } }
`))

// swanClients: one connection for each client, from its own address.
var swanClients = template.Must(template.New("clients").Parse(`connections {
{{range .Clients}}  c{{.N}} {
    version = 2
    local_addrs = {{.Addr}}
    remote_addrs = {{.VIP}}
    proposals = {{if .EAP}}aes256-sha256-ecp256{{else}}aes256-sha256-modp2048{{end}}
    fragmentation = no
    mobike = no
    encap = yes
    dpd_delay = 3s
    keyingtries = 0
    send_cert = always
    vips = 0.0.0.0
    local { {{if .EAP}}auth = eap-mschapv2
      eap_id = user1
      id = u{{.N}}{{else}}auth = pubkey
      certs = client.crt
      id = {{$.ClientID}}{{end}} }
    remote { auth = pubkey
      id = {{$.ServerID}}
      cacerts = ca.crt }
    children { n{{.N}} { remote_ts = {{$.Inner}}
      esp_proposals = aes256gcm16
      dpd_action = restart
      start_action = start } }
  }
{{end}}}
secrets { eap-user { id = user1
  secret = "Passw0rd-lab" } }
`))

// swan is one charon with its files in a folder of the lab.
type swan struct {
	l    *Lab
	name string // process, folder
	role string
	cert string // "server" or "client"
}

func (s swan) dir() string { return s.l.path(s.name) }

func (s swan) env() []string {
	return []string{"STRONGSWAN_CONF=" + s.l.path(s.name, "strongswan.conf"), "SWANCTL_DIR=" + s.l.path(s.name, "swanctl")}
}

// prepare writes everything but the connections.
func (s swan) prepare() error {
	for _, d := range []string{"x509", "x509ca", "private"} {
		if err := os.MkdirAll(filepath.Join(s.dir(), "swanctl", d), 0o700); err != nil {
			return fmt.Errorf("make strongSwan folder: %w", err)
		}
	}
	for from, to := range map[string]string{
		"ca.crt": "x509ca/ca.crt", s.cert + ".crt": "x509/" + s.cert + ".crt", s.cert + ".key": "private/" + s.cert + ".key",
	} {
		b, err := os.ReadFile(s.l.path("pki", from))
		if err != nil {
			return fmt.Errorf("read PKI: %w", err)
		}
		if err := os.WriteFile(filepath.Join(s.dir(), "swanctl", to), b, 0o600); err != nil {
			return fmt.Errorf("write strongSwan credential: %w", err)
		}
	}
	return s.render(charonConf, "strongswan.conf", map[string]any{"Dir": s.dir()})
}

func (s swan) render(t *template.Template, file string, v any) error {
	var b bytes.Buffer
	if err := t.Execute(&b, v); err != nil {
		return fmt.Errorf("render %s: %w", file, err)
	}
	if err := os.WriteFile(filepath.Join(s.dir(), file), b.Bytes(), 0o600); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

// run starts charon and loads its configuration.
func (s swan) run(ctx context.Context) error {
	os.Remove(filepath.Join(s.dir(), "vici")) // of a killed one
	if err := s.l.start(s.name, s.role, s.env(), charonPath); err != nil {
		return err
	}
	if err := waitFile(ctx, filepath.Join(s.dir(), "vici")); err != nil {
		return err
	}
	_, err := s.ctl(ctx, "--load-all")
	return err
}

// ctl runs swanctl against this charon. Its complaints about folders that do
// not exist are of no interest unless it fails.
func (s swan) ctl(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, swanBound)
	defer cancel()
	cmd := exec.CommandContext(ctx, swanctlPath, append(args, "--uri", "unix://"+filepath.Join(s.dir(), "vici"))...)
	cmd.Env = append(os.Environ(), s.env()...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("swanctl %s on %s: %w: %s", args[0], s.name, err, lastBytes(&errs, 300))
	}
	return out.Bytes(), nil
}

func lastBytes(r io.Reader, n int) []byte {
	b, _ := io.ReadAll(r)
	return bytes.TrimSpace(b[max(0, len(b)-n):])
}

// swanSA is one established IKE SA with an installed child.
type swanSA struct {
	name      string // of the connection
	local     netip.Addr
	remote    netip.Addr
	responder string // SPI: names the login
	age       time.Duration
	inner     netip.Addr // the client's inner address
	up        bool
}

var (
	swanField = map[string]*regexp.Regexp{
		"state":     regexp.MustCompile(`\bstate=(\S+)`),
		"local":     regexp.MustCompile(`\blocal-host=(\S+)`),
		"remote":    regexp.MustCompile(`\bremote-host=(\S+)`),
		"responder": regexp.MustCompile(`\bresponder-spi=(\S+)`),
		"age":       regexp.MustCompile(`\bestablished=(\d+)`),
		"inner":     regexp.MustCompile(`\b(?:local|remote)-vips=\[([0-9.]+)`),
		"name":      regexp.MustCompile(`^\s*\{(\S+) \{`),
		"child":     regexp.MustCompile(`\bstate=(INSTALLED)\b`),
	}
	swanEvent = []byte("list-sa event")
)

// sas lists what this charon has (swanctl --list-sas --raw: one event each).
func (s swan) sas(ctx context.Context) ([]swanSA, error) {
	out, err := s.ctl(ctx, "--list-sas", "--raw")
	if err != nil {
		return nil, err
	}
	var list []swanSA
	for _, ev := range bytes.Split(out, swanEvent)[1:] {
		get := func(k string) string {
			if m := swanField[k].FindSubmatch(ev); m != nil {
				return string(m[1])
			}
			return ""
		}
		sa := swanSA{name: get("name"), responder: get("responder"), up: get("state") == "ESTABLISHED" && get("child") != ""}
		sa.local, _ = netip.ParseAddr(get("local"))
		sa.remote, _ = netip.ParseAddr(get("remote"))
		sa.inner, _ = netip.ParseAddr(get("inner"))
		sec, _ := strconv.Atoi(get("age"))
		sa.age = time.Duration(sec) * time.Second
		list = append(list, sa)
	}
	return list, nil
}
