package model

import (
	"github.com/vpnlb/vpnlb/dataplane/ike"
	"github.com/vpnlb/vpnlb/dataplane/table"
)

const portTLS = 443 // of SSTP

func servicePort(port uint16) bool { return port == ike.Port || port == ike.NATPort }

// kind is what a packet to or from a server's port turns out to be.
type kind uint8

const (
	kindOther   kind = iota // no service of ours
	kindBad                 // not well formed
	kindForeign             // IKE of another major version
	kindLater               // a later fragment: no ports to see
	kindOurs                // a service of ours, well formed
)

// service is a packet as the services see it.
type service struct {
	kind     kind
	class    table.Class
	opening  bool
	datagram ike.Datagram // of UDP
}

// service reads the packet by the server's port: the destination of what comes
// in, the source of a reply. Nothing here knows of ICMP.
func (p *packet) service(vip *table.VIP, reply bool) service {
	s := service{class: classOf(p.protocol, vip)}
	switch {
	case p.broken:
		s.kind = kindBad
		return s
	case s.class == 0:
		return s
	case p.badPiece():
		s.kind = kindBad
		return s
	}
	s.opening = p.fragment() || s.class == table.TCP
	switch {
	case p.later():
		s.kind = kindLater
	case p.protocol == protoESP:
		s.kind = kindOurs
	case p.protocol == protoTCP:
		s.kind = p.kindTCP(reply)
	default:
		p.readUDP(&s, reply)
	}
	return s
}

// classOf says which service a protocol may carry at a VIP; 0: none.
func classOf(protocol uint8, vip *table.VIP) table.Class {
	switch {
	case protocol == protoUDP || protocol == protoESP:
		return table.IKE
	case protocol == protoTCP && vip.Passthrough:
		return table.TCP
	}
	return 0
}

// serverPort is the port on the server's side.
func (p *packet) serverPort(reply bool) uint16 {
	if reply {
		return port(p.payload)
	}
	return port(p.payload[2:])
}

func (p *packet) kindTCP(reply bool) kind {
	switch {
	case len(p.payload) < tcpLen:
		return kindBad
	case p.serverPort(reply) != portTLS:
		return kindOther
	}
	return kindOurs
}

func (p *packet) readUDP(s *service, reply bool) {
	if len(p.payload) < udpLen {
		s.kind = kindBad
		return
	}
	at := p.serverPort(reply)
	if !servicePort(at) {
		return
	}
	s.kind = kindOurs
	s.datagram = ike.Classify(at, p.payload[udpLen:], uint32(port(p.payload[4:]))-udpLen)
	switch s.datagram.Kind {
	case ike.Malformed:
		s.kind = kindBad
	case ike.Foreign:
		s.kind = kindForeign
	}
	s.opening = s.opening || s.datagram.Opening()
}
