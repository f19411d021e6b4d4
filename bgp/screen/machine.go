package screen

import (
	"encoding/binary"
	"slices"
	"time"
)

// State is the state of one connection after it is connected (RFC 4271, section
// 8.2.2).
type State uint8

// The states of a connection.
const (
	OpenSent State = iota
	OpenConfirm
	Established
)

var stateNames = [...]string{"opensent", "openconfirm", "established"}

// Event is what a message of the router means for this node.
type Event uint8

// The events of a connection.
const (
	EventNone      Event = iota // nothing to pass on
	EventOpen                   // Machine.Open is set; a KEEPALIVE is the answer
	EventUp                     // the first KEEPALIVE: the session stands
	EventKeepalive              // the router lives
	EventRefresh                // Machine.Refresh asks for the routes of a family again
	EventRoutes                 // an UPDATE, unread
	EventClosed                 // a NOTIFICATION: the router ends the session
)

// refreshPace bounds how often a router makes the library send all routes again.
const refreshPace = time.Second

// leastRoute is the length of the shortest UPDATE that announces a route: ORIGIN,
// AS_PATH, NEXT_HOP and a prefix (RFC 4271, section 5). A shorter one is an End-of-RIB
// (RFC 4724) or withdraws.
const leastRoute = 23 + 4 + 3 + 7 + 1

// Machine is the state machine of one connection. It is pure: time comes from
// the caller.
type Machine struct {
	expect *Expect

	State   State
	Open    Open   // valid from EventOpen on
	Refresh Family // valid at EventRefresh
	Cause   string // valid at EventClosed

	wanted    []Family // refreshes that wait for refreshPace
	refreshed time.Time
}

// NewMachine starts in OpenSent: the own OPEN has been written.
func NewMachine(e *Expect) *Machine { return &Machine{expect: e} }

// Receive takes one message as Read returns it. A *Fault ends the connection.
func (m *Machine) Receive(t Type, msg []byte, now time.Time) (Event, error) {
	switch t {
	case TypeNotification:
		m.Cause = "the router ended the session: " + notificationText(msg)
		return EventClosed, nil
	case TypeOpen:
		return m.receiveOpen(msg)
	case TypeKeepalive:
		if m.State == OpenConfirm {
			m.State = Established
			return EventUp, nil
		}
	}
	if m.State != Established {
		return EventNone, fault(codeFSM, uint8(m.State)+1, []byte{byte(t)}, "message of type %d in state %s", t, stateNames[m.State])
	}
	switch t {
	case TypeUpdate:
		if len(msg) >= leastRoute {
			return EventRoutes, nil
		}
	case TypeRouteRefresh:
		m.want(msg)
	}
	if len(m.wanted) > 0 && now.Sub(m.refreshed) >= refreshPace {
		m.Refresh, m.wanted, m.refreshed = m.wanted[0], m.wanted[1:], now
		return EventRefresh, nil
	}
	return EventKeepalive, nil
}

func (m *Machine) receiveOpen(msg []byte) (Event, error) {
	if m.State != OpenSent {
		return EventNone, fault(codeFSM, uint8(m.State)+1, []byte{byte(TypeOpen)}, "a second OPEN in state %s", stateNames[m.State])
	}
	o, err := ParseOpen(msg)
	if err == nil {
		err = o.Check(m.expect)
	}
	if err != nil {
		return EventNone, err
	}
	m.Open, m.State = o, OpenConfirm
	return EventOpen, nil
}

// want remembers a wish for the routes of a family. A family that the router did
// not negotiate, and the markers of RFC 7313, are ignored (RFC 2918, section 4).
func (m *Machine) want(msg []byte) {
	b := msg[headerLen:]
	f := Family{binary.BigEndian.Uint16(b), b[3]}
	if b[2] == 0 && slices.Contains(m.Open.Families, f) && !slices.Contains(m.wanted, f) {
		m.wanted = append(m.wanted, f)
	}
}

// keepsOurs decides a collision (RFC 4271, section 6.8; RFC 6286, section 2.3):
// of two connections, the one that the side with the higher identifier opened
// stays; among equal identifiers the higher AS decides.
func keepsOurs(e *Expect, remote *Open) bool {
	if c := e.LocalID.Compare(remote.ID); c != 0 {
		return c > 0
	}
	return e.LocalAS > remote.AS
}
