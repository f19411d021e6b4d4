package node

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vpnlb/vpnlb/cluster/transport"
	"github.com/vpnlb/vpnlb/node/admin"
)

// segmentBits bounds how much of a segment is asked: 254 addresses.
const segmentBits = 24

// greetPatience is for a connection and a handshake on a local network. It is
// what init takes longer where addresses of the segment are not in use.
const greetPatience = 750 * time.Millisecond

// segmentOf lists the other IPv4 addresses of a node's segment: of the /24
// around it, or of the smaller network that one of its interfaces is in. An
// IPv6 segment cannot be asked address by address: none.
func segmentOf(self netip.Addr, nets []netip.Prefix) []netip.Addr {
	self = self.Unmap()
	if !self.Is4() {
		return nil
	}
	bits := segmentBits
	for _, p := range nets {
		if p.Contains(self) {
			bits = max(bits, p.Bits())
		}
	}
	all := netip.PrefixFrom(self, bits).Masked()
	var out []netip.Addr
	for a := all.Addr(); all.Contains(a); a = a.Next() {
		out = append(out, a)
	}
	if bits < 31 {
		out = out[1 : len(out)-1] // network and broadcast
	}
	return slices.DeleteFunc(out, func(a netip.Addr) bool { return a == self })
}

// checkSegment refuses where a node of a cluster answers on the segment of this
// node's cluster address, at the same port: who meant to join would else make
// a second cluster, and both would announce the same VIP.
func (n *Node) checkSegment(ctx context.Context) error {
	var nets []netip.Prefix
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return fmt.Errorf("list own addresses: %w", err)
	}
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			nets = append(nets, p)
		}
	}
	asked := ctx
	ctx, cancel := context.WithTimeout(asked, greetPatience)
	defer cancel()
	own := n.cfg.Cluster.Address
	var found error
	var once sync.Once
	var all sync.WaitGroup
	for _, a := range segmentOf(own.Addr(), nets) {
		all.Go(func() {
			at := netip.AddrPortFrom(a, own.Port()).String()
			name, err := transport.Greet(ctx, at, n.dial)
			if err != nil {
				return // nobody of ours
			}
			once.Do(func() {
				found = &admin.Error{Status: http.StatusConflict, Message: fmt.Sprintf("a node of cluster %s answers at %s: 'vpnlb cluster token' there prints the command by which this node joins it; add --force if this is to be another cluster", name.Cluster, at)}
				cancel()
			})
		})
	}
	all.Wait()
	if found == nil && asked.Err() != nil {
		return fmt.Errorf("look for a cluster on the segment: %w", asked.Err()) // nobody answers who was not waited for
	}
	return found
}
