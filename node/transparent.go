package node

import (
	"context"
	"net/netip"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/transparent"
)

// transparentReplies lists where replies come from that this node is to take for
// its own: of each server of a VIP whose connections are made from the clients'
// addresses. A server that was removed keeps its rule until no record names it:
// its calls end in their own time.
func transparentReplies(spec *state.Spec, inside string) (out []transparent.Reply) {
	for i := range spec.Backends {
		b := &spec.Backends[i]
		if v, ok := spec.VIPByID(b.VIP); ok && v.SSTP.Ends() && v.Transparent {
			out = append(out, transparent.Reply{Interface: inside, Server: netip.AddrPortFrom(b.Addr, spec.SSTPPort(b))})
		}
	}
	return out
}

// replyInterval is how often the rules are looked at. A new server's first
// connection may come sooner; its SYN is repeated.
const replyInterval = time.Second

// runReplies keeps the kernel's rules for such replies equal to the agreement. It
// begins when the agreed state is known.
func (m *member) runReplies(ctx context.Context) error {
	for pause(ctx, replyInterval) {
		if !m.caughtUp.Load() && !m.cold.Load() {
			continue
		}
		wanted := transparentReplies(m.spec(), m.cfg.Dataplane.Inside)
		changed, err := transparent.Mend(wanted)
		if changed {
			m.log.Info("rules for replies of transparent connections written", "servers", len(wanted))
		}
		if m.repliesFault.set(err) {
			m.log.Warn("rules for replies of transparent connections", "error", err.Error())
		}
	}
	return nil
}

// nodesOf counts the members with a data plane.
func nodesOf(spec *state.Spec) (n int) {
	for i := range spec.Members {
		if spec.Members[i].Role != state.RoleWitness {
			n++
		}
	}
	return n
}

// refuseTransparent says why servers cannot be shown the clients' addresses; nil:
// they can.
func refuseTransparent(spec *state.Spec) error {
	if n := nodesOf(spec); n > 1 {
		return refuse("--sstp-transparent works with one node only, and this cluster has %d: a server answers to the client's address, so the gateway's owner gets the answer, who is seldom the node that holds the connection. Use --sstp passthrough where servers must see the clients' addresses", n)
	}
	return nil
}

// transparentWarnings tells of VIPs that were made transparent by a cluster of one
// node and are so still, and of rules that could not be written.
func (m *member) transparentWarnings(spec *state.Spec, add func(format string, args ...any)) {
	if f := m.repliesFault.get(); f != "" {
		add("transparent SSTP connections get no answer: %s", f)
	}
	warnTransparent(spec, add)
}

func warnTransparent(spec *state.Spec, add func(format string, args ...any)) {
	n := nodesOf(spec)
	if n < 2 {
		return
	}
	for i := range spec.VIPs {
		if v := &spec.VIPs[i]; v.SSTP.Ends() && v.Transparent {
			add("SSTP of VIP %s is transparent, which works with one node only, and there are %d: a server's answer goes to the gateway's owner, and calls through other nodes hang. Switch it off: 'vpnlb vip add %s %s --sstp-transparent=false'", v.Name, n, v.Name, v.Addr)
		}
	}
}
