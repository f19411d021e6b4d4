package sstppeer

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"
)

// Protocols of PPP.
const (
	protoIPv4 = 0x0021
	protoIPCP = 0x8021
	protoLCP  = 0xc021
	protoCHAP = 0xc223
)

// Options of LCP (RFC 1661 6) and IPCP (RFC 1332 3.3).
const (
	lcpMRU   = 1
	lcpACCM  = 2
	lcpAuth  = 3
	lcpMagic = 5
	lcpPFC   = 7
	lcpACFC  = 8

	ipcpAddress = 3

	linkMTU = 1400 // bytes of IP: what RRAS gives, and what a path of 1500 carries with TLS around
	minMRU  = 576
)

// chapMSv2 is the value of the authentication option: CHAP with MS-CHAPv2 (RFC 2759 2).
var chapMSv2 = []byte{0xc2, 0x23, 0x81}

// Codes of CHAP (RFC 1994 4).
const (
	chapChallenge = 1
	chapResponse  = 2
	chapSuccess   = 3
	chapFailure   = 4
)

// Ends of a link: its password is wrong; one of the ends has said goodbye.
var (
	errLogin      = errors.New("the login was refused")
	errTerminated = errors.New("the link was ended")
)

// linkConfig is one end of a PPP link.
type linkConfig struct {
	server bool
	name   string // the client's user, the server's own name
	// password of a user; the client is asked for its own.
	password func(user string) (string, bool)
	local    netip.Addr // the server's; a client is given its own
	peer     netip.Addr // that the server gives to its client
}

// link is one end of a PPP link over an ideal line: LCP, then MS-CHAPv2 of the
// client, then IPCP. It does no I/O and starts nothing: its owner hands over
// frames and, once a second or so, the time. Not safe for concurrent use.
type link struct {
	cfg  linkConfig
	send func(protocol uint16, body []byte)

	lcp, ipcp     negotiation
	magic         [4]byte
	login         credentials
	nt            [ntResponseSize]byte
	authenticated bool
	leaving       bool
	chapID        byte
	chapDeadline  time.Time // of the challenge or the response; zero: answered
	chapTries     int
	chapLast      []byte // what is said again: the client's response, the server's verdict
	err           error
	now           time.Time
}

func newLink(cfg linkConfig, send func(protocol uint16, body []byte)) *link {
	l := &link{cfg: cfg, send: send}
	rand.Read(l.magic[:])
	l.lcp = negotiation{protocol: protoLCP, send: send, judge: l.judgeLCP, opened: l.lcpOpened}
	l.lcp.wishes = []option{{lcpMRU, binary.BigEndian.AppendUint16(nil, linkMTU)}, {lcpMagic, l.magic[:]}}
	own := netip.IPv4Unspecified()
	if cfg.server {
		l.lcp.wishes = append(l.lcp.wishes, option{lcpAuth, chapMSv2})
		own = cfg.local
	}
	l.ipcp = negotiation{protocol: protoIPCP, send: send, judge: l.judgeIPCP, opened: func() {}}
	l.ipcp.wishes = []option{{ipcpAddress, own.AsSlice()}}
	return l
}

// start begins.
func (l *link) start(now time.Time) {
	l.now = now
	l.lcp.start(now)
}

// up reports whether IP may flow.
func (l *link) up() bool {
	return l.err == nil && l.authenticated && l.ipcp.state == negOpened
}

// addresses are those agreed on; valid when the link is up.
func (l *link) addresses() (local, peer netip.Addr) {
	local, peer = l.cfg.local, l.cfg.peer
	if v, ok := l.ipcp.wish(ipcpAddress); ok && !l.cfg.server {
		local, _ = netip.AddrFromSlice(v)
	}
	return local, peer
}

