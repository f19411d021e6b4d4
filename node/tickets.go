package node

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"slices"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
)

// Keys of TLS session tickets are agreed, so that a client resumes on whichever
// node it meets. The leader makes a new one every ticketRotation of cluster time.
// A key is told before it is used: the newest of the agreed ones only opens
// tickets until the next rotation, so that no node meets a ticket of a key that it
// has not heard of yet.
const (
	ticketKeys     = 4 // next, present, two old ones: a ticket opens for a day at least
	ticketRotation = 12 * time.Hour
	ticketBytes    = 32
)

// The secret is: format, cluster time of the last rotation, keys newest first.
const formatTickets = 1

type tickets struct {
	made state.Time
	keys [][ticketBytes]byte // the first is the next one
}

func (t *tickets) encode() []byte {
	out := binary.BigEndian.AppendUint64([]byte{formatTickets}, uint64(t.made))
	for _, k := range t.keys {
		out = append(out, k[:]...)
	}
	return out
}

// next is the set after one rotation, or the first one.
func (t *tickets) next(now state.Time) tickets {
	fresh := func() (k [ticketBytes]byte) {
		rand.Read(k[:]) // never fails (crypto/rand, Go 1.24)
		return k
	}
	out := tickets{made: now, keys: [][ticketBytes]byte{fresh()}}
	if len(t.keys) == 0 {
		out.keys = append(out.keys, fresh())
	}
	out.keys = append(out.keys, t.keys...)
	out.keys = out.keys[:min(len(out.keys), ticketKeys)]
	return out
}

// inUse is what TLS wants: first the key that new tickets get, then those that
// open others, the next one among them.
func (t *tickets) inUse() [][ticketBytes]byte {
	out := slices.Clone(t.keys)
	if len(out) > 1 {
		out[0], out[1] = out[1], out[0]
	}
	return out
}

// staleTickets reports whether the agreed set is to be followed by another one. What a
// removed node knows must open nothing: then all keys are new.
func staleTickets(spec *state.Spec, s *state.Secret, made, now state.Time) (stale, all bool) {
	for i := range spec.Removed {
		if spec.Removed[i].Index > s.Version {
			return true, true
		}
	}
	return now.Sub(made) >= ticketRotation, false
}

func decodeTickets(raw []byte) (tickets, error) {
	const head = 1 + 8
	if len(raw) < head || raw[0] != formatTickets || (len(raw)-head)%ticketBytes != 0 || len(raw)-head > ticketKeys*ticketBytes {
		return tickets{}, errors.New("the ticket keys in the agreed state are malformed, or of a newer version")
	}
	t := tickets{made: state.Time(binary.BigEndian.Uint64(raw[1:]))}
	for k := range slices.Chunk(raw[head:], ticketBytes) {
		t.keys = append(t.keys, [ticketBytes]byte(k))
	}
	return t, nil
}

// ticketKeys opens the agreed keys; none where no TLS ends on the nodes.
func (m *member) ticketKeys(spec *state.Spec) ([][ticketBytes]byte, error) {
	s, ok := spec.SecretByName(state.SecretTickets)
	if !ok || !endsTLS(spec) {
		return nil, nil
	}
	raw, err := transport.Open(m.ids.Identity().Secret, state.SecretTickets, s.Sealed)
	if err != nil {
		return nil, err
	}
	t, err := decodeTickets(raw)
	if err != nil {
		return nil, err
	}
	return t.inUse(), nil
}

func endsTLS(spec *state.Spec) bool {
	return slices.ContainsFunc(spec.VIPs, func(v state.VIP) bool { return v.SSTP.Ends() })
}

// rotateTickets is the leader's duty.
func (m *member) rotateTickets(ctx context.Context) {
	spec := m.spec()
	if !endsTLS(spec) {
		return
	}
	now := m.replica.Now()
	s, ok := spec.SecretByName(state.SecretTickets)
	var old tickets
	var version uint64
	if ok {
		version = s.Version
		if version != m.ticketsSeen {
			raw, err := transport.Open(m.ids.Identity().Secret, state.SecretTickets, s.Sealed)
			if err == nil {
				old, err = decodeTickets(raw)
			}
			if err != nil {
				m.log.Warn("ticket keys", "error", err.Error())
				return
			}
			m.ticketsSeen, m.ticketsHeld = version, old
		}
		old = m.ticketsHeld
		stale, all := staleTickets(spec, s, old.made, now)
		if !stale {
			return
		}
		if all {
			old.keys = nil
		}
	}
	next := old.next(now)
	sealed, err := m.seal(state.SecretTickets, next.encode())
	if err != nil {
		return
	}
	if m.propose(ctx, state.PutSecret{Name: state.SecretTickets, Sealed: sealed, Expect: version}) {
		m.log.Info("keys of session tickets changed")
	}
}
