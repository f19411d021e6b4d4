package model

import (
	"encoding/binary"

	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// outbound is a packet from a backend, not to a VIP.
func outbound(p *packet, from *table.Backend, t *Tables) Decision {
	d := Decision{Slot: from.Slot}
	service, proof, malformed := p.returnService()
	noted := p.more && !p.later() && (p.protocol == protoUDP || p.protocol == protoESP)
	switch {
	case malformed:
		d.Verdict, d.Reason = Drop, table.DropMalformed
		return d
	case !service:
		d.Verdict, d.Reason = Pass, table.PassBackendOther
		if noted {
			d.Note = &FragmentNote{p.fragmentKey(), FateOther}
		}
		return d
	case t.notReturn(p.dst):
		d.Verdict, d.Reason = Pass, table.PassNotReturn
		return d
	case p.protocol == protoICMP:
		d.Verdict, d.Reason = Drop, table.DropICMPError
		return d
	}
	reason := table.ForwardReturn
	if p.later() {
		reason = table.ForwardReturnUnknown
		if t.env.Fragment != nil {
			switch t.env.Fragment(p.fragmentKey()) {
			case FateOther:
				d.Verdict, d.Reason = Pass, table.PassBackendOther
				return d
			case FateReturn:
				reason = table.ForwardReturnFragment
			}
		}
	}
	if noted {
		d.Note = &FragmentNote{p.fragmentKey(), FateReturn}
	}
	vip := t.vipByIndex[from.VIP]
	learn(&d, p, from, proof, t)
	return forward(d, p, reason, vip.Addr, true, t.toClient(p.dst), t)
}

// returnService reports whether a backend's packet belongs to a service of ours,
// and what it proves.
func (p *packet) returnService() (service bool, proof ike.Proof, malformed bool) {
	switch {
	case p.protocol == protoESP, p.protocol == protoUDP && p.later():
		return true, ike.Proof{}, false
	case p.protocol == protoUDP && len(p.payload) < udpLen:
		return false, ike.Proof{}, true
	case p.protocol == protoUDP:
		port := binary.BigEndian.Uint16(p.payload)
		if !servicePort(port) {
			return false, ike.Proof{}, false
		}
		return true, ike.Classify(port, p.payload[udpLen:]).Proof(), false
	case p.later():
		return false, ike.Proof{}, false
	}
	return p.quotes(p.src, false), ike.Proof{}, false
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
