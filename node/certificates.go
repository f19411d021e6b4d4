package node

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/dataplane/sstp"
	"github.com/vpnlb/vpnlb/node/admin"
	"github.com/vpnlb/vpnlb/node/certs"
)

// addCertificate checks a certificate and has it agreed: sealed, or as a file that
// lies on the nodes.
func (m *member) addCertificate(ctx context.Context, in admin.CertRequest) (any, error) {
	if err := checkName("certificate", in.Name); err != nil {
		return nil, err
	}
	text := []byte(in.Chain + "\n" + in.Key)
	switch {
	case in.Path != "" && in.Chain+in.Key != "":
		return nil, refuse("name a file on the nodes (--path), or give chain and key (--chain, --key), not both")
	case in.Path != "" && (!filepath.IsAbs(in.Path) || len(in.Path) > state.MaxPath):
		return nil, refuse("--path is an absolute path on the nodes, not %q", in.Path)
	case in.Path == "" && in.Chain == "":
		return nil, refuse("give chain and key (--chain, --key), or name a file on the nodes (--path)")
	case in.Path != "":
		var err error
		if text, err = certs.ReadFile(in.Path); err != nil {
			return nil, refuse("%v", err)
		}
	}
	c, err := certs.Parse(text)
	if err == nil {
		err = c.Current(time.Now())
	}
	if err != nil {
		return nil, refuse("certificate %s: %v", in.Name, err)
	}
	spec := m.spec()
	put := state.PutCertificate{Certificate: state.CertificatePlace{Name: in.Name, SHA256: c.Hash, Path: in.Path}}
	if old, ok := spec.CertificateByName(in.Name); ok {
		users := spec.CertificateUsers(in.Name)
		if old.SHA256 != c.Hash && len(users) > 0 && !in.Replace {
			return nil, &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf(
				"certificate %s is another one than the agreed one, which %s uses: servers pin its hash, so add the new one under another name and go on with 'vpnlb cert rotate' (--replace: change it at once, for all servers)", in.Name, strings.Join(users, " and "))}
		}
		put.Expect = old.Version
	}
	if err := roomForCertificate(spec, in.Name, in.Path == ""); err != nil {
		return nil, err
	}
	if in.Path != "" {
		text = nil // what was sealed goes
	}
	cmds := []state.Command{put}
	if in.Path == "" || holdsSecret(spec, in.Name) {
		seal, err := m.sealCertificate(spec, in.Name, text)
		if err != nil {
			return nil, err
		}
		cmds = []state.Command{seal, put}
	}
	notes := certNotes(c, time.Now())
	if c.Alone() {
		notes = append(notes, fmt.Sprintf("its chain has the server's own certificate alone: where the issuer (%s) is an intermediate CA, clients refuse it; put the issuer's certificate behind it", c.Leaf().Issuer))
	}
	if in.Path != "" {
		notes = append(notes, "the file must be at "+in.Path+" on every node, with mode 0600: 'vpnlb cert list' there tells")
	}
	return m.changeAll(ctx, cmds, notes...)
}

// ownSecrets are those that the cluster makes itself: some of them later.
var ownSecrets = []string{state.SecretCA, state.SecretGossip, state.SecretTickets}

// roomForCertificate says what limit a certificate would pass. A place and its
// secret are two commands, and one without the other is of no use, so both are
// looked at before either is proposed.
func roomForCertificate(spec *state.Spec, name string, sealed bool) error {
	if _, ok := spec.CertificateByName(name); !ok && len(spec.Certs) >= state.MaxCerts {
		return refuse("%d certificates are the most a cluster keeps: remove one first ('vpnlb cert list' shows which are in use)", state.MaxCerts)
	}
	if _, ok := spec.SecretByName(state.SecretOfCertificate(name)); ok || !sealed {
		return nil
	}
	taken := len(spec.Secrets)
	for _, own := range ownSecrets {
		if _, ok := spec.SecretByName(own); !ok {
			taken++
		}
	}
	if taken >= state.MaxSecrets {
		return refuse("%d certificates are the most whose keys the cluster keeps: remove one first, or let the nodes read it from a file (--path)", state.MaxSecrets-len(ownSecrets))
	}
	return nil
}

