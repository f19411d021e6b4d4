package lab

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/deploy/lab/sstppeer"
	"github.com/vpnlb/vpnlb/node/admin"
)

// sstpWrongHash configures the hash of another certificate on one server, as
// somebody does who forgets it at a renewal.
func (d *drill) sstpWrongHash(ctx context.Context) error {
	defer d.sstpEnd(ctx)
	const server = 1
	right, wrong := d.l.currentCert(), d.otherCert()
	calls, err := d.sstpPlace(ctx, 1)
	if err != nil {
		return err
	}
	if err := d.l.trustSSTP(ctx, server, d.hashOf(wrong)); err != nil {
		return err
	}
	defer d.l.trustSSTP(context.WithoutCancel(ctx), server, d.hashOf(right)) // again below; here for the ways out
	before, err := d.l.sstpServer(ctx, server)
	if err != nil {
		return err
	}
	if err := d.forget(ctx, 4); err != nil {
		return err
	}
	if err := d.only(ctx, server); err != nil {
		return err
	}
	start := time.Now()
	if err := d.l.dialSSTP(ctx, 4); err != nil {
		return err
	}
	node, err := d.alarmed(ctx, serverName(server))
	if err != nil {
		return err
	}
	took := time.Since(start)
	d.converged(took)
	aborts := int64(0) // counted when the connection has ended, a little later
	err = until(ctx, changeBound, "the server to count the aborted call", func() (bool, error) {
		st, err := d.l.sstpServer(ctx, server)
		aborts = st.Ended["certificate_hash"] - before.Ended["certificate_hash"]
		return aborts > 0, err
	})
	if err != nil {
		return err
	}
	d.notef("%s says so after %s and %d aborted calls", node, took.Round(time.Millisecond), aborts)
	status, err := d.l.status(ctx, node)
	if err != nil {
		return err
	}
	if !slices.ContainsFunc(status.Warnings, func(w string) bool {
		return strings.Contains(w, serverName(server)) && strings.Contains(w, "certificate hash does not match")
	}) {
		d.failf("status of %s does not say it: %q", node, status.Warnings)
	}
	d.stands(ctx, 1, calls[1], "with a wrong hash")
	if err := d.l.trustSSTP(ctx, server, d.hashOf(right)); err != nil {
		return err
	}
	if _, err := d.l.waitCall(ctx, sstpBound, 4, "with the right hash", anyCall); err != nil {
		return err
	}
	if err := d.only(ctx, 0); err != nil {
		return err
	}
	d.stands(ctx, 1, calls[1], "with the right hash again")
	return nil
}

// otherCert names the certificate that servers do not expect now.
func (d *drill) otherCert() string {
	if d.l.currentCert() == certOld {
		return certNew
	}
	return certOld
}

// hashOf gives a hash; a certificate that cannot be read fails the drill.
func (d *drill) hashOf(cert string) string {
	h, err := d.l.certHash(cert)
	if err != nil {
		d.failf("%v", err)
	}
	return h
}

// alarmed waits until a member has the alarm about a server's hash.
func (d *drill) alarmed(ctx context.Context, server string) (node string, err error) {
	var last []admin.SSTPAlarm
	err = untilEvery(ctx, 10*pollInterval, alarmBound, "an alarm about "+server, func() (bool, error) {
		for _, n := range d.l.members() {
			var st admin.SSTPStatus
			if err := d.l.cli(ctx, cliBound, n, &st, "sstp", "status"); err != nil {
				return false, err
			}
			last = append(last[:0], st.Alarms...)
			if slices.ContainsFunc(st.Alarms, func(a admin.SSTPAlarm) bool {
				return a.Server == server && strings.Contains(a.Text, "certificate hash does not match")
			}) {
				node = n
				return true, nil
			}
		}
		return false, nil
	})
	if err != nil {
		err = fmt.Errorf("%w (alarms %+v)", err, last)
	}
	return node, err
}

