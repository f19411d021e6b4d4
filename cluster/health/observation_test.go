package health

import (
	"bytes"
	"encoding/hex"
	"reflect"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

func sampleObservation() Observation {
	return Observation{Boot: 3, Sequence: 9, Seen: []Seen{
		{Backend: 1, Class: state.ClassIKE, Opinion: OpinionUp, Note: NoteInvalidKE, Answers: 200,
			Age: 120 * time.Millisecond, Returned: true, Quiet: 1500 * time.Millisecond},
		{Backend: 1, Class: state.ClassTCP, Opinion: OpinionDown, Note: NoteSilent, Misses: 7, Failing: 2 * time.Minute},
		{Backend: 70000, Class: state.ClassIKE, Opinion: OpinionNeutral, Note: NoteNoProposal, Neutrals: 255},
	}}
}

// TestObservationGolden holds the bytes: nodes of different versions read them.
func TestObservationGolden(t *testing.T) {
	const want = "010003" + "0000000000000003" + "0000000000000009" +
		"00000001" + "11" + "01" + "00c800" + "000c" + "000f" + "01" +
		"00000001" + "22" + "03" + "070000" + "0000" + "04b0" + "00" +
		"00011170" + "13" + "06" + "0000ff" + "0000" + "0000" + "00"
	o := sampleObservation()
	if got := hex.EncodeToString(o.Encode()); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestObservationRoundTrip(t *testing.T) {
	o := sampleObservation()
	got, err := DecodeObservation(o.Encode())
	if err != nil || !reflect.DeepEqual(got, o) {
		t.Errorf("got %+v, %v", got, err)
	}
	o.Seen[0].Age, o.Seen[0].Quiet = 24*time.Hour, 24*time.Hour
	o.Seen[1].Age = -time.Second
	got, err = DecodeObservation(o.Encode())
	if err != nil || got.Seen[0].Quiet != maxQuiet || got.Seen[0].Age != 0xffff*ageUnit || got.Seen[1].Age != 0 {
		t.Errorf("ages do not saturate: %+v, %v", got, err)
	}
}

func TestObservationLargest(t *testing.T) {
	var o Observation
	for i := range state.MaxBackends + 5 {
		for _, c := range state.Classes {
			o.Seen = append(o.Seen, Seen{Backend: state.BackendID(i + 1), Class: c})
		}
	}
	b := o.Encode()
	got, err := DecodeObservation(b)
	if err != nil || len(b) > MaxObservation || len(got.Seen) != maxSeen {
		t.Errorf("%d bytes, %d records, %v", len(b), len(got.Seen), err)
	}
}

func TestDecodeObservationRefuses(t *testing.T) {
	o := sampleObservation()
	good := o.Encode()
	change := func(at int, to byte) []byte {
		b := bytes.Clone(good)
		b[at] = to
		return b
	}
	for name, b := range map[string][]byte{
		"nothing": nil, "version": change(0, 2), "short": good[:len(good)-1], "long": append(bytes.Clone(good), 0),
		"count": change(2, 4), "class 0": change(23, 0x01), "class 3": change(23, 0x31), "opinion": change(23, 0x1f),
		"flags": change(32, 2), "order": change(22, 9), "huge": make([]byte, MaxObservation+1),
	} {
		if o, err := DecodeObservation(b); err == nil {
			t.Errorf("%s: accepted as %+v", name, o)
		}
	}
}

// A note of a later version is words for people: the opinion beside it counts.
func TestDecodeObservationLaterNote(t *testing.T) {
	o := sampleObservation()
	o.Seen[0].Note = 99
	got, err := DecodeObservation(o.Encode())
	if err != nil || !reflect.DeepEqual(got, o) || got.Seen[0].Note.String() != "note(99)" {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzDecodeObservation(f *testing.F) {
	o := sampleObservation()
	f.Add(o.Encode())
	f.Add((&Observation{}).Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		o, err := DecodeObservation(b)
		if err == nil && !bytes.Equal(o.Encode(), b) {
			t.Fatalf("not canonical: %x", b)
		}
	})
}
