package peer

import (
	"context"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

const (
	movePeriod  = 4 * time.Second // between two changes of the interface identifier
	moveOverlap = time.Second     // the old address is still heard
)

// anotherOf draws another address of a client's /64, as a host with temporary
// addresses does (RFC 8981).
func anotherOf(a netip.Addr) netip.Addr {
	b := netip.PrefixFrom(a, keyBits6).Masked().Addr().As16()
	for i := keyBits6 / 8; i < len(b); i++ {
		b[i] = byte(rand.Uint32())
	}
	b[15] |= 2 // neither the prefix itself nor the address that names the client
	return netip.AddrFrom16(b)
}

// move takes the tunnel to another address of the client's /64 and tells the
// server, as MOBIKE does (RFC 4555 3.5). What is on its way to the old address
// is still heard for a while.
func (c *client) move(ctx context.Context, t *tunnel, to netip.AddrPort, readers *sync.WaitGroup) {
	c.mu.Lock()
	name := c.st.Client
	c.mu.Unlock()
	next, err := listenUDP(ctx, netip.AddrPortFrom(anotherOf(name), 0), clientReadBuffer)
	if err != nil {
		return // stay where we are
	}
	old := t.conn
	t.conn = next
	readers.Go(func() { c.read(t, next) })
	next.WriteToUDPAddrPort(t.alive(), to)
	time.AfterFunc(moveOverlap, func() { old.Close() })
	c.mu.Lock()
	c.st.Moves++
	c.mu.Unlock()
}
