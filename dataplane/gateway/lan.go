package gateway

import (
	"context"
	"errors"
	"net/netip"
)

// LAN is one interface with both of its protocols: ARP for IPv4 addresses,
// Neighbour Discovery for IPv6 addresses.
type LAN struct {
	arp *ARPSegment
	nd  *NDSegment
}

// OpenLAN opens both on an Ethernet interface, in the network namespace of the
// calling thread. It needs CAP_NET_RAW.
func OpenLAN(name string) (*LAN, error) {
	arp, err := OpenARP(name)
	if err != nil {
		return nil, err
	}
	nd, err := OpenND(name)
	if err != nil {
		arp.file.Close()
		return nil, err
	}
	nd.answers = arp.answers // one queue for the Keeper
	return &LAN{arp: arp, nd: nd}, nil
}

// MAC is the interface's own.
func (l *LAN) MAC() [6]byte { return l.arp.MAC() }

// Announce says that the address is here.
func (l *LAN) Announce(addr netip.Addr) error { return l.of(addr).Announce(addr) }

// Ask asks who has the address.
func (l *LAN) Ask(addr netip.Addr) error { return l.of(addr).Ask(addr) }

func (l *LAN) of(addr netip.Addr) interface {
	Announce(netip.Addr) error
	Ask(netip.Addr) error
} {
	if addr.Is4() {
		return l.arp
	}
	return l.nd
}

// Answers delivers the answers of both.
func (l *LAN) Answers() <-chan SegmentAnswer { return l.arp.Answers() }

// Check says whether the interface is still the one that was opened.
func (l *LAN) Check() error { return errors.Join(l.arp.Check(), l.nd.Check()) }

// Run reads both until ctx ends or one fails, and closes the sockets.
func (l *LAN) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ended := make(chan error, 2)
	go func() { ended <- l.arp.Run(ctx) }()
	go func() { ended <- l.nd.Run(ctx) }()
	first := <-ended
	cancel()
	return errors.Join(first, <-ended)
}

// Close comes after the last call.
func (l *LAN) Close() { l.arp.file.Close(); l.nd.Close() }
