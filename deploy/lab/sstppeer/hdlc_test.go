package sstppeer

import (
	"bytes"
	"slices"
	"testing"
)

// The checksum's check value is known: 0x906e over the nine digits (CRC-16/X-25).
func TestFrameCheckSequence(t *testing.T) {
	if got := ^fcs16(fcsInit, []byte("123456789")); got != 0x906e {
		t.Errorf("checksum %#04x, want 0x906e", got)
	}
}

func TestFramesSurviveTheLine(t *testing.T) {
	var line []byte
	frames := [][]byte{{0xff, 3, 0xc0, 0x21, 1, 1, 0, 4}, make([]byte, 1500), {0x7e, 0x7d, 0x5e, 0, 0x20}}
	for i := range frames[1] {
		frames[1][i] = byte(i)
	}
	for _, f := range frames {
		line = appendHDLC(line, f)
	}
	for i, c := range line {
		if c < 0x20 {
			t.Fatalf("byte %d of the line is the control character %#x", i, c)
		}
	}
	for _, cut := range []int{1, 7, len(line)} {
		var d deframer
		var got [][]byte
		for b := range slices.Chunk(line, cut) {
			d.feed(b, func(f []byte) { got = append(got, bytes.Clone(f)) })
		}
		if len(got) != len(frames) || d.bad != 0 {
			t.Fatalf("cut by %d: %d frames, %d bad, want %d", cut, len(got), d.bad, len(frames))
		}
		for i := range got {
			if !bytes.Equal(got[i], frames[i]) {
				t.Errorf("cut by %d: frame %d is % x", cut, i, got[i])
			}
		}
	}
}

func TestBrokenFramesAreCountedAndSkipped(t *testing.T) {
	good := appendHDLC(nil, []byte{0xff, 3, 0x80, 0x21, 1, 1, 0, 4})
	flipped := bytes.Clone(good)
	flipped[4] ^= 1
	aborted := append(bytes.Clone(good[:5]), hdlcEscape, hdlcFlag)
	long := appendHDLC(nil, bytes.Repeat([]byte{0x41}, maxFrame+1))
	for name, bad := range map[string][]byte{"wrong sum": flipped, "aborted": aborted, "short": {hdlcFlag, 1, 2, hdlcFlag}, "too long": long} {
		var d deframer
		n := 0
		d.feed(bad, func([]byte) { n++ })
		if n != 0 || d.bad != 1 {
			t.Errorf("%s: %d frames, %d bad", name, n, d.bad)
		}
		if d.feed(good, func([]byte) { n++ }); n != 1 {
			t.Errorf("%s: the next frame is lost", name)
		}
	}
}

func TestSplitFrame(t *testing.T) {
	for _, c := range []struct {
		in       []byte
		protocol uint16
		body     int
		ok       bool
	}{
		{[]byte{0xff, 3, 0xc0, 0x21, 1, 2}, 0xc021, 2, true},
		{[]byte{0xc0, 0x21, 1, 2}, 0xc021, 2, true},
		{[]byte{0xff, 3, 0x21, 0x45}, 0x0021, 1, true},
		{[]byte{0x21, 0x45}, 0x0021, 1, true},
		{[]byte{0xff, 3}, 0, 0, false},
		{[]byte{0xc0}, 0, 0, false},
		{nil, 0, 0, false},
	} {
		p, body, ok := splitFrame(c.in)
		if p != c.protocol || len(body) != c.body || ok != c.ok {
			t.Errorf("% x: %#x, %d bytes, %t", c.in, p, len(body), ok)
		}
	}
}