// tick repeats what got no answer.
func (l *link) tick(now time.Time) error {
	l.now = now
	if err := errors.Join(l.lcp.tick(now), l.ipcp.tick(now)); err != nil {
		l.err = err
	}
	if !l.chapDeadline.IsZero() && !now.Before(l.chapDeadline) {
		if l.chapTries++; l.chapTries >= maxRequests {
			l.err = errors.New("no answer to challenge or response")
		} else {
			l.repeatCHAP()
		}
	}
	return l.err
}

// receive takes a frame that is not data. The error ends the link.
func (l *link) receive(now time.Time, protocol uint16, body []byte) error {
	l.now = now
	code, id, data, ok := splitControl(body)
	if !ok {
		return l.err // no packet: dropped silently (RFC 1661 5)
	}
	switch protocol {
	case protoLCP:
		l.receiveLCP(code, id, data)
	case protoCHAP:
		if l.lcp.state == negOpened {
			l.receiveCHAP(code, id, data)
		}
	case protoIPCP:
		if l.authenticated {
			l.receiveIPCP(code, id, data)
		}
	default:
		if l.lcp.state == negOpened {
			l.send(protoLCP, controlPacket(protocolReject, id, append(binary.BigEndian.AppendUint16(nil, protocol), body...)))
		}
	}
	return l.err
}

func (l *link) receiveLCP(code, id byte, data []byte) {
	switch code {
	case configureRequest, configureAck, configureNak, configureReject:
		l.lcp.receive(l.now, code, id, data)
	case terminateRequest:
		l.send(protoLCP, controlPacket(terminateAck, id, nil))
		l.err = errTerminated
	case lcpEchoRequest:
		if l.lcp.state == negOpened && len(data) >= 4 {
			l.send(protoLCP, controlPacket(lcpEchoReply, id, append(l.magic[:4:4], data[4:]...)))
		}
	case protocolReject:
		if len(data) >= 2 && binary.BigEndian.Uint16(data) == protoIPCP {
			l.err = errors.New("the peer does not speak IPCP")
		}
	case codeReject:
		l.err = errors.New("the peer does not know a code of LCP")
	case terminateAck:
		if l.leaving {
			l.err = errTerminated
		}
	case lcpEchoReply, discardRequest:
	default:
		l.send(protoLCP, controlPacket(codeReject, id, controlPacket(code, id, data)))
	}
}

func (l *link) receiveIPCP(code, id byte, data []byte) {
	switch code {
	case configureRequest, configureAck, configureNak, configureReject:
		l.ipcp.receive(l.now, code, id, data)
	case terminateRequest:
		l.send(protoIPCP, controlPacket(terminateAck, id, nil))
		l.err = errors.New("the peer ended IP")
	case terminateAck, codeReject:
	default:
		l.send(protoIPCP, controlPacket(codeReject, id, controlPacket(code, id, data)))
	}
}

// terminate says goodbye; the answer is errTerminated.
func (l *link) terminate() {
	l.leaving = true
	l.send(protoLCP, controlPacket(terminateRequest, l.lcp.id+1, nil))
}

func (l *link) judgeLCP(o option) (verdict, option) {
	switch o.kind {
	case lcpMRU:
		if len(o.value) == 2 && binary.BigEndian.Uint16(o.value) < minMRU {
			return change, option{lcpMRU, binary.BigEndian.AppendUint16(nil, linkMTU)}
		}
		return take, o
	case lcpACCM, lcpMagic, lcpPFC, lcpACFC: // we send as without them, which is allowed
		return take, o
	case lcpAuth:
		if l.cfg.server {
			return refuse, o // RRAS does not prove itself to clients but in the success message
		}
		if !bytes.Equal(o.value, chapMSv2) {
			return change, option{lcpAuth, chapMSv2}
		}
		return take, o
	}
	return refuse, o
}

func (l *link) judgeIPCP(o option) (verdict, option) {
	if o.kind != ipcpAddress || len(o.value) != 4 {
		return refuse, o // compression, name servers
	}
	a, _ := netip.AddrFromSlice(o.value)
	switch {
	case !l.cfg.server:
		l.cfg.peer = a
	case a != l.cfg.peer:
		return change, option{ipcpAddress, l.cfg.peer.AsSlice()}
	}
	return take, o
}

