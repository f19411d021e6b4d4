package sstppeer

import (
	"encoding/binary"
	"errors"
	"io"
)

// HDLC-like framing of a serial line (RFC 1662 3, 4), as sstpc speaks it on the
// pseudo-terminal: a flag between frames, escapes, a checksum of 16 bits.
const (
	hdlcFlag   = 0x7e
	hdlcEscape = 0x7d
	hdlcFlip   = 0x20

	pppAddress = 0xff // all stations
	pppControl = 0x03 // unnumbered information

	fcsInit  = 0xffff
	fcsGood  = 0xf0b8 // over a frame with its checksum
	maxFrame = 2048   // bytes of one PPP frame, escapes undone; longer ones are dropped
)

// fcsTable is the checksum of each byte: x^16 + x^12 + x^5 + 1, reversed
// (RFC 1662 C.2).
var fcsTable = func() (t [256]uint16) {
	for i := range t {
		v := uint16(i)
		for range 8 {
			if v&1 != 0 {
				v = v>>1 ^ 0x8408
			} else {
				v >>= 1
			}
		}
		t[i] = v
	}
	return t
}()

// fcs16 goes on with the checksum over b.
func fcs16(fcs uint16, b []byte) uint16 {
	for _, c := range b {
		fcs = fcs>>8 ^ fcsTable[byte(fcs)^c]
	}
	return fcs
}

// appendHDLC appends one frame between flags. All control characters are
// escaped: that is the map of a link that has negotiated none (RFC 1662 7.1).
func appendHDLC(out, frame []byte) []byte {
	sum := binary.LittleEndian.AppendUint16(nil, ^fcs16(fcsInit, frame))
	out = append(out, hdlcFlag)
	for _, part := range [...][]byte{frame, sum} {
		for _, c := range part {
			if c < 0x20 || c == hdlcFlag || c == hdlcEscape {
				out = append(out, hdlcEscape, c^hdlcFlip)
			} else {
				out = append(out, c)
			}
		}
	}
	return append(out, hdlcFlag)
}

// deframer finds frames in the bytes of a line, however they are cut.
type deframer struct {
	frame   []byte
	escaped bool
	over    bool // longer than maxFrame: skipped to the next flag
	bad     int  // frames with a wrong checksum, too long, or aborted
}

// feed takes bytes of the line and hands over each whole frame without its
// checksum; the frame is valid during the call.
func (d *deframer) feed(b []byte, frame func([]byte)) {
	for _, c := range b {
		switch {
		case c == hdlcFlag:
			d.end(frame)
		case c == hdlcEscape:
			d.escaped = true
		case len(d.frame) >= maxFrame:
			d.over = true
		default:
			if d.escaped {
				c ^= hdlcFlip
				d.escaped = false
			}
			d.frame = append(d.frame, c)
		}
	}
}

func (d *deframer) end(frame func([]byte)) {
	f, aborted := d.frame, d.escaped || d.over
	d.frame, d.escaped, d.over = d.frame[:0], false, false
	switch {
	case len(f) == 0: // flags may follow each other
	case aborted || len(f) < 4 || fcs16(fcsInit, f) != fcsGood:
		d.bad++
	default:
		frame(f[:len(f)-2])
	}
}

// splitFrame takes address, control and protocol off a PPP frame; the first two
// may be left out, and the protocol's leading zero too (RFC 1661 6.5, 6.6).
func splitFrame(f []byte) (protocol uint16, body []byte, ok bool) {
	if len(f) >= 2 && f[0] == pppAddress && f[1] == pppControl {
		f = f[2:]
	}
	if len(f) >= 1 && f[0]&1 != 0 {
		return uint16(f[0]), f[1:], true
	}
	if len(f) < 2 {
		return 0, nil, false
	}
	return binary.BigEndian.Uint16(f), f[2:], true
}

// readFrames feeds frames from a line until it ends.
func readFrames(r io.Reader, frame func([]byte)) (bad int, err error) {
	var d deframer
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		d.feed(buf[:n], frame)
		if errors.Is(err, io.EOF) {
			return d.bad, nil
		}
		if err != nil {
			return d.bad, err
		}
	}
}
