package transport

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// folder is the identity of a member, and the CA that admitted it.
type folder struct {
	t    *testing.T
	dir  string
	ca   *CA
	good Identity
}

func newFolder(t *testing.T) *folder {
	t.Helper()
	f := &folder{t: t, dir: t.TempDir()}
	s := open(t, f.dir)
	cluster := state.NewClusterID()
	var err error
	if f.ca, err = NewCA(cluster); err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(admission(t, f.ca, cluster, s.Identity().Node, s.Identity().Key)); err != nil {
		t.Fatal(err)
	}
	f.good = s.Identity()
	return f
}

func (f *folder) path(name string) string { return filepath.Join(f.dir, name) }

func (f *folder) write(name, text string) {
	f.t.Helper()
	if err := os.WriteFile(f.path(name), []byte(text), 0o600); err != nil {
		f.t.Fatal(err)
	}
}

// damages are what becomes of a file, by what happens to it. The foreign file is
// that of another node of another cluster.
func (f *folder) damage(name, how string, other *folder) {
	f.t.Helper()
	b, err := os.ReadFile(f.path(name))
	if err != nil {
		f.t.Fatal(err)
	}
	switch how {
	case "missing":
		os.Remove(f.path(name))
	case "empty":
		f.write(name, "")
	case "torn":
		f.write(name, string(b[:len(b)/2]))
	case "flipped":
		b[len(b)/2] ^= 0x80 // no character of any of these files
		f.write(name, string(b))
	case "foreign":
		if b, err = os.ReadFile(other.path(name)); err != nil {
			f.t.Fatal(err)
		}
		f.write(name, string(b))
	}
}

// Every file, and everything that happens to files. What nothing else has is an
// error with a remedy, and the file stays; the rest starts, as the same node.
func TestDamagedFiles(t *testing.T) {
	const refused, noted, silent = "refused", "noted", "silent"
	want := map[string]map[string]string{
		fileNodeID: {"missing": silent, "empty": noted, "torn": noted, "flipped": noted, "foreign": silent},
		fileKey:    {"missing": refused, "empty": refused, "torn": refused, "flipped": refused, "foreign": refused},
		fileCert:   {"missing": refused, "empty": refused, "torn": refused, "flipped": refused, "foreign": refused},
		fileRoots:  {"missing": noted, "empty": noted, "torn": noted, "flipped": noted, "foreign": refused},
		fileSecret: {"missing": noted, "empty": noted, "torn": noted, "flipped": noted, "foreign": silent},
		fileBoot:   {"missing": silent, "empty": noted, "torn": silent, "flipped": noted, "foreign": silent},
	}
	for name, hows := range want {
		for how, want := range hows {
			t.Run(name+" "+how, func(t *testing.T) {
				f, other := newFolder(t), newFolder(t)
				f.damage(name, how, other)
				before, _ := os.ReadFile(f.path(name))
				s, err := OpenIdentity(f.dir, true)
				if want == refused {
					var fault *FileError
					if !errors.As(err, &fault) || !strings.Contains(err.Error(), "cluster leave --force") {
						t.Fatalf("error %v", err)
					}
					if after, _ := os.ReadFile(f.path(name)); !bytes.Equal(before, after) {
						t.Error("the file was changed")
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got := len(s.Notes()) > 0; got != (want == noted) {
					t.Errorf("notes %q", s.Notes())
				}
				f.heal(s)
			})
		}
	}
}

// heal gives what the cluster has, and expects the node to be what it was.
func (f *folder) heal(s *IdentityStore) {
	f.t.Helper()
	if _, err := s.Restore(f.ca); err != nil {
		f.t.Fatal(err)
	}
	if err := s.SetSecret(f.good.Secret); err != nil {
		f.t.Fatal(err)
	}
	again, err := OpenIdentity(f.dir, true)
	if err != nil {
		f.t.Fatal(err)
	}
	id := again.Identity()
	if len(again.Notes()) > 0 || id.Node != f.good.Node || id.Cluster() != f.good.Cluster() || id.Secret != f.good.Secret ||
		!id.Key.Equal(f.good.Key) || len(id.Roots()) != 1 || id.Boot <= f.good.Boot {
		f.t.Errorf("after healing: %+v, notes %q", id, again.Notes())
	}
}

// One bit of the signature on the certificate: a new one is signed.
func TestDamagedSignature(t *testing.T) {
	f := newFolder(t)
	der := bytes.Clone(f.good.Certificate())
	der[len(der)-5] ^= 1
	f.write(fileCert, string(pemCerts([][]byte{der})))
	s, err := OpenIdentity(f.dir, true)
	if err != nil || len(s.Notes()) != 1 {
		t.Fatalf("%v", err)
	}
	f.heal(s)
}

// A node that was in no cluster yet makes anew what is damaged.
func TestDamagedFilesOfNoMember(t *testing.T) {
	for _, name := range []string{fileNodeID, fileKey, fileBoot} {
		dir := t.TempDir()
		open(t, dir)
		if err := os.WriteFile(filepath.Join(dir, name), []byte("\x80"), 0o600); err != nil {
			t.Fatal(err)
		}
		s := open(t, dir)
		if id := s.Identity(); len(s.Notes()) != 1 || id.Member() || id.Node.IsZero() || id.Key == nil {
			t.Errorf("%s: %+v, notes %q", name, id, s.Notes())
		}
	}
}

// A disk that takes nothing: a member starts all the same.
func TestMemberOnReadOnlyDisk(t *testing.T) {
	f := newFolder(t)
	os.Remove(f.path(fileBoot))
	if err := os.Mkdir(f.path(fileBoot), 0o700); err != nil { // cannot be replaced by a file
		t.Fatal(err)
	}
	f.write(fileBoot+"/x", "")
	s, err := OpenIdentity(f.dir, true)
	if err != nil || !s.Identity().Member() || s.Identity().Boot < f.good.Boot {
		t.Fatalf("%v", err)
	}
	if err := s.RaiseBoot(0); err == nil {
		t.Error("nothing tells that the counter is not kept")
	}
}