func (l *link) lcpOpened() {
	if l.cfg.server && !l.authenticated {
		rand.Read(l.login.authChallenge[:])
		l.chapID++
		l.challenge()
	}
}

// challenge asks the client to prove itself (RFC 2759 3).
func (l *link) challenge() {
	l.chapDeadline = l.now.Add(restartTime)
	value := append([]byte{challengeSize}, l.login.authChallenge[:]...)
	l.send(protoCHAP, controlPacket(chapChallenge, l.chapID, append(value, l.cfg.name...)))
}

func (l *link) receiveCHAP(code, id byte, data []byte) {
	switch {
	case code == chapChallenge && !l.cfg.server:
		l.respond(id, data)
	case code == chapResponse && l.cfg.server:
		l.examine(id, data)
	case code == chapSuccess && !l.cfg.server && id == l.chapID:
		if !l.login.proves(l.nt, string(data)) {
			l.err = fmt.Errorf("%w: the server does not know the password", errLogin)
			return
		}
		l.authenticated, l.chapDeadline = true, time.Time{}
		l.ipcp.start(l.now)
	case code == chapFailure && !l.cfg.server && id == l.chapID:
		l.err = fmt.Errorf("%w: %s", errLogin, data)
	}
}

// respond answers a challenge (RFC 2759 4).
func (l *link) respond(id byte, data []byte) {
	if len(data) < 1+challengeSize || data[0] != challengeSize {
		return
	}
	if id == l.chapID && bytes.Equal(data[1:1+challengeSize], l.login.authChallenge[:]) { // the same again
		l.repeatCHAP()
		return
	}
	l.chapID = id
	l.login.user = l.cfg.name
	l.login.password, _ = l.cfg.password(l.cfg.name)
	copy(l.login.authChallenge[:], data[1:])
	rand.Read(l.login.peerChallenge[:])
	l.nt = l.login.ntResponse()
	value := append([]byte{chapValueSize}, l.login.peerChallenge[:]...)
	value = append(append(append(value, make([]byte, 8)...), l.nt[:]...), 0)
	l.chapLast = controlPacket(chapResponse, id, append(value, l.cfg.name...))
	l.repeatCHAP()
}

// repeatCHAP says again what the other end has not answered: a success may be
// lost, and then the response has to come again (RFC 1994 4.2).
func (l *link) repeatCHAP() {
	if l.cfg.server {
		l.challenge()
		return
	}
	l.chapDeadline = l.now.Add(restartTime)
	l.send(protoCHAP, l.chapLast)
}

// examine judges a response (RFC 2759 4 to 6).
func (l *link) examine(id byte, data []byte) {
	if id != l.chapID || len(data) < 1+chapValueSize || data[0] != chapValueSize {
		return
	}
	if l.chapDeadline.IsZero() { // answered already: the same again
		l.send(protoCHAP, l.chapLast)
		return
	}
	l.chapDeadline = time.Time{}
	value := data[1:]
	l.login.user = string(data[1+chapValueSize:])
	copy(l.login.peerChallenge[:], value)
	copy(l.nt[:], value[challengeSize+8:])
	password, known := l.cfg.password(l.login.user)
	l.login.password = password
	want := l.login.ntResponse()
	if !known || !hmac.Equal(want[:], l.nt[:]) {
		l.chapLast = controlPacket(chapFailure, id, fmt.Appendf(nil, "E=691 R=0 C=%032X V=3 M=Access denied", l.login.authChallenge))
		l.send(protoCHAP, l.chapLast)
		l.err = errLogin
		return
	}
	l.authenticated = true
	l.chapLast = controlPacket(chapSuccess, id, []byte(l.login.authenticator(l.nt)+" M=Welcome"))
	l.send(protoCHAP, l.chapLast)
	l.ipcp.start(l.now)
}