// holdsSecret reports whether a certificate's key lies in the agreement.
func holdsSecret(spec *state.Spec, name string) bool {
	place, ok := spec.CertificateByName(name)
	_, sealed := spec.SecretByName(state.SecretOfCertificate(name))
	return ok && sealed && place.Path == ""
}

// sealCertificate seals chain and key. An empty text takes the place of a key that
// lies in files from now on: what the secret holds must be nobody's. The secret
// itself goes with the certificate.
func (m *member) sealCertificate(spec *state.Spec, name string, text []byte) (state.PutSecret, error) {
	put := state.PutSecret{Name: state.SecretOfCertificate(name)}
	if old, ok := spec.SecretByName(put.Name); ok {
		put.Expect = old.Version
	}
	var err error
	put.Sealed, err = m.seal(put.Name, text)
	return put, err
}

// changeAll proposes commands of one entry, that do not change tables.
func (m *member) changeAll(ctx context.Context, cmds []state.Command, notes ...string) (any, error) {
	ctx, cancel := context.WithTimeout(ctx, proposeTimeout)
	defer cancel()
	for _, c := range cmds {
		if err := understood(m.spec(), c); err != nil {
			return nil, err
		}
	}
	outcomes, err := m.replica.Propose(ctx, cmds...)
	if err != nil {
		return nil, noQuorum(err)
	}
	out := admin.Changed{Notes: notes}
	for _, o := range outcomes {
		if err := outcomeError(o); err != nil {
			return nil, err
		}
		out.Index = max(out.Index, o.Index)
	}
	m.awaitIndex(ctx, out.Index)
	return out, nil
}

// certWarnAt are the days before its end at which a certificate is warned about.
var certWarnAt = []int{1, 7, 14, 30}

// daysLeft is whole days, rounded up; below 1: it is over.
func daysLeft(end, now time.Time) int {
	return int((end.Sub(now) + 24*time.Hour - 1) / (24 * time.Hour))
}

// expiryLevel is the threshold of certWarnAt that was passed, or -1 for none, 0
// for expired.
func expiryLevel(end, now time.Time) int {
	left := daysLeft(end, now)
	if left < 1 {
		return 0
	}
	for _, days := range certWarnAt {
		if left <= days {
			return days
		}
	}
	return -1
}

// certNotes is what an administrator should know of a certificate.
func certNotes(c *certs.Certificate, now time.Time) (notes []string) {
	end := c.Leaf().NotAfter
	switch level := expiryLevel(end, now); {
	case level == 0:
		notes = append(notes, "expired on "+end.UTC().Format(time.DateOnly)+": clients refuse it; add a new one under another name and run 'vpnlb cert rotate'")
	case level > 0:
		notes = append(notes, fmt.Sprintf("expires in %d days, on %s: add its successor under another name and run 'vpnlb cert rotate'", daysLeft(end, now), end.UTC().Format(time.DateOnly)))
	}
	if c.RSA() {
		notes = append(notes, "its key is "+c.KeyType()+": each full handshake costs a node some three times what ECDSA P-256 costs; Windows clients take ECDSA")
	}
	if len(c.Names()) == 0 {
		notes = append(notes, "it names no host (subject alternative name): clients refuse it")
	}
	return notes
}

// staples are this node's OCSP staples by certificate; of those that it shows.
func (m *member) staples() map[string]sstp.CertificateStatus {
	out := make(map[string]sstp.CertificateStatus)
	if o := m.offload.Load(); o != nil {
		for _, c := range o.recent.get(o.server).Certificates {
			out[c.Name] = c
		}
	}
	return out
}

// stapleNotes is what an administrator should know of a certificate's OCSP staple.
func stapleNotes(c sstp.CertificateStatus) (notes []string) {
	switch {
	case c.Staple == "revoked":
		notes = append(notes, "its CA's OCSP responder says that it is REVOKED: clients that check refuse it; have a new one issued, add it under another name and run 'vpnlb cert rotate'")
	case c.Staple == "missing" && c.StapleFault != "":
		notes = append(notes, "it is shown without an OCSP staple, as the responder does not answer well: "+c.StapleFault+"; let the node reach it (TCP 80, or the port of its URL)")
	}
	return notes
}

