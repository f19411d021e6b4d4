package transport

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func mustParse(t *testing.T, der []byte) *x509.Certificate {
	t.Helper()
	c, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCallAndRaft(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		ida, idb := w.admit(state.RoleNode), w.admit(state.RoleWitness)
		a, b := w.start(ctx, addrA, ida), w.start(ctx, addrB, idb)

		b.HandleRPC("/echo", Bytes(func(_ context.Context, p Peer, in []byte) ([]byte, error) {
			return fmt.Appendf(nil, "%s %s", p.Node, in), nil
		}))
		b.HandleRPC("/sum", JSON(func(_ context.Context, _ Peer, in []int) (map[string]int, error) {
			s := 0
			for _, v := range in {
				s += v
			}
			return map[string]int{"sum": s}, nil
		}))
		b.HandleRPC("/refuse", Bytes(func(context.Context, Peer, []byte) ([]byte, error) {
			return nil, &StatusError{Code: http.StatusConflict, Reason: "not the leader", Detail: addrC}
		}))
		to := Target{Addr: addrB, Node: idb.Node}

		var out []byte
		if err := a.Call(ctx, to, "/echo", []byte("hello"), &out); err != nil {
			t.Fatal(err)
		}
		if want := ida.Node.String() + " hello"; string(out) != want {
			t.Errorf("echo: got %q, want %q", out, want)
		}
		var sum map[string]int
		if err := a.Call(ctx, Target{Addr: addrB}, "/sum", []int{1, 2, 3}, &sum); err != nil || sum["sum"] != 6 {
			t.Errorf("sum: %v, %v", sum, err)
		}
		var se *StatusError
		if err := a.Call(ctx, to, "/refuse", nil, nil); !errors.As(err, &se) || se.Code != 409 || se.Detail != addrC {
			t.Errorf("refusal: %v", err)
		}
		if err := a.Call(ctx, to, "/nowhere", nil, nil); !errors.As(err, &se) || se.Code != 404 {
			t.Errorf("unknown path: %v", err)
		}
		if n, err := a.Ping(ctx, to); err != nil || n != (Name{w.cluster, idb.Node, state.RoleWitness}) {
			t.Errorf("ping: %v, %v", n, err)
		}
		if n := len(b.conns); n != 2 { // one per target: with and without an expected node
			t.Errorf("%d connections for 5 calls to 2 targets", n)
		}

		go acceptOne(b.Raft())
		c, err := a.Raft().Dial(addrB, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("raft!"))
		got := make([]byte, 5)
		if _, err := io.ReadFull(c, got); err != nil || string(got) != "raft!" {
			t.Errorf("raft: %q, %v", got, err)
		}
		c.Close()
		if a.Raft().Addr().String() != addrA {
			t.Errorf("raft address %s", a.Raft().Addr())
		}
	})
}

func TestBodiesAreBounded(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		small := func(c *Config, _ *Deps) { c.MaxBody = 1000 }
		a, b := w.start(ctx, addrA, w.admit(state.RoleNode), small), w.start(ctx, addrB, w.admit(state.RoleNode), small)
		b.HandleRPC("/len", Bytes(func(_ context.Context, _ Peer, in []byte) ([]byte, error) { return nil, nil }))
		b.HandleRPC("/much", Bytes(func(context.Context, Peer, []byte) ([]byte, error) { return make([]byte, 1001), nil }))
		to := Target{Addr: addrB}
		if err := a.Call(ctx, to, "/len", make([]byte, 1000), nil); err != nil {
			t.Error(err)
		}
		var se *StatusError
		if err := a.Call(ctx, to, "/len", make([]byte, 1001), nil); !errors.As(err, &se) || se.Code != 413 {
			t.Errorf("large request: %v", err)
		}
		if err := a.Call(ctx, to, "/much", nil, nil); err == nil {
			t.Error("a large answer was taken")
		}
	})
}

