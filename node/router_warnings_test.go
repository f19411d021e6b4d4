package node

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vpnlb/vpnlb/node/admin"
)

// A router that never came, one that sends routes and one whose message was refused
// are named with what to do.
func TestRouterWarnings(t *testing.T) {
	for name, c := range map[string]struct {
		nb   admin.Neighbour
		want string
	}{
		"well":          {admin.Neighbour{State: sessionUp, EverUp: true}, ""},
		"never came":    {admin.Neighbour{State: "active", OutSeconds: 60, Error: "connection refused"}, "has never been since this node started"},
		"just starting": {admin.Neighbour{State: "active", OutSeconds: 2}, "not established"},
		"gone":          {admin.Neighbour{State: "active", OutSeconds: 60, EverUp: true}, "not established for 1m"},
		"sends routes":  {admin.Neighbour{State: sessionUp, EverUp: true, DroppedUpdates: 3}, "configure an outbound deny"},
		"refused once":  {admin.Neighbour{State: sessionUp, EverUp: true, LastRefusal: "message of the unknown type 6"}, "unknown type 6"},
		"hold time 0":   {admin.Neighbour{State: "active", OutSeconds: 60, Error: "the router asks for a hold time of 0s"}, "hold time of 0s"},
	} {
		var got []string
		neighbourWarnings([]admin.Neighbour{c.nb, {State: sessionUp, EverUp: true}}, func(f string, a ...any) { got = append(got, fmt.Sprintf(f, a...)) })
		if all := strings.Join(got, "\n"); c.want == "" && all != "" || !strings.Contains(all, c.want) {
			t.Errorf("%s: %q, want %q", name, all, c.want)
		}
	}
}
