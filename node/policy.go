package node

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/forward"
	"github.com/vpnlb/vpnlb/dataplane/sysctl"
	"github.com/vpnlb/vpnlb/node/config"
)

const (
	// policyInterval is how often the forward policy is looked at: somebody who
	// flushes the rules of the host opens this node for that long at most.
	policyInterval = 2 * time.Second
	// policyPoll is how often the end of the wait for the agreed state is looked for.
	// Until then all from outside is dropped, also what the data plane leaves to the
	// kernel: the routes are announced soon after.
	policyPoll = 50 * time.Millisecond
)

// closedPolicy lets nothing through from outside.
func closedPolicy(cfg *config.Config) forward.Policy {
	return forward.Policy{Outside: []string{cfg.Dataplane.Outside}, Inside: []string{cfg.Dataplane.Inside}}
}

// forwardPolicy is what the cluster wants the kernel to forward.
func forwardPolicy(cfg *config.Config, spec *state.Spec) forward.Policy {
	p := closedPolicy(cfg)
	p.Prefixes = spec.Settings.ForwardPrefixes
	for i := range spec.Backends {
		p.Servers = append(p.Servers, spec.Backends[i].Addr)
	}
	for i := range spec.VIPs {
		p.VIPs = append(p.VIPs, spec.VIPs[i].Addr)
		p.TCP = p.TCP || spec.VIPs[i].SSTP == state.SSTPPassthrough
	}
	return p
}

// guardForwarding closes this host before forwarding is switched on: until the agreed
// state is known it would be an open router, and send packets to a VIP back to the
// router they came from. After a restart of the daemon alone the policy that was agreed
// is there still, and stays.
func (m *member) guardForwarding() {
	written, err := forward.Guard(closedPolicy(m.cfg))
	if written {
		m.log.Info("no forward policy was there: nothing from outside is forwarded by the kernel until the agreed state is known")
	}
	m.notePolicy(err)
}

// runForwardPolicy keeps the kernel from forwarding what the cluster does not
// want. It begins when the agreed state is known.
func (m *member) runForwardPolicy(ctx context.Context) error {
	for !m.caughtUp.Load() && !m.cold.Load() {
		if !pause(ctx, policyPoll) {
			return nil
		}
	}
	var keeper forward.Keeper
	for {
		policy := forwardPolicy(m.cfg, m.spec())
		changed, err := keeper.Mend(policy)
		if changed {
			m.log.Info("forward policy written", "servers", len(policy.Servers), "prefixes", len(policy.Prefixes))
		}
		m.notePolicy(err)
		if !pause(ctx, policyInterval) {
			return nil
		}
	}
}

func (m *member) notePolicy(err error) {
	if m.policyFault.set(err) {
		m.log.Warn("forward policy", "error", err.Error())
	}
}

// A kernel setting is contested if something else has changed it contestedTimes, and
// for the last time within contestedFor: a change or two is an administrator at work.
const (
	contestedTimes = 3
	contestedFor   = 10 * time.Minute
)

// contested names the kernel settings that another program keeps changing; nil: none.
func contested(list []sysctl.SetBack, now time.Time) error {
	var keys []string
	for _, s := range list {
		if s.Times >= contestedTimes && now.Sub(s.Last) < contestedFor {
			keys = append(keys, s.Key)
		}
	}
	if len(keys) == 0 {
		return nil
	}
	return fmt.Errorf("something on this host keeps changing %s, and packets are lost until vpnlb sets it again: look for it in /etc/sysctl.d and at network managers, and exempt the interfaces of vpnlb there", strings.Join(keys, ", "))
}
