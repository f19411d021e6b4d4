package gateway

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

// ARP on Ethernet for IPv4 (RFC 826).
const (
	arpRequest = 1
	arpReply   = 2
	arpLen     = 28
	etherARP   = 0x0806
)

var broadcast = [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// ARPSegment speaks ARP, for IPv4.
type ARPSegment struct {
	*packetSocket
	answers chan SegmentAnswer
}

// OpenARP opens a packet socket for ARP on an Ethernet interface, in the network
// namespace of the calling thread. It needs CAP_NET_RAW.
func OpenARP(name string) (*ARPSegment, error) {
	s, err := openPacket(name, etherARP, nil)
	if err != nil {
		return nil, err
	}
	return &ARPSegment{packetSocket: s, answers: make(chan SegmentAnswer, answerQueue)}, nil
}

// Answers delivers replies, and announcements of others.
func (s *ARPSegment) Answers() <-chan SegmentAnswer { return s.answers }

// Run reads until ctx ends, and closes the socket.
func (s *ARPSegment) Run(ctx context.Context) error {
	if err := s.read(ctx, parseARP, s.answers); err != nil {
		return fmt.Errorf("read ARP: %w", err)
	}
	return nil
}

// Announce sends a gratuitous request and a gratuitous reply: stacks differ in
// which of the two they believe.
func (s *ARPSegment) Announce(addr netip.Addr) error {
	if !addr.Is4() {
		return fmt.Errorf("announce %v: only IPv4 has ARP", addr)
	}
	err := errors.Join(
		s.send(arpFrame(arpRequest, s.mac, addr, [6]byte{}, addr)),
		s.send(arpFrame(arpReply, s.mac, addr, broadcast, addr)))
	if err != nil {
		return fmt.Errorf("announce %v: %w", addr, err)
	}
	return nil
}

// Ask sends a probe (RFC 5227, section 1.1): its sender address is 0, so that no
// cache learns anything from it.
func (s *ARPSegment) Ask(addr netip.Addr) error {
	if !addr.Is4() {
		return fmt.Errorf("ask for %v: only IPv4 has ARP", addr)
	}
	if err := s.send(arpFrame(arpRequest, s.mac, netip.IPv4Unspecified(), [6]byte{}, addr)); err != nil {
		return fmt.Errorf("ask for %v: %w", addr, err)
	}
	return nil
}

// parseARP takes the sender of any ARP packet that names an address of its own:
// replies, and announcements, which are requests or replies for the sender itself
// (RFC 5227, section 3). Requests for something else are left alone.
func parseARP(frame []byte, own [6]byte) (SegmentAnswer, bool) {
	if len(frame) < etherLen+arpLen || binary.BigEndian.Uint16(frame[12:]) != etherARP {
		return SegmentAnswer{}, false
	}
	p := frame[etherLen:]
	if binary.BigEndian.Uint16(p) != 1 || binary.BigEndian.Uint16(p[2:]) != 0x0800 || p[4] != 6 || p[5] != 4 {
		return SegmentAnswer{}, false
	}
	a := SegmentAnswer{Addr: netip.AddrFrom4([4]byte(p[14:18])), MAC: [6]byte(p[8:14])}
	target := netip.AddrFrom4([4]byte(p[24:28]))
	op := binary.BigEndian.Uint16(p[6:])
	says := op == arpReply || op == arpRequest && target == a.Addr
	if !says || a.Addr.IsUnspecified() || a.MAC == own {
		return SegmentAnswer{}, false
	}
	return a, true
}

// arpFrame is one ARP packet from us to everybody.
func arpFrame(op uint16, own [6]byte, sender netip.Addr, targetMAC [6]byte, target netip.Addr) []byte {
	b := make([]byte, 0, etherLen+arpLen)
	b = append(b, broadcast[:]...)
	b = append(b, own[:]...)
	b = binary.BigEndian.AppendUint16(b, etherARP)
	b = append(b, 0, 1, 8, 0, 6, 4)
	b = binary.BigEndian.AppendUint16(b, op)
	b = append(b, own[:]...)
	s, t := sender.As4(), target.As4()
	b = append(b, s[:]...)
	b = append(b, targetMAC[:]...)
	return append(b, t[:]...)
}
