package model

import (
	"net/netip"

	"github.com/vpnlb/vpnlb/dataplane/table"
)

// inbound is a packet to a VIP, not from a backend.
func inbound(p *packet, vip *table.VIP, t *Tables) Decision {
	s := p.service(vip, false)
	switch s.kind {
	case kindOther:
		return inboundICMP(p, vip, t)
	case kindBad:
		return drop(table.DropMalformed)
	case kindForeign:
		return drop(table.DropNotIKEv2)
	}
	client := clientKey(vip, p.src)
	if t.set.SourceLimit != 0 && t.env.OverLimit != nil && t.env.OverLimit(table.Key{Client: client.As16(), Class: table.IKE}) {
		return drop(table.DropSourceLimit)
	}
	return steer(p, vip, &s, client, t)
}

// steer sends a client's packet to its server.
func steer(p *packet, vip *table.VIP, s *service, client netip.Addr, t *Tables) Decision {
	reason, slot := t.choose(vip, s.class, client, s.opening)
	d := Decision{Slot: slot}
	if reason == table.ForwardAffinity {
		d.ClientTick, d.Class = true, s.class
	}
	b, why := t.server(slot)
	if b == nil {
		return d.end(why)
	}
	if b.DSR {
		sight(&d, p, b, s, client, t)
	}
	return forward(d, p, &way{reason: reason, hop: t.toServer(slot), vip: vip.Addr, addr: b.Addr, dsr: b.DSR}, t)
}

// inboundICMP is what is no service: an ICMP error about a server's reply goes to
// that server, all else is the local stack's.
func inboundICMP(p *packet, vip *table.VIP, t *Tables) Decision {
	q, ok := p.quote()
	if !ok || q.src != vip.Addr {
		return pass(table.PassLocalVIP)
	}
	class := q.class(q.from, vip)
	if class == 0 {
		return pass(table.PassLocalVIP)
	}
	_, slot := t.choose(vip, class, clientKey(vip, q.dst), class == table.TCP)
	d := Decision{Slot: slot}
	b, why := t.server(slot)
	if b == nil {
		return d.end(why)
	}
	return forward(d, p, &way{reason: table.ForwardICMPError, hop: t.toServer(slot), vip: vip.Addr, addr: b.Addr, quote: &q, dsr: b.DSR}, t)
}

// server is who has the slot, or why nobody has.
func (t *Tables) server(slot table.Slot) (*table.Backend, table.Reason) {
	b := t.bySlot[slot]
	switch {
	case slot == 0:
		return nil, table.DropNoBackend
	case b == nil:
		return nil, table.DropTable
	}
	return b, 0
}
