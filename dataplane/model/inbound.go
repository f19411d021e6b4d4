package model

import (
	"encoding/binary"

	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

func servicePort(port uint16) bool { return port == ike.Port || port == ike.NATPort }

// inbound is a packet to a VIP.
func inbound(p *packet, vip *table.VIP, t *Tables) Decision {
	switch {
	case p.later() && (p.protocol == protoUDP || p.protocol == protoESP):
		return steer(p, vip, true, t)
	case p.later():
		return pass(table.PassLocalVIP)
	case p.protocol == protoESP:
		return steer(p, vip, p.fragment(), t)
	case p.protocol == protoUDP:
		return inboundUDP(p, vip, t)
	case p.quotes(p.dst, true):
		return drop(table.DropICMPError)
	}
	return pass(table.PassLocalVIP)
}

func inboundUDP(p *packet, vip *table.VIP, t *Tables) Decision {
	if len(p.payload) < udpLen {
		return drop(table.DropMalformed)
	}
	port := binary.BigEndian.Uint16(p.payload[2:])
	if !servicePort(port) {
		return pass(table.PassLocalVIP)
	}
	d := ike.Classify(port, p.payload[udpLen:])
	switch d.Kind {
	case ike.Malformed:
		return drop(table.DropMalformed)
	case ike.Foreign:
		return drop(table.DropNotIKEv2)
	}
	return steer(p, vip, d.Opening() || p.fragment(), t)
}

// steer sends a client's packet to its server.
func steer(p *packet, vip *table.VIP, opening bool, t *Tables) Decision {
	reason, slot := t.choose(vip, table.IKE, p.src, opening)
	d := Decision{Slot: slot, ClientTick: reason == table.ForwardAffinity}
	if slot == 0 {
		d.Verdict, d.Reason = Drop, table.DropNoBackend
		return d
	}
	b := t.bySlot[slot]
	if b == nil {
		d.Verdict, d.Reason = Drop, table.DropTable
		return d
	}
	return forward(d, p, reason, b.Addr, false, t.toServer(slot), t)
}