// sstpRotate changes the certificate of all servers, one after the other, with
// a call open on two of them.
func (d *drill) sstpRotate(ctx context.Context) error {
	defer d.sstpEnd(ctx)
	old, next := d.l.currentCert(), d.otherCert()
	calls, err := d.sstpPlace(ctx, 1, 2)
	if err != nil {
		return err
	}
	start := time.Now()
	for server := range d.l.st.Options.Servers {
		if err := d.rotate(ctx, server+1, next); err != nil {
			return err
		}
		if server == 0 { // half-way: a new call on the first server, one on the second
			if err := d.halfWay(ctx, old, next, calls); err != nil {
				return err
			}
		}
	}
	if err := d.setDefault(ctx, next); err != nil {
		return err
	}
	d.converged(time.Since(start))
	for i, was := range calls {
		d.stands(ctx, i, was, "after the rotation")
		if err := d.boundTo(ctx, i, next); err != nil {
			return err
		}
	}
	d.notef("from certificate %s to %s in %s, two calls open", old, next, time.Since(start).Round(time.Millisecond))
	return nil
}

// rotate changes one server: what it expects, as the script on it does, and what
// the nodes show for it.
func (d *drill) rotate(ctx context.Context, server int, cert string) error {
	socket := (&embeddedPeers{l: d.l}).socket(sstpName(server))
	if d.l.st.Options.SSTP == SSTPReencrypt {
		certFile, keyFile := d.l.cert(cert)
		files := sstppeer.CertificateFiles{CertFile: certFile, KeyFile: keyFile}
		if err := sstppeer.Tell(ctx, socket, sstppeer.PathCertificate, files); err != nil {
			return err
		}
	}
	if err := d.l.trustSSTP(ctx, server, d.hashOf(cert)); err != nil {
		return err
	}
	m, err := d.l.anyMember()
	if err != nil {
		return err
	}
	for _, f := range d.l.st.Options.families() {
		if err := d.l.cli(ctx, cliBound, m, nil, "cert", "rotate", cert, "--vip", f.vipName, "--server", f.serverName(server)); err != nil {
			return err
		}
	}
	return d.applied(ctx)
}

// setDefault makes a certificate that of the VIPs, and expects the rotation to
// be done.
func (d *drill) setDefault(ctx context.Context, cert string) error {
	m, err := d.l.anyMember()
	if err != nil {
		return err
	}
	for _, f := range d.l.st.Options.families() {
		if err := d.l.cli(ctx, cliBound, m, nil, "cert", "use", cert, "--vip", f.vipName); err != nil {
			return err
		}
		var r admin.Rotation
		if err := d.l.cli(ctx, cliBound, m, &r, "cert", "rotate", cert, "--vip", f.vipName); err != nil {
			return err
		}
		if !r.Done {
			d.failf("the rotation of %s is not done: %+v", f.vipName, r.Servers)
		}
	}
	d.l.st.Cert = cert
	return d.l.save()
}

// halfWay looks at a rotation of which only the first server has had its turn.
func (d *drill) halfWay(ctx context.Context, old, next string, calls map[int]sstpCall) error {
	for i, was := range calls {
		d.stands(ctx, i, was, "after the first server's turn")
	}
	fresh, err := d.sstpPlace(ctx, 3, 4)
	if err != nil {
		return err
	}
	for i, cert := range map[int]string{4: next, 3: old} {
		if fresh[i].call.Hash != d.hashOf(cert) {
			d.failf("%s on %s is bound to %s, want the hash of certificate %s", sstpRole(i), serverName(fresh[i].server), fresh[i].call.Hash, cert)
		}
		if err := d.l.hangUpSSTP(ctx, i); err != nil {
			return err
		}
	}
	return nil
}

// boundTo lets a client call anew and looks what it is bound to.
func (d *drill) boundTo(ctx context.Context, i int, cert string) error {
	if err := d.l.hangUpSSTP(ctx, i); err != nil {
		return err
	}
	if err := d.l.dialSSTP(ctx, i); err != nil {
		return err
	}
	c, err := d.l.waitCall(ctx, sstpBound, i, "with the new certificate", anyCall)
	if err == nil && c.call.Hash != d.hashOf(cert) {
		d.failf("%s on %s is bound to %s, want the hash of certificate %s", sstpRole(i), serverName(c.server), c.call.Hash, cert)
	}
	return err
}
