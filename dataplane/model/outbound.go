package model

import (
	"encoding/binary"

	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// service is what a backend's packet is.
type service uint8

const (
	serviceNone service = iota // no service of ours
	serviceReply
	serviceBad // from a service port, but not well formed
	serviceForeign
	serviceICMP
)

// outbound is a packet from a backend, not to a VIP.
func outbound(p *packet, from *table.Backend, t *Tables) Decision {
	kind, proof := p.returnService()
	fate := FateUnknown
	if p.later() && kind == serviceReply {
		if t.env.Fragment != nil {
			fate = t.env.Fragment(p.fragmentKey())
		}
		if fate == FateOther {
			kind = serviceNone
		}
	}
	d := Decision{Slot: from.Slot, Note: p.note(kind)}
	end := func(v Verdict, r table.Reason) Decision {
		d.Verdict, d.Reason = v, r
		return d
	}
	switch {
	case kind == serviceNone:
		return end(Pass, table.PassBackendOther)
	case t.notReturn(p.dst):
		return end(Pass, table.PassNotReturn)
	case kind == serviceBad:
		return end(Drop, table.DropMalformed)
	case kind == serviceForeign:
		return end(Drop, table.DropNotIKEv2)
	case kind == serviceICMP:
		return end(Drop, table.DropICMPError)
	}
	reason := table.ForwardReturn
	switch {
	case fate == FateReturn:
		reason = table.ForwardReturnFragment
	case p.later():
		reason = table.ForwardReturnUnknown
	}
	learn(&d, p, from, proof, t)
	vip := t.vipByIndex[from.VIP]
	return forward(d, p, reason, vip.Addr, true, t.toClient(p.dst), t)
}

// note is what to remember of a first fragment.
func (p *packet) note(kind service) *FragmentNote {
	if !p.more || p.later() || p.protocol != protoUDP && p.protocol != protoESP {
		return nil
	}
	switch kind {
	case serviceNone:
		return &FragmentNote{p.fragmentKey(), FateOther}
	case serviceReply:
		return &FragmentNote{p.fragmentKey(), FateReturn}
	}
	return nil
}

// returnService says what a backend's packet is, and what it proves.
func (p *packet) returnService() (service, ike.Proof) {
	switch {
	case p.protocol == protoESP, p.protocol == protoUDP && p.later():
		return serviceReply, ike.Proof{}
	case p.protocol == protoUDP && len(p.payload) < udpLen:
		return serviceBad, ike.Proof{}
	case p.protocol == protoUDP:
		port := binary.BigEndian.Uint16(p.payload)
		if !servicePort(port) {
			return serviceNone, ike.Proof{}
		}
		d := ike.Classify(port, p.payload[udpLen:])
		switch d.Kind {
		case ike.Malformed:
			return serviceBad, ike.Proof{}
		case ike.Foreign:
			return serviceForeign, ike.Proof{}
		}
		return serviceReply, d.Proof()
	case !p.later() && p.quotes(p.src, false):
		return serviceICMP, ike.Proof{}
	}
	return serviceNone, ike.Proof{}
}

// learn compares what the packet proves with the record, and asks for what is
// missing: an absent record, a weaker one, or one of a server that may not take
// openings while this one answered the client's opening.
func learn(d *Decision, p *packet, from *table.Backend, proof ike.Proof, t *Tables) {
	d.Proof = proof.Level
	e, recorded := t.record(from.VIP, table.IKE, p.dst)
	d.ServerTick = recorded == from
	stance := from.Stance[table.IKE-1]
	if proof.Level == 0 || !stance.Known() {
		return
	}
	evidence := &table.Evidence{Key: table.Key{Client: p.dst.As16(), Class: table.IKE},
		Slot: from.Slot, Saw: e.Slot, Level: proof.Level, Opening: proof.Opening}
	switch {
	case recorded == nil: // insert
	case recorded == from: // raise
		if proof.Level <= e.State {
			return
		}
	default: // replace
		if !proof.Opening || recorded.Stance[table.IKE-1] != table.Leave || !stance.MayTake() {
			return
		}
	}
	d.Evidence = evidence
}