// certificates lists what is agreed, as this node has it.
func (m *member) certificates(*http.Request) (any, error) {
	spec, now := m.spec(), time.Now()
	staples := m.staples()
	out := []admin.Certificate{}
	for _, o := range m.openedCertificates(spec) {
		a := admin.Certificate{
			Name: o.Name, SHA256: hex.EncodeToString(o.SHA256[:]), Place: o.Path, Names: []string{},
			UsedBy: append([]string{}, spec.CertificateUsers(o.Name)...), Fault: o.Fault, Version: o.Version,
		}
		if a.Place == "" {
			a.Place = "cluster"
		}
		if c := o.Certificate; c != nil {
			leaf := c.Leaf()
			a.Subject, a.Issuer, a.KeyType, a.NotAfter = leaf.Subject.String(), leaf.Issuer.String(), c.KeyType(), leaf.NotAfter.UTC()
			a.Names, a.Warnings = append(a.Names, c.Names()...), certNotes(c, now)
		}
		if s, ok := staples[o.Name]; ok {
			a.OCSP = s.Staple
			a.Warnings = append(a.Warnings, stapleNotes(s)...)
		}
		out = append(out, a)
	}
	return out, nil
}

// openedCertificates are those that the part of SSTP holds; where it is a change
// behind, or where there is none, they are opened for the asker.
func (m *member) openedCertificates(spec *state.Spec) []certs.Opened {
	if o := m.offload.Load(); o != nil {
		opened := o.book.All()
		if slices.EqualFunc(opened, spec.Certs, func(a certs.Opened, b state.CertificatePlace) bool { return a.CertificatePlace == b }) {
			return opened
		}
	}
	book := m.newBook()
	book.Update(spec)
	return book.All()
}

func (m *member) newBook() *certs.Book {
	return certs.NewBook(func(name string, sealed []byte) ([]byte, error) {
		return transport.Open(m.ids.Identity().Secret, name, sealed)
	})
}

// useCertificate lets a server, or a VIP, use a certificate.
func (m *member) useCertificate(ctx context.Context, in admin.CertUseRequest) (any, error) {
	spec := m.spec()
	if _, ok := spec.CertificateByName(in.Name); !ok {
		return nil, missing("no certificate is called %q; 'vpnlb cert list' shows them", in.Name)
	}
	switch {
	case (in.Server == "") == (in.VIP == ""):
		return nil, refuse("say who is to use it: --server NAME or --vip NAME")
	case in.VIP != "":
		v, ok := spec.VIPByName(in.VIP)
		if !ok {
			return nil, missing("no VIP is called %q; 'vpnlb vip list' shows them", in.VIP)
		}
		put := state.PutVIP{VIP: *v, Expect: v.Version}
		put.VIP.Certificates = useFirst(v.Certificates, in.Name)
		var notes []string
		if names := pinning(spec, v); len(names) > 0 && v.SSTP.Ends() {
			notes = append(notes, "these servers must expect its hash from now on: "+strings.Join(names, ", ")+" ('vpnlb sstp rras SERVER' prints what to run)")
		}
		return m.change(ctx, put, notes...)
	}
	b, err := m.backendNamed(in.Server)
	if err != nil {
		return nil, err
	}
	put := state.PutBackend{Backend: *b, Expect: b.Version}
	put.Backend.Certificate = in.Name
	return m.change(ctx, put, "'vpnlb sstp rras "+b.Name+"' prints what to run on "+b.Name+", so that it expects the certificate's hash")
}

// useFirst makes a certificate the first of a VIP's: in place of the first, the
// others stay.
func useFirst(names []string, name string) []string {
	if at := slices.Index(names, name); at >= 0 {
		names = slices.Delete(slices.Clone(names), at, at+1)
		return slices.Insert(names, 0, name)
	}
	if len(names) == 0 {
		return []string{name}
	}
	names = slices.Clone(names)
	names[0] = name
	return names
}

func (m *member) removeCertificate(ctx context.Context, in admin.NameRequest) (any, error) {
	spec := m.spec()
	place, ok := spec.CertificateByName(in.Name)
	if !ok {
		return nil, missing("no certificate is called %q; 'vpnlb cert list' shows them", in.Name)
	}
	_, sealed := spec.SecretByName(state.SecretOfCertificate(in.Name))
	return m.change(ctx, state.RemoveCertificate{Name: in.Name, Secret: sealed, Expect: place.Version})
}
