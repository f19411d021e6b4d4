package screen

import (
	"bytes"
	"errors"
	"net/netip"
	"testing"
	"time"
)

func openBody(version byte, as uint16, hold uint16, id [4]byte, params ...byte) []byte {
	b := []byte{version, byte(as >> 8), byte(as), byte(hold >> 8), byte(hold), id[0], id[1], id[2], id[3], byte(len(params))}
	return append(b, params...)
}

var (
	routerID = [4]byte{192, 0, 2, 1}
	expect   = Expect{LocalAS: 65011, RemoteAS: 64999, LocalID: netip.MustParseAddr("192.0.2.11")}
)

func TestOpenFaults(t *testing.T) {
	as4 := func(as uint16) []byte { return []byte{2, 6, 65, 4, 0, 0, byte(as >> 8), byte(as)} }
	for name, c := range map[string]struct {
		body          []byte
		code, subcode uint8
	}{
		"good":                          {openBody(4, 64999, 90, routerID), 0, 0},
		"good with capabilities":        {openBody(4, 64999, 90, routerID, 2, 14, 1, 4, 0, 1, 0, 1, 2, 0, 65, 4, 0, 0, 0xfd, 0xe7), 0, 0},
		"AS_TRANS":                      {openBody(4, asTrans, 90, routerID, as4(64999)...), 0, 0},
		"unknown capability":            {openBody(4, 64999, 90, routerID, 2, 3, 99, 1, 7), 0, 0},
		"version":                       {openBody(3, 64999, 90, routerID), 2, 1},
		"AS":                            {openBody(4, 64998, 90, routerID), 2, 2},
		"AS of the capability":          {openBody(4, 64999, 90, routerID, as4(64998)...), 2, 2},
		"identifier 0":                  {openBody(4, 64999, 90, [4]byte{}), 2, 3},
		"unknown parameter":             {openBody(4, 64999, 90, routerID, 7, 0), 2, 4},
		"hold 0":                        {openBody(4, 64999, 0, routerID), 2, 6},
		"hold 1":                        {openBody(4, 64999, 1, routerID), 2, 6},
		"hold 2":                        {openBody(4, 64999, 2, routerID), 2, 6},
		"no family of ours":             {openBody(4, 64999, 90, routerID, 2, 6, 1, 4, 0, 25, 0, 70), 2, 7},
		"parameter underflow":           {openBody(4, 64999, 90, routerID, 2), 2, 0},
		"parameter beyond the message":  {openBody(4, 64999, 90, routerID, 2, 9, 1), 2, 0},
		"capability underflow":          {openBody(4, 64999, 90, routerID, 2, 1, 65), 2, 0},
		"capability beyond":             {openBody(4, 64999, 90, routerID, 2, 3, 65, 4, 0), 2, 0},
		"capability with a wrong size":  {openBody(4, 64999, 90, routerID, 2, 3, 65, 1, 0), 2, 0},
		"length says less than is sent": {append(openBody(4, 64999, 90, routerID), 1, 2, 3), 2, 0},
	} {
		o, err := ParseOpen(message(TypeOpen, c.body...))
		if err == nil {
			err = o.Check(&expect)
		}
		f := new(Fault)
		if errors.As(err, &f); f.Code != c.code || f.Subcode != c.subcode {
			t.Errorf("%s: %v (%d/%d), want %d/%d", name, err, f.Code, f.Subcode, c.code, c.subcode)
		}
	}
}

