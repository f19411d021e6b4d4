package bgp

import (
	"encoding/binary"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// rawMessage makes a BGP message, whatever its type.
func rawMessage(kind byte, body ...byte) []byte {
	m := slices.Repeat([]byte{0xff}, 16)
	m = binary.BigEndian.AppendUint16(m, uint16(19+len(body)))
	return append(append(m, kind), body...)
}

func rawOpen(hold byte, params ...byte) []byte {
	return rawMessage(1, append([]byte{4, 0xfd, 0xe7, 0, hold, 192, 0, 2, 1, byte(len(params))}, params...)...)
}

var rawCaps = []byte{2, 12, 1, 4, 0, 1, 0, 1, 65, 4, 0, 0, 0xfd, 0xe7}

func rawUpdate(attrs ...byte) []byte {
	return rawMessage(2, append(append([]byte{0, 0, 0, byte(len(attrs))}, attrs...), 24, 198, 51, 100)...)
}

// hostile is one attack: the OPEN of the router, and what it sends once the session
// stands. ends: the node must end that session.
type hostile struct {
	name string
	open []byte
	then []byte
	ends bool
}

func hostiles() []hostile {
	good := rawOpen(90, rawCaps...)
	base := []byte{0x40, 1, 1, 0, 0x40, 3, 4, 127, 0, 0, 2}
	path := []byte{0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe7}
	broken := rawMessage(4)
	broken[5] = 0
	short := rawMessage(4)
	short[17] = 3
	return []hostile{
		{"unknown type", good, rawMessage(6), true},
		{"AS4_PATH before AS_PATH", good, rawUpdate(slices.Concat(base, []byte{0xc0, 17, 6, 2, 1, 0, 0, 0xfd, 0xe7}, path)...), false},
		{"PREFIX_SID with an unknown sub-TLV", good, rawUpdate(slices.Concat(base, path, []byte{0xc0, 40, 8, 5, 0, 5, 0, 9, 0, 1, 0})...), false},
		{"attributes beyond the message", good, rawMessage(2, 0, 0, 0xff, 0xff), false},
		{"marker", good, broken, true},
		{"length 3", good, short, true},
		{"second OPEN", good, good, true},
		{"capability underflow", rawOpen(90, 2, 1, 65), nil, true},
		{"parameter underflow", rawOpen(90, 2, 9, 1), nil, true},
		{"hold time 0", rawOpen(0, rawCaps...), nil, true},
		{"hold time 2", rawOpen(2, rawCaps...), nil, true},
		{"identifier 0", rawMessage(1, 4, 0xfd, 0xe7, 0, 90, 0, 0, 0, 0, 0), nil, true},
		{"another AS", rawMessage(1, 4, 0xfd, 0xe6, 0, 90, 192, 0, 2, 1, 0), nil, true},
	}
}

func rawRead(c net.Conn) (kind byte, err error) {
	var h [19]byte
	if _, err := io.ReadFull(c, h[:]); err != nil {
		return 0, err
	}
	_, err = io.CopyN(io.Discard, c, int64(binary.BigEndian.Uint16(h[16:]))-19)
	return h[18], err
}

// play attacks on one connection, and reports whether the node ended it.
func (h *hostile) play(c net.Conn) bool {
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(sessionBound))
	_, _ = c.Write(h.open)
	if h.then != nil {
		_, _ = c.Write(append(rawMessage(4), h.then...))
	}
	for heard := 0; ; heard++ {
		kind, err := rawRead(c)
		if err != nil || kind == 3 {
			return true
		}
		if !h.ends && heard > 6 { // past OPEN, UPDATE and the first keepalives: it stands
			return false
		}
		_, _ = c.Write(rawMessage(4))
	}
}

