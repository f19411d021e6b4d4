package node

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/node/admin"
)

func TestSegmentOf(t *testing.T) {
	for _, c := range []struct {
		self        string
		nets        []string
		count       int
		first, last string
	}{
		{"192.0.2.7", nil, 253, "192.0.2.1", "192.0.2.254"},
		{"192.0.2.7", []string{"198.51.100.1/24", "192.0.2.7/24"}, 253, "192.0.2.1", "192.0.2.254"},
		{"198.18.5.7", []string{"198.18.5.7/16"}, 253, "198.18.5.1", "198.18.5.254"},
		{"192.0.2.3", []string{"192.0.2.3/29"}, 5, "192.0.2.1", "192.0.2.6"},
		{"192.0.2.7", []string{"192.0.2.7/31"}, 1, "192.0.2.6", "192.0.2.6"},
		{"192.0.2.7", []string{"192.0.2.7/32"}, 0, "", ""},
		{"2001:db8::7", []string{"2001:db8::7/64"}, 0, "", ""},
	} {
		var nets []netip.Prefix
		for _, p := range c.nets {
			nets = append(nets, netip.MustParsePrefix(p))
		}
		got := segmentOf(netip.MustParseAddr(c.self), nets)
		if len(got) != c.count || c.count > 0 && (got[0].String() != c.first || got[len(got)-1].String() != c.last) {
			t.Errorf("%s in %v: %d addresses, %v", c.self, c.nets, len(got), got)
		}
		for _, a := range got {
			if a.String() == c.self {
				t.Errorf("%s would ask itself", c.self)
			}
		}
	}
}

// Who runs init where he meant join must not get a second cluster.
func TestVirtualInitBesideACluster(t *testing.T) {
	alone(t, func(t *testing.T, tw *town, only *vnode) {
		second := tw.node(2)
		// Nobody runs the node here: init makes the cluster and waits in vain.
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		var refused *admin.Error
		_, err := second.initCluster(t.Context(), admin.InitRequest{})
		if !errors.As(err, &refused) || refused.Status != http.StatusConflict || !strings.Contains(err.Error(), only.m.ids.Identity().Cluster().String()) {
			t.Errorf("init beside a cluster: %v", err)
		}
		if second.ids.Load().Identity().Member() {
			t.Error("a second cluster was made")
		}
		tw.isolate(second)
		if err := second.checkSegment(t.Context()); err != nil {
			t.Errorf("where nobody answers: %v", err)
		}
		tw.rejoin(second)
		_, err = second.initCluster(ctx, admin.InitRequest{Force: true})
		id := second.ids.Load().Identity()
		if !id.Member() || id.Cluster() == only.m.ids.Identity().Cluster() {
			t.Errorf("with --force: %v", err)
		}
		// The time is over before the node runs: there is a cluster all the same.
		if err == nil || !strings.Contains(err.Error(), id.Cluster().String()) || strings.Contains(err.Error(), "run again") {
			t.Errorf("init that did not see the node run: %v", err)
		}
	})
}
