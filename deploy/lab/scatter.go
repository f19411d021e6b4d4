package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"

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
	if err := os.Remove(l.path("log", scatterName+".log")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove old result: %w", err)
	}
	e := &embeddedPeers{l: l}
	return e.startPeer(scatterName, scatterName, roleClient, peer.ScatterConfig{
		VIP: vipAddr, Sources: scatterPrefix, Clients: clients, Ports: ports, Rate: rate,
	})
}

// endScatter waits for its end and reads the result.
func (l *Lab) endScatter(ctx context.Context) (r peer.ScatterResult, err error) {
	p := l.st.Processes[scatterName]
	if err := until(ctx, servedBound, "the scattered clients", func() (bool, error) { return !p.alive(), nil }); err != nil {
		return r, err
	}
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return r, fmt.Errorf("read scatter result: %w", err)
	}
	if err := json.Unmarshal(bytes.TrimSpace(b), &r); err != nil {
		return r, fmt.Errorf("decode scatter result %q: %w", b, err)
	}
	return r, nil
}
