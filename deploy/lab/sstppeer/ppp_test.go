package sstppeer

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"
)

var (
	serverInner = netip.MustParseAddr("198.19.254.1")
	clientInner = netip.MustParseAddr("198.19.0.10")
)

const testPassword = "not a secret"

func onePassword(string) (string, bool) { return testPassword, true }

// line carries frames between two links; drop says which are lost.
type line struct {
	ends  [2]*link
	queue []struct {
		to       int
		protocol uint16
		body     []byte
	}
	drop func(n int) bool
	sent int
	now  time.Time
	errs [2]error
}

func newLine(server, client linkConfig) *line {
	ln := &line{drop: func(int) bool { return false }, now: time.Unix(1000, 0)}
	server.server = true
	for i, cfg := range []linkConfig{server, client} {
		ln.ends[i] = newLink(cfg, func(protocol uint16, body []byte) {
			if ln.sent++; !ln.drop(ln.sent) {
				ln.queue = append(ln.queue, struct {
					to       int
					protocol uint16
					body     []byte
				}{1 - i, protocol, bytes.Clone(body)})
			}
		})
	}
	return ln
}

// settle delivers until nothing is under way, and lets time pass until both are
// up or one has failed.
func (ln *line) settle(t *testing.T) {
	t.Helper()
	for range 60 {
		for n := 0; len(ln.queue) > 0; n++ {
			if n > 200 {
				t.Fatal("the ends never stop talking")
			}
			f := ln.queue[0]
			ln.queue = ln.queue[1:]
			if err := ln.ends[f.to].receive(ln.now, f.protocol, f.body); err != nil {
				ln.errs[f.to] = err
			}
		}
		if ln.ends[0].up() && ln.ends[1].up() || ln.errs[0] != nil || ln.errs[1] != nil {
			return
		}
		ln.now = ln.now.Add(time.Second)
		for i, e := range ln.ends {
			if err := e.tick(ln.now); err != nil {
				ln.errs[i] = err
			}
		}
	}
}

func (ln *line) start() {
	ln.ends[0].start(ln.now)
	ln.ends[1].start(ln.now)
}

func serverLink() linkConfig {
	return linkConfig{name: "s1", password: onePassword, local: serverInner, peer: clientInner}
}

func clientLink() linkConfig { return linkConfig{name: "c1", password: onePassword} }

func wantUp(t *testing.T, ln *line) {
	t.Helper()
	for i, e := range ln.ends {
		if !e.up() {
			t.Fatalf("end %d is not up: %v", i, ln.errs)
		}
	}
	if local, peer := ln.ends[1].addresses(); local != clientInner || peer != serverInner {
		t.Errorf("the client has %s and sees %s", local, peer)
	}
	if local, peer := ln.ends[0].addresses(); local != serverInner || peer != clientInner {
		t.Errorf("the server has %s and sees %s", local, peer)
	}
	s, c := ln.ends[0], ln.ends[1]
	if !bytes.Equal(s.login.authKey(s.nt), c.login.authKey(c.nt)) {
		t.Error("the ends have different keys")
	}
}

func TestLinkComesUp(t *testing.T) {
	ln := newLine(serverLink(), clientLink())
	ln.start()
	ln.settle(t)
	wantUp(t, ln)
	if ln.now != time.Unix(1000, 0) {
		t.Errorf("it took %s of repetitions", ln.now.Sub(time.Unix(1000, 0)))
	}
}

// Each frame is lost once, then a quarter of all.
func TestLinkComesUpWhateverIsLost(t *testing.T) {
	whole := newLine(serverLink(), clientLink())
	whole.start()
	whole.settle(t)
	for lost := 1; lost <= whole.sent; lost++ {
		ln := newLine(serverLink(), clientLink())
		ln.drop = func(n int) bool { return n == lost }
		ln.start()
		ln.settle(t)
		wantUp(t, ln)
	}
	for seed := range uint64(50) {
		r := rand.New(rand.NewPCG(seed, 1))
		ln := newLine(serverLink(), clientLink())
		ln.drop = func(int) bool { return r.IntN(4) == 0 }
		ln.start()
		ln.settle(t)
		wantUp(t, ln)
	}
}

