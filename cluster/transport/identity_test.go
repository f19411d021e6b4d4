package transport

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func open(t *testing.T, dir string) *IdentityStore {
	t.Helper()
	s, err := OpenIdentity(dir, false)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// admission makes what a cluster would answer to this identity.
func admission(t *testing.T, ca *CA, cluster state.ClusterID, node state.NodeID, key ed25519.PrivateKey) Admission {
	t.Helper()
	csr, err := NewCSR(node, key)
	if err != nil {
		t.Fatal(err)
	}
	crt, err := ca.Issue(csr, Name{cluster, node, state.RoleNode})
	if err != nil {
		t.Fatal(err)
	}
	return Admission{Certificate: crt, Roots: [][]byte{ca.Certificate()}, Secret: NewSecret()}
}

func TestIdentityOnDisk(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "identity")
	s := open(t, dir)
	first := s.Identity()
	clock := uint64(time.Now().Unix())
	if first.Boot < clock || first.Member() || first.Node.IsZero() {
		t.Errorf("fresh identity: %+v", first)
	}
	if again := open(t, dir).Identity(); again.Boot <= first.Boot || again.Node != first.Node || !again.Key.Equal(first.Key) {
		t.Errorf("second boot: %+v", again)
	}
	other := state.NewNodeID()
	if err := s.SetNode(other); err != nil {
		t.Fatal(err)
	}
	if again := open(t, dir).Identity(); again.Node != other || !again.Key.Equal(first.Key) {
		t.Errorf("after another ID was set: %+v", again)
	}
	if first = s.Identity(); first.Node != other {
		t.Errorf("node %s, not the ID that was set", first.Node)
	}
	cluster := state.NewClusterID()
	ca, err := NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	adm := admission(t, ca, cluster, first.Node, first.Key)
	if err := s.Adopt(adm); err != nil {
		t.Fatal(err)
	}
	if err := s.SetNode(state.NewNodeID()); err == nil {
		t.Error("a member's ID was changed")
	}
	id := open(t, dir).Identity()
	if id.Boot < first.Boot+3 || id.Cluster() != cluster || id.Role() != state.RoleNode || id.Secret != adm.Secret ||
		!bytes.Equal(id.Certificate(), adm.Certificate) {
		t.Errorf("after adoption: %+v", id)
	}
	for _, f := range []string{fileKey, fileSecret} {
		if st, err := os.Stat(filepath.Join(dir, f)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", f, st.Mode(), err)
		}
	}
	// A lost raft store: the same key, a new ID.
	renamed := state.NewNodeID()
	if err := s.Adopt(admission(t, ca, cluster, renamed, first.Key)); err != nil {
		t.Fatal(err)
	}
	if id := open(t, dir).Identity(); id.Node != renamed || id.PublicKey() == nil {
		t.Errorf("after the replacement: node %s", id.Node)
	}
	// Adopt that was cut short before its last file: the certificate counts.
	if err := os.WriteFile(filepath.Join(dir, fileNodeID), []byte(first.Node.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if id := open(t, dir).Identity(); id.Node != renamed {
		t.Errorf("after the cut: node %s", id.Node)
	}
	// Rotation of the CA.
	next, err := NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.SetRoots([][]byte{next.Certificate()}); err == nil {
		t.Error("gave up the CA of its own certificate")
	}
	if err := s.SetRoots([][]byte{ca.Certificate(), next.Certificate()}); err != nil {
		t.Error(err)
	}
	if got := open(t, dir).Identity().Roots(); len(got) != 2 || HashCA(got[1]) != next.Hash() {
		t.Errorf("%d roots", len(got))
	}
	// Another cluster.
	foreign := state.NewClusterID()
	oca, err := NewCA(foreign)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Adopt(admission(t, oca, foreign, renamed, first.Key)); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("adopted by a second cluster: %v", err)
	}
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	if err != nil || len(left) != 0 {
		t.Errorf("temporary files left: %v, %v", left, err)
	}
}

func TestWideSecretsAreRefused(t *testing.T) {
	for _, file := range []string{fileKey, fileSecret} {
		dir := t.TempDir()
		s := open(t, dir)
		cluster := state.NewClusterID()
		ca, err := NewCA(cluster)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Adopt(admission(t, ca, cluster, s.Identity().Node, s.Identity().Key)); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(dir, file), 0o640); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenIdentity(dir, false); err == nil || !strings.Contains(err.Error(), "0640") || !strings.Contains(err.Error(), file) {
			t.Errorf("%s readable by others: %v", file, err)
		}
	}
}

