package sstppeer

import (
	"bytes"
	"errors"
	"slices"
	"testing"
)

// The examples of [MS-SSTP] 4.7, shortened to what is in them.
func TestMessagesOnTheWire(t *testing.T) {
	var nonce [nonceSize]byte
	for i := range nonce {
		nonce[i] = byte(i)
	}
	for _, c := range []struct {
		name string
		m    message
		want []byte
	}{
		{"call connect request", message{callConnectRequest, []attribute{{attrProtocol, []byte{0, 1}}}}, unhex(t, "10 01 00 0E 00 01 00 01 00 01 00 06 00 01")},
		{"call connect ack", message{callConnectAck, []attribute{bindingRequest(hashSHA256, nonce)}}, slices.Concat(unhex(t, "10 01 00 30 00 02 00 01 00 04 00 28 00 00 00 02"), nonce[:])},
		{"call connected", message{callConnected, []attribute{binding{protocol: hashSHA256, nonce: nonce}.encode()}}, slices.Concat(unhex(t, "10 01 00 70 00 04 00 01 00 03 00 68 00 00 00 02"), nonce[:], make([]byte, 64))},
		{"call abort", message{callAbort, []attribute{statusInfo(attrBinding, statusNotSupported)}}, unhex(t, "10 01 00 14 00 05 00 01 00 02 00 0C 00 00 00 03 00 00 00 04")},
		{"echo request", message{kind: echoRequest}, unhex(t, "10 01 00 08 00 08 00 00")},
	} {
		got := c.m.encode()
		if !bytes.Equal(got, c.want) {
			t.Errorf("%s is % x, want % x", c.name, got, c.want)
		}
		var buf [maxPacket]byte
		p, err := readPacket(bytes.NewReader(got), &buf)
		if err != nil || !p.control {
			t.Fatalf("%s: %v", c.name, err)
		}
		m, err := parseMessage(p)
		if err != nil || !bytes.Equal(m.encode(), got) {
			t.Errorf("%s comes back as %+v, %v", c.name, m, err)
		}
	}
}

// A compound MAC that was computed apart from this code: HMAC-SHA256 and
// HMAC-SHA1 of a key of 32 bytes 0..31 over a Call Connected of zeros.
func TestCompoundMAC(t *testing.T) {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i)
	}
	for protocol, want := range map[byte]string{
		hashSHA256: "ab271d71941ca38dce7886cf6ffeae2d41777248be851576ba4ed83bc1054ab1",
		hashSHA1:   "8b4b46a4e740913f868d264648824863393c1ab5",
	} {
		raw := message{callConnected, []attribute{binding{protocol: protocol}.encode()}}.encode()
		mac := compoundMAC(protocol, key, raw)
		if !bytes.Equal(mac[:], append(unhex(t, want), make([]byte, 32-len(want)/2)...)) {
			t.Errorf("protocol %d: % x", protocol, mac)
		}
		copy(raw[macStart:], mac[:])
		if again := compoundMAC(protocol, key, raw); again != mac {
			t.Errorf("protocol %d: the MAC itself is signed", protocol)
		}
	}
}

func TestFramingErrors(t *testing.T) {
	var buf [maxPacket]byte
	for _, b := range [][]byte{{0x11, 0, 0, 8}, {version, 0, 0, 3}, []byte("HTTP")} {
		if _, err := readPacket(bytes.NewReader(b), &buf); !errors.Is(err, errFraming) {
			t.Errorf("% x: %v", b, err)
		}
	}
	if p, err := readPacket(bytes.NewReader([]byte{version, 0xfe, 0xf0, 5, 9}), &buf); err != nil || p.control || len(p.body()) != 1 {
		t.Errorf("reserved bits are looked at: %v", err)
	}
	for _, body := range [][]byte{{}, {0, 1, 0}, {0, 1, 0, 1, 0, 1, 0, 3}, {0, 1, 0, 1, 0, 1, 0, 9, 0, 1}, {0, 1, 0, 0, 7}} {
		raw := append([]byte{version, flagC, 0, byte(4 + len(body))}, body...)
		if m, err := parseMessage(packet{raw: raw, control: true}); err == nil {
			t.Errorf("% x is %+v", raw, m)
		}
	}
}
