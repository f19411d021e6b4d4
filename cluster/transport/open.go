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
	"strconv"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// FileError is a file of the identity without which a member cannot be itself. The
// file is left as it is.
type FileError struct {
	Name   string // of the file, in the folder
	Path   string
	What   string // what is wrong with it
	Remedy string
}

// Error gives one sentence with fault and remedy.
func (e *FileError) Error() string { return e.Path + " " + e.What + ": " + e.Remedy }

// OpenIdentity reads the identity in dir, makes node ID and key where there are
// none, and counts one more boot. was: this node has been a member, as another
// place knows; then nothing that a member needs is made anew.
//
// Damage is told apart. What another file says, too, is taken from there (the node
// ID from the certificate), and what the agreement or a member can give is left out
// until then (CA certificates, cluster secret, boot counter): Notes name it, and the
// file is kept under another name. What nothing else has is a *FileError (key,
// certificate). Any other error is of the file system, or of a secret that others
// may read, and may be gone at the next try.
func OpenIdentity(dir string, was bool) (*IdentityStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open identity: %w", err)
	}
	s := &IdentityStore{dir: dir}
	crt, err := s.readFile(fileCert)
	if err != nil {
		return nil, err
	}
	key, err := s.openKey(was || crt != nil)
	if err != nil {
		return nil, err
	}
	if crt == nil && was {
		return nil, s.fault(fileCert, "is gone, though this node was a member", remedyCert)
	}
	node, err := s.readNodeID()
	if err != nil {
		return nil, err
	}
	if s.id, err = s.openMember(node, key, crt); err != nil {
		return nil, err
	}
	if s.id.Node.IsZero() {
		s.id.Node = state.NewNodeID()
	}
	if s.id.Node != node {
		// None yet, or damaged, or Adopt was cut short after its last word, the certificate.
		if err := s.write(fileNodeID, []byte(s.id.Node.String()+"\n"), 0o644); err != nil {
			return nil, err
		}
	}
	s.id.Boot, s.boot = s.countBoot()
	return s, nil
}

const (
	remedyKey  = "put it back from a copy of this folder; without one 'vpnlb cluster leave --force' here, 'vpnlb cluster remove' of this node on another, and join again"
	remedyCert = remedyKey
)

func (s *IdentityStore) fault(name, what, remedy string) *FileError {
	return &FileError{Name: name, Path: s.path(name), What: what, Remedy: remedy}
}

// note records damage that the node goes on with.
func (s *IdentityStore) note(name, what, then string) {
	s.notes = append(s.notes, note{name, s.path(name) + " " + what + ": " + then})
}

// readFile gives nil for a file that is not there.
func (s *IdentityStore) readFile(name string) ([]byte, error) {
	b, err := os.ReadFile(s.path(name))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open identity: %w", err)
	case b == nil:
		b = []byte{}
	}
	return b, nil
}

// openKey makes a key where there is none, or a damaged one that no cluster knows.
func (s *IdentityStore) openKey(member bool) (ed25519.PrivateKey, error) {
	b, err := s.readSecret(fileKey)
	gone := errors.Is(err, fs.ErrNotExist)
	if err != nil && !gone {
		return nil, err
	}
	what := "is gone, though this node was a member"
	if !gone {
		key, err := decodeKey(b)
		if err == nil {
			return key, nil
		}
		what = err.Error()
	}
	if member {
		return nil, s.fault(fileKey, what, remedyKey)
	}
	if !gone {
		s.setAside(fileKey)
		s.note(fileKey, what, "this node was in no cluster and has made a new one")
	}
	return s.makeKey()
}