func TestExtendedParameters(t *testing.T) {
	b := append([]byte{4, 0xfd, 0xe7, 0, 90, 192, 0, 2, 1, 255, 255, 0, 5}, 2, 0, 2, 2, 0)
	o, err := ParseOpen(message(TypeOpen, b...))
	if err != nil || !o.Refresh {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestHeaderFaults(t *testing.T) {
	bad := func(change func([]byte)) []byte {
		m := keepalive()
		change(m)
		return m
	}
	for name, c := range map[string]struct {
		message []byte
		subcode uint8
	}{
		"marker":            {bad(func(m []byte) { m[3] = 0 }), 1},
		"shorter than 19":   {bad(func(m []byte) { m[17] = 18 }), 2},
		"longer than 4096":  {bad(func(m []byte) { m[16], m[17] = 16, 1 }), 2},
		"long keepalive":    {bad(func(m []byte) { m[17] = 20 }), 2},
		"short OPEN":        {bad(func(m []byte) { m[18] = 1 }), 2},
		"short UPDATE":      {bad(func(m []byte) { m[18] = 2 }), 2},
		"type 0":            {bad(func(m []byte) { m[18] = 0 }), 3},
		"type 6":            {bad(func(m []byte) { m[18] = 6 }), 3},
		"type 255":          {bad(func(m []byte) { m[18] = 255 }), 3},
		"short refresh":     {bad(func(m []byte) { m[18] = 5 }), 2},
		"bare notification": {bad(func(m []byte) { m[18] = 3 }), 2},
	} {
		_, _, err := Read(bytes.NewReader(c.message), make([]byte, maxMessage))
		f := new(Fault)
		if !errors.As(err, &f) || f.Code != codeHeader || f.Subcode != c.subcode {
			t.Errorf("%s: %v, want 1/%d", name, err, c.subcode)
		}
	}
}

func TestMachine(t *testing.T) {
	now := time.Unix(1, 0)
	open := message(TypeOpen, openBody(4, 64999, 90, routerID)...)
	update := message(TypeUpdate, make([]byte, leastRoute-headerLen)...)
	m := NewMachine(&expect)
	step := func(msg []byte, want Event, code uint8) {
		t.Helper()
		got, err := m.Receive(Type(msg[18]), msg, now)
		f := new(Fault)
		if errors.As(err, &f); got != want || f.Code != code {
			t.Fatalf("state %d, type %d: %v %v, want %v and code %d", m.State, msg[18], got, err, want, code)
		}
	}
	step(update, EventNone, codeFSM)
	step(keepalive(), EventNone, codeFSM)
	step(open, EventOpen, 0)
	step(open, EventNone, codeFSM)
	step(update, EventNone, codeFSM)
	step(keepalive(), EventUp, 0)
	step(update, EventRoutes, 0)
	step(message(TypeUpdate, 0, 0, 0, 0), EventKeepalive, 0) // End-of-RIB
	step(routeRefresh(IPv6), EventKeepalive, 0)              // not negotiated
	step(routeRefresh(IPv4), EventRefresh, 0)
	step(routeRefresh(IPv4), EventKeepalive, 0) // too soon
	now = now.Add(refreshPace)
	step(keepalive(), EventRefresh, 0)
	step(keepalive(), EventKeepalive, 0)
	step(message(TypeNotification, 6, 2), EventClosed, 0)
}

func TestCollision(t *testing.T) {
	for _, c := range []struct {
		remote string
		as     uint32
		ours   bool
	}{
		{"192.0.2.1", 64999, true}, {"192.0.2.200", 64999, false},
		{"192.0.2.11", 64999, true}, {"192.0.2.11", 65100, false},
	} {
		if got := keepsOurs(&expect, &Open{ID: netip.MustParseAddr(c.remote), AS: c.as}); got != c.ours {
			t.Errorf("against %s AS %d: %v", c.remote, c.as, got)
		}
	}
}

func TestSetNextHops(t *testing.T) {
	hop4, hop6 := netip.MustParseAddr("198.51.100.11"), netip.MustParseAddr("2001:db8::11")
	attrs := []byte{0x40, 1, 1, 0, 0x40, 3, 4, 127, 0, 0, 1}
	reach := append([]byte{0x90, 14, 0, 38, 0, 2, 1, 16}, make([]byte, 16)...)
	reach = append(append(reach, 0, 128), make([]byte, 16)...)
	attrs = append(attrs, reach...)
	m := message(TypeUpdate, append(append([]byte{0, 0, 0, byte(len(attrs))}, attrs...), 32, 203, 0, 113, 10)...)
	if err := SetNextHops(m, hop4, hop6); err != nil {
		t.Fatal(err)
	}
	if h := hop4.As4(); !bytes.Equal(m[19+4+7:][:4], h[:]) {
		t.Errorf("NEXT_HOP %v", m[19+4+7:][:4])
	}
	if h := hop6.As16(); !bytes.Equal(m[19+4+11+8:][:16], h[:]) {
		t.Errorf("MP_REACH_NLRI %v", m[19+4+11+8:][:16])
	}
	for name, err := range map[string]error{
		"no IPv4 next hop": SetNextHops(bytes.Clone(m), netip.Addr{}, hop6),
		"no IPv6 next hop": SetNextHops(bytes.Clone(m), hop4, netip.Addr{}),
		"cut off":          SetNextHops(message(TypeUpdate, 0, 0, 0, 9, 1, 2), hop4, hop6),
		"withdrawn beyond": SetNextHops(message(TypeUpdate, 1, 0, 0, 0), hop4, hop6),
	} {
		if err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := SetNextHops(message(TypeUpdate, 0, 0, 0, 0), netip.Addr{}, netip.Addr{}); err != nil {
		t.Errorf("end of RIB: %v", err)
	}
}

// FuzzRouter feeds whatever a router may send to framing and state machine. What
// would reach the library must be of the screen's own making, and well-formed.
func FuzzRouter(f *testing.F) {
	open := message(TypeOpen, openBody(4, 64999, 90, routerID, 2, 14, 1, 4, 0, 1, 0, 1, 2, 0, 65, 4, 0, 0, 0xfd, 0xe7)...)
	up := append(bytes.Clone(open), keepalive()...)
	f.Add(append(bytes.Clone(up), message(6)...))
	f.Add(append(bytes.Clone(up), message(TypeUpdate, 0, 0, 0, 0)...))
	f.Add(append(bytes.Clone(up), routeRefresh(IPv4)...))
	f.Add(message(TypeOpen, openBody(4, 64999, 90, routerID, 2, 1, 65)...))
	f.Add(message(TypeOpen, 4, 0xfd, 0xe7, 0, 90, 192, 0, 2, 1, 255, 255, 0, 5, 2, 0, 2, 2, 0))
	f.Add(message(TypeNotification, 6, 2))
	f.Fuzz(func(t *testing.T, stream []byte) {
		m, r := NewMachine(&expect), bytes.NewReader(stream)
		var buf [maxMessage]byte
		now := time.Unix(1, 0)
		for {
			msg, kind, err := Read(r, buf[:])
			if err == nil {
				now = now.Add(time.Second)
				var e Event
				if e, err = m.Receive(kind, msg, now); e == EventOpen {
					again, fail := ParseOpen(m.Open.write())
					if fail != nil || again.Check(&expect) != nil || again.Hold < minHold {
						t.Fatalf("%+v is written as %+v: %v", m.Open, again, fail)
					}
				}
				_ = SetNextHops(append(bytes.Clone(msg), 0, 0, 0, 0), expect.LocalID, netip.IPv6Unspecified())
			}
			if fault := new(Fault); errors.As(err, &fault) {
				if _, _, err := CheckHeader(fault.notification()); err != nil {
					t.Fatalf("the answer to %v: %v", fault, err)
				}
			}
			if err != nil {
				return
			}
		}
	})
}