// Everybody who must not get in, against both protocols.
func TestStrangersAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name string
		who  func(w *world, good Identity) Identity
	}{
		{"foreign CA", func(w *world, good Identity) Identity {
			ca, _ := NewCA(w.cluster)
			return w.identity(ca, good.name)
		}},
		{"wrong role", func(w *world, good Identity) Identity {
			return w.forge(good.name, uriCluster+w.cluster.String(), uriNode+good.Node.String(), uriRole+"admin")
		}},
		{"no role", func(w *world, good Identity) Identity {
			return w.forge(good.name, uriCluster+w.cluster.String(), uriNode+good.Node.String())
		}},
		{"two nodes", func(w *world, good Identity) Identity {
			return w.forge(good.name, uriCluster+w.cluster.String(), uriNode+good.Node.String(), uriNode+state.NewNodeID().String())
		}},
		{"other cluster, same CA", func(w *world, good Identity) Identity {
			return w.identity(w.ca, Name{state.NewClusterID(), good.Node, state.RoleNode})
		}},
		{"never a member", func(w *world, _ Identity) Identity {
			return w.identity(w.ca, Name{w.cluster, state.NewNodeID(), state.RoleNode})
		}},
		{"member's ID, other key", func(w *world, good Identity) Identity {
			return w.identity(w.ca, good.name)
		}},
		{"the CA itself", func(w *world, good Identity) Identity {
			good.leaf, good.Key = w.ca.cert, w.ca.key
			return good
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			bubble(t, func(t *testing.T, ctx context.Context, w *world) {
				good := w.admit(state.RoleNode)
				b := w.start(ctx, addrB, w.admit(state.RoleNode))
				called := false
				b.HandleRPC("/secret", Bytes(func(context.Context, Peer, []byte) ([]byte, error) { called = true; return nil, nil }))
				bad := tc.who(w, good)
				bad.roots = append(bad.roots, w.ca.cert) // it believes us; we must not believe it
				bad.name.Cluster = w.cluster
				a := w.start(ctx, addrA, bad, func(_ *Config, d *Deps) {
					d.Authorize = func(state.NodeID, []byte) error { return nil }
				})
				if err := a.Call(ctx, Target{Addr: addrB}, "/secret", nil, nil); err == nil || called {
					t.Errorf("call got through: %v", err)
				}
				// In TLS 1.3 a client learns of its refusal when it first reads.
				if c, err := a.Raft().Dial(addrB, time.Second); err == nil {
					c.SetDeadline(time.Now().Add(time.Second))
					if _, err := c.Read(make([]byte, 1)); err == nil {
						t.Error("raft connection got through")
					}
					c.Close()
				}
				synctest.Wait()
				for c := range b.conns {
					t.Errorf("connection of %s stayed", c.peer.Node)
				}
				// And the other way: we must not talk to it either.
				if err := b.Call(ctx, Target{Addr: addrA}, pathPing, nil, nil); err == nil {
					t.Error("we called it")
				}
			})
		})
	}
}

func TestDialerKnowsWhoAnswers(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		a := w.start(ctx, addrA, w.admit(state.RoleNode))
		idb := w.admit(state.RoleNode)
		w.start(ctx, addrB, idb)
		if _, err := a.Ping(ctx, Target{Addr: addrB, Key: idb.PublicKey()}); err != nil {
			t.Errorf("by its key: %v", err)
		}
		if _, err := a.Ping(ctx, Target{Addr: addrB, Key: w.admit(state.RoleNode).PublicKey()}); err == nil || !strings.Contains(err.Error(), "another key") {
			t.Errorf("by another's key: %v", err)
		}
		if _, err := a.Ping(ctx, Target{Addr: addrB, Node: w.admit(state.RoleNode).Node}); err == nil || !strings.Contains(err.Error(), "peer is node") {
			t.Errorf("another node answered: %v", err)
		}
	})
}

