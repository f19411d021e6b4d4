package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"text/template"
)

// FRR keeps several instances apart by a path space: its files lie in
// /etc/frr/<space> and /var/run/frr/<space>, both owned by user frr.
const (
	frrDaemons = "/usr/lib/frr"
	frrEtc     = "/etc/frr"
	frrRun     = "/var/run/frr"
)

func frrSpace(lab string) string { return nsName(lab, roleRouter) }

// frrConfig: one AS for each node, hence multipath-relax; no policy needed for
// eBGP; the floating static route (distance 250) carries on when no node
// announces.
var frrConfig = template.Must(template.New("frr").Parse(`frr defaults traditional
hostname {{.Space}}
log timestamp precision 3
!
{{range .Floats}}{{.}}
{{end}}!
router bgp {{.ASN}}
 bgp router-id {{.Router}}
 bgp log-neighbor-changes
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp bestpath as-path multipath-relax
 neighbor NODES peer-group
 neighbor NODES passive
 neighbor NODES timers 1 3
 neighbor NODES advertisement-interval 0
{{if .Nodes6}} neighbor NODES6 peer-group
 neighbor NODES6 passive
 neighbor NODES6 timers 1 3
 neighbor NODES6 advertisement-interval 0
{{end}}{{range .Nodes}} neighbor {{.Addr}} remote-as {{.ASN}}
 neighbor {{.Addr}} peer-group NODES
{{end}}{{range .Nodes6}} neighbor {{.Addr}} remote-as {{.ASN}}
 neighbor {{.Addr}} peer-group NODES6
{{end}} !
 address-family ipv4 unicast
  neighbor NODES activate
  maximum-paths 16
 exit-address-family
{{if .Nodes6}} !
 address-family ipv6 unicast
  neighbor NODES6 activate
  maximum-paths 16
 exit-address-family
{{end}}!
`))

// startFRR runs zebra, staticd and bgpd in the router's namespace.
func (l *Lab) startFRR(ctx context.Context) error {
	o := l.st.Options
	space := frrSpace(o.Name)
	type node struct {
		Addr string
		ASN  int
	}
	var floats []string
	var nodes [2][]node // by family
	for i := 1; i <= o.Nodes+o.Spares; i++ {
		for n, f := range o.families() {
			a := f.nodeOutside(i)
			nodes[n] = append(nodes[n], node{a.String(), nodeASNBase + i})
			if i <= o.Nodes {
				word := map[bool]string{false: "ip", true: "ipv6"}[a.Is6()]
				floats = append(floats, fmt.Sprintf("%s route %s/%d %s %d", word, f.vip, f.vip.BitLen(), a, floatMetric))
			}
		}
	}
	var b bytes.Buffer
	err := frrConfig.Execute(&b, map[string]any{
		"Space": space, "ASN": routerASN, "Router": routerOutside.Addr(), "Floats": floats, "Nodes": nodes[0], "Nodes6": nodes[1],
	})
	if err != nil {
		return fmt.Errorf("render FRR configuration: %w", err)
	}
	uid, gid, err := frrUser()
	if err != nil {
		return err
	}
	conf := filepath.Join(frrEtc, space, "frr.conf")
	for _, dir := range []string{filepath.Dir(conf), filepath.Join(frrRun, space)} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make FRR folder: %w", err)
		}
		if err := os.Chown(dir, uid, gid); err != nil {
			return fmt.Errorf("own FRR folder: %w", err)
		}
	}
	if err := os.WriteFile(conf, b.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write FRR configuration: %w", err)
	}
	for _, daemon := range []string{"zebra", "staticd", "bgpd"} {
		err := l.start(daemon, roleRouter, nil, filepath.Join(frrDaemons, daemon), "-N", space, "-f", conf, "-A", "127.0.0.1", "--log", "stdout")
		if err != nil {
			return err
		}
		if daemon == "zebra" { // the others want its socket
			if err := waitFile(ctx, filepath.Join(frrRun, space, "zserv.api")); err != nil {
				return err
			}
		}
	}
	return nil
}

func waitFile(ctx context.Context, path string) error {
	return until(ctx, peerBound, path, func() (bool, error) {
		_, err := os.Stat(path)
		return err == nil, nil
	})
}

func frrUser() (uid, gid int, err error) {
	u, err := user.Lookup("frr")
	if err != nil {
		return 0, 0, fmt.Errorf("FRR is not installed: %w", err)
	}
	uid, err = strconv.Atoi(u.Uid)
	if err != nil {
		return 0, 0, fmt.Errorf("user ID of frr: %w", err)
	}
	gid, err = strconv.Atoi(u.Gid)
	if err != nil {
		return 0, 0, fmt.Errorf("group ID of frr: %w", err)
	}
	return uid, gid, nil
}

// removeFRR removes the path space of a lab.
func removeFRR(lab string) error {
	return errors.Join(os.RemoveAll(filepath.Join(frrEtc, frrSpace(lab))), os.RemoveAll(filepath.Join(frrRun, frrSpace(lab))))
}
