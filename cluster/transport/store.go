package transport

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// The files of an identity. They are kept apart from the raft store: a node
// that loses its store proves with its key that it is itself.
const (
	fileNodeID = "node-id"
	fileKey    = "node.key"       // PKCS #8 PEM, 0600
	fileCert   = "node.crt"       // PEM; written last, so that its presence means "admitted"
	fileRoots  = "ca.crt"         // PEM, one or more
	fileSecret = "cluster.secret" // 64 hexadecimal digits, 0600
	fileBoot   = "boot"           // decimal
)

// IdentityStore keeps an Identity on disk. Safe for use by many goroutines.
type IdentityStore struct {
	dir   string
	notes []note // of OpenIdentity, until it is healed
	mu    sync.Mutex
	id    Identity
	boot  error // why the boot counter could not be kept
}

// Identity returns the identity of now.
func (s *IdentityStore) Identity() Identity {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.id
}

// Adopt makes the node a member, or the same member under another certificate,
// or (after its store was lost) a member under a new ID: the certificate says
// which. Either all of it happens or none; the certificate is written last.
func (s *IdentityStore) Adopt(a Admission) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, err := NewIdentity(s.id.Node, s.id.Key, s.id.Boot, &a)
	if err != nil {
		return fmt.Errorf("adopt certificate: %w", err)
	}
	if s.id.Member() && s.id.Cluster() != id.Cluster() {
		return fmt.Errorf("adopt certificate: this node belongs to cluster %s already", s.id.Cluster())
	}
	if err := s.write(fileSecret, []byte(hex.EncodeToString(a.Secret[:])+"\n"), 0o600); err != nil {
		return err
	}
	if err := s.write(fileRoots, pemCerts(a.Roots), 0o644); err != nil {
		return err
	}
	if err := s.write(fileCert, pemCerts([][]byte{a.Certificate}), 0o644); err != nil {
		return err
	}
	if err := s.write(fileNodeID, []byte(id.Node.String()+"\n"), 0o644); err != nil {
		return err
	}
	s.id = id
	return nil
}

// SetNode gives a node that is no member yet another ID: one that was asked
// for once, and whose admission came to nothing, may be used up.
func (s *IdentityStore) SetNode(id state.NodeID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id.Member() {
		return errors.New("set node ID: this node is a member")
	}
	if err := s.write(fileNodeID, []byte(id.String()+"\n"), 0o644); err != nil {
		return err
	}
	s.id.Node = id
	return nil
}

// SetRoots replaces the CA certificates the node believes (CA rotation). The
// one that signed the node's own certificate must be among them.
func (s *IdentityStore) SetRoots(roots [][]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.id.Member() {
		return errors.New("set CA certificates: this node belongs to no cluster")
	}
	id, err := NewIdentity(s.id.Node, s.id.Key, s.id.Boot,
		&Admission{Certificate: s.id.leaf.Raw, Roots: roots, Secret: s.id.Secret})
	if err != nil {
		return fmt.Errorf("set CA certificates: %w", err)
	}
	if err := s.write(fileRoots, pemCerts(roots), 0o644); err != nil {
		return err
	}
	s.id = id
	return nil
}

// Restore puts right what the cluster's CA can: its own certificate where this node
// has lost it, and the node's where the signature on it is damaged. It names the
// files that it wrote.
func (s *IdentityStore) Restore(ca *CA) (files []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id := s.id
	if !id.Member() {
		return nil, errors.New("restore certificates: this node belongs to no cluster")
	}
	if len(id.roots) == 0 {
		id.roots, files = []*x509.Certificate{ca.cert}, append(files, fileRoots)
	}
	if !signedBy(id.leaf, id.roots) {
		csr, err := id.CSR()
		if err != nil {
			return nil, err
		}
		der, err := ca.Issue(csr, id.name)
		if err != nil {
			return nil, err
		}
		if id.leaf, err = x509.ParseCertificate(der); err != nil {
			return nil, fmt.Errorf("restore certificates: %w", err)
		}
		files = append(files, fileCert)
	}
	for _, name := range files {
		text := pemCerts(id.Roots())
		if name == fileCert {
			s.setAside(name)
			text = pemCerts([][]byte{id.leaf.Raw})
		}
		if err := s.write(name, text, 0o644); err != nil {
			return nil, err
		}
	}
	for _, name := range files {
		s.healed(name)
	}
	s.id = id
	return files, nil
}

// SetSecret replaces the cluster secret, which the caller has proved to be the
// cluster's. The file that was there is kept beside it.
func (s *IdentityStore) SetSecret(secret [32]byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.id.Member() {
		return errors.New("set the cluster secret: this node belongs to no cluster")
	}
	if secret == [32]byte{} {
		return errors.New("set the cluster secret: it is empty")
	}
	s.setAside(fileSecret)
	if err := s.write(fileSecret, []byte(hex.EncodeToString(secret[:])+"\n"), 0o600); err != nil {
		return err
	}
	s.healed(fileSecret)
	s.id.Secret = secret
	return nil
}

// RaiseBoot makes the boot counter at least n, where another place has proved that
// this node used a later one, and keeps one that could not be kept before.
func (s *IdentityStore) RaiseBoot(n uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n <= s.id.Boot && s.boot == nil {
		return nil
	}
	s.id.Boot = max(s.id.Boot, n)
	s.boot = s.writeBoot(s.id.Boot)
	return s.boot
}

// Notes are what OpenIdentity found damaged, one sentence each. What was healed since
// is left out.
func (s *IdentityStore) Notes() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, n := range s.notes {
		out = append(out, n.text)
	}
	return out
}

// note is damage of one file.
type note struct{ file, text string }

// healed forgets what was wrong with a file.
func (s *IdentityStore) healed(file string) {
	s.notes = slices.DeleteFunc(s.notes, func(n note) bool { return n.file == file })
}

func (s *IdentityStore) path(name string) string { return filepath.Join(s.dir, name) }

func (s *IdentityStore) write(name string, b []byte, perm fs.FileMode) error {
	return WriteFileAtomic(s.path(name), b, perm)
}

// WriteFileAtomic replaces a file so that a crash leaves the old one or the new
// one: temporary file, fsync, rename, fsync of the folder.
func WriteFileAtomic(path string, b []byte, perm fs.FileMode) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, "."+filepath.Base(path)+".*") // made 0600
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(b)
	if err == nil {
		err = f.Chmod(perm)
	}
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(dir)
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func pemCerts(ders [][]byte) []byte {
	var out []byte
	for _, der := range ders {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return out
}
