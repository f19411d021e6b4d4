package health

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"testing"
)

// reply builds an IKE_SA_INIT response with the given payloads.
func reply(id spi, marker bool, next byte, payloads ...byte) []byte {
	var b []byte
	if marker {
		b = make([]byte, markerSize)
	}
	start := len(b)
	b = append(b, id[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0, next, version2, exchangeSAInit, flagResponse, 0, 0, 0, 0, 0, 0, 0, 0)
	b = append(b, payloads...)
	binary.BigEndian.PutUint32(b[start+24:], uint32(len(b)-start))
	return b
}

// notify builds one last notify payload.
func notify(kind uint16, data ...byte) []byte {
	b := []byte{0, 0, 0, byte(8 + len(data)), 0, 0, byte(kind >> 8), byte(kind)}
	return append(b, data...)
}

// keyExchange builds one last KE payload.
func keyExchange(group uint16) []byte {
	return []byte{0, 0, 0, 12, byte(group >> 8), byte(group), 0, 0, 1, 2, 3, 4}
}

func TestParseAnswer(t *testing.T) {
	id := spi{1, 2, 3, 4, 5, 6, 7, 8}
	good := reply(id, false, payloadNotify, notify(notifyInvalidKE, 0, 14)...)
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for _, c := range []struct {
		name   string
		data   []byte
		marker bool
		note   Note // NoteNone: no answer
		group  uint16
	}{
		{"invalid KE", good, false, NoteInvalidKE, 14},
		{"invalid KE on 4500", reply(id, true, payloadNotify, notify(notifyInvalidKE, 0, 2)...), true, NoteInvalidKE, 2},
		{"cookie", reply(id, false, payloadNotify, notify(notifyCookie, 1, 2, 3)...), false, NoteCookie, 0},
		{"cookie without data", reply(id, false, payloadNotify, notify(notifyCookie)...), false, NoteOther, 0},
		{"no proposal", reply(id, false, payloadNotify, notify(notifyNoProposalChosen)...), false, NoteNoProposal, 0},
		{"syntax", reply(id, false, payloadNotify, notify(notifyInvalidSyntax)...), false, NoteInvalidSyntax, 0},
		{"version", reply(id, false, payloadNotify, notify(notifyInvalidMajorVersion)...), false, NoteInvalidVersion, 0},
		{"accepted", reply(id, false, payloadKE, keyExchange(31)...), false, NoteAccepted, 31},
		{"unknown notify", reply(id, false, payloadNotify, notify(16406)...), false, NoteOther, 0},
		{"nothing in it", reply(id, false, payloadNone), false, NoteOther, 0},
		{"invalid KE without group", reply(id, false, payloadNotify, notify(notifyInvalidKE)...), false, NoteOther, 0},
		{"notify too short", reply(id, false, payloadNotify, 0, 0, 0, 6, 0, 0), false, NoteOther, 0},
		{"SPI size beyond its end", reply(id, false, payloadNotify, 0, 0, 0, 8, 1, 200, 0, 17), false, NoteOther, 0},
		{"marker missing on 4500", good, true, NoteNone, 0},
		{"marker on 500", reply(id, true, payloadNotify, notify(notifyInvalidKE, 0, 2)...), false, NoteNone, 0},
		{"version 1", change(17, 0x10), false, NoteNone, 0},
		{"other exchange", change(18, 35), false, NoteNone, 0},
		{"a request", change(19, flagInitiator), false, NoteNone, 0},
		{"from an initiator", change(19, flagResponse|flagInitiator), false, NoteNone, 0},
		{"message 1", change(23, 1), false, NoteNone, 0},
		{"length lies", change(27, 1), false, NoteNone, 0},
		{"payload length lies", change(31, 200), false, NoteNone, 0},
		{"payload length below its header", change(31, 3), false, NoteNone, 0},
		{"chain goes on", change(28, payloadNotify), false, NoteNone, 0},
		{"zero SPI", reply(spi{}, false, payloadNotify, notify(notifyInvalidKE, 0, 14)...), false, NoteNone, 0},
		{"short", good[:27], false, NoteNone, 0},
		{"empty", nil, false, NoteNone, 0},
		{"keepalive", []byte{0xff}, true, NoteNone, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, err := parseAnswer(c.data, c.marker)
			if (err != nil) != (c.note == NoteNone) {
				t.Fatalf("got %+v, %v", a, err)
			}
			if err == nil && (a.note != c.note || a.group != c.group || a.id != id) {
				t.Errorf("got %+v, want %v group %d", a, c.note, c.group)
			}
		})
	}
}

// TestProbeGolden holds the bytes that matter to a server; random ones are zeroed.
func TestProbeGolden(t *testing.T) {
	b := appendProbe(nil, spi{1, 2, 3, 4, 5, 6, 7, 8}, 0, true)
	const head = "00000000" + "0102030405060708" + "0000000000000000" + "21202208" + "00000000"
	if got := hex.EncodeToString(b[:len(head)/2]); got != head {
		t.Errorf("header %s, want %s", got, head)
	}
	const first = "2200031c" + // SA, next KE
		"0200002c" + "01010004" + // proposal 1, IKE, 4 transforms
		"0300000c" + "0100000c" + "800e0100" + // AES-CBC 256
		"03000008" + "02000002" + "03000008" + "03000002" + "00000008" + "04000002"
	if got := hex.EncodeToString(b[32 : 32+len(first)/2]); got != first {
		t.Errorf("first proposal %s, want %s", got, first)
	}
	if n := int(binary.BigEndian.Uint32(b[28:])); n != len(b)-markerSize {
		t.Errorf("length %d of %d", n, len(b)-markerSize)
	}
}

// TestProbeLeavesNoState checks what makes a server refuse: the KE group of
// every variant is in none of the proposals, and each has its right length.
func TestProbeLeavesNoState(t *testing.T) {
	seen := map[spi]bool{}
	for g, w := range wrongGroups {
		id := newSPI()
		if seen[id] {
			t.Fatal("an SPI came twice")
		}
		seen[id] = true
		b := appendProbe(nil, id, g, false)
		if len(b) > 1400 {
			t.Errorf("group %d: %d bytes would be fragmented", w.number, len(b))
		}
		var kinds []byte
		err := eachPayload(b[16], b[headerSize:], func(kind byte, body []byte) {
			kinds = append(kinds, kind)
			if kind == payloadKE && (binary.BigEndian.Uint16(body) != w.number || len(body) != 4+w.size || body[4]&0x80 != 0) {
				t.Errorf("group %d: KE payload %x", w.number, body)
			}
		})
		if err != nil || !bytes.Equal(kinds, []byte{payloadSA, payloadKE, payloadNonce}) {
			t.Errorf("group %d: payloads %v, %v", w.number, kinds, err)
		}
		for _, p := range proposals {
			if p.keGroup == w.number {
				t.Errorf("group %d is proposed by %s", w.number, p.name)
			}
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	id := spi{1, 2, 3, 4, 5, 6, 7, 8}
	f.Add(reply(id, false, payloadNotify, notify(notifyInvalidKE, 0, 14)...), false)
	f.Add(reply(id, true, payloadNotify, notify(notifyCookie, 1)...), true)
	f.Add(reply(id, false, payloadKE, keyExchange(31)...), false)
	f.Add(appendProbe(nil, id, 0, true), true)
	f.Fuzz(func(t *testing.T, data []byte, marker bool) {
		a, err := parseAnswer(data, marker)
		if err == nil && (a.id == spi{} || a.note == NoteNone || a.note > NoteOther) {
			t.Fatalf("got %+v", a)
		}
	})
}
