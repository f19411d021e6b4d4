package transport

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

type joinRequest struct {
	Token string `json:"token"`
	CSR   []byte `json:"csr"`
}

type joinAnswer struct {
	Certificate []byte   `json:"certificate"`
	Roots       [][]byte `json:"roots"`
	Secret      []byte   `json:"secret"`
}

// The whole way of a node into a cluster, on paper.
func TestJoin(t *testing.T) {
	dir := t.TempDir()
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		ida := w.admit(state.RoleNode)
		a := w.start(ctx, addrA, ida)
		token := NewToken()
		a.HandleJoin(JSON(func(_ context.Context, p Peer, in joinRequest) (joinAnswer, error) {
			if p.Node != (state.NodeID{}) {
				t.Errorf("a stranger counts as node %s", p.Node)
			}
			got, err := ParseToken(in.Token)
			if err != nil || got.Hash() != token.Hash() {
				return joinAnswer{}, &StatusError{Code: http.StatusForbidden, Reason: "this token is not known"}
			}
			csr, err := ParseCSR(in.CSR)
			if err != nil {
				return joinAnswer{}, err
			}
			crt, err := w.ca.Issue(in.CSR, Name{w.cluster, csr.Node, state.RoleNode})
			if err != nil {
				return joinAnswer{}, err
			}
			w.mu.Lock()
			w.members[csr.Node] = csr.PublicKey
			w.mu.Unlock()
			return joinAnswer{crt, [][]byte{w.ca.Certificate()}, w.secret[:]}, nil
		}))

		store, err := OpenIdentity(dir, false)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := store.Identity().CSR()
		if err != nil {
			t.Fatal(err)
		}
		j := Joiner{Addr: addrA, CAHash: w.ca.Hash(), Dial: w.net.Dialer(addrB)}

		wrong := j
		wrong.CAHash[0] ^= 1
		if _, _, err := wrong.Join(ctx, joinRequest{Token: token.String(), CSR: csr}, nil); !errors.Is(err, ErrWrongCA) {
			t.Errorf("wrong CA hash: %v", err)
		}
		// A node that cannot serve this cluster has sent nothing when it finds out.
		vetted, unfit := j, errors.New("unfit")
		vetted.Vet = func(n Name) error {
			if n != ida.name {
				t.Errorf("asked about %v", n)
			}
			return unfit
		}
		if _, _, err := vetted.Join(ctx, joinRequest{Token: token.String(), CSR: csr}, nil); !errors.Is(err, unfit) {
			t.Errorf("a cluster that was refused: %v", err)
		}
		w.mu.Lock()
		if _, sent := w.members[store.Identity().Node]; sent {
			t.Error("the token was sent to a cluster that was refused")
		}
		w.mu.Unlock()
		var se *StatusError
		if _, _, err := j.Join(ctx, joinRequest{Token: NewToken().String(), CSR: csr}, nil); !errors.As(err, &se) || se.Code != 403 {
			t.Errorf("wrong token: %v", err)
		}
		var ans joinAnswer
		var server Name
		var ca []byte
		for range 2 { // it may be repeated
			if server, ca, err = j.Join(ctx, joinRequest{Token: token.String(), CSR: csr}, &ans); err != nil {
				t.Fatal(err)
			}
		}
		if server != ida.name || HashCA(ca) != w.ca.Hash() {
			t.Errorf("server %v, CA %s", server, HashCA(ca))
		}
		if err := store.Adopt(Admission{Certificate: ans.Certificate, Roots: [][]byte{ca}, Secret: [32]byte(ans.Secret)}); err != nil {
			t.Fatal(err)
		}
		b := w.start(ctx, addrB, store.Identity())
		if _, err := a.Ping(ctx, Target{Addr: addrB, Node: store.Identity().Node}); err != nil {
			t.Error(err)
		}
		if _, err := b.Ping(ctx, Target{Addr: addrA}); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		if n := a.halfOpen.len(); n != 0 {
			t.Errorf("%d half-open places are still held", n)
		}
	})
}

