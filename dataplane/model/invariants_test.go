package model_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/dataplane/model"
	"github.com/vpnlb/vpnlb/dataplane/model/fixture"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// world is a generated fixture with its tables.
type world struct {
	fixture.Fixture
	tables *model.Tables
	dsr    map[table.Slot]bool
}

func worlds(t testing.TB, n int) []world {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 4))
	out := make([]world, n)
	for i := range out {
		w := &out[i]
		w.Fixture, w.dsr = fixture.Generate(rng), map[table.Slot]bool{}
		var err error
		if w.tables, err = w.Tables(); err != nil {
			t.Fatal(err)
		}
		for _, b := range w.Set.Backends {
			w.dsr[b.Slot] = b.DSR
		}
	}
	return out
}

// Arbitrary bytes: whatever comes in, these hold.
func FuzzDecide(f *testing.F) {
	all, err := fixture.All()
	if err != nil {
		f.Fatal(err)
	}
	for i, x := range all {
		f.Add(x.Frame, uint8(x.Interface), uint8(i))
	}
	places := worlds(f, 64)
	f.Fuzz(func(t *testing.T, frame []byte, ifindex, place uint8) {
		if broken := places[int(place)%len(places)].broken(frame, uint32(ifindex)); broken != "" {
			t.Error(broken)
		}
	})
}

func TestRandomFramesHoldTheInvariants(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for _, w := range worlds(t, 60) {
		for range 2000 {
			frame, ifindex := fixture.GenerateFrame(rng, &w.Fixture)
			if broken := w.broken(frame, ifindex); broken != "" {
				t.Fatalf("set %s, interface %d, frame %x: %s", w.SetName, ifindex, frame, broken)
			}
		}
	}
}

// broken says what does not hold of a decision about a frame; empty: all does.
func (w *world) broken(frame []byte, ifindex uint32) string {
	before := bytes.Clone(frame)
	d := model.Decide(frame, ifindex, w.tables)
	switch {
	case !bytes.Equal(before, frame):
		return "the frame was changed"
	case (d.Out == nil) != (d.Verdict == model.Drop):
		return fmt.Sprintf("verdict %v with %d bytes", d.Verdict, len(d.Out))
	case fixture.Diff(d, model.Decide(frame, ifindex, w.tables)) != "":
		return "a second look says otherwise"
	case (d.Class != 0) != (d.ClientTick || d.ServerTick || d.Proof != 0 || d.Evidence != nil || d.Sighting != nil):
		return fmt.Sprintf("class %d without what it is of", d.Class)
	case d.Evidence != nil && d.Evidence.Class != d.Class:
		return "evidence of another class"
	}
	prefix, _, _ := strings.Cut(d.Reason.String(), "_")
	if want := map[string]model.Verdict{"drop": model.Drop, "pass": model.Pass, "forward": model.Forward, "answer": model.Forward}[prefix]; d.Verdict != want {
		return fmt.Sprintf("verdict %v of %v", d.Verdict, d.Reason)
	}
	switch prefix {
	case "pass":
		if len(d.Out) != len(frame) || !bytes.Equal(d.Out[:min(12, len(frame))], frame[:min(12, len(frame))]) {
			return "what is passed lost its shape"
		}
	case "forward":
		return w.brokenForward(frame, &d)
	case "answer":
		return brokenAnswer(frame, ifindex, &d)
	}
	return ""
}

// brokenForward: the packet has the same length, and sums that were right are.
func (w *world) brokenForward(frame []byte, d *model.Decision) string {
	in, out := frame[ipPlace(frame):], d.Out[ipPlace(d.Out):]
	if len(in) != len(out) {
		return fmt.Sprintf("%d bytes became %d", len(in), len(out))
	}
	if d.Interface != fixture.Outside && d.Interface != fixture.Inside && d.Interface != fixture.Bond {
		return fmt.Sprintf("exit %d", d.Interface)
	}
	if binary.BigEndian.Uint16(d.Out[12:]) == 0x8100 {
		if id := binary.BigEndian.Uint16(d.Out[14:]); id != 100 && id != 200 && id != 300 {
			return fmt.Sprintf("tag %#x", id)
		}
	}
	if w.dsr[d.Slot] && d.Reason != table.ForwardReturnICMPError && d.Reason < table.ForwardReturn {
		if len(in) != len(out) || diffAt(in, out) > 2 {
			return "something was changed for a DSR server"
		}
	}
	was, is := sumsOf(in), sumsOf(out)
	for name, right := range was {
		if now, there := is[name]; right && (!there || !now) && !(name == "transport" && !there) {
			return fmt.Sprintf("%s sum of %x is wrong", name, out)
		}
	}
	return ""
}

