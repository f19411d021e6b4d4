package node

import (
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/vpnlb/vpnlb/cluster/state"
	"github.com/vpnlb/vpnlb/node/admin"
)

// A command that breaks a limit is answered by what is wrong with it, at once and
// on every node, whoever has to propose it.
func TestVirtualInvalidChange(t *testing.T) {
	inTown(t, func(t *testing.T, _ *town, nodes []*vnode) {
		long := strings.Repeat("x", 1000)
		for _, v := range nodes {
			for want, cmd := range map[string]state.Command{
				"PutVIP":    state.PutVIP{VIP: state.VIP{Name: "v", Addr: vipAddr, ClientBits: 64, Certificates: make([]string, 1000)}}, // by the leader
				"PutSecret": state.PutSecret{Name: long},
			} {
				began := time.Now()
				_, err := v.m.proposeChange(t.Context(), cmd)
				var refused *admin.Error
				if !errors.As(noQuorum(err), &refused) || refused.Status != http.StatusBadRequest || !strings.Contains(refused.Message, want) {
					t.Errorf("%s: %v", v.host, err)
				}
				if took := time.Since(began); took > time.Second {
					t.Errorf("%s: answered after %v", v.host, took)
				}
			}
		}
	})
}

func TestComplaintsAreRare(t *testing.T) {
	var c complaint
	now := time.Now()
	for _, s := range []struct {
		text  string
		after time.Duration
		want  bool
	}{{"a", 0, true}, {"a", time.Second, false}, {"b", 2 * time.Second, true}, {"b", 3 * time.Second, false}, {"b", againAfter + 3*time.Second, true}} {
		if got := c.due(s.text, now.Add(s.after)); got != s.want {
			t.Errorf("%q after %v: %t", s.text, s.after, got)
		}
	}
}
