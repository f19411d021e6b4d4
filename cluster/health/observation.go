package health

import (
	"encoding/binary"
	"fmt"
	"math"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
)

// Seen is what one node observed of one class of one backend.
type Seen struct {
	Backend  state.BackendID
	Class    state.Class
	Opinion  Opinion
	Note     Note  // of the last probe that was not an answer, of either port; NoteInvalidKE if both answered
	Misses   uint8 // in a row, the worse port
	Answers  uint8 // in a row, the worse port
	Neutrals uint8 // in a row, the worse port
	// Age is how old the newest probe result is.
	Age time.Duration
	// Returned tells whether an ESP or SK packet of this server was counted on
	// the return path since this node began to count; Quiet is how long ago,
	// or, without any, how long this node has been counting. Where counting stands
	// still: see Returns.
	Returned bool
	Quiet    time.Duration
	// Failing tells for how long this node's own calls of SSTP have failed, 0
	// while they do not. Class TCP alone, in the place of Quiet: nothing is
	// counted of it.
	Failing time.Duration

	// Not on the wire, so 0 but for this node's own observation: for how long the
	// server has been missed, by the worse port, and how long ago the last question
	// but one that it left open was asked; 0: none.
	Missed, Before time.Duration
}

// Observation is everything one node observed. Boot and Sequence order the
// observations of one node: they may arrive by gossip and by RPC.
type Observation struct {
	Boot     uint64
	Sequence uint64
	Seen     []Seen // by backend, then class
}

// Encoding, big endian. Header: version, count (2), boot (8), sequence (8).
// Record: backend (4), class<<4|opinion, note, misses, answers, neutrals,
// age in 10 ms (2), quiet (of class TCP: failing) in 100 ms (2), flags.
const (
	observationVersion = 1
	observationHeader  = 19
	observationRecord  = 14
	maxSeen            = state.MaxBackends * len(state.Classes)
	ageUnit            = 10 * time.Millisecond
	quietUnit          = 100 * time.Millisecond
	flagReturned       = 1
)

// The largest observation fits its limit.
const _ = uint(MaxObservation - observationHeader - maxSeen*observationRecord)

// Encode gives at most MaxObservation bytes. Records above what a spec can
// hold are left out. Ages are rounded down and saturate.
func (o *Observation) Encode() []byte {
	seen := o.Seen[:min(len(o.Seen), maxSeen)]
	b := make([]byte, 0, observationHeader+len(seen)*observationRecord)
	b = append(b, observationVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(len(seen)))
	b = binary.BigEndian.AppendUint64(b, o.Boot)
	b = binary.BigEndian.AppendUint64(b, o.Sequence)
	for _, s := range seen {
		b = binary.BigEndian.AppendUint32(b, uint32(s.Backend))
		b = append(b, byte(s.Class)<<4|byte(s.Opinion), byte(s.Note), s.Misses, s.Answers, s.Neutrals)
		b = binary.BigEndian.AppendUint16(b, units(s.Age, ageUnit))
		long := s.Quiet
		if s.Class == state.ClassTCP {
			long = s.Failing
		}
		b = binary.BigEndian.AppendUint16(b, units(long, quietUnit))
		var flags byte
		if s.Returned {
			flags |= flagReturned
		}
		b = append(b, flags)
	}
	return b
}

func units(d, unit time.Duration) uint16 {
	return uint16(min(max(d, 0)/unit, math.MaxUint16))
}

// DecodeObservation reads what Encode wrote. The input comes from another
// node: everything is checked, nothing beyond its own size is allocated.
func DecodeObservation(b []byte) (Observation, error) {
	var o Observation
	if len(b) > MaxObservation {
		return o, fmt.Errorf("decode observation: %d bytes are more than %d", len(b), MaxObservation)
	}
	if len(b) < observationHeader {
		return o, fmt.Errorf("decode observation: %d bytes are less than a header", len(b))
	}
	if b[0] != observationVersion {
		return o, fmt.Errorf("decode observation: unknown version %d", b[0])
	}
	n := int(binary.BigEndian.Uint16(b[1:]))
	if n > maxSeen || len(b) != observationHeader+n*observationRecord {
		return o, fmt.Errorf("decode observation: %d records do not fit %d bytes", n, len(b))
	}
	o.Boot = binary.BigEndian.Uint64(b[3:])
	o.Sequence = binary.BigEndian.Uint64(b[11:])
	if n > 0 {
		o.Seen = make([]Seen, n)
	}
	for i := range o.Seen {
		r := b[observationHeader+i*observationRecord:][:observationRecord]
		s := Seen{
			Backend: state.BackendID(binary.BigEndian.Uint32(r)),
			Class:   state.Class(r[4] >> 4),
			Opinion: Opinion(r[4] & 15),
			Note:    Note(r[5]),
			Misses:  r[6], Answers: r[7], Neutrals: r[8],
			Age:      time.Duration(binary.BigEndian.Uint16(r[9:])) * ageUnit,
			Returned: r[13]&flagReturned != 0,
		}
		long := &s.Quiet
		if s.Class == state.ClassTCP {
			long = &s.Failing
		}
		*long = time.Duration(binary.BigEndian.Uint16(r[11:])) * quietUnit
		if (s.Class != state.ClassIKE && s.Class != state.ClassTCP) || s.Opinion > OpinionNeutral || r[13] > flagReturned {
			return Observation{}, fmt.Errorf("decode observation: record %d is not valid", i)
		}
		if i > 0 && !less(o.Seen[i-1], s) {
			return Observation{}, fmt.Errorf("decode observation: record %d is out of order", i)
		}
		o.Seen[i] = s
	}
	return o, nil
}

// less orders records by backend, then class; equal ones are not less.
func less(a, b Seen) bool {
	if a.Backend != b.Backend {
		return a.Backend < b.Backend
	}
	return a.Class < b.Class
}

// Of finds the record of a backend's class.
func (o *Observation) Of(id state.BackendID, c state.Class) (Seen, bool) {
	for _, s := range o.Seen {
		if s.Backend == id && s.Class == c {
			return s, true
		}
	}
	return Seen{}, false
}
