package model

import (
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// Verdict is what becomes of a frame.
type Verdict uint8

// Verdicts.
const (
	Drop    Verdict = iota + 1
	Pass            // to the kernel, as Out
	Forward         // out of Interface, as Out: XDP_TX where it came from there, else a redirect
)

// String names the verdict.
func (v Verdict) String() string {
	switch v {
	case Drop:
		return "drop"
	case Pass:
		return "pass"
	case Forward:
		return "forward"
	}
	return "invalid"
}

// Decision is what becomes of a frame and what is to be remembered of it.
type Decision struct {
	Verdict   Verdict
	Reason    table.Reason
	Interface uint32     // of Forward: the physical exit; a VLAN device's tag is in Out
	Out       []byte     // the frame as it leaves, or the answer; nil when dropped. Never the caller's slice
	Slot      table.Slot // the server chosen, or the server that sent it; 0 none

	// Class is that of the record which a tick, Proof, Evidence or Sighting is about; 0
	// where there is none of them.
	Class table.Class
	// Proof is what a return packet proves, whether or not there is anything to
	// learn. Of class IKE it is counted: a sign that the server lives.
	Proof table.Confirmation
	// Evidence is what to write into pending; nil: nothing to learn.
	Evidence *table.Evidence
	// Sighting is to be remembered for Env.Sighted; nil: nothing.
	Sighting *Sighting
	// ClientTick: the client's record was used, by a packet that may be forged or
	// that anybody can draw from the recorded server. ServerTick: by one that only a
	// session with the recorded server draws; it sets the heard bit.
	ClientTick, ServerTick bool
	// Note is for the later pieces of a fragmented return datagram.
	Note *FragmentNote
}

// Sighting is a packet to a DSR server, whose replies nobody sees, that a client
// without a session there has no reason to send.
type Sighting struct {
	table.Key
	Level table.Confirmation
}

// Decide says what becomes of a frame that came in on a physical interface. It
// changes nothing, neither frame nor tables.
func Decide(frame []byte, ifindex uint32, t *Tables) Decision {
	d := decide(frame, ifindex, t)
	if d.Verdict == Pass && d.Out == nil {
		d.Out = append(make([]byte, 0, len(frame)), frame...)
	}
	return d
}

func decide(frame []byte, ifindex uint32, t *Tables) Decision {
	l, reason := t.arrive(frame, ifindex)
	if reason != 0 {
		return pass(reason)
	}
	p, ok := newPacket(frame, l)
	if !ok {
		return pass(table.PassOther)
	}
	vip, from := t.vips[p.dst], t.byAddr[p.src]
	sound := p.measure()
	switch {
	case vip != nil && !sound:
		return drop(table.DropMalformed)
	case vip != nil && from != nil:
		return drop(table.DropHairpin)
	case vip != nil:
		return inbound(&p, vip, t)
	case from != nil && !from.DSR && !sound:
		return drop(table.DropMalformed)
	case from != nil && !from.DSR:
		return outbound(&p, from, t)
	case sound:
		// A router inside may have something to say about a client's packet.
		if q, ok := p.quote(); ok {
			if to := t.byAddr[q.dst]; to != nil && !to.DSR && q.class(q.to, t.vipByIndex[to.VIP]) != 0 {
				return outbound(&p, to, t)
			}
		}
	}
	return pass(table.PassOther)
}

func pass(r table.Reason) Decision { return Decision{Verdict: Pass, Reason: r} }
func drop(r table.Reason) Decision { return Decision{Verdict: Drop, Reason: r} }

// end drops a packet, with what is known of it already.
func (d Decision) end(r table.Reason) Decision {
	d.Verdict, d.Reason = Drop, r
	return d
}
