package sstppeer

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"
)

// Codes of LCP and IPCP (RFC 1661 5).
const (
	configureRequest = 1
	configureAck     = 2
	configureNak     = 3
	configureReject  = 4
	terminateRequest = 5
	terminateAck     = 6
	codeReject       = 7
	protocolReject   = 8 // LCP alone, like all that follow
	lcpEchoRequest   = 9
	lcpEchoReply     = 10
	discardRequest   = 11
)

// Restart timer and counter (RFC 1661 4.6).
const (
	restartTime = 3 * time.Second
	maxRequests = 10
)

// option is one option of a Configure packet.
type option struct {
	kind  byte
	value []byte
}

func encodeOptions(opts []option) (b []byte) {
	for _, o := range opts {
		b = append(b, o.kind, byte(2+len(o.value)))
		b = append(b, o.value...)
	}
	return b
}

func parseOptions(b []byte) (opts []option, ok bool) {
	for len(b) > 0 {
		if len(b) < 2 || int(b[1]) < 2 || int(b[1]) > len(b) {
			return nil, false
		}
		opts = append(opts, option{kind: b[0], value: slices.Clone(b[2:b[1]])})
		b = b[b[1]:]
	}
	return opts, true
}

// verdict on one option of the peer's request.
type verdict byte

const (
	take   verdict = configureAck
	change verdict = configureNak // to the value given
	refuse verdict = configureReject
)

// negState is a state of the automaton (RFC 1661 4.2), as far as a link that is
// always there needs them.
type negState uint8

const (
	negClosed negState = iota
	negReqSent
	negAckReceived
	negAckSent
	negOpened
)

// negotiation is the option negotiation automaton of one control protocol.
// It does no I/O: the link gives it packets and time.
type negotiation struct {
	protocol uint16
	send     func(protocol uint16, body []byte)
	judge    func(option) (verdict, option) // of an option that the peer wants
	opened   func()

	wishes   []option // of our own
	state    negState
	id       byte // of our last request
	tries    int
	deadline time.Time // of our last request; zero: none is under way
}

// controlPacket makes a packet of LCP, IPCP or CHAP.
func controlPacket(code, id byte, body []byte) []byte {
	b := binary.BigEndian.AppendUint16([]byte{code, id}, uint16(4+len(body)))
	return append(b, body...)
}

// splitControl reads one; what is behind its length is padding.
func splitControl(b []byte) (code, id byte, body []byte, ok bool) {
	if len(b) < 4 {
		return 0, 0, nil, false
	}
	n := int(binary.BigEndian.Uint16(b[2:]))
	if n < 4 || n > len(b) {
		return 0, 0, nil, false
	}
	return b[0], b[1], b[4:n], true
}

// start begins to negotiate; it may be called twice.
func (n *negotiation) start(now time.Time) {
	if n.state == negClosed {
		n.state = negReqSent
		n.request(now)
	}
}

func (n *negotiation) request(now time.Time) {
	n.id++
	n.deadline = now.Add(restartTime)
	n.send(n.protocol, controlPacket(configureRequest, n.id, encodeOptions(n.wishes)))
}

// tick repeats a request that nobody answered.
func (n *negotiation) tick(now time.Time) error {
	if n.deadline.IsZero() || now.Before(n.deadline) {
		return nil
	}
	if n.tries++; n.tries >= maxRequests {
		return fmt.Errorf("no agreement on protocol %#04x after %d requests", n.protocol, n.tries)
	}
	if n.state == negAckReceived {
		n.state = negReqSent
	}
	n.request(now)
	return nil
}

// receive takes a packet of codes 1 to 4; ok false: the options are no options.
func (n *negotiation) receive(now time.Time, code, id byte, body []byte) (ok bool) {
	opts, ok := parseOptions(body)
	if !ok {
		return false
	}
	switch code {
	case configureRequest:
		n.requested(now, id, opts)
	case configureAck:
		if id == n.id && !n.deadline.IsZero() {
			n.acknowledged(now)
		}
	case configureNak, configureReject:
		if id == n.id && !n.deadline.IsZero() {
			n.give(code, opts)
			n.request(now)
		}
	}
	return true
}

func (n *negotiation) requested(now time.Time, id byte, opts []option) {
	if n.state == negClosed || n.state == negOpened { // the peer begins, or begins again
		n.state = negReqSent
		n.request(now)
	}
	code, answer := n.answer(opts)
	n.send(n.protocol, controlPacket(code, id, encodeOptions(answer)))
	switch {
	case code != configureAck && n.state == negAckSent:
		n.state = negReqSent
	case code == configureAck && n.state == negReqSent:
		n.state = negAckSent
	case code == configureAck && n.state == negAckReceived:
		n.open()
	}
}

func (n *negotiation) acknowledged(now time.Time) {
	n.tries = 0
	switch n.state {
	case negReqSent:
		n.state = negAckReceived
		n.deadline = now.Add(restartTime) // the peer's request is still missing
	case negAckSent:
		n.open()
	}
}

func (n *negotiation) open() {
	n.state, n.deadline, n.tries = negOpened, time.Time{}, 0
	n.opened()
}

// answer judges a request: what is refused goes first, then what should change
// (RFC 1661 5.3, 5.4).
func (n *negotiation) answer(opts []option) (code byte, answer []option) {
	lists := map[verdict][]option{}
	for _, o := range opts {
		v, other := n.judge(o)
		if v != change {
			other = o
		}
		lists[v] = append(lists[v], other)
	}
	for _, v := range []verdict{refuse, change} {
		if len(lists[v]) > 0 {
			return byte(v), lists[v]
		}
	}
	return configureAck, opts
}

// give changes our wishes to the peer's.
func (n *negotiation) give(code byte, opts []option) {
	for _, o := range opts {
		i := slices.IndexFunc(n.wishes, func(w option) bool { return w.kind == o.kind })
		switch {
		case i < 0: // we do not want what it proposes
		case code == configureReject:
			n.wishes = slices.Delete(n.wishes, i, i+1)
		default:
			n.wishes[i] = o
		}
	}
}

// wish gives the value of one of our own options as agreed.
func (n *negotiation) wish(kind byte) ([]byte, bool) {
	for _, o := range n.wishes {
		if o.kind == kind {
			return o.value, true
		}
	}
	return nil, false
}
