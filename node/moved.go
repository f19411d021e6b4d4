package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/cluster/transport"
)

// A node whose cluster or gossip address in the node file was changed is
// searched by the others where it was. It reaches them, though, and its key says
// who it is: it tells its new address, and the leader's duties follow.

// moved is what the member calls itself now.
type movedRequest struct {
	Cluster string       `json:"cluster"`
	Gossip  string       `json:"gossip"`
	Addrs   []netip.Addr `json:"addrs"`
}

// elsewhere reports whether the member list has other addresses of this node
// than its node file.
func (m *member) elsewhere(self *state.Member) bool {
	return self.Cluster != m.cfg.Cluster.Address.String() || self.Gossip != m.cfg.Cluster.Gossip.String()
}

const movedInterval = 2 * time.Second

// tellMoved tells the new address to any member that is there, until this node
// has caught up; then tellAddresses keeps the whole entry true.
func (m *member) tellMoved(ctx context.Context) error {
	for !m.caughtUp.Load() {
		spec := m.spec()
		if self, ok := spec.MemberByID(m.self); ok && m.elsewhere(self) && m.removed.Load() == nil {
			err := m.tellMovedOnce(ctx, spec)
			if m.movedFault.set(err) {
				m.log.Warn("the others know this node under another address", "known", self.Cluster, "now", m.cfg.Cluster.Address.String(), "error", err.Error())
			}
			if err == nil {
				m.log.Info("told the new address", "known", self.Cluster, "now", m.cfg.Cluster.Address.String())
			}
		}
		if !pause(ctx, movedInterval) {
			return nil
		}
	}
	m.movedFault.set(nil)
	return nil
}

func (m *member) tellMovedOnce(ctx context.Context, spec *state.Spec) error {
	req := movedRequest{Cluster: m.cfg.Cluster.Address.String(), Gossip: m.cfg.Cluster.Gossip.String()}
	var err error
	if req.Addrs, err = m.presentAddresses(spec); err != nil {
		return err
	}
	err = errors.New("no other member is known")
	for i := range spec.Members {
		other := &spec.Members[i]
		if other.ID == m.self {
			continue
		}
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		err = m.transport.Call(call, transport.Target{Addr: other.Cluster, Node: other.ID}, pathMoved, req, nil)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("the node file gives this node the address %s, and no other member could be told: %w", req.Cluster, err)
}

// presentAddresses are this host's own ones now, without the cluster's.
func (m *member) presentAddresses(spec *state.Spec) ([]netip.Addr, error) {
	return ownAddresses(func(a netip.Addr) bool {
		_, gateway := spec.GatewayByAddr(a)
		_, vip := spec.VIPByAddr(a)
		return gateway || vip
	})
}

// serveMoved brings the new address of a member into the member list.
func (m *member) serveMoved(ctx context.Context, p transport.Peer, in movedRequest) (struct{}, error) {
	for _, addr := range []string{in.Cluster, in.Gossip} {
		if _, err := netip.ParseAddrPort(addr); err != nil {
			return struct{}{}, badJoin("%v", err)
		}
	}
	if len(in.Addrs) == 0 {
		return struct{}{}, badJoin("no address of the host is named")
	}
	if fault := joinClash(m.spec(), &joinRequest{Cluster: in.Cluster, Gossip: in.Gossip, Addrs: in.Addrs}); fault != "" {
		return struct{}{}, badJoin("%s", fault)
	}
	self, ok := m.spec().MemberByID(p.Node)
	if !ok {
		return struct{}{}, &transport.StatusError{Code: http.StatusForbidden, Reason: fmt.Sprintf("node %s is no member", p.Node)}
	}
	changed := *self
	changed.Cluster, changed.Gossip, changed.Addrs = in.Cluster, in.Gossip, in.Addrs
	outcomes, err := m.replica.Propose(ctx, state.UpdateMember{Member: changed})
	if err != nil {
		return struct{}{}, leaderHint(err)
	}
	if o := outcomes[0]; o.Code != state.OK {
		return struct{}{}, &transport.StatusError{Code: http.StatusConflict, Reason: o.Detail}
	}
	return struct{}{}, nil
}