func TestWrongPasswordIsRefused(t *testing.T) {
	for name, server := range map[string]func(string) (string, bool){
		"another password": func(string) (string, bool) { return "another", true },
		"unknown user":     func(string) (string, bool) { return "", false },
	} {
		cfg := serverLink()
		cfg.password = server
		ln := newLine(cfg, clientLink())
		ln.start()
		ln.settle(t)
		if !errors.Is(ln.errs[0], errLogin) || ln.ends[0].up() || ln.ends[1].up() || ln.ends[0].authenticated {
			t.Errorf("%s: %v", name, ln.errs)
		}
	}
}

// A server that does not know the password may let everybody in; its client
// must not believe it (RFC 2759 8.8).
func TestClientRefusesAServerWithoutThePassword(t *testing.T) {
	c := newLink(clientLink(), func(uint16, []byte) {})
	now := time.Unix(1000, 0)
	c.lcp.state = negOpened
	challenge := append([]byte{challengeSize}, make([]byte, challengeSize)...)
	if err := c.receive(now, protoCHAP, controlPacket(chapChallenge, 7, challenge)); err != nil {
		t.Fatal(err)
	}
	err := c.receive(now, protoCHAP, controlPacket(chapSuccess, 7, []byte("S=0000000000000000000000000000000000000000 M=ok")))
	if !errors.Is(err, errLogin) || c.authenticated {
		t.Errorf("authenticated %t, %v", c.authenticated, err)
	}
}

func TestServerKeepsIPBehindTheLogin(t *testing.T) {
	sent := 0
	s := newLink(serverLink(), func(uint16, []byte) { sent++ })
	s.cfg.server = true
	now := time.Unix(1000, 0)
	if err := s.receive(now, protoIPCP, controlPacket(configureRequest, 1, nil)); err != nil || sent != 0 {
		t.Errorf("%d answers before the login, %v", sent, err)
	}
}

func TestUnknownIsRejected(t *testing.T) {
	var protocol uint16
	var last []byte
	ln := newLine(serverLink(), clientLink())
	ln.start()
	ln.settle(t)
	s := ln.ends[0]
	s.send = func(p uint16, b []byte) { protocol, last = p, bytes.Clone(b) }
	ccp := controlPacket(configureRequest, 1, nil)
	if err := s.receive(ln.now, 0x80fd, ccp); err != nil || protocol != protoLCP || last[0] != protocolReject || !bytes.Equal(last[4:], append([]byte{0x80, 0xfd}, ccp...)) {
		t.Errorf("CCP: %#x % x, %v", protocol, last, err)
	}
	if err := s.receive(ln.now, protoLCP, controlPacket(42, 1, nil)); err != nil || last[0] != codeReject {
		t.Errorf("unknown code: % x, %v", last, err)
	}
	if err := s.receive(ln.now, protoLCP, controlPacket(lcpEchoRequest, 9, []byte{0, 0, 0, 0, 5})); err != nil || last[0] != lcpEchoReply || last[1] != 9 || !bytes.Equal(last[4:8], s.magic[:]) || last[8] != 5 {
		t.Errorf("echo: % x, %v", last, err)
	}
	for _, b := range [][]byte{nil, {1, 1, 0, 3}, {1, 1, 0, 99}, controlPacket(configureRequest, 1, []byte{1, 1}), controlPacket(configureRequest, 1, []byte{1, 9, 0})} {
		last = nil
		if err := s.receive(ln.now, protoLCP, b); err != nil || last != nil {
			t.Errorf("% x was answered: % x, %v", b, last, err)
		}
	}
	if err := s.receive(ln.now, protoLCP, controlPacket(terminateRequest, 3, nil)); err == nil || last[0] != terminateAck || s.up() {
		t.Errorf("terminate: % x, %v", last, err)
	}
}