// A router cannot end the process, whatever it sends, and the next session comes
// soon. The library's parsers panic on several of these.
func TestHostileRouter(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.8.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	const local = "127.0.8.11"
	s, _ := run(t, nodeConfig(local, nodeASN, Neighbour{
		Address: netip.MustParseAddr("127.0.8.1"), ASN: routerASN, Port: l.Addr().(*net.TCPAddr).Port,
	}))
	set(t, s, Advertisement{vip1, Announce})
	accept := func() net.Conn {
		_ = l.(*net.TCPListener).SetDeadline(time.Now().Add(sessionBound))
		c, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	for _, h := range hostiles() {
		c := accept()
		if got := h.play(c); got != h.ends {
			t.Errorf("%s: ended %v, want %v", h.name, got, h.ends)
		}
	}
	c := accept()
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(sessionBound))
	_, _ = c.Write(append(rawOpen(90, rawCaps...), rawMessage(4)...))
	for kind := byte(0); kind != 2; {
		if kind, err = rawRead(c); err != nil {
			t.Fatalf("no route after the attacks: %v", err)
		}
	}
	n := s.Neighbours()[0]
	if n.Dropped < 2 || n.Refused < 8 || n.LastRefusal == "" || n.RouterHold != 90*time.Second || n.Hold != DefaultHoldTime {
		t.Errorf("status %+v", n)
	}
}

// Hold time 0 is refused by name.
func TestRouterWithoutHoldTime(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.9.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, _ := run(t, nodeConfig("127.0.9.11", nodeASN, Neighbour{
		Address: netip.MustParseAddr("127.0.9.1"), ASN: routerASN, Port: l.Addr().(*net.TCPAddr).Port,
	}))
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(rawOpen(0, rawCaps...))
			_, _ = io.Copy(io.Discard, c)
			c.Close()
		}
	}()
	until(t, sessionBound, "the reason in the status", func() bool {
		return strings.Contains(s.Neighbours()[0].Error, "hold time of 0s")
	})
	if n := s.Neighbours()[0]; n.Established || n.EverUp {
		t.Errorf("status %+v", n)
	}
}

// residentKB is the process's resident memory.
func residentKB(t *testing.T) int {
	t.Helper()
	raw, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Fatal(err)
	}
	pages := 0
	for _, c := range strings.Fields(string(raw))[1] {
		pages = pages*10 + int(c-'0')
	}
	return pages * os.Getpagesize() / 1024
}

// A router that sends a full table costs no memory.
func TestFullTable(t *testing.T) {
	l, err := net.Listen("tcp4", "127.0.10.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s, _ := run(t, nodeConfig("127.0.10.11", nodeASN, Neighbour{
		Address: netip.MustParseAddr("127.0.10.1"), ASN: routerASN, Port: l.Addr().(*net.TCPAddr).Port,
	}))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, _ = c.Write(append(rawOpen(90, rawCaps...), rawMessage(4)...))
	go func() { _, _ = io.Copy(io.Discard, c) }()
	until(t, sessionBound, "session", func() bool { return s.Neighbours()[0].Established })
	before := residentKB(t)
	const updates = 4000
	attrs := []byte{0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe7, 0x40, 3, 4, 127, 0, 0, 2}
	m := rawMessage(2, append([]byte{0, 0, 0, byte(len(attrs))}, attrs...)...)
	routes := len(m)
	m = append(m, make([]byte, 4*250)...)
	binary.BigEndian.PutUint16(m[16:], uint16(len(m)))
	for i := range updates {
		for j := range 250 {
			p := i*250 + j
			copy(m[routes+4*j:], []byte{24, byte(1 + p>>16), byte(p >> 8), byte(p)})
		}
		if _, err := c.Write(m); err != nil {
			t.Fatalf("update %d: %v", i, err)
		}
	}
	until(t, sessionBound, "all updates to be counted", func() bool { return s.Neighbours()[0].Dropped == updates })
	grown := residentKB(t) - before
	t.Logf("a million routes: resident memory grew by %d KiB", grown)
	if n := s.Neighbours()[0]; !n.Established || grown > 10<<10 {
		t.Errorf("grown by %d KiB, want at most 10 MiB; status %+v", grown, n)
	}
}
