package transport

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"net"
	"net/url"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/memnet"
	"github.com/vpnlb/vpnlb/cluster/state"
)

// world is a cluster on paper: a CA, a secret and a committed member list.
type world struct {
	t       *testing.T
	net     *memnet.Network
	cluster state.ClusterID
	ca      *CA
	secret  [32]byte

	mu      sync.Mutex
	members map[state.NodeID]ed25519.PublicKey
	removed map[state.NodeID][]byte
}

func newWorld(t *testing.T) *world {
	t.Helper()
	id := state.NewClusterID()
	ca, err := NewCA(id)
	if err != nil {
		t.Fatal(err)
	}
	return &world{
		t: t, net: memnet.New(), cluster: id, ca: ca, secret: NewSecret(),
		members: make(map[state.NodeID]ed25519.PublicKey), removed: make(map[state.NodeID][]byte),
	}
}

func (w *world) authorize(id state.NodeID, key []byte) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if pub, ok := w.members[id]; !ok || !pub.Equal(ed25519.PublicKey(key)) {
		return errors.New("not on the member list")
	}
	return nil
}

func (w *world) removal(id state.NodeID) []byte {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.removed[id]
}

func (w *world) remove(id state.NodeID, by Identity) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.members, id)
	w.removed[id] = SignRemoval(Removal{Cluster: w.cluster, Node: id, Index: 42, Signer: by.Node}, by.Key)
}

func newKey(t *testing.T) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// admit makes the identity of a member.
func (w *world) admit(role state.Role) Identity {
	w.t.Helper()
	id := w.identity(w.ca, Name{Cluster: w.cluster, Node: state.NewNodeID(), Role: role})
	w.mu.Lock()
	w.members[id.Node] = id.PublicKey()
	w.mu.Unlock()
	return id
}

// identity makes any identity that this CA would sign.
func (w *world) identity(ca *CA, name Name) Identity {
	w.t.Helper()
	key := newKey(w.t)
	csr, err := NewCSR(name.Node, key)
	if err != nil {
		w.t.Fatal(err)
	}
	crt, err := ca.Issue(csr, name)
	if err != nil {
		w.t.Fatal(err)
	}
	id, err := NewIdentity(name.Node, key, 1, &Admission{Certificate: crt, Roots: [][]byte{ca.Certificate()}, Secret: w.secret})
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// forge makes an identity whose certificate carries whatever names are given,
// which Issue would not sign.
func (w *world) forge(name Name, uris ...string) Identity {
	w.t.Helper()
	id := w.identity(w.ca, name)
	var us []*url.URL
	for _, u := range uris {
		us = append(us, urn(u))
	}
	der, err := w.ca.sign(id.PublicKey(), us, "forged")
	if err != nil {
		w.t.Fatal(err)
	}
	id.leaf = mustParse(w.t, der)
	return id
}

// start runs a Transport on the in-memory network.
func (w *world) start(ctx context.Context, addr string, id Identity, change ...func(*Config, *Deps)) *Transport {
	w.t.Helper()
	cfg := Config{Addr: addr}
	deps := Deps{
		Identity:  func() Identity { return id },
		Authorize: w.authorize,
		Removal:   w.removal,
		Listener:  w.net.Listen(addr),
		Dial:      w.net.Dialer(addr),
	}
	for _, f := range change {
		f(&cfg, &deps)
	}
	tr, err := New(cfg, deps)
	if err != nil {
		w.t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- tr.Run(ctx) }()
	w.t.Cleanup(func() {
		if err := <-done; err != nil {
			w.t.Errorf("run: %v", err)
		}
	})
	return tr
}

// bubble runs f in a synctest bubble, with a context that ends before the
// bubble does.
func bubble(t *testing.T, f func(t *testing.T, ctx context.Context, w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		f(t, t.Context(), w)
	})
}

const (
	addrA = "192.0.2.1:7950"
	addrB = "192.0.2.2:7950"
	addrC = "192.0.2.3:7950"
)

func within(t *testing.T, ctx context.Context, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, d)
	t.Cleanup(cancel)
	return ctx
}

// acceptOne answers one raft connection with what it read.
func acceptOne(l net.Listener) {
	c, err := l.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	b := make([]byte, 5)
	if n, err := c.Read(b); err == nil {
		c.Write(b[:n])
	}
}
