package health

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"slices"
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
	for _, c := range []struct {
		offer int
		first string // SA, next KE, first proposal: number, IKE, transforms
	}{
		{0, "22000174" + "020000d4" + "01010018" +
			"0300000c" + "0100000c" + "800e0100" + "0300000c" + "0100000c" + "800e00c0" + "0300000c" + "0100000c" + "800e0080" + // AES-CBC
			"03000008" + "01000003" + "03000008" + "01000002"}, // 3DES, DES
		{1, "220003dc" + "0200002c" + "01010004" + "0300000c" + "0100000c" + "800e0100" + // AES-CBC 256
			"03000008" + "02000005" + "03000008" + "0300000c" + "00000008" + "0400000e"}, // SHA-256, group 14
	} {
		b := appendProbe(nil, spi{1, 2, 3, 4, 5, 6, 7, 8}, form{offer: c.offer}, true)
		const head = "00000000" + "0102030405060708" + "0000000000000000" + "21202208" + "00000000"
		if got := hex.EncodeToString(b[:len(head)/2]); got != head {
			t.Errorf("header %s, want %s", got, head)
		}
		if got := hex.EncodeToString(b[32 : 32+len(c.first)/2]); got != c.first {
			t.Errorf("offer %d: first proposal %s, want %s", c.offer, got, c.first)
		}
		if n := int(binary.BigEndian.Uint32(b[28:])); n != len(b)-markerSize {
			t.Errorf("length %d of %d", n, len(b)-markerSize)
		}
	}
}

// TestOffersCoverWindows: the first offer covers each policy that a Windows server may
// have, and the others cover all of them again, one by one.
func TestOffersCoverWindows(t *testing.T) {
	single := slices.Concat(offers[1:]...)
	n := 0
	for _, c := range windowsCiphers {
		for _, h := range windowsHashes {
			for _, g := range windowsGroups {
				n++
				has := func(p proposal) bool {
					return slices.Contains(p.ciphers, c) && slices.Contains(p.hashes, h) && slices.Contains(p.groups, g)
				}
				if !slices.ContainsFunc(offers[0], has) || !slices.ContainsFunc(single, has) {
					t.Errorf("%s with %s and %s is not offered", c.name, h.name, g.name)
				}
			}
		}
	}
	if n != 168 || len(single) != 168 {
		t.Errorf("%d combinations, %d of them single, want 168", n, len(single))
	}
	for _, p := range slices.Concat(offers...) {
		for _, c := range p.ciphers {
			if c.aead() != p.aead() {
				t.Errorf("%s is mixed with others", c.name) // RFC 5282, section 8
			}
		}
	}
}

// TestNextOffer: everything is offered every other time, and each of the others comes.
func TestNextOffer(t *testing.T) {
	seen, offer, single := map[int]int{}, 0, 0
	for range 4 * (len(offers) - 1) {
		seen[offer]++
		offer = nextOffer(offer, &single)
	}
	for i := range offers {
		want := 2
		if i == 0 {
			want = 2 * (len(offers) - 1)
		}
		if seen[i] != want {
			t.Errorf("offer %d came %d times, want %d", i, seen[i], want)
		}
	}
}

// TestProbeLeavesNoState checks what makes a server refuse: the KE group of
// every form is in none of its proposals, and each has its right length.
func TestProbeLeavesNoState(t *testing.T) {
	seen := map[spi]bool{}
	for o, offer := range offers {
		for g, w := range wrongGroups {
			id := newSPI()
			if seen[id] {
				t.Fatal("an SPI came twice")
			}
			seen[id] = true
			b := appendProbe(nil, id, form{o, g}, false)
			if n := markerSize + len(b) + 8 + maxCookie; n > 1400 {
				t.Errorf("offer %d, group %d: %d bytes would be fragmented", o, w.number, n)
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
			for _, p := range offer {
				if slices.ContainsFunc(p.groups, func(g group) bool { return g.id == w.number }) {
					t.Errorf("group %d is proposed", w.number)
				}
			}
		}
	}
}

// TestWithCookie: all but the first payload stays what it was (RFC 7296, section 2.6).
func TestWithCookie(t *testing.T) {
	for _, marker := range []bool{false, true} {
		request := appendProbe(nil, newSPI(), form{}, marker)
		kept := bytes.Clone(request)
		b := withCookie(request, []byte{1, 2, 3}, marker)
		if !bytes.Equal(request, kept) {
			t.Error("the request itself has changed")
		}
		if marker {
			b, request = b[markerSize:], request[markerSize:]
		}
		const notify = "2100000b" + "00004006" + "010203"
		if got := hex.EncodeToString(b[headerSize : headerSize+len(notify)/2]); b[16] != payloadNotify || got != notify {
			t.Errorf("first payload %d: %s, want %s", b[16], got, notify)
		}
		if !bytes.Equal(b[:16], request[:16]) || !bytes.Equal(b[headerSize+len(notify)/2:], request[headerSize:]) {
			t.Error("the rest is not the request")
		}
		if n := int(binary.BigEndian.Uint32(b[24:])); n != len(b) {
			t.Errorf("length %d of %d", n, len(b))
		}
	}
}

func FuzzParseAnswer(f *testing.F) {
	id := spi{1, 2, 3, 4, 5, 6, 7, 8}
	f.Add(reply(id, false, payloadNotify, notify(notifyInvalidKE, 0, 14)...), false)
	f.Add(reply(id, true, payloadNotify, notify(notifyCookie, 1)...), true)
	f.Add(reply(id, false, payloadKE, keyExchange(31)...), false)
	f.Add(appendProbe(nil, id, form{}, true), true)
	f.Fuzz(func(t *testing.T, data []byte, marker bool) {
		a, err := parseAnswer(data, marker)
		if err == nil && (a.id == spi{} || a.note == NoteNone || a.note > NoteOther) {
			t.Fatalf("got %+v", a)
		}
	})
}
