package sstppeer

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"
)

// Timers of a server ([MS-SSTP] 3.1.2, 3.3.2).
const (
	negotiationTime = 60 * time.Second // for the request, and again from there to Call Connected
	helloTime       = 60 * time.Second // without a packet of the client: ask; the same again: it is dead
	abortTime       = 3 * time.Second  // for the client's Call Abort in answer to ours
	disconnectTime  = 5 * time.Second  // for its Call Disconnect Ack
	lastTime        = time.Second      // for it to close the connection
	maxNaks         = 3                // requests refused before the call is aborted
)

// State is where a call stands.
type State string

// States of a call ([MS-SSTP] 3.3.1).
const (
	StateRequest   State = "request"   // Call Connect Request is awaited
	StateLogin     State = "login"     // PPP, and Call Connected is awaited
	StateConnected State = "connected" // the crypto binding holds
	StateClosing   State = "closing"   // abort or disconnect is under way
)

// Reasons for the end of a call besides those of crypto binding.
const (
	reasonLogin       = "login"
	reasonPPP         = "ppp"
	reasonEcho        = "echo_timeout"
	reasonNegotiation = "negotiation_timeout"
	reasonMessage     = "message" // that makes no sense, or not now
	reasonFraming     = "framing"
	reasonPeerAbort   = "client_abort"
	reasonPeerLeft    = "client_disconnect"
	reasonWeLeft      = "server_disconnect"
	reasonGone        = "connection_lost"
)

// sessionConfig is what the server knows of a call from the start.
type sessionConfig struct {
	link      linkConfig
	protocols byte // hash protocols offered
	trusted   func(protocol byte, hash [32]byte) bool
	hello     time.Duration // helloTime, but in tests
}

// session is the server's end of one call: [MS-SSTP] 3.3 and the PPP link in
// it. It does no I/O: its owner hands over packets and the time, and sends what
// it says. Not safe for concurrent use.
type session struct {
	cfg     sessionConfig
	send    func(packet []byte)                // a control packet
	data    func(protocol uint16, body []byte) // PPP in a data packet
	deliver func(ip []byte)                    // out of the tunnel

	link     *link
	state    State
	reason   string // of the end, once it is known
	nonce    [nonceSize]byte
	bound    binding // what the client said, from Call Connected on
	naks     int
	heard    time.Time // last packet of the client
	asked    bool      // an Echo Request is open
	deadline time.Time // of the state
}

// errOver ends the connection; session.reason says why.
var errOver = errors.New("the call is over")

func newSession(cfg sessionConfig, now time.Time, send func([]byte), data func(uint16, []byte), deliver func([]byte)) *session {
	s := &session{cfg: cfg, send: send, data: data, deliver: deliver, state: StateRequest, heard: now, deadline: now.Add(negotiationTime)}
	if s.cfg.hello == 0 {
		s.cfg.hello = helloTime
	}
	s.cfg.link.server = true
	rand.Read(s.nonce[:])
	s.link = newLink(s.cfg.link, data)
	return s
}

// up reports whether IP flows.
func (s *session) up() bool { return s.state == StateConnected && s.link.up() }

func (s *session) say(k kind, attrs ...attribute) { s.send(message{kind: k, attrs: attrs}.encode()) }

// receive takes one packet; an error ends the connection.
func (s *session) receive(now time.Time, p packet) error {
	s.heard, s.asked = now, false
	if !p.control {
		return s.receiveData(now, p.body())
	}
	m, err := parseMessage(p)
	if err != nil {
		return s.abort(now, reasonMessage, 0, statusInvalidFrame)
	}
	switch m.kind {
	case callAbort:
		return s.aborted(now)
	case callDisconnect:
		s.say(callDisconnectAck)
		s.close(now, reasonPeerLeft, lastTime)
		return nil
	case callDisconnectAck:
		if s.state == StateClosing {
			s.deadline = now.Add(lastTime)
		}
		return nil
	}
	switch {
	case s.state == StateClosing: // its last words do not matter
		return nil
	case m.kind == callConnectRequest && s.state == StateRequest:
		return s.requested(now, m)
	case m.kind == callConnected && s.state == StateLogin:
		return s.connected(now, m, p.raw)
	case m.kind == echoRequest && s.state == StateConnected:
		s.say(echoResponse)
		return nil
	case m.kind == echoResponse && s.state == StateConnected:
		return nil
	}
	return s.abort(now, reasonMessage, 0, statusUnaccepted)
}

