package state

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Records of Learn, Touch, Expire and Forget are most of all log bytes: each
// begins with a flag byte, and the client takes 4 bytes for IPv4, 8 for a /64
// of IPv6, 16 for anything else.
//
//	bits 0-1  class (0 and 3 name none: Apply refuses them)
//	bits 2-3  form of the client: 0 IPv4, 1 upper half, 2 whole
//	bits 4-7  per command
const (
	formIPv4  = 0
	formUpper = 1
	formWhole = 2

	flagLearnState    = 4      // shift: confirmation, 2 bits
	flagLearnOpening  = 1 << 6 //
	flagLearnReplaces = 1 << 7 // Replaces follows, it is not 0
	flagTouchHeard    = 1 << 4
	flagExpireSeconds = 1 << 4 // Seen follows in whole seconds, not in nanoseconds
)

// Least bytes of each record.
const (
	sizeKey     = 1 + 4
	sizeLearned = sizeKey + 1
	sizeTouched = sizeKey + 2
	sizeExpired = sizeKey + 2
)

func (c *Client) is4() bool {
	return binary.BigEndian.Uint64(c[:8]) == 0 && binary.BigEndian.Uint32(c[8:12]) == 0xffff
}

func (c *Client) form() byte {
	switch {
	case c.is4():
		return formIPv4
	case binary.BigEndian.Uint64(c[8:]) == 0:
		return formUpper
	}
	return formWhole
}

// appendKey writes flag byte and client; flags has the bits 4-7.
func appendKey(b []byte, k *Key, flags byte) []byte {
	form := k.Client.form()
	b = append(b, flags|form<<2|min(byte(k.Class), 3))
	switch form {
	case formIPv4:
		return append(b, k.Client[12:]...)
	case formUpper:
		return append(b, k.Client[:8]...)
	}
	return append(b, k.Client[:]...)
}

func (r *reader) flagKey(known byte) (k Key, flags byte) {
	v := r.uint8()
	k.Class = Class(v & 3)
	form := v >> 2 & 3
	switch form {
	case formIPv4:
		k.Client[10], k.Client[11] = 0xff, 0xff
		copy(k.Client[12:], r.raw(4))
	case formUpper:
		copy(k.Client[:8], r.raw(8))
	case formWhole:
		k.Client = r.id()
	}
	flags = v & 0xf0
	if r.err == nil && (form > formWhole || k.Client.form() != form || flags&^known != 0) {
		r.fail(fmt.Errorf("%#02x are no flags of such a record", v))
	}
	return k, flags
}

func (r *reader) key() Key {
	k, _ := r.flagKey(0)
	return k
}

func appendLearn(b []byte, all []Learned) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for i := range all {
		l := &all[i]
		flags := byte(l.State&3) << flagLearnState
		if l.Opening {
			flags |= flagLearnOpening
		}
		if l.Replaces != 0 {
			flags |= flagLearnReplaces
		}
		b = binary.AppendUvarint(appendKey(b, &l.Key, flags), uint64(l.Backend))
		if l.Replaces != 0 {
			b = binary.AppendUvarint(b, l.Replaces)
		}
	}
	return b
}

func (r *reader) learned() (l Learned) {
	var flags byte
	l.Key, flags = r.flagKey(0xf0)
	l.State = Confirmation(flags >> flagLearnState & 3)
	l.Opening = flags&flagLearnOpening != 0
	l.Backend = BackendID(r.uint32())
	if flags&flagLearnReplaces != 0 {
		l.Replaces = r.uint64()
		if l.Replaces == 0 && r.err == nil {
			r.fail(errors.New("a record replaces index 0"))
		}
	}
	return l
}

func appendTouch(b []byte, all []Touched) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for i := range all {
		t := &all[i]
		var flags byte
		if t.Heard {
			flags = flagTouchHeard
		}
		b = binary.AppendUvarint(appendKey(b, &t.Key, flags), t.Index)
		b = binary.AppendUvarint(b, uint64(t.Age))
	}
	return b
}

func (r *reader) touched() (t Touched) {
	var flags byte
	t.Key, flags = r.flagKey(flagTouchHeard)
	t.Heard = flags != 0
	t.Index = r.uint64()
	t.Age = r.uint32()
	return t
}

func appendExpire(b []byte, all []Expired) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for i := range all {
		e := &all[i]
		flags, seen := byte(0), uint64(e.Seen)
		if e.Seen >= 0 && e.Seen%second == 0 {
			flags, seen = flagExpireSeconds, uint64(e.Seen/second)
		}
		b = binary.AppendUvarint(appendKey(b, &e.Key, flags), e.Index)
		b = binary.AppendUvarint(b, seen)
	}
	return b
}

// maxSeconds keeps a number of seconds within Time.
const maxSeconds = uint64(1<<63-1) / uint64(second)

func (r *reader) expired() (e Expired) {
	var flags byte
	e.Key, flags = r.flagKey(flagExpireSeconds)
	e.Index = r.uint64()
	if flags != 0 {
		e.Seen = Time(r.uint(maxSeconds)) * second
		return e
	}
	e.Seen = r.time()
	if r.err == nil && e.Seen >= 0 && e.Seen%second == 0 {
		r.fail(errors.New("whole seconds written as nanoseconds"))
	}
	return e
}

func appendForget(b []byte, all []Key) []byte {
	b = binary.AppendUvarint(b, uint64(len(all)))
	for i := range all {
		b = appendKey(b, &all[i], 0)
	}
	return b
}
