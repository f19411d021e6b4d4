package gateway

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// errNoLinkLocal: IPv6 is off on the interface, or it has just come up.
var errNoLinkLocal = errors.New("the interface has no usable link-local address")

// NDSegment speaks Neighbour Discovery, for IPv6. Where the interface has no
// IPv6, opening works and asking does not.
type NDSegment struct {
	*packetSocket
	handle  *netlink.Handle
	source  netip.Addr // link-local address of the interface; not valid: none
	answers chan SegmentAnswer
}

// OpenND opens a packet socket for Neighbour Discovery on an Ethernet interface,
// in the network namespace of the calling thread. It needs CAP_NET_RAW.
func OpenND(name string) (*NDSegment, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	s, err := openPacket(name, etherIPv6, advertisementsOnly(), allNodesMAC)
	if err != nil {
		handle.Close()
		return nil, err
	}
	return &NDSegment{packetSocket: s, handle: handle, answers: make(chan SegmentAnswer, answerQueue)}, nil
}

// Answers delivers advertisements, asked for or not.
func (s *NDSegment) Answers() <-chan SegmentAnswer { return s.answers }

// Run reads until ctx ends, and closes the socket.
func (s *NDSegment) Run(ctx context.Context) error {
	if err := s.read(ctx, parseAdvertisement, s.answers); err != nil {
		return fmt.Errorf("read neighbour advertisements: %w", err)
	}
	return nil
}

// Close closes what Run does not: it comes after the last call.
func (s *NDSegment) Close() { s.handle.Close(); s.file.Close() }

// Check looks after the interface as for ARP, and for its link-local address:
// it may come late, or change.
func (s *NDSegment) Check() error {
	s.source = netip.Addr{}
	return s.packetSocket.Check()
}

// linkLocal is the source of what we say and ask: an address that has passed
// duplicate address detection (RFC 4862, section 5.4).
func (s *NDSegment) linkLocal() (netip.Addr, error) {
	if s.source.IsValid() {
		return s.source, nil
	}
	list, err := s.handle.AddrList(nil, unix.AF_INET6)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("list addresses of %s: %w", s.name, err)
	}
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		if ok && a.LinkIndex == s.index && addr.IsLinkLocalUnicast() && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED|unix.IFA_F_DEPRECATED) == 0 {
			s.source = addr
			return addr, nil
		}
	}
	return netip.Addr{}, errNoLinkLocal
}

// Announce sends an unsolicited advertisement with the router and override flags.
func (s *NDSegment) Announce(addr netip.Addr) error {
	return s.say("announce", addr, advertisement)
}

// Ask sends a solicitation to the solicited-node group of addr.
func (s *NDSegment) Ask(addr netip.Addr) error {
	return s.say("ask for", addr, solicitation)
}

func (s *NDSegment) say(verb string, addr netip.Addr, frame func(own [6]byte, source, target netip.Addr) []byte) error {
	if !addr.Is6() || addr.Is4In6() {
		return fmt.Errorf("%s %v: only IPv6 has neighbour discovery", verb, addr)
	}
	source, err := s.linkLocal()
	if err == nil {
		err = s.send(frame(s.mac, source, addr))
	}
	if err != nil {
		return fmt.Errorf("%s %v: %w", verb, addr, err)
	}
	return nil
}