// Something else than a member answers at the address.
func TestJoinAtAStranger(t *testing.T) {
	for what, answer := range map[string]string{"hangs up": "", "speaks another protocol": "HTTP/1.1 400 Bad Request\r\n\r\n"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		go func() {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			io.WriteString(c, answer)
			c.Close()
		}()
		_, _, err = Joiner{Addr: ln.Addr().String()}.Join(t.Context(), joinRequest{}, nil)
		if err == nil || !strings.Contains(err.Error(), "no member answers as one there: is it the port of cluster.address") {
			t.Errorf("one that %s: %v", what, err)
		}
	}
}

func TestJoinServesNothingElse(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		a := w.start(ctx, addrA, w.admit(state.RoleNode))
		a.HandleRPC("/join", Bytes(func(context.Context, Peer, []byte) ([]byte, error) {
			t.Error("a stranger reached an RPC")
			return nil, nil
		}))
		j := Joiner{Addr: addrA, CAHash: w.ca.Hash(), Dial: w.net.Dialer(addrB)}
		var se *StatusError
		if _, _, err := j.Join(ctx, nil, nil); !errors.As(err, &se) || se.Code != 503 {
			t.Errorf("no handler: %v", err)
		}
		a.HandleJoin(Bytes(func(_ context.Context, _ Peer, in []byte) ([]byte, error) { return in, nil }))
		if _, _, err := j.Join(ctx, make([]byte, maxJoinBody+1), nil); !errors.As(err, &se) || se.Code != 413 {
			t.Errorf("large body: %v", err)
		}
		a.HandleJoin(nil)
		if _, _, err := j.Join(ctx, nil, nil); !errors.As(err, &se) || se.Code != 503 {
			t.Errorf("handler taken away: %v", err)
		}
		time.Sleep(joinTimeout) // of virtual time: nothing lingers
		if n := a.halfOpen.len(); n != 0 {
			t.Errorf("%d half-open places are still held", n)
		}
	})
}

// A server with a certificate of its own CA that also shows the pinned one.
func TestJoinWithStolenCACertificate(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		ca, err := NewCA(w.cluster)
		if err != nil {
			t.Fatal(err)
		}
		evil := w.identity(ca, Name{w.cluster, state.NewNodeID(), state.RoleNode})
		evil.roots = []*x509.Certificate{w.ca.cert} // what it shows
		w.start(ctx, addrA, evil).HandleJoin(Bytes(func(context.Context, Peer, []byte) ([]byte, error) {
			t.Error("the token was sent")
			return nil, nil
		}))
		j := Joiner{Addr: addrA, CAHash: w.ca.Hash(), Dial: w.net.Dialer(addrB)}
		if _, _, err := j.Join(ctx, joinRequest{Token: NewToken().String()}, nil); err == nil {
			t.Error("joined the wrong server")
		}
	})
}

// Who belongs to no cluster sees that somebody is there, and nothing else.
func TestGreet(t *testing.T) {
	bubble(t, func(t *testing.T, ctx context.Context, w *world) {
		id := w.admit(state.RoleNode)
		w.start(ctx, addrA, id)
		w.start(ctx, addrB, Identity{Node: state.NewNodeID(), Key: newKey(t)}) // belongs to none
		ctx = within(t, ctx, 5*time.Second)
		if got, err := Greet(ctx, addrA, w.net.Dialer(addrC)); err != nil || got != id.name {
			t.Errorf("a member: %+v, %v", got, err)
		}
		if got, err := Greet(ctx, addrB, w.net.Dialer(addrC)); err == nil {
			t.Errorf("a node that is no member greets as %+v", got)
		}
		if got, err := Greet(ctx, "192.0.2.99:7950", w.net.Dialer(addrC)); err == nil {
			t.Errorf("nobody greets as %+v", got)
		}
	})
}
