package node

import (
	"context"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/dataplane/forward"
	"github.com/vpnlb/vpnlb/node/config"
)

// obstacleInterval is how often the rules of other programs are looked at: they
// change when their service starts or an administrator is at work.
const obstacleInterval = 10 * time.Second

// foreignRules is what the last look at the rules of other programs found. Safe for
// concurrent use.
type foreignRules struct {
	texts atomic.Pointer[[]string] // chains that drop what must pass
	fault fault
}

// Ports of the traffic that must pass (RFC 3948, RFC 2865, MS-SSTP).
const portIKE4500, portRADIUS, portSSTP = 4500, 1812, 443

// passages lists what must pass this host's kernel: what the data plane leaves to it
// of clients' and servers' packets (all of it where the program runs in the network
// stack), the servers' own traffic where a gateway of the cluster serves them, and
// SSTP where TLS ends here.
func passages(cfg *config.Config, spec *state.Spec) []forward.Passage {
	var out []forward.Passage
	outside, inside := cfg.Dataplane.Outside, cfg.Dataplane.Inside
	for i := range spec.VIPs {
		vip := &spec.VIPs[i]
		anyone := unspecified(vip.Addr)
		if vip.SSTP == state.SSTPOffload || vip.SSTP == state.SSTPReencrypt {
			out = append(out, forward.Passage{Name: "SSTP to " + vip.Name, In: outside, Source: anyone, Dest: vip.Addr,
				Protocol: unix.IPPROTO_TCP, DstPort: portSSTP})
		}
		for j := range spec.Backends {
			b := &spec.Backends[j]
			if b.VIP != vip.ID {
				continue
			}
			out = append(out,
				forward.Passage{Name: "packets of clients to " + b.Name, In: outside, Out: inside, Source: anyone, Dest: b.Addr,
					Protocol: unix.IPPROTO_UDP, DstPort: portIKE4500},
				forward.Passage{Name: "replies of " + b.Name, In: inside, Out: outside, Source: vip.Addr, Dest: anyone,
					Protocol: unix.IPPROTO_UDP, SrcPort: portIKE4500})
			if len(spec.Gateways) > 0 {
				out = append(out, forward.Passage{Name: "own traffic of " + b.Name + " (RADIUS, directory)", In: inside, Out: outside, Source: b.Addr, Dest: anyone,
					Protocol: unix.IPPROTO_UDP, DstPort: portRADIUS})
			}
		}
	}
	return out
}

func unspecified(like netip.Addr) netip.Addr {
	if like.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// runObstacles looks for rules of other programs that drop what must pass, and says so
// in status. It changes nothing: they are not ours.
func (m *member) runObstacles(ctx context.Context) error {
	for {
		found, err := forward.Obstacles(passages(m.cfg, m.spec()))
		if m.foreign.fault.set(err) {
			m.log.Warn("look for rules of other programs", "error", err.Error())
		}
		texts := obstacleTexts(found)
		if old := m.foreign.texts.Swap(&texts); len(texts) > 0 && (old == nil || fmt.Sprint(*old) != fmt.Sprint(texts)) {
			m.log.Warn("rules of other programs drop packets", "chains", texts)
		}
		if !pause(ctx, obstacleInterval) {
			return nil
		}
	}
}

func obstacleTexts(found []forward.Obstacle) []string {
	var out []string
	for i := range found {
		out = append(out, found[i].Text())
	}
	return out
}