func TestRemovedNodeIsTold(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		ida, idb := w.admit(state.RoleNode), w.admit(state.RoleNode)
		known := w.members[idb.Node]
		a := w.start(ctx, addrA, ida, func(_ *Config, d *Deps) {
			d.Authorize = func(state.NodeID, []byte) error { return nil } // its list is old
		})
		b := w.start(ctx, addrB, idb)
		to := Target{Addr: addrB}
		if _, err := a.Ping(ctx, to); err != nil {
			t.Fatal(err)
		}
		go acceptOne(b.Raft())
		rc, err := a.Raft().Dial(addrB, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		w.remove(ida.Node, idb)
		b.Reauthorize()
		if _, err := rc.Read(make([]byte, 1)); err == nil {
			t.Error("raft connection outlived the removal")
		}
		var re *RemovedError
		if _, err := a.Ping(ctx, to); !errors.As(err, &re) {
			t.Fatalf("after the removal: %v", err)
		}
		r, err := VerifyRemoval(re.Statement, func(id state.NodeID) (ed25519.PublicKey, bool) { return known, id == idb.Node })
		if err != nil || r.Index != 42 || r.Node != ida.Node || r.Cluster != w.cluster {
			t.Errorf("statement: %+v, %v", r, err)
		}
		time.Sleep(time.Minute)
		if n := b.halfOpen.len(); n != 0 {
			t.Errorf("%d half-open connections stayed", n)
		}
	})
}

// A removal that falls between the handshake and the registration of a
// connection must not be missed.
func TestRemovalDuringHandshake(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		a := w.start(ctx, addrA, w.admit(state.RoleNode))
		asked := 0
		b := w.start(ctx, addrB, w.admit(state.RoleNode), func(_ *Config, d *Deps) {
			d.Authorize = func(state.NodeID, []byte) error {
				if asked++; asked > 1 {
					return errors.New("removed just now")
				}
				return nil
			}
		})
		if c, err := a.Raft().Dial(addrB, time.Second); err == nil {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("the connection stayed")
			}
		}
		synctest.Wait()
		if asked != 2 || len(b.conns) != 0 {
			t.Errorf("asked %d times, %d connections", asked, len(b.conns))
		}
	})
}

func TestFence(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		a, b := w.start(ctx, addrA, w.admit(state.RoleNode)), w.start(ctx, addrB, w.admit(state.RoleNode))
		accepted := make(chan net.Conn, 4)
		go func() {
			for {
				c, err := b.Raft().Accept()
				if err != nil {
					close(accepted)
					return
				}
				accepted <- c
			}
		}()
		c, err := a.Raft().Dial(addrB, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		far := <-accepted
		start := time.Now()
		b.Raft().Fence()
		b.Raft().Fence() // twice is once
		if d := time.Since(start); d != 0 {
			t.Errorf("fence took %v", d)
		}
		for _, c := range []net.Conn{c, far} {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("a connection outlived the fence")
			}
		}
		if _, err := b.Raft().Dial(addrA, time.Second); !errors.Is(err, ErrFenced) {
			t.Errorf("dial behind the fence: %v", err)
		}
		if c, err := a.Raft().Dial(addrB, time.Second); err == nil {
			if _, err := c.Read(make([]byte, 1)); err == nil {
				t.Error("fenced node speaks raft")
			}
		}
		synctest.Wait()
		select {
		case <-accepted:
			t.Error("accept returned behind the fence")
		default:
		}
		if _, err := a.Ping(ctx, Target{Addr: addrB}); err != nil {
			t.Errorf("the fence is for raft only: %v", err)
		}
	})
}

func TestNotMemberServesNobody(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		fresh, err := NewIdentity(state.NewNodeID(), newKey(t), 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		a, b := w.start(ctx, addrA, w.admit(state.RoleNode)), w.start(ctx, addrB, fresh)
		if _, err := a.Ping(ctx, Target{Addr: addrB}); err == nil {
			t.Error("a node without a certificate answered")
		}
		if _, err := b.Ping(ctx, Target{Addr: addrA}); !errors.Is(err, ErrNotMember) {
			t.Errorf("a node without a certificate called: %v", err)
		}
	})
}

