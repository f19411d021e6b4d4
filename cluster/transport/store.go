package transport

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

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
	dir string
	mu  sync.Mutex
	id  Identity
}

// OpenIdentity reads the identity in dir, makes node ID and key where there are
// none, and counts one more boot. Secret files that others may read are
// refused.
func OpenIdentity(dir string) (*IdentityStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	s := &IdentityStore{dir: dir}
	key, err := s.openKey()
	if err != nil {
		return nil, err
	}
	node, err := s.openNodeID()
	if err != nil {
		return nil, err
	}
	adm, err := s.openAdmission()
	if err != nil {
		return nil, err
	}
	boot, err := s.countBoot()
	if err != nil {
		return nil, err
	}
	if s.id, err = NewIdentity(node, key, boot, adm); err != nil {
		return nil, fmt.Errorf("open identity in %s: %w", dir, err)
	}
	if s.id.Node != node {
		// Adopt was cut short after its last word, the certificate.
		if err := s.write(fileNodeID, []byte(s.id.Node.String()+"\n"), 0o644); err != nil {
			return nil, err
		}
	}
	return s, nil
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
	s.id.Secret = secret
	return nil
}

// RaiseBoot makes the boot counter at least n: another place has proved that this
// node used a later one.
func (s *IdentityStore) RaiseBoot(n uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n <= s.id.Boot {
		return nil
	}
	s.id.Boot = n
	return s.writeBoot(n)
}

func (s *IdentityStore) openKey() (ed25519.PrivateKey, error) {
	b, err := s.readSecret(fileKey)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(s.path(fileCert)); err == nil {
			return nil, fmt.Errorf("open identity: %s is gone but %s is there: bring the key back, or remove the folder and join again",
				s.path(fileKey), fileCert)
		}
		return s.makeKey()
	}
	if err != nil {
		return nil, err
	}
	blk, _ := pem.Decode(b)
	if blk == nil || blk.Type != "PRIVATE KEY" {
		return nil, fmt.Errorf("read %s: not a PEM private key", s.path(fileKey))
	}
	key, err := parseKey(blk.Bytes)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.path(fileKey), err)
	}
	return key, nil
}

func (s *IdentityStore) makeKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make node key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode node key: %w", err)
	}
	return key, s.write(fileKey, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func (s *IdentityStore) openNodeID() (state.NodeID, error) {
	b, err := os.ReadFile(s.path(fileNodeID))
	if errors.Is(err, fs.ErrNotExist) {
		id := state.NewNodeID()
		return id, s.write(fileNodeID, []byte(id.String()+"\n"), 0o644)
	}
	if err != nil {
		return state.NodeID{}, fmt.Errorf("open identity: %w", err)
	}
	id, err := state.ParseNodeID(strings.TrimSpace(string(b)))
	if err != nil {
		return id, fmt.Errorf("read %s: %w", s.path(fileNodeID), err)
	}
	return id, nil
}

// openAdmission returns nil where the node was never admitted.
func (s *IdentityStore) openAdmission() (*Admission, error) {
	crt, err := os.ReadFile(s.path(fileCert))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	var a Admission
	leaf, _ := pem.Decode(crt)
	if leaf == nil {
		return nil, fmt.Errorf("read %s: not a PEM certificate", s.path(fileCert))
	}
	a.Certificate = leaf.Bytes
	roots, err := os.ReadFile(s.path(fileRoots))
	if err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	for blk, rest := pem.Decode(roots); blk != nil; blk, rest = pem.Decode(rest) {
		a.Roots = append(a.Roots, blk.Bytes)
	}
	text, err := s.readSecret(fileSecret)
	if err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	sec, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(sec) != len(a.Secret) {
		return nil, fmt.Errorf("read %s: not 64 hexadecimal digits", s.path(fileSecret))
	}
	copy(a.Secret[:], sec)
	return &a, nil
}

// maxBoot bounds what is believed of the boot file: a number that leaves no room
// to count is damage.
const maxBoot = 1 << 62

// countBoot gives the boot counter of this start: above the file's, and at least the
// seconds of the clock. The file alone would not do: it is lost, or comes back from
// a backup, and the others believe nothing from a counter that went back.
func (s *IdentityStore) countBoot() (uint64, error) {
	var last uint64
	b, err := os.ReadFile(s.path(fileBoot))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return 0, fmt.Errorf("open identity: %w", err)
	default:
		if last, err = strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64); err != nil || last >= maxBoot {
			last = 0
			s.setAside(fileBoot)
		}
	}
	boot := max(last+1, uint64(max(0, time.Now().Unix())))
	return boot, s.writeBoot(boot)
}

func (s *IdentityStore) writeBoot(n uint64) error {
	return s.write(fileBoot, []byte(strconv.FormatUint(n, 10)+"\n"), 0o644)
}

// setAside keeps a file that is not believed under another name, for a person to
// look at. Where that fails the file is overwritten.
func (s *IdentityStore) setAside(name string) {
	_ = os.Rename(s.path(name), s.path(name+".damaged-"+time.Now().UTC().Format("20060102T150405Z")))
}

// readSecret reads a file that nobody but its owner may read.
func (s *IdentityStore) readSecret(name string) ([]byte, error) {
	p := s.path(name)
	f, err := os.Open(p)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if perm := st.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%s is a secret but its mode is %04o: others may have read it; `chmod 0600 %s` if you are sure they did not", p, perm, p)
	}
	var b bytes.Buffer
	if _, err := b.ReadFrom(f); err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	return b.Bytes(), nil
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
