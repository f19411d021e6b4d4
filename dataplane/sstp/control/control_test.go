package control

import (
	"bytes"
	"encoding/hex"
	"slices"
	"strings"
	"testing"
)

func bytesOf(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// message writes a control message with one attribute, if any.
func message(typ Type, id byte, value []byte) []byte {
	b := []byte{version, controlBit, 0, 0, 0, byte(typ), 0, 0}
	if id != 0 {
		n := len(value) + headerBytes
		b[7] = 1
		b = append(append(b, 0, id, byte(n>>8), byte(n)), value...)
	}
	b[2], b[3] = byte(len(b)>>8), byte(len(b))
	return b
}

func data(n int) []byte {
	b := make([]byte, headerBytes+n)
	b[0], b[2], b[3] = version, byte(len(b)>>8), byte(len(b))
	return b
}

func connected(hash [32]byte) []byte {
	value := append([]byte{0, 0, 0, HashSHA256}, make([]byte, 32)...)
	value = append(append(value, hash[:]...), make([]byte, 32)...)
	return message(Connected, attrCryptoBinding, value)
}

func status(typ Type, code byte) []byte {
	return message(typ, attrStatusInfo, []byte{0, 0, 0, 3, 0, 0, 0, code})
}

// The bytes of [MS-SSTP] 4.7.
func TestMessagesOfTheSpecification(t *testing.T) {
	request := bytesOf(t, "10 01 00 0E 00 01 00 01 00 01 00 06 00 01")
	if m, err := Parse(request); err != nil || m != (Message{Type: ConnectRequest}) {
		t.Errorf("request: %+v, %v", m, err)
	}
	ack := bytesOf(t, "10 01 00 30 00 02 00 01 00 04 00 28 00 00 00 03"+strings.Repeat("AB", 32))
	if m, err := Parse(ack); err != nil || m != (Message{Type: ConnectAck, HashProtocol: HashSHA1 | HashSHA256}) {
		t.Errorf("ack: %+v, %v", m, err)
	}
	up := bytesOf(t, "10 01 00 70 00 04 00 01 00 03 00 68 00 00 00 02"+strings.Repeat("AB", 32)+strings.Repeat("CD", 32)+strings.Repeat("EF", 32))
	want := Message{Type: Connected, HashProtocol: HashSHA256, HasHash: true}
	copy(want.Hash[:], bytes.Repeat([]byte{0xcd}, 32))
	if m, err := Parse(up); err != nil || m != want {
		t.Errorf("connected: %+v, %v", m, err)
	}
	abort := status(Abort, 5)
	if m, err := Parse(abort); err != nil || m != (Message{Type: Abort, HasStatus: true, StatusAttribute: 3, Status: 5}) {
		t.Errorf("abort: %+v, %v", m, err)
	}
	if s := Status(5).String() + ", " + Status(99).String(); s != "unaccepted frame received, status 0x63" {
		t.Error(s)
	}
}

func TestMalformedMessages(t *testing.T) {
	for name, b := range map[string][]byte{
		"empty":                   nil,
		"data":                    data(8),
		"version 2":               bytesOf(t, "20 01 00 08 00 08 00 00"),
		"shorter than it says":    bytesOf(t, "10 01 00 09 00 08 00 00"),
		"longer than it says":     bytesOf(t, "10 01 00 08 00 08 00 00 00"),
		"too short for a message": bytesOf(t, "10 01 00 07 00 08 00"),
		"attribute missing":       bytesOf(t, "10 01 00 08 00 08 00 01"),
		"attribute of 3 bytes":    bytesOf(t, "10 01 00 0c 00 08 00 01 00 01 00 03"),
		"attribute too long":      bytesOf(t, "10 01 00 0c 00 08 00 01 00 01 00 05"),
	} {
		if m, err := Parse(b); err == nil {
			t.Errorf("%s: %+v", name, m)
		}
	}
	// Reserved bits are ignored on receipt ([MS-SSTP] 2.2.1).
	if m, err := Parse(bytesOf(t, "10 ff f0 08 00 08 00 00")); err != nil || m.Type != EchoRequest {
		t.Errorf("reserved bits: %+v, %v", m, err)
	}
}

func TestCall(t *testing.T) {
	var hash [32]byte
	hash[0], hash[31] = 1, 2
	var f Follower
	step := func(from Side, b []byte, want Events, state State) {
		t.Helper()
		if got := f.Feed(from, b); got != want {
			t.Errorf("events %b, want %b", got, want)
		}
		if got := f.Call().State; got != state {
			t.Errorf("state %v, want %v", got, state)
		}
	}
	step(Client, message(ConnectRequest, 1, []byte{0, 1}), 0, Requested)
	step(Server, status(ConnectNak, 4), Refused, Requested)
	step(Client, message(ConnectRequest, 1, []byte{0, 1}), 0, Requested)
	step(Server, message(ConnectAck, attrCryptoBindingRequest, append([]byte{0, 0, 0, HashSHA256}, make([]byte, 32)...)), Acknowledged, Negotiating)
	step(Server, data(100), 0, Negotiating)
	step(Client, append(data(9), connected(hash)...), CallUp, Up)
	step(Client, data(9), 0, Up)
	step(Server, append(data(1400), data(7)...), ServerData, Up)
	step(Server, data(1400), 0, Up)
	step(Client, message(EchoRequest, 0, nil), 0, Up)
	step(Server, message(EchoResponse, 0, nil), Echoed, Up)
	step(Server, message(EchoRequest, 0, nil), 0, Up)
	step(Server, message(EchoRequest, 0, nil), 0, Up)
	step(Client, message(EchoResponse, 0, nil), Echoed, Up)
	step(Client, message(EchoResponse, 0, nil), 0, Up) // nobody asked
	step(Client, message(ConnectAck, 0, nil), 0, Up)   // not the client's to say
	step(Server, status(Abort, 7), CallAborted, Aborted)
	step(Client, message(Abort, 0, nil), 0, Aborted)
	want := Call{State: Aborted, AbortedUp: true, By: Server, Status: 7, HasStatus: true, Offered: HashSHA256, HashProtocol: HashSHA256,
		Hash: hash, HasHash: true, Echoes: 2, EchoLost: 1, Unexpected: 2}
	if got := f.Call(); got != want {
		t.Errorf("call %+v\nwant %+v", got, want)
	}
}

func TestDisconnect(t *testing.T) {
	var f Follower
	f.Feed(Client, message(ConnectRequest, 0, nil))
	if got := f.Feed(Client, message(Disconnect, 0, nil)); got != CallEnded {
		t.Errorf("events %b", got)
	}
	f.Feed(Server, message(DisconnectAck, 0, nil))
	if c := f.Call(); c != (Call{State: Ended, By: Client}) {
		t.Errorf("%+v", c)
	}
}

func TestLostOnce(t *testing.T) {
	var f Follower
	if got := f.Feed(Server, []byte("HTTP/1.1")); got != Lost {
		t.Errorf("events %b", got)
	}
	if got := f.Feed(Server, []byte("HTTP/1.1")) | f.Feed(Client, message(ConnectRequest, 0, nil)); got != 0 {
		t.Errorf("events after the loss: %b", got)
	}
	if c := f.Call(); c != (Call{Off: true}) {
		t.Errorf("%+v", c)
	}
}

// Between messages a Scanner keeps nothing, and data packets never make it.
func TestScannerHoldsNothing(t *testing.T) {
	var s Scanner
	stream := append(append(data(1400), data(0)...), message(EchoRequest, 0, nil)...)
	allocs := testing.AllocsPerRun(100, func() {
		for at := 0; at < len(stream)-8; at += 3 {
			if _, _, _, err := s.Scan(stream[at:min(at+3, len(stream)-8)]); err != nil {
				t.Fatal(err)
			}
		}
		if m, _, _, err := s.Scan(stream[len(stream)-8:]); m == nil || err != nil {
			t.Fatal("no message", err)
		}
	})
	if allocs != 0 || s.carry != nil {
		t.Errorf("%v allocations, carry %v", allocs, s.carry)
	}
}

// reference cuts a stream that lies in one piece: the simple way.
func reference(b []byte) (messages [][]byte, count int, bad bool) {
	for len(b) >= headerBytes {
		size, control, err := packet(b)
		if err != nil {
			return messages, count, true
		}
		if control && len(b) < min(size, MaxBytes) {
			return messages, count, false
		}
		if control {
			messages = append(messages, b[:min(size, MaxBytes)])
		} else {
			count++
		}
		b = b[min(size, len(b)):]
	}
	return messages, count, false
}

// However a stream is cut, the same messages come out, and the follower ends in
// the same state.
// fuzz-all: 400000x
func FuzzControl(f *testing.F) {
	call := slices.Concat(message(ConnectRequest, 1, []byte{0, 1}), data(30), connected([32]byte{9}), data(0), status(Abort, 5))
	for _, chunk := range []byte{1, 3, 255} {
		f.Add(call, chunk)
	}
	f.Add(message(ConnectNak, attrStatusInfo, make([]byte, 600)), byte(100))
	f.Add([]byte("HTTP/1.1 200 \r\n"), byte(4))
	f.Fuzz(func(t *testing.T, b []byte, chunk byte) {
		want, count, bad := reference(b)
		var s Scanner
		var messages [][]byte
		total, failed := 0, false
		var whole, pieces Follower
		whole.Feed(Server, b)
		for piece := range slices.Chunk(b, int(chunk)+1) {
			pieces.Feed(Server, piece)
			for len(piece) > 0 && !failed {
				m, rest, n, err := s.Scan(piece)
				if m != nil {
					messages = append(messages, slices.Clone(m))
				}
				total, failed, piece = total+n, err != nil, rest
			}
		}
		if failed != bad || total != count || !slices.EqualFunc(messages, want, bytes.Equal) {
			t.Fatalf("in pieces of %d: %x, %d data packets, failed %v; want %x, %d, %v", int(chunk)+1, messages, total, failed, want, count, bad)
		}
		if cap(s.carry) > MaxBytes {
			t.Fatalf("%d bytes held", cap(s.carry))
		}
		if a, b := whole.Call(), pieces.Call(); a != b {
			t.Fatalf("in one piece %+v, in pieces %+v", a, b)
		}
		for _, m := range messages {
			parsed, err := Parse(m)
			if err == nil && parsed.HasHash && parsed.Type != Connected {
				t.Fatalf("a hash in %+v", parsed)
			}
		}
	})
}
