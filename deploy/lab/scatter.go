package lab

import (
	"context"
	"net/netip"

	"github.com/vpnlb/vpnlb/deploy/lab/peer"
)

// scatterPrefix is local in the client namespace as a whole: any address of it
// can be a client without being configured.
var scatterPrefix = netip.MustParsePrefix("198.18.64.0/18")

const scatterName = "scatter"

// startScatter lets new clients knock at all nodes at once.
func (l *Lab) startScatter(clients, ports, rate int) error {
	if err := l.inside(roleClient, func() error { return addLocal(scatterPrefix) }); err != nil {
		return err
	}
	return l.startErrand(scatterName, peer.ScatterConfig{
		VIP: vipAddr, Sources: scatterPrefix, Clients: clients, Ports: ports, Rate: rate,
	})
}

// endScatter waits for its end and reads the result.
func (l *Lab) endScatter(ctx context.Context) (r peer.ScatterResult, err error) {
	return r, l.endErrand(ctx, scatterName, &r)
}