func (s *session) receiveData(now time.Time, frame []byte) error {
	protocol, body, ok := splitFrame(frame)
	if !ok || s.state != StateLogin && s.state != StateConnected {
		return nil
	}
	if protocol == protoIPv4 {
		if s.up() {
			s.deliver(body)
		}
		return nil
	}
	if err := s.link.receive(now, protocol, body); err != nil {
		s.linkEnded(now, err)
	}
	return nil
}

// linkEnded: PPP ends the call, by a disconnect ([MS-SSTP] 3.3.7).
func (s *session) linkEnded(now time.Time, err error) {
	reason := reasonPPP
	switch {
	case errors.Is(err, errLogin):
		reason = reasonLogin
	case errors.Is(err, errTerminated):
		reason = reasonPeerLeft
	}
	s.disconnect(now, reason)
}

// requested answers a Call Connect Request ([MS-SSTP] 3.3.5.2.2).
func (s *session) requested(now time.Time, m message) error {
	v, ok := m.attr(attrProtocol)
	problem := status(0)
	switch {
	case !ok:
		problem = statusMissing
	case len(v) != 2:
		problem = statusInvalidLength
	case v[0] != 0 || v[1] != protocolPPP:
		problem = statusNotSupported
	}
	if problem != 0 {
		if s.naks++; s.naks >= maxNaks {
			return s.abort(now, reasonMessage, attrProtocol, problem)
		}
		s.say(callConnectNak, statusInfo(attrProtocol, problem))
		return nil
	}
	s.say(callConnectAck, bindingRequest(s.cfg.protocols, s.nonce))
	s.state, s.deadline = StateLogin, now.Add(negotiationTime)
	s.link.start(now)
	return nil
}

// connected judges a Call Connected ([MS-SSTP] 3.3.5.2.3). A user who is not
// let in yet cannot bind anything.
func (s *session) connected(now time.Time, m message, raw []byte) error {
	v, ok := m.attr(attrBinding)
	switch {
	case !ok:
		return s.abort(now, reasonLength, attrBinding, statusMissing)
	case !s.link.authenticated:
		return s.abort(now, reasonMessage, 0, statusUnaccepted)
	}
	if s.bound, ok = parseBinding(v); !ok || len(raw) != callConnectedLen {
		return s.abort(now, reasonLength, attrBinding, statusInvalidLength)
	}
	reason := s.bound.judge(s.nonce, s.cfg.protocols, s.link.login.authKey(s.link.nt), raw, s.cfg.trusted)
	if reason != "" {
		return s.abort(now, reason, attrBinding, statusNotSupported)
	}
	s.state, s.deadline = StateConnected, time.Time{}
	return nil
}

// abort says why and waits for the client to say the same ([MS-SSTP] 3.1.5.1).
func (s *session) abort(now time.Time, reason string, attr byte, st status) error {
	s.say(callAbort, statusInfo(attr, st))
	s.close(now, reason, abortTime)
	return nil
}

// aborted answers the client's Call Abort, or takes it as the answer to ours.
func (s *session) aborted(now time.Time) error {
	if s.state != StateClosing {
		s.say(callAbort)
	}
	s.close(now, reasonPeerAbort, lastTime)
	return nil
}

// disconnect ends the call gently.
func (s *session) disconnect(now time.Time, reason string) {
	if s.state != StateClosing {
		s.say(callDisconnect, statusInfo(0, 0))
		s.close(now, reason, disconnectTime)
	}
}

// close waits for the end of a call; the first reason stands.
func (s *session) close(now time.Time, reason string, within time.Duration) {
	if s.reason == "" {
		s.reason = reason
	}
	s.state, s.deadline = StateClosing, now.Add(within)
}

// tick lets time pass; an error ends the connection.
func (s *session) tick(now time.Time) error {
	if !s.deadline.IsZero() && !now.Before(s.deadline) {
		if s.state == StateClosing {
			return errOver
		}
		return s.abort(now, reasonNegotiation, 0, statusNegotiation)
	}
	if s.state == StateConnected && now.Sub(s.heard) >= s.cfg.hello {
		if s.asked {
			s.reason = reasonEcho
			return fmt.Errorf("%w: no answer to an echo request", errOver)
		}
		s.heard, s.asked = now, true
		s.say(echoRequest)
	}
	if s.state == StateLogin || s.state == StateConnected {
		if err := s.link.tick(now); err != nil {
			s.linkEnded(now, err)
		}
	}
	return nil
}
