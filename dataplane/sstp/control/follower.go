package control

import (
	"sync"
	"sync/atomic"
)

// Side is who sent something.
type Side uint8

const (
	Client Side = 0
	Server Side = 1
)

func (s Side) String() string {
	if s == Server {
		return "server"
	}
	return "client"
}

// State of a call as an observer sees it, after [MS-SSTP] 3.1.1.
type State uint8

const (
	Idle        State = iota // no Call Connect Request yet
	Requested                // the server has not answered yet, or with a Nak
	Negotiating              // acknowledged: PPP negotiates and authenticates
	Up                       // Call Connected passed
	Aborted                  // a Call Abort passed
	Ended                    // a Call Disconnect passed
)

func (s State) String() string {
	switch s {
	case Requested:
		return "requested"
	case Negotiating:
		return "negotiating"
	case Up:
		return "connected"
	case Aborted:
		return "aborted"
	case Ended:
		return "disconnected"
	}
	return "idle"
}

// Events are what a piece of a stream made happen.
type Events uint8

const (
	Acknowledged Events = 1 << iota // the server accepted the call
	Refused                         // Call Connect Nak
	CallUp                          // Call Connected passed
	ServerData                      // the first data of the server on a call that is up
	CallAborted
	CallEnded
	Echoed // an echo was answered
	Lost   // the stream is no SSTP: the follower is off
)

// Call is what is known of the connection's call. A value.
type Call struct {
	State State
	// AbortedUp: the abort came when the call was up.
	AbortedUp bool
	// By sent the first abort or disconnect; Status is what it said.
	By        Side
	Status    Status
	HasStatus bool
	// Offered are the server's hash protocols; HashProtocol and Hash are what
	// the client answered, if HasHash.
	Offered, HashProtocol uint8
	Hash                  [32]byte
	HasHash               bool
	Echoes                uint64 // answered
	EchoLost              uint64 // not answered when the next was asked
	Unexpected            uint64 // control messages that do not fit the state
	Off                   bool
}

// Follower watches both directions. The zero value is ready. Each direction is
// fed by one goroutine at a time; the two may be different ones.
type Follower struct {
	off     atomic.Bool
	awaited atomic.Bool // the call is up and the server's first data is still to come
	scan    [2]Scanner

	mu      sync.Mutex
	call    Call
	pending [2]bool // an echo request of that side is open
}

// Call is safe from any goroutine.
func (f *Follower) Call() Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.call
}

// Feed takes the next bytes that a side sent, and tells what they made happen.
func (f *Follower) Feed(from Side, p []byte) (events Events) {
	for len(p) > 0 && !f.off.Load() {
		message, rest, data, err := f.scan[from].Scan(p)
		if data > 0 && from == Server && f.awaited.Load() && f.awaited.CompareAndSwap(true, false) {
			events |= ServerData
		}
		if err != nil {
			return events | f.lose()
		}
		if message != nil {
			m, err := Parse(message)
			if err != nil {
				return events | f.lose()
			}
			events |= f.take(from, &m)
		}
		p = rest
	}
	return events
}

// lose turns the follower off; Lost is told once.
func (f *Follower) lose() Events {
	if f.off.Swap(true) {
		return 0
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.call.Off = true
	return Lost
}

// take moves the call by one message. A message that does not fit is counted:
// the peers judge each other, nobody asked us.
func (f *Follower) take(from Side, m *Message) Events {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := &f.call
	switch {
	case m.Type == ConnectRequest && from == Client && c.State <= Requested:
		c.State = Requested
	case m.Type == ConnectAck && from == Server && c.State == Requested:
		c.State, c.Offered = Negotiating, m.HashProtocol
		return Acknowledged
	case m.Type == ConnectNak && from == Server && c.State == Requested:
		f.said(from, m)
		return Refused
	case m.Type == Connected && from == Client && c.State == Negotiating:
		c.State, c.HashProtocol, c.Hash, c.HasHash = Up, m.HashProtocol, m.Hash, m.HasHash
		f.awaited.Store(true)
		return CallUp
	case m.Type == Abort && c.State < Aborted:
		c.AbortedUp = c.State == Up
		c.State = Aborted
		f.said(from, m)
		f.awaited.Store(false)
		return CallAborted
	case m.Type == Disconnect && c.State < Aborted:
		c.State = Ended
		f.said(from, m)
		f.awaited.Store(false)
		return CallEnded
	case m.Type == Abort && c.State == Aborted, m.Type == Disconnect || m.Type == DisconnectAck:
		// the answer, or the other side's own
	case m.Type == EchoRequest:
		if f.pending[from] {
			c.EchoLost++
		}
		f.pending[from] = true
	case m.Type == EchoResponse && f.pending[1-from]:
		f.pending[1-from] = false
		c.Echoes++
		return Echoed
	default:
		c.Unexpected++
	}
	return 0
}

func (f *Follower) said(by Side, m *Message) {
	f.call.By, f.call.Status, f.call.HasStatus = by, m.Status, m.HasStatus
}
