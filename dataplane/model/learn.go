package model

import (
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

// learn compares what a reply proves with the record, and asks for what is
// missing: an absent record, a weaker one, or one of a server that may not take
// openings while this one answered the client's opening.
func learn(d *Decision, p *packet, from *table.Backend, s *service, t *Tables) {
	client := clientKey(t.vipByIndex[from.VIP], p.dst)
	if s.datagram.OfSA() && t.elsewhere(s.datagram.Header, client) {
		return // a request that came again, from an address that may be forged
	}
	proof := p.proof(s)
	if proof.Level == 0 && s.datagram.Kind != ike.Keepalive {
		return // anybody can draw it: neither evidence nor a sign of a session
	}
	e, recorded := t.record(from.VIP, s.class, client)
	if recorded == from {
		d.ServerTick, d.ClientTick, d.Class = proof.Level != 0, proof.Level == 0, s.class
	}
	if proof.Level != 0 {
		d.Proof, d.Class = proof.Level, s.class
	}
	stance := from.Stance[s.class-1]
	if proof.Level == 0 || !stance.Known() {
		return
	}
	switch {
	case recorded == nil: // insert
	case recorded == from: // raise
		if proof.Level <= e.State {
			return
		}
	default: // replace
		if !proof.Opening || !stance.MayTake() {
			return
		}
	}
	d.Evidence = &table.Evidence{Key: table.Key{Client: client.As16(), Class: s.class},
		Slot: from.Slot, Saw: e.Slot, Level: proof.Level, Opening: proof.Opening}
}

// elsewhere reports whether messages of the IKE SA went to another client of late.
func (t *Tables) elsewhere(h ike.Header, client netip.Addr) bool {
	return t.env.Elsewhere != nil && t.env.Elsewhere(SA{h.InitiatorSPI, h.ResponderSPI}, client.As16())
}

// proof is what a reply proves. A server that sends bytes of TCP has taken the
// connection; nobody does so without having heard from the client twice. A segment
// with SYN or RST may answer a forged one, whatever it carries.
func (p *packet) proof(s *service) ike.Proof {
	switch {
	case s.kind != kindOurs:
		return ike.Proof{}
	case p.protocol == protoESP:
		if len(p.payload) < ike.MinESPLen {
			return ike.Proof{}
		}
		return ike.Proof{Level: table.Confirmed}
	case p.protocol == protoUDP:
		return s.datagram.Proof()
	}
	header := int(p.payload[12]>>4) * 4
	if header < tcpLen || len(p.payload) <= header || p.payload[13]&(tcpSYN|tcpRST) != 0 {
		return ike.Proof{}
	}
	return ike.Proof{Level: table.Confirmed, Opening: true}
}

// sight is learn's counterpart for a DSR server, whose replies are not seen: what
// the client sends is believed when it was seen before.
func sight(d *Decision, p *packet, to *table.Backend, s *service, client netip.Addr, t *Tables) {
	if s.class != table.IKE || s.kind != kindOurs {
		return
	}
	e, recorded := t.record(to.VIP, s.class, client)
	level := p.sighted(s)
	switch {
	case level == 0, recorded != nil && (recorded != to || e.State >= level):
		return
	}
	key := table.Key{Client: client.As16(), Class: s.class}
	if level == table.Confirmed && recorded == nil {
		// The tunnel that follows a login: the second packet, and no sighting itself.
		if t.env.Sighted != nil && t.env.Sighted(key, table.EarnedSK) {
			d.Class, d.Evidence = s.class, &table.Evidence{Key: key, Slot: to.Slot, Level: table.EarnedSK}
		}
		return
	}
	d.Class, d.Sighting = s.class, &Sighting{key, level}
	// The pieces of a login come by one node, the tunnel that follows by another.
	inPieces := level == table.EarnedSK && p.more
	if inPieces || t.env.Sighted != nil && t.env.Sighted(key, level) {
		d.Evidence = &table.Evidence{Key: key, Slot: to.Slot, Saw: e.Slot, Level: level}
	}
}

// sighted is the level that a client's packet speaks for; 0: none.
func (p *packet) sighted(s *service) table.Confirmation {
	switch {
	case p.protocol == protoESP, s.datagram.SpeaksESP():
		return table.Confirmed
	case s.datagram.Protected():
		return table.EarnedSK
	}
	return 0
}