func decodeKey(b []byte) (ed25519.PrivateKey, error) {
	blk, _ := pem.Decode(b)
	switch {
	case len(bytes.TrimSpace(b)) == 0:
		return nil, errors.New("is empty")
	case blk == nil || blk.Type != "PRIVATE KEY":
		return nil, errors.New("is damaged, and holds no PEM private key")
	}
	key, err := parseKey(blk.Bytes)
	if err != nil {
		return nil, fmt.Errorf("is damaged (%w)", err)
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

// readNodeID gives zero where there is none, or a damaged one.
func (s *IdentityStore) readNodeID() (state.NodeID, error) {
	b, err := s.readFile(fileNodeID)
	if err != nil || b == nil {
		return state.NodeID{}, err
	}
	id, err := state.ParseNodeID(strings.TrimSpace(string(b)))
	if err != nil || id.IsZero() {
		s.setAside(fileNodeID)
		s.note(fileNodeID, "is damaged", "the certificate says the ID; a node that was in no cluster has drawn a new one")
		return state.NodeID{}, nil
	}
	return id, nil
}

// openMember judges the files of an admission together. crt nil: never admitted.
func (s *IdentityStore) openMember(node state.NodeID, key ed25519.PrivateKey, crt []byte) (Identity, error) {
	id := Identity{Node: node, Key: key}
	if crt == nil {
		return id, nil
	}
	blk, _ := pem.Decode(crt)
	if blk == nil {
		return id, s.fault(fileCert, "is empty or damaged, and holds no PEM certificate", remedyCert)
	}
	leaf, err := x509.ParseCertificate(blk.Bytes)
	if err != nil {
		return id, s.fault(fileCert, fmt.Sprintf("is damaged (%v)", err), remedyCert)
	}
	name, pub, err := readLeaf(leaf)
	if err != nil {
		return id, s.fault(fileCert, fmt.Sprintf("is damaged (%v)", err), remedyCert)
	}
	if !pub.Equal(key.Public()) {
		return id, s.fault(fileCert, "is not for the key in "+fileKey+": one of them is damaged, or of another node", "put the one back that belongs to this node, from a copy of this folder; without one "+strings.TrimPrefix(remedyKey, "put it back from a copy of this folder; without one "))
	}
	roots, err := s.readRoots()
	if err != nil {
		return id, err
	}
	if len(roots) > 0 && !signedBy(leaf, roots) {
		if name.Node != node || !sameCluster(roots, name.Cluster) {
			return id, s.fault(fileCert, "is not signed by the CA in "+fileRoots+": one of them is damaged, or of another cluster", remedyCert)
		}
		s.note(fileCert, "is damaged: the CA's signature does not fit", "a new one is signed when the store is open")
	}
	id.Node, id.name, id.leaf, id.roots = name.Node, name, leaf, roots
	id.Secret, err = s.openSecret()
	return id, err
}

func sameCluster(roots []*x509.Certificate, cluster state.ClusterID) bool {
	for _, r := range roots {
		for _, u := range r.URIs {
			if u.String() == uriCluster+cluster.String() {
				return true
			}
		}
	}
	return false
}

// readRoots gives none where the file is damaged: the agreement holds the CA, too.
func (s *IdentityStore) readRoots() ([]*x509.Certificate, error) {
	b, err := s.readFile(fileRoots)
	if err != nil {
		return nil, err
	}
	var ders [][]byte
	for blk, rest := pem.Decode(b); blk != nil; blk, rest = pem.Decode(rest) {
		ders = append(ders, blk.Bytes)
	}
	roots, err := parseRoots(ders)
	switch {
	case err == nil:
		return roots, nil
	case b == nil:
		s.note(fileRoots, "is gone", "the agreement holds the CA's certificate")
	default:
		s.setAside(fileRoots)
		s.note(fileRoots, "is empty or damaged", "the agreement holds the CA's certificate")
	}
	return nil, nil
}

// openSecret gives zero where the file is damaged: the members have it, too.
func (s *IdentityStore) openSecret() (secret [32]byte, err error) {
	text, err := s.readSecret(fileSecret)
	if errors.Is(err, fs.ErrNotExist) {
		s.note(fileSecret, "is gone", "the other members have it")
		return secret, nil
	}
	if err != nil {
		return secret, err
	}
	sec, err := hex.DecodeString(string(bytes.TrimSpace(text)))
	if err != nil || len(sec) != len(secret) {
		s.setAside(fileSecret)
		s.note(fileSecret, "is empty or damaged, and not 64 hexadecimal digits", "the other members have it")
		return secret, nil
	}
	return [32]byte(sec), nil
}

// maxBoot bounds what is believed of the boot file: a number that leaves no room
// to count is damage.
const maxBoot = 1 << 62

// countBoot gives the boot counter of this start: above the file's, and at least the
// seconds of the clock. The file alone would not do: it is lost, or comes back from
// a backup, and the others believe nothing from a counter that went back. A fault
// is that the counter could not be kept: a node starts on a full disk, too.
func (s *IdentityStore) countBoot() (boot uint64, fault error) {
	b, fault := s.readFile(fileBoot)
	last, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 64)
	if err != nil || last >= maxBoot {
		last = 0
		if b != nil {
			s.setAside(fileBoot)
			s.note(fileBoot, "is empty or damaged", "the clock, the store and the other members say how far this node has counted")
		}
	}
	boot = max(last+1, uint64(max(0, time.Now().Unix())))
	return boot, errors.Join(fault, s.writeBoot(boot))
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
