package ike

import (
	"bytes"
	"cmp"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

func TestHeaderRoundTrip(t *testing.T) {
	h := Header{InitiatorSPI: 0x0102030405060708, ResponderSPI: 0x1112131415161718, NextPayload: Encrypted,
		Version: 0x20, Exchange: Auth, Flags: FlagResponse, MessageID: 0x21222324, Length: 0x31323334}
	want := []byte{1, 2, 3, 4, 5, 6, 7, 8, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18,
		46, 0x20, 35, 0x20, 0x21, 0x22, 0x23, 0x24, 0x31, 0x32, 0x33, 0x34}
	got := h.Append(nil)
	if !bytes.Equal(got, want) {
		t.Fatalf("Append = %x, want %x", got, want)
	}
	back, err := ParseHeader(append(got, 0xaa))
	if err != nil || back != h {
		t.Fatalf("ParseHeader = %+v, %v, want %+v", back, err, h)
	}
	if _, err := ParseHeader(got[:HeaderLen-1]); err == nil {
		t.Fatal("ParseHeader took 27 bytes")
	}
}

func TestOpenings(t *testing.T) {
	for e := range 256 {
		want := e != 36 && e != 37 && e != 44
		if got := Exchange(e).Opening(); got != want {
			t.Errorf("Exchange(%d).Opening() = %v, want %v", e, got, want)
		}
	}
}

// message is a message of 60 bytes.
func message(exchange Exchange, flags Flags, next Payload, id uint32) []byte {
	return Message(Header{InitiatorSPI: 1 << 40, ResponderSPI: 2, NextPayload: next, Exchange: exchange, Flags: flags, MessageID: id},
		ProtectedBody(0, 28))
}

func TestClassifyAndProof(t *testing.T) {
	old := message(SAInit, FlagInitiator, SecurityAssoc, 0)
	old[17] = 0x10
	esp := ESPDatagram(0xc0ffee01, 1, make([]byte, 12))
	late := Message(Header{InitiatorSPI: 1, ResponderSPI: 2, NextPayload: Notify, Exchange: SAInit, Flags: FlagResponse,
		MessageID: 46<<24 | 0x20<<16 | 35<<8 | 0x20}, []byte{0, 0, 0, 8, 0, 0, 0, 7})
	for _, c := range []struct {
		name    string
		port    uint16
		payload []byte
		kind    Kind
		opening bool
		level   table.Confirmation
		replace bool
		whole   uint32 // 0: the payload's length
	}{
		{"request", 500, message(SAInit, FlagInitiator, SecurityAssoc, 0), IKE, true, 0, false, 0},
		{"init response", 500, message(SAInit, FlagResponse, SecurityAssoc, 0), IKE, true, 0, false, 0},
		{"init response on 4500", 4500, Marked(message(SAInit, FlagResponse, SecurityAssoc, 0)), IKE, true, 0, false, 0},
		{"unprotected notify", 4500, Marked(message(Informational, FlagResponse, Notify, 0)), IKE, false, 0, false, 0},
		{"first auth response", 4500, Marked(message(Auth, FlagResponse, Encrypted, 1)), IKE, true, table.EarnedSK, true, 0},
		{"fragment of an auth response", 4500, Marked(message(Auth, FlagResponse, EncryptedFragment, 1)), IKE, true, table.EarnedSK, true, 0},
		{"second auth response", 4500, Marked(message(Auth, FlagResponse, Encrypted, 2)), IKE, true, table.EarnedAuth, true, 0},
		{"auth request of a server", 4500, Marked(message(Auth, 0, Encrypted, 2)), IKE, true, table.EarnedSK, false, 0},
		{"auth response on 500", 500, message(Auth, FlagResponse, Encrypted, 2), IKE, true, table.EarnedAuth, true, 0},
		{"intermediate response", 500, message(Intermediate, FlagResponse, Encrypted, 2), IKE, true, table.EarnedSK, true, 0},
		{"dead peer detection", 4500, Marked(message(Informational, 0, Encrypted, 7)), IKE, false, table.EarnedSK, false, 0},
		{"child response", 4500, Marked(message(CreateChildSA, FlagResponse, Encrypted, 7)), IKE, false, table.EarnedSK, false, 0},
		{"esp", 4500, esp, ESP, false, table.Confirmed, false, 0},
		{"esp too short to prove", 4500, esp[:19], ESP, false, 0, false, 0},
		{"esp of four bytes", 4500, esp[:4], ESP, false, 0, false, 0},
		{"three bytes", 4500, esp[:3], Malformed, false, 0, false, 0},
		{"nothing", 4500, nil, Malformed, false, 0, false, 0},
		{"keepalive", 4500, KeepaliveDatagram(), Keepalive, false, 0, false, 0},
		{"one other byte", 4500, []byte{0xfe}, Malformed, false, 0, false, 0},
		{"two keepalive bytes", 4500, []byte{0xff, 0xff}, Malformed, false, 0, false, 0},
		{"keepalive on 500", 500, KeepaliveDatagram(), Malformed, false, 0, false, 0},
		{"esp-like on 500", 500, esp, Malformed, false, 0, false, 0},
		{"27 bytes", 500, message(SAInit, 8, 33, 0)[:27], Malformed, false, 0, false, 0},
		{"28 bytes", 500, message(SAInit, 8, 33, 0)[:28], IKE, true, 0, false, 0},
		{"marker and 27 bytes", 4500, Marked(message(SAInit, 8, 33, 0))[:31], Malformed, false, 0, false, 0},
		{"marker alone", 4500, make([]byte, 4), Malformed, false, 0, false, 0},
		{"version 1", 500, old, Foreign, false, 0, false, 0},
		{"version 1 on 4500", 4500, Marked(old), Foreign, false, 0, false, 0},
		{"init response without marker", 4500, message(SAInit, FlagResponse, SecurityAssoc, 0), IKE, true, 0, false, 0},
		{"auth response without marker", 4500, message(Auth, FlagResponse, Encrypted, 1), IKE, true, table.EarnedSK, true, 0},
		{"first piece of an init response without marker", 4500, message(SAInit, FlagResponse, SecurityAssoc, 0)[:40], IKE, true, 0, false, 60},
		{"piece too short to be told from IKE", 4500, message(SAInit, FlagResponse, SecurityAssoc, 0)[:24], ESP, false, 0, false, 60},
		{"first piece of esp", 4500, append(esp, make([]byte, 8)...), ESP, false, table.Confirmed, false, 60},
		{"version 1 without marker", 4500, old, Foreign, false, 0, false, 0},
		{"esp that reads as IKE but for its length", 4500, message(SAInit, FlagResponse, SecurityAssoc, 0), ESP, false, table.Confirmed, false, 61},
		{"unreadable request's answer, read four bytes late", 4500, late, IKE, true, 0, false, 0},
		{"auth response of a wrong length", 4500, Marked(message(Auth, FlagResponse, Encrypted, 1)), IKE, true, 0, false, 65},
		{"marker on 500", 500, Marked(message(SAInit, 8, 33, 0)), Foreign, false, 0, false, 0},
	} {
		d := Classify(c.port, c.payload, cmp.Or(c.whole, uint32(len(c.payload))))
		p := d.Proof()
		if d.Kind != c.kind || d.Opening() != c.opening || p.Level != c.level || p.Opening != c.replace {
			t.Errorf("%s: got %v opening %v proof %+v, want %v opening %v level %d replace %v",
				c.name, d.Kind, d.Opening(), p, c.kind, c.opening, c.level, c.replace)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add(true, message(Auth, FlagResponse, Encrypted, 2))
	f.Add(false, Marked(message(Auth, FlagResponse, EncryptedFragment, 1)))
	f.Add(false, KeepaliveDatagram())
	f.Add(false, ESPDatagram(1, 1, make([]byte, 40)))
	f.Add(true, []byte{})
	f.Fuzz(func(t *testing.T, plain bool, payload []byte) {
		port := uint16(NATPort)
		if plain {
			port = Port
		}
		d := Classify(port, payload, uint32(len(payload)))
		if d.Len != len(payload) {
			t.Fatalf("length %d of %d", d.Len, len(payload))
		}
		if d.Kind == IKE || d.Kind == Foreign {
			at := 0
			if !plain && bytes.HasPrefix(payload, make([]byte, MarkerLen)) {
				at = MarkerLen
			}
			if got := d.Header.Append(nil); !bytes.Equal(got, payload[at:at+HeaderLen]) {
				t.Fatalf("header %x comes back as %x", payload[at:], got)
			}
		}
		if p := d.Proof(); p.Opening && p.Level == 0 {
			t.Fatal("an opening that proves nothing")
		}
	})
}