func TestCA(t *testing.T) {
	cluster := state.NewClusterID()
	ca, err := NewCA(cluster)
	if err != nil {
		t.Fatal(err)
	}
	b, err := ca.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseCA(b)
	if err != nil || back.Hash() != ca.Hash() {
		t.Fatalf("parse CA: %v", err)
	}
	if h, err := ParseCAHash("sha256:" + strings.ToUpper(ca.Hash().String())); err != nil || h != ca.Hash() {
		t.Errorf("parse hash: %v", err)
	}
	if _, err := ParseCAHash("abc"); err == nil {
		t.Error("a short hash was taken")
	}
	key := newKey(t)
	node := state.NewNodeID()
	csr, err := NewCSR(node, key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := back.Issue(csr, Name{cluster, state.NewNodeID(), state.RoleNode}); err == nil {
		t.Error("issued a certificate for another node than asked")
	}
	if _, err := back.Issue(csr, Name{cluster, node, state.Role(9)}); err == nil {
		t.Error("issued a certificate for an unknown role")
	}
	damaged := bytes.Clone(csr)
	damaged[len(damaged)-1] ^= 1
	if _, err := back.Issue(damaged, Name{cluster, node, state.RoleNode}); err == nil {
		t.Error("issued a certificate without proof of the key")
	}
	if _, err := back.Issue(csr, Name{cluster, node, state.RoleWitness}); err != nil {
		t.Error(err)
	}
}

func TestToken(t *testing.T) {
	tk := NewToken()
	s := tk.String()
	if len(s) != 46 || strings.ContainsAny(s, "-+/= ") {
		t.Errorf("token %q does not paste well", s)
	}
	if back, err := ParseToken(" " + strings.ToUpper(s) + "\n"); err != nil || back != tk || back.Hash() != tk.Hash() {
		t.Errorf("parse: %v", err)
	}
	wrong := []byte(s)
	wrong[20] = map[bool]byte{true: 'b', false: 'a'}[wrong[20] == 'a']
	for _, bad := range []string{"", "vpnlb_", string(wrong), s[:len(s)-1], s + "a", strings.TrimPrefix(s, tokenPrefix)} {
		if _, err := ParseToken(bad); err == nil {
			t.Errorf("took %q", bad)
		}
	}
}

func TestSeal(t *testing.T) {
	secret := NewSecret()
	plain := []byte("the key of the CA")
	sealed, err := Seal(secret, "ca", plain)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := Seal(secret, "ca", plain); bytes.Equal(again, sealed) {
		t.Error("two sealings are equal")
	}
	if got, err := Open(secret, "ca", sealed); err != nil || !bytes.Equal(got, plain) {
		t.Errorf("open: %q, %v", got, err)
	}
	if _, err := Open(secret, "gossip", sealed); !errors.Is(err, ErrSealed) {
		t.Errorf("under another name: %v", err)
	}
	if _, err := Open(NewSecret(), "ca", sealed); !errors.Is(err, ErrSealed) {
		t.Errorf("with another secret: %v", err)
	}
	for i := range sealed {
		bad := bytes.Clone(sealed)
		bad[i] ^= 0x80
		if _, err := Open(secret, "ca", bad); err == nil {
			t.Errorf("a change of byte %d went unnoticed", i)
		}
		if _, err := Open(secret, "ca", sealed[:i]); err == nil {
			t.Errorf("cut to %d bytes it still opens", i)
		}
	}
}

func TestRemovalStatement(t *testing.T) {
	signer, key := state.NewNodeID(), newKey(t)
	r := Removal{Cluster: state.NewClusterID(), Node: state.NewNodeID(), Index: 7, Signer: signer}
	b := SignRemoval(r, key)
	lookup := func(id state.NodeID) (ed25519.PublicKey, bool) {
		return key.Public().(ed25519.PublicKey), id == signer || id == r.Node
	}
	if got, err := VerifyRemoval(b, lookup); err != nil || got != r {
		t.Errorf("verify: %+v, %v", got, err)
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 1
		if _, err := VerifyRemoval(bad, lookup); err == nil {
			t.Errorf("a change of byte %d went unnoticed", i)
		}
	}
	if _, err := VerifyRemoval(b[:len(b)-1], lookup); err == nil {
		t.Error("cut short it still verifies")
	}
	own := r
	own.Signer = r.Node
	if _, err := VerifyRemoval(SignRemoval(own, key), lookup); err == nil {
		t.Error("a node removed itself")
	}
	if _, err := VerifyRemoval(b, func(state.NodeID) (ed25519.PublicKey, bool) { return nil, false }); err == nil {
		t.Error("a stranger's statement was believed")
	}
}
