package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/bgp"
	"github.com/vpnlb/vpnlb/cluster"
	"github.com/vpnlb/vpnlb/dataplane"
	"github.com/vpnlb/vpnlb/dataplane/forward"
	"github.com/vpnlb/vpnlb/dataplane/gateway"
	"github.com/vpnlb/vpnlb/dataplane/transparent"
	"github.com/vpnlb/vpnlb/raft"
)

// finish is what comes after the parts have ended: a store that was set aside is
// asked for, and a host that is no node any more is left as it was found,
// whichever way it left. What cannot be taken back is said and does not keep the
// node from joining again.
func (m *member) finish(ctx context.Context, err, closeErr error) error {
	var quarantine *raft.QuarantineError
	if errors.As(err, &quarantine) {
		err = m.afterQuarantine(ctx, quarantine)
	}
	switch {
	case errors.Is(err, errLeft):
		if fault := errors.Join(closeErr, m.cleanUp()); fault != nil {
			m.node.leftover = strings.ReplaceAll(fault.Error(), "\n", "; ")
			m.log.Error("clean up after leaving", "error", m.node.leftover)
		}
		return err
	case err == nil:
		return closeErr
	}
	return err
}

// clean takes back everything that a membership changed on this host.
func (m *member) clean() error { return m.node.cleanHost() }

func (n *Node) cleanHost() error {
	return errors.Join(gateway.DropAddresses(n.cfg.Dataplane.Inside), dataplane.Detach(PlaneConfig(&n.cfg)), forward.Remove(), transparent.Remove(), KernelSettings(&n.cfg).Restore())
}

// stop withdraws the routes first and takes the rest down after them; the data
// plane stays attached and forwards what still comes.
func (m *member) stop() {
	m.node.setStage(StageStopping, "withdrawing routes")
	m.node.notify.stopping()
	if m.speaker == nil {
		m.drainSSTP()
		return
	}
	m.waitOthers()
	others := m.othersAnnounce()
	if !others {
		m.drainSSTP() // who is sent away now finds nobody else
	}
	m.draining.Store(int32(bgp.StageStopping))
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := m.speaker.Stop(ctx); err != nil {
		m.log.Warn("withdraw routes", "error", err.Error())
	}
	if others {
		m.drainSSTP() // what still comes here goes on; the rest ends at the servers, too, bit by bit
	}
}

// dropAddresses removes the VIPs and gateways of the cluster that was left: a
// host that is no node must not answer for them.
func (m *member) dropAddresses() error { return gateway.DropAddresses(m.cfg.Dataplane.Inside) }

// depart ends the membership; everything but the stop is done.
func (m *member) depart() { m.leftOnce.Do(func() { close(m.left) }) }

// stopPatience bounds the wait for another node to announce: in a rolling
// restart the one before this may still be on its way up.
const stopPatience = 5 * time.Second

// waitOthers keeps the routes until another node announces, where there is
// another one at all.
func (m *member) waitOthers() {
	ctx, cancel := context.WithTimeout(context.Background(), stopPatience)
	defer cancel()
	for len(m.hints()) > 0 && m.anyAnnounced() {
		if m.othersAnnounce() {
			return
		}
		if !pause(ctx, 50*time.Millisecond) {
			return
		}
	}
}

func (m *member) othersAnnounce() bool {
	return slices.ContainsFunc(m.hints(), func(h cluster.Hints) bool { return len(h.Status.Announced) > 0 && !h.Status.Draining })
}