func TestHalfOpenFlood(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		a := w.start(ctx, addrA, w.admit(state.RoleNode))
		b := w.start(ctx, addrB, w.admit(state.RoleNode))
		var flood []net.Conn
		for i := range 3000 {
			from := fmt.Sprintf("198.51.%d.%d:999", i/200, i%200)
			c, err := w.net.Dialer(from)(ctx, addrB)
			if err != nil {
				t.Fatal(err)
			}
			flood = append(flood, c)
			if n := b.halfOpen.len(); n > b.cfg.MaxHalfOpen {
				t.Fatalf("%d half-open connections, most are %d", n, b.cfg.MaxHalfOpen)
			}
		}
		// A member gets in between them, at once.
		if _, err := a.Ping(within(t, ctx, time.Second), Target{Addr: addrB}); err != nil {
			t.Errorf("member during the flood: %v", err)
		}
		// One source has a bound of its own.
		for range 100 {
			c, err := w.net.Dialer("203.0.113.9:1")(ctx, addrB)
			if err != nil {
				t.Fatal(err)
			}
			flood = append(flood, c)
		}
		b.halfOpen.mu.Lock()
		for src, l := range b.halfOpen.bySource {
			if l.Len() > b.cfg.MaxHalfOpenPerSource {
				t.Errorf("%v holds %d places", src, l.Len())
			}
		}
		b.halfOpen.mu.Unlock()
		time.Sleep(b.cfg.HandshakeTimeout + time.Second)
		if n := b.halfOpen.len(); n != 0 {
			t.Errorf("%d half-open connections after the deadline", n)
		}
		for _, c := range flood {
			c.Close()
		}
	})
}

func TestGarbageAndOldTLS(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		ida := w.admit(state.RoleNode)
		b := w.start(ctx, addrB, w.admit(state.RoleNode))
		dial := w.net.Dialer(addrA)
		greet := func(cfg *tls.Config) error {
			raw, err := dial(ctx, addrB)
			if err != nil {
				t.Fatal(err)
			}
			defer raw.Close()
			cfg.InsecureSkipVerify = true
			cfg.Certificates = []tls.Certificate{ida.tlsCertificate()}
			c := tls.Client(raw, cfg)
			if err := c.HandshakeContext(ctx); err != nil {
				return err
			}
			c.SetDeadline(time.Now().Add(time.Second))
			_, err = c.Read(make([]byte, 1))
			if ne := net.Error(nil); errors.As(err, &ne) && ne.Timeout() {
				return nil // it listens
			}
			return err
		}
		if err := greet(&tls.Config{MaxVersion: tls.VersionTLS12, NextProtos: []string{protoRaft}}); err == nil {
			t.Error("TLS 1.2 was taken")
		}
		if err := greet(&tls.Config{}); err == nil {
			t.Error("no ALPN was taken")
		}
		if err := greet(&tls.Config{NextProtos: []string{"h2", "http/1.1"}}); err == nil {
			t.Error("foreign ALPN was taken")
		}
		if err := greet(&tls.Config{NextProtos: []string{protoRPC}}); err != nil {
			t.Errorf("the control case: %v", err)
		}
		for _, junk := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff" + strings.Repeat("x", 70000), "\x00"} {
			raw, err := dial(ctx, addrB)
			if err != nil {
				t.Fatal(err)
			}
			go raw.Write([]byte(junk)) // a pipe blocks where nobody reads
			io.Copy(io.Discard, raw)   // ends when the server hangs up
			raw.Close()
		}
		synctest.Wait()
		if n := b.halfOpen.len(); n != 0 {
			t.Errorf("%d half-open connections stayed", n)
		}
	})
}

// A kept connection whose other end went away is replaced without the caller
// noticing.
func TestCallAfterRestart(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		idb := w.admit(state.RoleNode)
		a := w.start(ctx, addrA, w.admit(state.RoleNode))
		once, stop := context.WithCancel(ctx)
		w.start(once, addrB, idb)
		to := Target{Addr: addrB, Node: idb.Node}
		if _, err := a.Ping(ctx, to); err != nil {
			t.Fatal(err)
		}
		stop()
		synctest.Wait()
		if _, err := a.Ping(ctx, to); err == nil {
			t.Fatal("a stopped node answered")
		}
		w.start(ctx, addrB, idb)
		if _, err := a.Ping(ctx, to); err != nil {
			t.Errorf("after the restart: %v", err)
		}
	})
}