// diffAt counts the bytes that differ.
func diffAt(a, b []byte) int {
	n := 0
	for i := range a {
		if a[i] != b[i] {
			n++
		}
	}
	return n
}

func brokenAnswer(frame []byte, ifindex uint32, d *model.Decision) string {
	at := ipPlace(frame)
	header := 20
	if d.Out[at]>>4 == 6 {
		header = 40
	}
	quoted := d.Out[at+header+8:]
	switch {
	case d.Interface != ifindex && (d.Interface != fixture.Bond || ifindex != fixture.Member && ifindex != fixture.Backup):
		return "an answer went elsewhere"
	case !bytes.Equal(d.Out[12:at], frame[12:at]):
		return "an answer lost its tag"
	case len(quoted) > 512 || len(quoted)%4 != 0 || len(quoted) < 20 || !bytes.HasPrefix(frame[at:], quoted):
		return "an answer quotes something else"
	}
	for name, right := range sumsOf(d.Out[at:]) {
		if !right && !strings.HasPrefix(name, "quoted") {
			return name + " sum of an answer is wrong"
		}
	}
	return ""
}

func ipPlace(frame []byte) int {
	if kind := binary.BigEndian.Uint16(frame[12:]); kind == 0x8100 || kind == 0x88a8 {
		return 18
	}
	return 14
}

// sumsOf says which sums of an IP packet can be checked, and are right.
func sumsOf(ip []byte) map[string]bool {
	sums := map[string]bool{}
	packetSums(ip, "", sums)
	return sums
}

// packetSums checks the header's sum, and what a whole packet holds.
func packetSums(ip []byte, prefix string, sums map[string]bool) {
	var protocol uint8
	var pseudo, payload []byte
	if ip[0]>>4 == 4 {
		header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
		if header < 20 || header > len(ip) {
			return
		}
		sums[prefix+"header"] = ones(ip[:header]) == 0xffff
		if total < header || total > len(ip) || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
			return
		}
		protocol, pseudo, payload = ip[9], ip[12:20], ip[header:total]
	} else {
		if len(ip) < 40 || 40+int(binary.BigEndian.Uint16(ip[4:])) > len(ip) {
			return
		}
		protocol, pseudo, payload = ip[6], ip[8:40], ip[40:40+int(binary.BigEndian.Uint16(ip[4:]))]
		for protocol == 0 || protocol == 60 || protocol == 44 {
			if len(payload) < 8 || protocol == 44 && binary.BigEndian.Uint16(payload[2:])&0xfff9 != 0 {
				return
			}
			n := 8
			if protocol != 44 {
				n += int(payload[1]) * 8
			}
			if n > len(payload) {
				return
			}
			protocol, payload = payload[0], payload[n:]
		}
	}
	length := len(payload)
	switch {
	case protocol == 17 && len(payload) >= 8 && binary.BigEndian.Uint16(payload[6:]) != 0:
		length = int(binary.BigEndian.Uint16(payload[4:]))
	case protocol == 6 && len(payload) >= 20:
	case protocol == 58 && len(payload) >= 8 && len(pseudo) == 32:
	case protocol == 1 && len(payload) >= 8 && len(pseudo) == 8:
		pseudo, protocol, length = nil, 0, 0
	default:
		return
	}
	rest := []byte{0, protocol, byte(length >> 8), byte(length)}
	sums[prefix+"transport"] = ones(bytes.Join([][]byte{pseudo, rest, payload}, nil)) == 0xffff
	if quoted := payload[8:]; prefix == "" && (protocol == 0 || protocol == 58) && len(quoted) >= 20 {
		packetSums(quoted, "quoted ", sums)
	}
}

// ones is the ones' complement sum.
func ones(b []byte) uint16 {
	var sum uint32
	for i, x := range b {
		sum += uint32(x) << (8 * (1 - i%2))
		sum = sum&0xffff + sum>>16
	}
	return uint16(sum)
}
